"""The numbers the converter makes of a network's weights, computed from the quantized ONNX alone.

Per output channel c, with s_w the weights' step, s_x the input's step and T the output quantizer's threshold:

    multiplier M   the mantissa of s_w s_x in 128..255: s_w s_x = M / 128 * 2^e, rounded half up, at most 255
    shift S        32 + e - log2(T)
    bias           floor(b / (s_w s_x) + 1/2); for an unsigned input plus the correction
    correction     128 sum(w) as the converter's floating point computes it, truncated towards zero

Every line was found by changing one number of a network, converting it and comparing l2staticData.bin
(`python -m benchmarks.chip_numbers`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.chip.additions import fused_convolution
from compiler.chip.layer import UNSIGNED_OFFSET, ChipLayer
from compiler.dialect import WEIGHT_QUANTIZERS, activation_grid, output_grid, quantized_weight
from compiler.simulator.fixedpoint import Grid
from passes.graph import const_array, is_quantizer
from passes.imx500.geometry import is_polyphase, shape_behind, window

WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")
SHIFT_LOG2 = 32
"""S is the exponent of s_w s_x / T plus this."""

SHIFT_RANGE = (-10, 33)
"""Values of S for which the rule was seen to hold without exception; outside it saturates or jumps."""

BITS = 8
"""Of multipliers and activations."""

WEIGHT_BITS = (8, 4, 2)
"""Of weights. The chip reads narrow ones as 8-bit numbers with zeros below: step threshold / 128 for all."""

WIDE_BITS = 16
"""Of a quantizer between a convolution and the addition that it is fused with: the file is that of 8 bits."""

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Undecoded:
    """A layer whose numbers in the compiled file are not known: its node, operator and why."""

    name: str
    operator: str
    why: str


@dataclass(frozen=True)
class ChipConstants:
    """`layers` by the name of their ONNX node, in the graph's order; `undecoded` is whatever is left."""

    layers: dict[str, ChipLayer]
    undecoded: tuple[Undecoded, ...]


class _UnknownForm(Exception):
    """The layer has a form whose numbers were not decoded; the message says which."""


def chip_layer_constants(model: ir.Model) -> ChipConstants:
    """The numbers of every convolution of a vendor-dialect model.

    Linear layers, and convolutions of a form that was not decoded, are listed in `undecoded`, never guessed.
    Raises InputError for quantizers that the `dialect` numerics refuse as well.
    """
    layers: dict[str, ChipLayer] = {}
    undecoded = []
    for node in model.graph:
        if node.op_type not in WEIGHTED:
            continue
        name = layer_name(node)
        try:
            layers[name] = _layer(node, name)
        except _UnknownForm as error:
            undecoded.append(Undecoded(name, node.op_type, str(error)))
    return ChipConstants(layers, tuple(undecoded))


def layer_name(node: ir.Node) -> str:
    """The node's name, or its output's where it has none."""
    return node.name or node.outputs[0].name or node.op_type


def is_depthwise(node: ir.Node, weights_shape: tuple[int, ...]) -> bool:
    """groups = Cin = Cout > 1."""
    groups = node.attributes.get_int("group", 1)
    return groups > 1 and groups == weights_shape[0] and weights_shape[1] == 1


def conv_strides(node: ir.Node) -> tuple[int, int]:
    """Strides (rows, columns) of a two-dimensional convolution."""
    found = window(node)
    return (1, 1) if found is None else (found.strides[0], found.strides[1])


def _layer(node: ir.Node, name: str) -> ChipLayer:
    if node.op_type != "Conv":
        raise _UnknownForm(f"{node.op_type} was not decoded")
    weights, steps, weight_bits = _weights(node)
    _require_known_form(node, weights.shape)
    input_grid, (result_grid, highest) = output_grid(_present(node.inputs[0])), _result(node)
    if result_grid.bits == WIDE_BITS and _is_fused_with_addition(node):
        result_grid = Grid(result_grid.exponent + WIDE_BITS - BITS, BITS, result_grid.signed)
        highest = result_grid.highest
    if input_grid is None:
        raise _UnknownForm("no quantizer stands before it")
    if (input_grid.bits, result_grid.bits) != (BITS, BITS):
        raise _UnknownForm(f"{input_grid.bits}-bit input, {result_grid.bits}-bit output; 8 bits were decoded")
    scale = steps * input_grid.step
    multiplier, exponent = multiplier_and_exponent(scale)
    magnitude_bits = result_grid.bits - int(result_grid.signed)
    shift = SHIFT_LOG2 + exponent - (result_grid.exponent + magnitude_bits)
    least, most = SHIFT_RANGE
    if int(shift.min()) < least or int(shift.max()) > most:
        raise _UnknownForm(
            f"a shift of {int(shift.min())} to {int(shift.max())}; {least} to {most} were decoded"
        )
    bias = _bias(node, scale)
    if not input_grid.signed:
        bias = bias + unsigned_correction(_as_run(node, weights), steps)
    if np.abs(bias).max() > INT32_MAX:
        raise _UnknownForm("a bias beyond int32, for which the converter scales the weights down")
    return ChipLayer(
        name,
        weights,
        multiplier,
        shift.astype(np.int8),
        bias.astype(np.int32),
        input_grid,
        result_grid,
        highest,
        weight_bits,
    )


def _weights(node: ir.Node) -> tuple[NDArray[np.int8], NDArray[np.float64], int]:
    """The integers as the converter rounds them (float32 division), one step per channel, and the bits.

    Integers and steps are those of 8 bits: a 4-bit weight w with the step threshold / 8 is 16 w with
    threshold / 128.
    """
    quantizer = None if node.inputs[1] is None else node.inputs[1].producer()
    if quantizer is None or quantizer.op_type not in WEIGHT_QUANTIZERS:
        raise _UnknownForm("its weights have no quantizer (a module that is called twice)")
    bits = quantizer.attributes.get_int("num_bits", 8)
    if bits not in WEIGHT_BITS:
        raise _UnknownForm(f"weights of {bits} bits; 8, 4 and 2 were decoded")
    floats, threshold = quantized_weight(quantizer), const_array(quantizer.inputs[1])
    assert threshold is not None  # quantized_weight has read it
    steps = np.broadcast_to(threshold.astype(np.float64).reshape(-1) / 128, (len(floats),))
    integers = np.rint(floats / steps.reshape(-1, *[1] * (floats.ndim - 1)))
    return integers.astype(np.int8), steps, bits


def _require_known_form(node: ir.Node, shape: tuple[int, ...]) -> None:
    found = window(node)
    if found is None or len(shape) != 4:
        raise _UnknownForm(f"weights of shape {shape}; two-dimensional convolutions were decoded")
    depthwise = is_depthwise(node, shape)
    if found.group > 1 and not depthwise:
        raise _UnknownForm(f"{found.group} groups of {shape[1]} channels; 1 group and depthwise were decoded")
    picture = shape_behind(node.inputs[0])
    if picture is not None and picture[2:] == found.kernel and not any((*found.before, *found.after)):
        raise _UnknownForm(f"its kernel {found.kernel} covers the whole input, so it runs as a linear layer")


def _present(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise _UnknownForm("it has no input")
    return value


def _result(node: ir.Node) -> tuple[Grid, int]:
    """The grid of the quantizer behind the convolution, and the largest integer that it can get.

    Between them stands nothing, a ReLU, or a Clip from 0 to a multiple of the step (ReLU6).
    """
    reader = _only_reader(node.outputs[0])
    bend = None if is_quantizer(reader) else reader
    quantizer = reader if bend is None else _only_reader(bend.outputs[0])
    if bend is not None and (bend.op_type not in ("Relu", "Clip") or not is_quantizer(quantizer)):
        raise _UnknownForm(f"followed by {bend.op_type}; ReLU, ReLU6 and a quantizer were decoded")
    grid = activation_grid(quantizer)
    if bend is None:
        return grid, grid.highest
    if grid.signed:
        raise _UnknownForm(f"a {bend.op_type} with a signed quantizer")
    if bend.op_type == "Relu":
        return grid, grid.highest
    low, high = (const_array(value) for value in [*bend.inputs, None, None][1:3])
    steps = None if high is None else float(high.item()) / grid.step
    if low is None or low.item() != 0 or steps is None or not steps.is_integer():
        raise _UnknownForm("a Clip that does not go from 0 to a multiple of its quantizer's step")
    return grid, min(grid.highest, int(steps))


def _is_fused_with_addition(node: ir.Node) -> bool:
    """The one reader of its quantizer is an Add that it runs with."""
    quantizer = _only_reader(node.outputs[0])
    readers = quantizer.outputs[0].consumers()
    return len(readers) == 1 and readers[0].op_type == "Add" and fused_convolution(readers[0]) is node


def _only_reader(value: ir.Value) -> ir.Node:
    users = value.consumers()
    if len(users) != 1 or value.is_graph_output():
        raise _UnknownForm("its unquantized result does not go to one node alone")
    return users[0]


def multiplier_and_exponent(
    scale: NDArray[np.float64],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scale = M / 128 * 2^e, about: M uint8 in 128..255, e int64.

    The mantissa is rounded half up; one that would round to 256 stays 255, the exponent does not move.
    Scales are products of a float32 and a power of two, so every step here is exact.
    """
    fraction, power = np.frexp(scale)
    multiplier = np.minimum(np.floor(fraction * 256 + 0.5), 255)
    return multiplier.astype(np.uint8), power.astype(np.int64) - 1


def _bias(node: ir.Node, scale: NDArray[np.float64]) -> NDArray[np.int64]:
    """floor(b * (1 / scale) + 1/2) in float64, 0 without a bias.

    With the reciprocal, as the correction: of the shipped student's 3,604 biases one lies on a tie
    (b / scale = -973.5), where the product is -973.5000000000001 and the file has -974.
    """
    bias = const_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if bias is None:
        return np.zeros(len(scale), dtype=np.int64)
    rounded = np.floor(bias.astype(np.float64).reshape(-1) * (1 / scale) + 0.5)
    if np.abs(rounded).max() > INT32_MAX:
        raise _UnknownForm("a bias beyond int32, for which the converter scales the weights down")
    return rounded.astype(np.int64)


def _as_run(node: ir.Node, weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """The kernel [Cout, Cin, kh, kw] as the chip runs it: of a split stride, that of stride 1.

    Its input channels are the phases, row by row, each with all input channels of the node. Settled by
    mobilenet_v2's first layer, where one of 32 corrections tells this order from that of the node.
    """
    found = window(node)
    if found is None or found.group > 1:
        return weights
    rows, columns = found.strides
    if not is_polyphase(weights.shape[1], weights.shape[0], found.kernel, found.strides):
        return weights
    short = (-weights.shape[2] % rows, -weights.shape[3] % columns)
    padded = np.pad(weights, ((0, 0), (0, 0), (0, short[0]), (0, short[1])))
    out, inner, height, width = padded.shape
    split = padded.reshape(out, inner, height // rows, rows, width // columns, columns)
    return split.transpose(0, 3, 5, 1, 2, 4).reshape(out, -1, height // rows, width // columns)


def unsigned_correction(weights: NDArray[np.int8], steps: NDArray[np.float64]) -> NDArray[np.int64]:
    """128 times the sum of the weights as the converter computes it, int64 [Cout].

    It multiplies each float32 weight with the reciprocal of the step in float64, adds them up in the order
    kernel row, kernel column, input channel, and cuts the result off towards zero. The sum lands just below
    the whole number about half the time, so the correction is 0 or 1 short. The order was settled by a 3x3
    convolution of 32 channels in which the three likely orders differ: 32 of 32 agree with this one, 16, 14
    and 8 with others.
    """
    channels = len(weights)
    products = weights.transpose(0, 2, 3, 1).reshape(channels, -1).astype(np.float32)
    floats = (products * steps.astype(np.float32)[:, None]).astype(np.float64)
    # cumsum adds one after the other; sum would add in pairs and round differently.
    sums = np.cumsum(floats * (1 / steps)[:, None], axis=1)[:, -1]
    return np.trunc(sums * UNSIGNED_OFFSET).astype(np.int64)
