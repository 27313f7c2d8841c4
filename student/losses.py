"""What a student is trained for: logits against an annotated mask, a teacher's logits, or both.

All take float32 tensors and return one loss per sample, float32 [N], so that each sample keeps its own
teacher weight (the PicoSAM2 authors average the weight over the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Targets:
    """What a batch of N samples should become.

    Attributes:
        masks: float32 [N, 1, S, S], 0 or 1: the annotation, or the teacher's mask of unlabelled samples.
        teacher_logits: float32 [N, 1, S, S]; 0 where `taught` is 0.
        taught: float32 [N], 1 where the teacher was asked about the sample.
        labelled: float32 [N], 1 where `masks` is an annotation.
        predicted_iou: float32 [N] in 0..1, the teacher's own guess of its quality; 0 where not taught.
        agreement: float32 [N] in 0..1, IoU of the teacher's mask with the annotation in the picture; 1 for
            unlabelled samples, 0 where not taught.
        weight: float32 [N], how much each sample counts; 1 on average.
    """

    masks: Tensor
    teacher_logits: Tensor
    taught: Tensor
    labelled: Tensor
    predicted_iou: Tensor
    agreement: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Targets:
        return Targets(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of each sample against probabilities `target`: [N]."""
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))


def dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient of each sample, with 1 added above and below the line: [N]."""
    overlap = (probabilities * target).sum((1, 2, 3))
    total = (probabilities + target).sum((1, 2, 3))
    loss: Tensor = 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)
    return loss


def soft_iou(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - IoU of each sample, a probability being a part of a pixel, with 1 added above and below: [N]."""
    overlap = (probabilities * target).sum((1, 2, 3))
    union = (probabilities + target).sum((1, 2, 3)) - overlap
    loss: Tensor = 1.0 - (overlap + 1.0) / (union + 1.0)
    return loss


def paper_loss(logits: Tensor, targets: Targets) -> Tensor:
    """PicoSAM2's: a (MSE + Dice against the teacher) + (1 - a) (BCE + Dice against the mask).

    From arXiv 2506.18807. Probabilities are compared; a is the teacher's predicted IoU, here of each sample
    and not of the batch. Unlabelled samples have a = 1.
    """
    ours, teachers = torch.sigmoid(logits), torch.sigmoid(targets.teacher_logits)
    from_teacher = (ours - teachers).square().mean((1, 2, 3)) + dice(ours, teachers)
    from_label = cross_entropy(logits, targets.masks) + dice(ours, targets.masks)
    weight = torch.where(targets.labelled > 0, targets.predicted_iou.clamp(0.0, 1.0), 1.0) * targets.taught
    loss: Tensor = weight * from_teacher + (1.0 - weight) * from_label
    return loss


def teacher_weight(targets: Targets, most: float) -> Tensor:
    """How far each sample follows its teacher's probabilities instead of its mask: [N] in 0..most.

    0 where the teacher's mask has an IoU of 0.5 or less with the annotation, rising linearly to `most` where
    they agree: a teacher who means another object teaches nothing.
    """
    return most * (2.0 * targets.agreement - 1.0).clamp(0.0, 1.0) * targets.taught


def soft_loss(
    logits: Tensor, targets: Targets, most: float, entropy_weight: float = 1.0, overlap: str = "iou"
) -> Tensor:
    """Ours: overlap with the mask, and cross-entropy against a blend of mask and teacher.

    The blend carries what an annotation does not say: where an outline is uncertain, and by how much. Soft
    IoU is what is measured: where a prompt is ambiguous, the pixels with a probability of 0.5 are not the
    best answer, and cross-entropy alone pulls there (too small on large objects, docs/training.md).

    Args:
        most: see `teacher_weight`; 0 is training without a teacher.
        entropy_weight: of cross-entropy; the overlap has 1.
        overlap: the soft measure of overlap, `iou` or `dice`.
    """
    weight = teacher_weight(targets, most).view(-1, 1, 1, 1)
    blend = (1.0 - weight) * targets.masks + weight * torch.sigmoid(targets.teacher_logits)
    measure = soft_iou if overlap == "iou" else dice
    return entropy_weight * cross_entropy(logits, blend) + measure(torch.sigmoid(logits), targets.masks)
