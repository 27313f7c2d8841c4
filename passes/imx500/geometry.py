"""Reading nodes: attributes with their defaults, windows of convolutions, values behind quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

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
    small, large = [], []
    for size, stride, extent in zip(sizes, strides, bare.effective, strict=True):
        total = 0 if size is None else max((-(-size // stride) - 1) * stride + extent - size, 0)
        small.append(total // 2)
        large.append(total - total // 2)
    before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return Window(kernel, strides, dilations, tuple(before), tuple(after), bare.group)


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


def is_gelu_erf(node: ir.Node) -> bool:
    """The Erf is the one inside GELU, x * (1 + erf(x / sqrt 2)) times a number, in any order of the factors.

    Exporters below opset 20 write GELU so (the number is 1/2, unless a weight has taken it in); it reaches
    the converter as one Gelu.
    """
    scaled = node.inputs[0]
    scale = scaled.producer() if scaled is not None else None
    if scale is None or scale.op_type not in ("Div", "Mul"):
        return False
    operands = [value for value in scale.inputs if not is_constant(value)]
    factors = [constant(value) for value in scale.inputs if is_constant(value)]
    if len(operands) != 1 or len(factors) != 1 or factors[0] is None or factors[0].size != 1:
        return False
    wanted = np.sqrt(2.0) if scale.op_type == "Div" else np.sqrt(0.5)
    added = _only_user(node.outputs[0])
    if not np.isclose(factors[0].item(), wanted, rtol=1e-3) or added is None or not _adds_one(added, node):
        return False
    factor, product = added.outputs[0], _only_user(added.outputs[0])
    while product is not None and product.op_type == "Mul":
        other = product.inputs[1] if product.inputs[0] is factor else product.inputs[0]
        if other is operands[0] or _is_multiple_of(other, operands[0]):
            return True
        if not is_constant(other):
            return False
        factor = product.outputs[0]
        product = _only_user(factor)
    return False


def _only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 else None


def _adds_one(add: ir.Node, erf: ir.Node) -> bool:
    others = [constant(value) for value in add.inputs if value is not erf.outputs[0]]
    return (
        add.op_type == "Add" and len(others) == 1 and others[0] is not None and bool(np.all(others[0] == 1))
    )


def _is_multiple_of(value: ir.Value | None, x: ir.Value | None) -> bool:
    """The value is a number times x."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Mul":
        return False
    others = [operand for operand in producer.inputs if operand is not x]
    array = constant(others[0]) if len(others) == 1 else None
    return array is not None and array.size == 1


def round_up(number: int, multiple: int = 32) -> int:
    """The next multiple: the chip works on 32 numbers at a time."""
    return -(-number // multiple) * multiple


def even(number: int) -> int:
    return number + number % 2


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
