"""How far the quantized network's outputs are from the float network's: one number per output, no labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-12
"""Keeps the division by the size of an output that is zero everywhere."""


def distillation(quantized: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Sum over the outputs, each [N, ...] float32, with the measure that fits what the output is.

    A map of one channel is a mask's logits: the cross entropy with the float network's probabilities. Several
    channels are classes' logits: the Kullback-Leibler divergence. Anything else: the squared error as a share
    of the output's own square. The first two are less their value at equality, so that equal outputs have 0.
    """
    return torch.stack([_one(q, r) for q, r in zip(quantized, real, strict=True)]).sum()


def _one(quantized: Tensor, real: Tensor) -> Tensor:
    if real.ndim == 4 and real.shape[1] == 1:
        target = torch.sigmoid(real)
        least = F.binary_cross_entropy_with_logits(real, target)
        return F.binary_cross_entropy_with_logits(quantized, target) - least
    if real.ndim in (2, 4) and real.shape[1] > 1:
        found, wanted = F.log_softmax(quantized, 1), F.log_softmax(real, 1)
        return (wanted.exp() * (wanted - found)).sum(1).mean()
    return F.mse_loss(quantized, real) / real.square().mean().clamp(min=SMALLEST)
