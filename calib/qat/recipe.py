"""The settings of a quantization-aware training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Every setting that decides the result; docs/quantization.md has the measurements behind the defaults.

    Attributes:
        epochs: passes over the pictures.
        batch: pictures a step.
        rate: Adam's highest learning rate, in the channels' units (`WeightQuantizer`): a weight moves by
            about this share of its channel's range a step. It rises over the first `warm_up` of the steps and
            falls to zero along a cosine.
        warm_up: share of the steps, 0..1.
        average: decay of the exponential moving average of the parameters, 0..1; the average is the result.
        mirror: show every picture mirrored left to right in one of two epochs, at random.
        seed: of the order of the pictures and of mirroring.
    """

    epochs: int = 8
    batch: int = 16
    rate: float = 3e-4
    warm_up: float = 0.05
    average: float = 0.98
    mirror: bool = True
    seed: int = 0

    @classmethod
    def of_bits(cls, bits: int, seed: int) -> Recipe:
        """The recipe for a graph whose narrowest weights have `bits` bits.

        8-bit weights start where training can only fine-tune; the higher rate and more passes were measured
        to be worse for them, and better for narrower ones.
        """
        return cls(seed=seed) if bits < 8 else cls(epochs=4, rate=1e-4, seed=seed)

    def dumps(self) -> str:
        """JSON, the keys in order."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)
