"""Model memory: the bytes of weights and tables each layer keeps on the chip.

Every formula was fitted to the converter's own per-node figures (--model-insight); docs/memory.md gives the
evidence for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from passes.graph import module_of
from passes.imx500.geometry import (
    behind,
    ceil_div,
    constant,
    even,
    input_at,
    int_attribute,
    is_constant,
    is_polyphase,
    round_up,
    shape_behind,
    window,
)
from passes.imx500.layers import (
    TABLE_ACTIVATIONS,
    TABLE_OPERATORS,
    Kind,
    Layer,
    channels_of,
    is_unsigned,
    shape_of,
)
from passes.imx500.stage import DEFAULT_BITS, FloatView

TABLE = 512
"""Bytes of a fused look-up table (and of the table of a fused addition)."""

TABLE_ALONE = 576
"""Bytes of a look-up table that is a layer of its own."""

SLOPE = 64
"""Bytes of LeakyRelu's slope; a result of 16 bits takes a table besides."""

SOFTMAX = 1_024
AVERAGE = 1_024
"""Bytes of the tables of Softmax and of an average pool."""

ELEMENTWISE = 32
"""Bytes of an elementwise operation of two tensors, and of the reordering of an output."""

RECIPROCAL = 512
"""Bytes of the table of a division."""

BIAS, REQUANTIZATION = 4, 2
"""Bytes per output channel (rounded up to 32): an int32 bias, and the multiplier and shift."""


@dataclass(frozen=True)
class WeightRow:
    """Model memory of one layer.

    Attributes:
        name: ONNX node of the layer.
        module: dotted torch module, "" where unknown.
        bytes: bytes on the chip.
        bits: bits of a weight, 0 for a layer without weights.
    """

    name: str
    module: str
    bytes: int
    bits: int


def weight_rows(layers: tuple[Layer, ...], view: FloatView) -> tuple[WeightRow, ...]:
    """One row for each layer that keeps anything, and one for each output that is reordered."""
    rows = []
    for layer in layers:
        size = layer_bytes(layer, view)
        if size:
            bits = view.bits_of(input_at(layer.main, 1)) if has_weights(layer) else 0
            rows.append(WeightRow(layer.name, module_of(layer.main), size, bits))
    made = {output for layer in layers for output in layer.outputs}
    rows.extend(
        WeightRow(output.name or "output", "", ELEMENTWISE, 0)
        for output in view.model.graph.outputs
        if (output in made or output.is_graph_input()) and _pixels(output) > 1
    )
    return tuple(rows)


def has_weights(layer: Layer) -> bool:
    return layer.kind in (Kind.CONVOLUTION, Kind.GROUPED, Kind.TRANSPOSED, Kind.LINEAR)


def layer_bytes(layer: Layer, view: FloatView) -> int:
    """Bytes of a layer's weights, biases, tables and constants."""
    if layer.kind is Kind.LINEAR or is_whole_picture(layer):
        return _linear(layer, view)
    if has_weights(layer):
        return _convolution(layer, view)
    match layer.main.op_type:
        case "BatchNormalization":
            return 5 * round_up(channels_of(layer.outputs[0]))
        case "InstanceNormalization":
            return _instance_norm(layer)
        case "LayerNormalization":
            return TABLE + 6 * round_up((1, *shape_of(layer.outputs[0]))[-1])
        case "Softmax":
            return SOFTMAX
        case "AveragePool":
            return 0 if is_global(layer) else AVERAGE
        case "LeakyRelu":
            return SLOPE + (TABLE_ALONE if view.is_wide(layer.outputs[0]) else 0)
        case "GatherElements":
            return round_up(_elements(layer.outputs[0])) + ELEMENTWISE
        case "MatMul":
            return BIAS * round_up((1, *shape_of(layer.outputs[0]))[-1])
        case "Div" if is_reciprocal_root(layer.main):
            return 0
        case "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min":
            return _elementwise(layer)
        case "Concat":
            # A constant read twice (the frame of a folded normalisation) is stored once.
            constants = [v for v in layer.main.inputs if v is not None and is_constant(v)]
            stored = {behind(v): round_up(_elements(v), 32) for v in constants}
            return sum(stored.values()) + ELEMENTWISE * len(constants)
        case "Pow":
            return ELEMENTWISE
        case "Exp":
            return 2 * TABLE
        case "ReduceL2":
            return TABLE
        case "Neg":
            return 3 * ELEMENTWISE
        case operator if operator in (*TABLE_ACTIVATIONS, *TABLE_OPERATORS, "Erf"):
            return TABLE_ALONE
    return 0


def is_global(layer: Layer) -> bool:
    """The layer reduces height and width to one pixel."""
    shape = shape_of(layer.outputs[0])
    return len(shape) == 3 and shape[1:] == (1, 1)


def is_whole_picture(layer: Layer) -> bool:
    """A convolution whose kernel covers all of its input at once runs as a fully connected layer."""
    found = window(layer.main) if layer.kind is Kind.CONVOLUTION else None
    if found is None or not layer.inputs or any((*found.before, *found.after)):
        return False
    return found.kernel == shape_of(layer.inputs[0])[1:]


def _linear(layer: Layer, view: FloatView) -> int:
    """FullyConnected: in * c32(out) * bits/8 + 9 * c32(out), and its activation's table.

    On more than one pixel (rank 4) it runs as a 1x1 convolution.
    """
    weight = shape_behind(input_at(layer.main, 1)) or (1, 1)
    out, inner = weight[0] or 1, prod(side or 1 for side in weight[1:])
    if layer.main.op_type == "MatMul" or (
        layer.main.op_type == "Gemm" and not int_attribute(layer.main, "transB", 0)
    ):
        out, inner = inner, out
    bits = view.bits_of(input_at(layer.main, 1))
    if len(shape_of(layer.inputs[0])) == 3 and layer.kind is Kind.LINEAR:
        kernel = round_up(inner) * round_up(out) * bits // 8
        return kernel + (BIAS + REQUANTIZATION) * round_up(out) + _fused(layer)
    table = TABLE_ALONE if layer.activation in TABLE_ACTIVATIONS else _fused(layer)
    return inner * round_up(out) * bits // 8 + 9 * round_up(out) + table


def _convolution(layer: Layer, view: FloatView) -> int:
    weight = shape_behind(input_at(layer.main, 1)) or ()
    sides = tuple(side or 1 for side in weight)
    found = window(layer.main)
    if found is None or len(sides) != 4:
        return 0
    bits = view.bits_of(input_at(layer.main, 1))
    out = sides[1] * found.group if layer.kind is Kind.TRANSPOSED else sides[0]
    per_channel = (BIAS + REQUANTIZATION) * round_up(out)
    if layer.kind is Kind.TRANSPOSED:
        kernel = round_up(sides[0]) * round_up(out) * found.kernel[0] * found.kernel[1]
        phases = found.strides[0] * found.strides[1] if is_unsigned(layer.inputs[0]) else 1
        per_channel += BIAS * phases * round_up(out)
    elif layer.kind is Kind.GROUPED:
        multiplier = out // found.group if sides[1] == 1 else 1
        copies, channels = (multiplier, out // multiplier) if multiplier > 1 else (1, out)
        kernel = copies * even(found.kernel[0]) * even(found.kernel[1]) * sides[1] * round_up(channels)
        per_channel = copies * (BIAS + REQUANTIZATION) * round_up(channels)
    else:
        kernel = dense_kernel(sides[1], out, found.kernel, found.strides)
    return _narrowed(kernel, layer, sides, bits) + per_channel + _fused(layer)


def _narrowed(kernel: int, layer: Layer, sides: tuple[int, ...], bits: int) -> int:
    """Bytes that a kernel of so many 8-bit bytes keeps with weights of `bits` bits.

    A dense convolution of fewer than 32 channels (behind the split of its stride) keeps the room of 8 bits. A
    depthwise one has its channels rounded up to 64 with 4 bits, to 128 with 2.
    """
    found = window(layer.main)
    if found is None or bits == DEFAULT_BITS:
        return kernel
    if sides[1] * found.group <= INPUT_CHANNELS:
        return kernel
    narrow = kernel * bits // DEFAULT_BITS
    if layer.kind is Kind.GROUPED and sides[1] == 1:
        rounded = round_up(found.group, LANES * DEFAULT_BITS // bits)
        return narrow // round_up(found.group) * rounded
    if layer.kind is not Kind.CONVOLUTION:
        return narrow
    split = is_polyphase(sides[1], sides[0], found.kernel, found.strides)
    phases = found.strides[0] * found.strides[1] if split else 1
    return kernel if sides[1] * phases < LANES else narrow


INPUT_CHANNELS = 3
"""The first convolution of a picture keeps the room of 8-bit weights whatever the quantizer says."""


def dense_kernel(inner: int, out: int, kernel: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Bytes of a dense 8-bit kernel, in the form the converter chooses.

    A strided convolution may become one of stride 1 on inner * sh * sw channels (polyphase); kernels above 3
    on fewer than 32 channels are padded to even sides.
    """
    rows, columns = kernel
    if is_polyphase(inner, out, kernel, strides):
        phases = strides[0] * strides[1]
        taps = ceil_div(rows, strides[0]) * ceil_div(columns, strides[1])
        return round_up(inner * phases) * taps * round_up(out)
    if inner < LANES and min(kernel) > 3:
        rows, columns = even(rows), even(columns)
    return round_up(inner) * round_up(out) * rows * columns


LANES = 32
"""Numbers the chip works on at a time."""


def _fused(layer: Layer) -> int:
    """Table of the activation or addition that runs with the layer."""
    if layer.adds:
        return TABLE
    if layer.activation == "LeakyRelu":
        return TABLE_ALONE
    if layer.activation in TABLE_ACTIVATIONS:
        return 2 * TABLE if layer.kind is Kind.GROUPED else TABLE
    return 0


def _elementwise(layer: Layer) -> int:
    size = ELEMENTWISE + (RECIPROCAL if layer.main.op_type == "Div" else 0)
    constants = [value for value in layer.main.inputs if is_constant(value)]
    for value in constants:
        size += round_up(_elements(value)) + ELEMENTWISE
    return size


def is_reciprocal_root(node: ir.Node) -> bool:
    """1 / sqrt(x), which is the one table of the square root."""
    root = None if node.inputs[1] is None else behind(node.inputs[1]).producer()
    over = constant(node.inputs[0])
    return root is not None and root.op_type == "Sqrt" and over is not None and bool((over == 1).all())


def _instance_norm(layer: Layer) -> int:
    """Its table, and the scales and shifts unless they are those of a group norm (1 and 0)."""
    scale, channels = constant(layer.main.inputs[1]), channels_of(layer.outputs[0])
    plain = scale is not None and bool((scale == 1).all()) and len(shape_of(layer.outputs[0])) != 3
    return TABLE + ELEMENTWISE + (0 if plain else (BIAS + REQUANTIZATION) * round_up(channels))


def _elements(value: ir.Value | None) -> int:
    count = 1
    for side in shape_behind(value) or ():
        count *= side or 1
    return count


def _pixels(value: ir.Value) -> int:
    """Pixels of a picture, entries of the inner axes of any other tensor; 1 for a vector."""
    count = 1
    for side in shape_of(value)[1:]:
        count *= side
    return count
