"""Weight thresholds that the chip can represent.

The chip multiplies a channel's sum by an 8-bit number and shifts it. Steps of activations are powers of two,
so the multiplier holds the threshold's mantissa: with more than 8 bits there the channel's gain is wrong by
up to 1/255 of itself (docs/numerics.md). A threshold with an 8-bit mantissa costs nothing and is exact; then
the ONNX, the simulator and the compiled file mean the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from passes.graph import const_array, from_proto, set_constant, to_proto

MANTISSA_BITS = 8
"""Of the multiplier: whole numbers 128..255."""

WEIGHTS = ("WeightsSymmetricQuantizer",)
"""Quantizers of weights whose thresholds need not be powers of two; not WeightsPOTQuantizer."""


def representable(thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest numbers m * 2^e with whole m in 128..255; any shape, positive, halves to even m."""
    return _with_mantissas(thresholds, np.round)


def _with_mantissas(
    thresholds: NDArray[np.float32], whole: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    mantissa, exponent = np.frexp(thresholds)
    kept = whole(np.ldexp(mantissa, MANTISSA_BITS))
    result: NDArray[np.float32] = np.ldexp(kept, exponent - MANTISSA_BITS).astype(np.float32)
    return result


def squared_error(
    weight: NDArray[np.float32], thresholds: NDArray[np.float32], bits: int
) -> NDArray[np.float64]:
    """Of rounding each channel; `thresholds` broadcast with `weight` and give the result its shape."""
    axes = tuple(axis for axis, size in enumerate(thresholds.shape) if size == 1)
    difference = rounded(weight, thresholds, bits) - weight
    error: NDArray[np.float64] = np.square(difference, dtype=np.float64).sum(axis=axes, keepdims=True)
    return error


def rounded(weight: NDArray[np.float32], thresholds: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """What a symmetric quantizer makes of weights; `thresholds` broadcast with them."""
    levels = np.float32(2 ** (bits - 1))
    step = thresholds / levels
    return np.clip(np.round(weight / step), -levels, levels - 1) * step


def with_representable_thresholds(quantized: ir.Model) -> ir.Model:
    """A copy of a vendor-dialect graph whose weight thresholds the chip represents.

    Of the two next to a channel's threshold the one with the smaller squared error of its weights. Weights
    stay as they are, not yet rounded.
    """
    copy = from_proto(to_proto(quantized))
    for node in copy.graph:
        if node.op_type in WEIGHTS:
            thresholds = const_array(node.inputs[1])
            if thresholds is not None and (thresholds > 0).all():
                value = node.inputs[1]
                name = "thresholds" if value is None else f"{value.name}/representable"
                weight = const_array(node.inputs[0])
                assert weight is not None
                bits = node.attributes.get_int("num_bits", 8)
                shaped = thresholds.reshape(threshold_shape(node, weight.ndim))
                near = [_with_mantissas(shaped, whole) for whole in (np.floor, np.ceil)]
                below, above = (squared_error(weight, one, bits) for one in near)
                best = np.where(below < above, *near)
                set_constant(copy.graph, node, 1, name, best.reshape(thresholds.shape))
    common.RemoveUnusedNodesPass()(copy)  # the converter refuses constants that nothing reads
    return copy


def threshold_shape(node: ir.Node, rank: int) -> tuple[int, ...]:
    """Shape in which a weight quantizer's thresholds broadcast with its weight."""
    if not node.attributes.get_int("per_channel", 0):
        return (1,) * rank
    axis = node.attributes.get_int("channel_axis", 0) % rank
    return tuple(-1 if index == axis else 1 for index in range(rank))
