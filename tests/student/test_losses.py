"""Losses: known values, each sample with its own teacher weight, and what each one pulls towards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from student.losses import Targets, cross_entropy, dice, paper_loss, soft_iou, soft_loss, teacher_weight


def targets(count: int = 3, **changed: list[float]) -> Targets:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(count, 1, 8, 8, generator=generator) > 0.5).float()
    facts = {"taught": [1.0], "labelled": [1.0], "predicted_iou": [0.8], "agreement": [0.9], "weight": [1.0]}
    columns = {
        name: torch.tensor((changed.get(name) or value * count)[:count]) for name, value in facts.items()
    }
    return Targets(masks, 4.0 * torch.randn(count, 1, 8, 8, generator=generator), **columns)


@pytest.mark.parametrize(("overlap", "least"), [("iou", 5 / 13), ("dice", 9 / 17)])
def test_the_loss_of_known_predictions(overlap: str, least: float) -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[:, :, :2] = 1.0
    nothing = torch.zeros(2)
    given = Targets(masks, torch.zeros_like(masks), nothing, nothing + 1, nothing, nothing, nothing + 1)
    assert soft_loss((masks * 2 - 1) * 50, given, 0.5, 1.0, overlap).tolist() == pytest.approx(
        [0.0, 0.0], abs=1e-6
    )
    expected = 0.25 * np.log(2) + 1 - least
    found = soft_loss(torch.zeros_like(masks), given, 0.5, 0.25, overlap)
    assert found.tolist() == pytest.approx([expected] * 2, abs=1e-6)


def test_soft_iou_is_the_iou_of_whole_masks() -> None:
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (torch.rand(5, 1, 32, 32, generator=generator) > 0.4 for _ in range(2))
    exact = (ours & theirs).sum((1, 2, 3)) / (ours | theirs).sum((1, 2, 3))
    assert torch.allclose(1.0 - soft_iou(ours.float(), theirs.float()), exact, atol=2e-3)


def test_the_papers_loss_blends_per_sample() -> None:
    given = targets(predicted_iou=[0.0, 1.0, 0.25])
    logits = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ours, teachers = torch.sigmoid(logits), torch.sigmoid(given.teacher_logits)
    from_teacher = (ours - teachers).square().mean((1, 2, 3)) + dice(ours, teachers)
    from_label = soft_loss(logits, given, 0.0, 1.0, "dice")
    weight = torch.tensor([0.0, 1.0, 0.25])
    assert torch.allclose(paper_loss(logits, given), weight * from_teacher + (1 - weight) * from_label)


def test_samples_without_a_teacher_learn_from_their_label_alone() -> None:
    given = targets(taught=[0.0, 0.0, 0.0], agreement=[0.0] * 3)
    logits = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = cross_entropy(logits, given.masks)
    assert torch.allclose(paper_loss(logits, given), plain + dice(torch.sigmoid(logits), given.masks))
    assert torch.allclose(soft_loss(logits, given, 0.5), plain + soft_iou(torch.sigmoid(logits), given.masks))


def test_unlabelled_samples_follow_the_teacher_in_the_papers_loss() -> None:
    given = targets(labelled=[0.0] * 3, predicted_iou=[0.1] * 3)
    loss = paper_loss(given.teacher_logits, given)
    teachers = torch.sigmoid(given.teacher_logits)
    assert torch.allclose(loss, dice(teachers, teachers))


def test_a_teacher_who_means_another_object_has_no_weight() -> None:
    given = targets(agreement=[0.3, 0.75, 1.0])
    assert teacher_weight(given, 0.6).tolist() == pytest.approx([0.0, 0.3, 0.6])


def test_the_soft_loss_is_least_at_the_blend() -> None:
    """Away from the overlap's pull: the other part's gradient is zero where probability and blend agree."""
    given = targets(agreement=[1.0] * 3)
    weight = 0.5
    blend = (1 - weight) * given.masks + weight * torch.sigmoid(given.teacher_logits)
    logits = torch.logit(blend.clamp(1e-6, 1 - 1e-6)).requires_grad_()
    loss = (soft_loss(logits, given, weight) - soft_iou(torch.sigmoid(logits), given.masks)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6
