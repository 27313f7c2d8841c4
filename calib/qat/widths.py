"""Other weight widths for a quantized graph: the chip holds twice as many weights of 4 bits, 4 times of 2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.qat.network import WEIGHTS, threshold_shape
from passes.graph import const_array, consumers, from_proto, set_constant, to_proto
from passes.imx500.weights import INPUT_CHANNELS

THRESHOLDS = np.linspace(0.2, 1.0, 81, dtype=np.float32)
"""Thresholds tried for a channel, as shares of its largest absolute weight."""


def stored_narrow(quantizer: ir.Node) -> bool:
    """Whether the chip stores fewer bits for narrower weights here: in all but the first layer."""
    weight = const_array(quantizer.inputs[0])
    assert weight is not None
    if weight.ndim != 4:
        return True
    reader = consumers(quantizer.outputs[0])[0]
    inputs = int(weight.shape[1]) * reader.attributes.get_int("group", 1)
    if reader.op_type == "ConvTranspose":
        inputs = int(weight.shape[0])
    return bool(inputs > INPUT_CHANNELS)


def with_weight_bits(
    quantized: ir.Model, bits: int, where: Callable[[ir.Node], bool] = stored_narrow
) -> ir.Model:
    """A copy whose weights are rounded to `bits` bits (8, 4 or 2) where `where` says so of their quantizer.

    Each channel gets the threshold of the least squared rounding error among THRESHOLDS. The weights have to
    be there unrounded, as calib.ptq leaves them.
    """
    copy = from_proto(to_proto(quantized))
    for node in copy.graph:
        if node.op_type in WEIGHTS and where(node):
            weight = const_array(node.inputs[0])
            assert weight is not None
            shape = threshold_shape(node, weight.ndim)
            thresholds = least_error(weight, bits, shape)
            node.attributes["num_bits"] = ir.AttrInt64("num_bits", bits)
            name = f"{node.name}/threshold_{bits}_bits"
            set_constant(copy.graph, node, 1, name, thresholds)
    return copy


def least_error(weight: NDArray[np.float32], bits: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Thresholds [channels] with the least squared error; `shape` is the one they broadcast in."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    largest = np.where(largest > 0, largest, np.float32(1))
    levels = np.float32(2 ** (bits - 1))
    best, least = largest.copy(), np.full(largest.shape, np.inf)
    for share in THRESHOLDS:
        step = largest * share / levels
        rounded = np.clip(np.round(weight / step), -levels, levels - 1) * step
        error = np.square(rounded - weight, dtype=np.float64).sum(axis=axes, keepdims=True)
        best, least = np.where(error < least, largest * share, best), np.minimum(error, least)
    return best.astype(np.float32).reshape(-1)
