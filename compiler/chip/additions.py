"""Additions on the chip: the shifts that bring both operands to one scale.

Thresholds are powers of two, so an addition needs no multiplier. With R the larger of the two operands'
thresholds, the registers in cfgA.bin hold

    of a fused convolution   log2(T / R)         for its unrounded result
    of a stored operand      16 + log2(T / R), one less where it is unsigned
    of the result            log2(2 R / T_out)   and then 16 bits to drop

So a stored 8-bit operand gets 16 bits behind the point, and the result of the fused convolution, which keeps
its own multipliers, shifts and threshold, is added with as many: the quantizer that the ONNX file has
between the two rounds nothing on the chip. (The registers say so; only a chip can confirm it.)

Which convolution is fused says `fused_convolution`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.chip.layer import ChipLayer, round_shift
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.requantization import Rounding
from passes.graph import is_quantizer

NUMBER_BITS = 8
"""Of what the chip adds up, but for what comes right from a convolution."""

FRACTION_BITS = 16
"""Bits behind an 8-bit number's point while an addition is under way."""


@dataclass(frozen=True)
class AdditionShifts:
    """The registers of a fused addition: left shifts, in bits.

    Attributes:
        convolution: of the fused convolution's result, 0 or negative.
        stored: of the other operand, which comes from memory.
        result: of the halved sum, before 16 bits are dropped.
    """

    convolution: int
    stored: int
    result: int


def addition_shifts(convolution: Grid, stored: Grid, result: Grid) -> AdditionShifts:
    """The shifts for 8-bit grids, from the three quantizers' thresholds."""
    thresholds = [_log2_threshold(grid) for grid in (convolution, stored)]
    common = max(thresholds)
    return AdditionShifts(
        thresholds[0] - common,
        FRACTION_BITS + thresholds[1] - common - int(not stored.signed),
        1 + common - _log2_threshold(result),
    )


def fused_convolution(add: ir.Node) -> ir.Node | None:
    """The Conv that runs as one step with an Add of the quantized graph, None where the Add runs alone.

    It is the first operand that is a convolution of one group with no activation and no other reader (as in
    `passes.imx500.layers`, which was fitted to the converter's own reports), both operands of one shape. The
    other operand and the sum have 8 bits; the convolution's own quantizer may have 16.
    """
    first, second = add.inputs
    if first is None or second is None or first is second or first.shape != second.shape or _sum_is_wide(add):
        return None
    for value, stored in ((first, second), (second, first)):
        if _is_wide(stored.producer()):
            continue
        quantizer = _sole_producer(value)
        made = None if quantizer is None or not is_quantizer(quantizer) else quantizer.inputs[0]
        node = None if made is None else _sole_producer(made)
        if node is not None and node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1:
            return node
    return None


def _sum_is_wide(add: ir.Node) -> bool:
    """The sum, perhaps behind a ReLU or Clip, is quantized to more than 8 bits."""
    readers = add.outputs[0].consumers()
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = readers[0].outputs[0].consumers()
    return any(_is_wide(reader) for reader in readers)


def _is_wide(quantizer: ir.Node | None) -> bool:
    """An activation quantizer of more than 8 bits."""
    if quantizer is None or not is_quantizer(quantizer):
        return False
    return (quantizer.attributes.get_int("num_bits") or 0) > NUMBER_BITS


def _sole_producer(value: ir.Value) -> ir.Node | None:
    """The node that makes a value with one reader."""
    return None if value.is_graph_output() or len(value.uses()) != 1 else value.producer()


def _log2_threshold(grid: Grid) -> int:
    return grid.exponent + grid.bits - int(grid.signed)


def add_fused(
    accumulators: NDArray[np.int64],
    layer: ChipLayer,
    stored: NDArray[np.int64],
    stored_grid: Grid,
    result_grid: Grid,
    rounding: Rounding,
    *,
    saturate: bool = True,
    channel_axis: int = 1,
) -> NDArray[np.int64]:
    """clamp(round(convolution + stored)) with the convolution's result not rounded before.

    Exact but for the one rounding; the chip's 16 bits behind the point are taken as enough.

    Args:
        accumulators: of the fused convolution over x, int64.
        stored: integers of the other operand, of the accumulators' shape.
        saturate: clamp the convolution's result to its own quantizer's range first; not known of the chip.
    """
    shape = [1] * accumulators.ndim
    shape[channel_axis] = -1
    fraction = layer.right_shift.reshape(shape)
    products = accumulators + layer.accumulator_bias.reshape(shape)
    products = products * layer.multiplier.astype(np.int64).reshape(shape)
    own = layer.output_grid
    if saturate:
        one = np.int64(1) << np.maximum(fraction, 0)
        products = np.clip(products, own.lowest * one, (layer.highest + 1) * one - 1)
    align = fraction + stored_grid.exponent - own.exponent
    drop = fraction + result_grid.exponent - own.exponent
    spare = np.maximum(0, np.maximum(-align, -drop))
    total = (products << spare) + (stored << (align + spare))
    rounded = round_shift(total, drop + spare, rounding)
    return np.clip(rounded, result_grid.lowest, result_grid.highest)
