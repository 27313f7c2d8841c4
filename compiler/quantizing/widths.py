"""How many bits each layer's weights get: the least loss under a limit of memory.

The loss of a layer at 4 or 2 bits is measured alone, with every other layer at 8, by the exact simulator on
calibration crops; its bytes are the forecast's. Losses are added up as if they were independent, and the
multiple-choice knapsack is solved exactly (scipy's HiGHS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compiler.quantizing.ways import OnProgress
from compiler.quantizing.yardstick import Yardstick
from passes.errors import TargetViolation
from passes.imx500.memory import forecast_memory

if TYPE_CHECKING:
    from calib.widths import Means

BITS = (8, 4, 2)
"""Widths the chip stores: a byte, half of one, a quarter."""


@dataclass(frozen=True)
class Option:
    """A layer at a width.

    Attributes:
        layer: name of its weight quantizer.
        bits: 8, 4 or 2.
        loss: calib.qat.losses.distillation on the calibration crops more than with 8 bits everywhere, at
            least 0 (measured).
        saved: bytes of model memory less than with 8 bits (forecast).
    """

    layer: str
    bits: int
    loss: float
    saved: int


@dataclass(frozen=True)
class Widths:
    """The chosen widths.

    Attributes:
        asked: `4` or `mixed`.
        memory_target: bytes asked for, of the whole network with activations; None for `4`.
        bits: weight quantizer -> bits, of every layer that could be narrower.
        options: what was measured to choose from; empty for `4`.
    """

    asked: str
    memory_target: int | None
    bits: dict[str, int]
    options: tuple[Option, ...]

    @property
    def narrow(self) -> dict[str, int]:
        """Those that are narrower than 8 bits."""
        return {layer: bits for layer, bits in self.bits.items() if bits < 8}

    @property
    def uniform(self) -> int | None:
        """The one width of every layer that could be narrower; None where they differ."""
        found = set(self.bits.values()) or {8}
        return found.pop() if len(found) == 1 else None


def uniform(quantized: ir.Model, bits: int, progress: OnProgress) -> Widths:
    """The same width wherever it saves memory (docs/memory.md has where it does not)."""
    from calib.widths import narrowable, with_widths

    total, layers = forecast_memory(quantized).total_bytes, narrowable(quantized)
    saves = {}
    for place, layer in enumerate(layers):
        progress("memory of the layers", place / len(layers))
        saves[layer] = forecast_memory(with_widths(quantized, {layer: bits})).total_bytes < total
    return Widths(str(bits), None, {layer: bits if saves[layer] else 8 for layer in layers}, ())


def mixed(
    quantized: ir.Model,
    yardstick: Yardstick,
    means: Means | None,
    target: int,
    persistency: bool,
    progress: OnProgress,
) -> Widths:
    """Widths of the least loss with which the network needs at most `target` bytes.

    Args:
        quantized: 8-bit, with unrounded weights.
        yardstick: of the calibration crops.
        means: of the layers' inputs (`calib.widths.input_means`).
        target: bytes of weights and activations and what the chip reserves, as `picosam2 check` adds them up.
        persistency: the input stays in memory.

    Raises:
        TargetViolation: not even 2 bits everywhere are enough.
    """
    from calib.widths import narrowable, with_widths

    layers = narrowable(quantized)
    total = forecast_memory(quantized, input_persistency=persistency).total_bytes
    if total <= target:
        return Widths("mixed", target, dict.fromkeys(layers, 8), ())
    base, options = yardstick.distance(quantized), []
    for place, layer in enumerate(layers):
        for index, bits in enumerate(BITS[1:]):
            progress("sensitivity of the layers", (place + index / 2) / len(layers))
            narrow = with_widths(quantized, {layer: bits}, means)
            saved = total - forecast_memory(narrow, input_persistency=persistency).total_bytes
            if saved <= 0:
                continue
            loss = max(0.0, yardstick.distance(narrow) - base)
            options.append(Option(layer, bits, loss, saved))
    most = {one.layer: max(other.saved for other in options if other.layer == one.layer) for one in options}
    least = total - sum(most.values())
    if least > target:
        raise TargetViolation(
            "--memory-target",
            f"{target} bytes",
            f"at least {least} bytes, which it needs with 2-bit weights wherever the chip takes them",
            "give a larger target, a smaller network or a smaller input",
        )
    bits_of = dict.fromkeys(layers, 8) | {one.layer: one.bits for one in least_loss(options, total - target)}
    return Widths("mixed", target, bits_of, tuple(options))


def least_loss(options: Sequence[Option], needed: int) -> list[Option]:
    """At most one option of each layer, that save `needed` bytes together at the least sum of losses.

    Of equal losses the one that saves more. The options of all layers together have to save enough.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    largest = max((one.loss for one in options), default=0.0) or 1.0
    most = max((one.saved for one in options), default=0) or 1
    # A millionth of the largest loss breaks ties, and is what the solver still tells apart.
    cost = np.array([one.loss / largest - 1e-6 * one.saved / most for one in options])
    layers = list(dict.fromkeys(one.layer for one in options))
    of_layer = np.array([[one.layer == layer for one in options] for layer in layers], float)
    saved = np.array([[one.saved for one in options]], float)
    found = milp(
        cost,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(of_layer, 0, 1), LinearConstraint(saved, needed, np.inf)],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise AssertionError(found.message)
    return [one for one, taken in zip(options, found.x, strict=True) if taken > 0.5]
