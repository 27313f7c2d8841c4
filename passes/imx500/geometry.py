"""Reading nodes: attributes with their defaults, windows of convolutions, values behind quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.explicit_pads import same_pads
from passes.graph import STANDARD_DOMAINS, const_array, is_quantizer, static_shape

PASS_THROUGH = ("Identity", "Dropout")
"""Operators whose first output is their first input."""


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def text_attribute(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def ints_attribute(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else tuple(attribute.as_ints())


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input, None where it is left out or empty."""
    if index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return None if value is None or value.name == "" else value


def is_standard(node: ir.Node) -> bool:
    """The node is an operator of ONNX itself."""
    return node.domain in STANDARD_DOMAINS


def behind(value: ir.Value) -> ir.Value:
    """The value itself, seen through quantizers, Identity and Dropout."""
    producer = value.producer()
    while producer is not None and value.index() == 0 and producer.inputs and producer.inputs[0] is not None:
        if not is_quantizer(producer) and producer.op_type not in PASS_THROUGH:
            break
        value = producer.inputs[0]
        producer = value.producer()
    return value


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The constant a value holds, seen through quantizers, else None."""
    return None if value is None else const_array(behind(value))


def is_constant(value: ir.Value | None) -> bool:
    """`constant(value)` is not None, without reading the data."""
    if value is None:
        return False
    source = behind(value)
    producer = source.producer()
    return source.const_value is not None or (producer is not None and producer.op_type == "Constant")


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """A constant of whole numbers, flattened; None where the value is no constant."""
    array = constant(value)
    return None if array is None else tuple(int(number) for number in array.ravel())


def shape_behind(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape of a value, or, where a quantizer hid it, of what is behind the quantizer."""
    if value is None:
        return None
    shape = static_shape(value)
    return static_shape(behind(value)) if shape is None else shape


def rank_of(value: ir.Value | None) -> int | None:
    shape = shape_behind(value)
    return None if shape is None else len(shape)


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pool, per spatial axis.

    Attributes:
        kernel, strides, dilations: one number a spatial axis.
        before, after: padding in pixels, one number a spatial axis.
        group: groups of a convolution, 1 for a pool.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    group: int

    @property
    def effective(self) -> tuple[int, ...]:
        """Extent of the kernel with its dilation: (k - 1) * d + 1."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(node: ir.Node) -> Window | None:
    """The window of a Conv, ConvTranspose, MaxPool or AveragePool; None where the kernel's size is not known.

    `auto_pad` of a convolution is resolved with the static size of its input (ONNX: total padding
    max((ceil(n/s) - 1) * s + effective - n, 0)); an unknown size counts as no padding.
    """
    kernel = ints_attribute(node, "kernel_shape")
    if kernel is None:
        weight = shape_behind(input_at(node, 1))
        if weight is None or any(side is None for side in weight[2:]):
            return None
        kernel = tuple(side for side in weight[2:] if side is not None)
    axes = len(kernel)
    strides = ints_attribute(node, "strides") or (1,) * axes
    dilations = ints_attribute(node, "dilations") or (1,) * axes
    pads = ints_attribute(node, "pads") or (0,) * (2 * axes)
    auto_pad = text_attribute(node, "auto_pad", "NOTSET")
    bare = Window(kernel, strides, dilations, pads[:axes], pads[axes:], int_attribute(node, "group", 1))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return bare
    sizes = (shape_behind(input_at(node, 0)) or ())[2:] or (None,) * axes
    around = [
        (0, 0) if size is None else same_pads(size, stride, extent, auto_pad)
        for size, stride, extent in zip(sizes, strides, bare.effective, strict=True)
    ]
    before, after = (tuple(max(pads[end], 0) for pads in around) for end in (0, 1))
    return Window(kernel, strides, dilations, before, after, bare.group)


def padding_layer(found: Window) -> str:
    """The torch layer that pads as the window says (left, right, top, bottom)."""
    sides = (pad for pair in zip(found.before[::-1], found.after[::-1], strict=True) for pad in pair)
    return f"nn.ZeroPad2d(({', '.join(map(str, sides))}))"


def is_depthwise(node: ir.Node) -> bool:
    """A Conv with as many groups as input channels, and more than one."""
    shape = shape_behind(input_at(node, 1))
    return int_attribute(node, "group", 1) > 1 and shape is not None and shape[1] == 1


def static_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes whose outputs depend on no input's numbers: constants and shape arithmetic."""
    static: set[ir.Node] = set()
    for node in graph:
        if node.op_type in ("Shape", "Size") and is_standard(node):
            static.add(node)
            continue
        known = (value is None or _is_static(value, static) for value in node.inputs)
        if all(known):
            static.add(node)
    return static


def _is_static(value: ir.Value, static: set[ir.Node]) -> bool:
    producer = value.producer()
    return value.const_value is not None if producer is None else producer in static


def is_static(value: ir.Value) -> bool:
    """The value depends on no input's numbers: it is a constant or shape arithmetic."""
    seen, pending = set[ir.Value](), [value]
    while pending:
        current = pending.pop()
        producer = current.producer()
        if current in seen or (producer is not None and producer.op_type in ("Shape", "Size")):
            continue
        seen.add(current)
        if producer is None and current.const_value is None:
            return False
        if producer is not None:
            pending.extend(read for read in producer.inputs if read is not None)
    return True


def data_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that work on data, in graph order: neither static nor quantizers."""
    static = static_nodes(graph)
    return (node for node in graph if node not in static and not is_quantizer(node))


def round_up(number: int, multiple: int = 32) -> int:
    """The next multiple: the chip works on 32 numbers at a time."""
    return -(-number // multiple) * multiple


def even(number: int) -> int:
    return number + number % 2


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def is_polyphase(inner: int, out: int, kernel: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """A strided dense convolution is split into phases where that adds few weights.

    Separates all 57 strided convolutions whose insight files were read (3 to 144 channels, strides 2 to 8,
    kernels 1 to 7).
    """
    if len(kernel) != 2 or max(strides) == 1:
        return False
    taps = ceil_div(kernel[0], strides[0]) * ceil_div(kernel[1], strides[1])
    grown = taps * strides[0] * strides[1] - kernel[0] * kernel[1]
    return inner * out * grown <= PHASE_GROWTH


PHASE_GROWTH = 10_000
"""Weights that a split may add: 9,408 were seen (28 -> 48, 3x3), 10,752 were not (32 -> 48, 3x3)."""
