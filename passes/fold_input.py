"""Fold the input normalisation into the network: it then takes the integers the sensor delivers.

The contract says x[c] = a[c] q[c] + b[c] for the delivered integer q. Normalisation nodes at the head of
the graph (Sub, Div, BatchNormalization, ...) are taken into (a, b) first. Then, for every convolution that
reads x,

    W x + bias  =  (W a) q + (bias + sum of W b over the taps).

Zero padding of x is not zero padding of q: x = 0 means q = -b/a. So where a padded convolution meets b != 0,
the padding becomes explicit and the convolution unpadded: a Pad with the constant where -b/a is the same for
all channels, otherwise a frame of constant rows and columns by two Concats, which costs the chip less than
1 KB and keeps all 256 levels of the input (a Sub in front would need a step of 2 for the range -124..151).
Folded and original are equal on every output pixel, borders included.

Where x is read by anything else (a resize, a concatenation, an output), the normalisation becomes one
depthwise 1x1 convolution for those readers: exact too, but an operator more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir._core import Usage

from passes.contract import InputContract
from passes.graph import (
    const_array,
    constant,
    consumers,
    picture_shape,
    read_contract,
    real_inputs,
    set_constant,
    static_shape,
    write_contract,
)
from passes.names import NameEverything


@dataclass(frozen=True)
class Affine:
    """x[c] = a[c] * q[c] + b[c]; float64 arrays of shape [C]."""

    a: np.ndarray
    b: np.ndarray

    def then(self, gain: np.ndarray, shift: np.ndarray) -> Affine:
        return Affine(self.a * gain, self.b * gain + shift)

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.a == 1.0) and np.all(self.b == 0.0))


class FoldInput(ir.passes.InPlacePass):
    """Fold the contract's scale and offset, and normalisation at the head, into the first convolutions."""

    def requires(self, model: ir.Model) -> None:
        if read_contract(model) is None:
            raise ir.passes.PreconditionError("the model declares no input contract")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        contract = read_contract(model)
        assert contract is not None  # requires
        graph = model.graph
        inputs = real_inputs(graph)
        modified = False
        for value in inputs:
            modified |= _fold_one(graph, value, contract)
        if modified and not _well_named(model):  # a node of the user's may have the name of a new one
            NameEverything()(model)
        write_contract(model, contract.as_raw())
        return ir.passes.PassResult(model, modified=modified or not contract.is_raw)

    def ensures(self, model: ir.Model) -> None:
        contract = read_contract(model)
        if contract is None or not contract.is_raw:
            raise ir.passes.PostconditionError("the input contract is not raw after folding")


def _well_named(model: ir.Model) -> bool:
    try:
        NameEverything().ensures(model)
    except ir.passes.PostconditionError:
        return False
    return True


def _fold_one(graph: ir.Graph, value: ir.Value, contract: InputContract) -> bool:
    if picture_shape(value) != (contract.channels, contract.height, contract.width):
        return False  # the contract is about pictures of its own shape
    affine = Affine(np.asarray(contract.scale), np.asarray(contract.offset))
    head: list[ir.Node] = []
    current = value
    while (step := _normalisation(current, affine)) is not None:
        node, affine = step
        head.append(node)
        current = node.outputs[0]
    readers = [node for node in consumers(current) if _takes(node, current)]
    if contract.is_raw and (not head or not readers):
        return False
    if affine.is_identity:
        ir.convenience.replace_all_uses_with(current, value)
    else:
        others = [use for use in current.uses() if use.node not in readers]
        for node in readers:
            node.replace_input_with(0, value)
            _fold_conv(graph, node, value, affine)
        if others or current.is_graph_output():
            _explicit(graph, value, current, affine, others)
    for node in reversed(head):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    return True


def _normalisation(value: ir.Value, before: Affine) -> tuple[ir.Node, Affine] | None:
    """The only reader of `value`, where it is a per-channel affine node, and what it makes of the affine."""
    nodes = consumers(value)
    if len(nodes) != 1 or value.is_graph_output():
        return None
    node = nodes[0]
    channels = len(before.a)
    if node.op_type == "BatchNormalization" and not node.attributes.get_int("training_mode", 0):
        arrays = [const_array(v) for v in node.inputs[1:5]]
        if any(array is None for array in arrays):
            return None
        gain, beta, mean, variance = (np.asarray(array, dtype=np.float64) for array in arrays)
        k = gain / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return (node, before.then(k, beta - k * mean)) if np.all(k != 0) else None
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is value
    constant_array = const_array(node.inputs[1 if first else 0])
    per_channel = _per_channel(constant_array, channels, value)
    if per_channel is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Add":
        return node, before.then(one, per_channel)
    if node.op_type == "Sub":
        return node, before.then(one, -per_channel) if first else before.then(-one, per_channel)
    if np.any(per_channel == 0):
        return None
    if node.op_type == "Mul":
        return node, before.then(per_channel, zero)
    return (node, before.then(1.0 / per_channel, zero)) if first else None


def _per_channel(array: np.ndarray | None, channels: int, value: ir.Value) -> np.ndarray | None:
    """The constant as one number a channel (axis 1 of `value`), None where it varies otherwise."""
    shape = static_shape(value)
    if array is None or shape is None or len(shape) < 2 or array.ndim > len(shape):
        return None
    padded = array.reshape((1,) * (len(shape) - array.ndim) + array.shape).astype(np.float64)
    if padded.size == 1:
        return np.full(channels, padded.item())
    if padded.shape[1] != channels or padded.size != channels:
        return None
    return padded.reshape(channels)


def _takes(node: ir.Node, value: ir.Value) -> bool:
    """A convolution over `value` with constant weights, and explicit padding, can take the affine."""
    if node.op_type != "Conv" or node.inputs[0] is not value:
        return False
    weight, shape = const_array(node.inputs[1]), static_shape(value)
    if weight is None or shape is None or weight.ndim != 4 or len(shape) != 4:
        return False
    if weight.shape[1] * node.attributes.get_int("group", 1) != shape[1]:
        return False  # the graph contradicts itself; the rules say so
    if len(node.inputs) > 2 and node.inputs[2] is not None and const_array(node.inputs[2]) is None:
        return False
    return node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _fold_conv(graph: ir.Graph, node: ir.Node, value: ir.Value, affine: Affine) -> None:
    weight = const_array(node.inputs[1])
    assert weight is not None  # _takes
    groups = node.attributes.get_int("group", 1)
    outputs, per_group = weight.shape[0], weight.shape[1]
    # Input channel j of output o is channel (o's group) * per_group + j of the picture.
    channel = (np.arange(outputs) // (outputs // groups))[:, None] * per_group + np.arange(per_group)
    spatial = (1,) * (weight.ndim - 2)
    wide = weight.astype(np.float64)
    gain = affine.a[channel].reshape(outputs, per_group, *spatial)
    shift = affine.b[channel].reshape(outputs, per_group, *spatial)
    bias = const_array(node.inputs[2]) if len(node.inputs) > 2 else None
    added = (wide * shift).reshape(outputs, -1).sum(axis=1)
    pads = node.attributes.get_ints("pads", [0] * (2 * (weight.ndim - 2)))
    if any(pads) and np.any(affine.b != 0):
        framed = _frame(graph, node, value, -affine.b / affine.a, list(pads))
        node.replace_input_with(0, framed)
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    set_constant(graph, node, 1, f"{node.name}.weight", (wide * gain).astype(weight.dtype))
    if bias is not None or np.any(added != 0):
        total = added + (0.0 if bias is None else bias.astype(np.float64))
        set_constant(graph, node, 2, f"{node.name}.bias", total.astype(weight.dtype))


def _frame(graph: ir.Graph, conv: ir.Node, value: ir.Value, zero: np.ndarray, pads: list[int]) -> ir.Value:
    """`value` [1,C,H,W] with `zero[c]` around it, pads = [top, left, bottom, right]."""
    dtype = value.dtype or ir.DataType.FLOAT
    kind = dtype.numpy()
    shape = static_shape(value)
    assert shape is not None
    if len(set(zero.astype(kind))) == 1:
        return _pad_node(graph, conv, value, zero, pads)
    _, channels, height, width = shape
    assert channels is not None
    assert height is not None
    assert width is not None
    top, left, bottom, right = pads
    column = zero.astype(kind).reshape(1, -1, 1, 1)

    def block(rows: int, columns: int, name: str) -> ir.Value:
        array = np.ascontiguousarray(np.broadcast_to(column, (1, channels, rows, columns)))
        return constant(graph, f"{conv.name}.frame_{name}", array)

    tall = height + top + bottom
    rows = {count: block(count, width, f"rows_{count}") for count in sorted({top, bottom} - {0})}
    columns = {count: block(tall, count, f"columns_{count}") for count in sorted({left, right} - {0})}
    current = value
    for axis, blocks, before, after, wide in (
        (2, rows, top, bottom, width),
        (3, columns, left, right, width + left + right),
    ):
        if not blocks:
            continue
        parts = [*([blocks[before]] if before else []), current, *([blocks[after]] if after else [])]
        current = _insert(
            graph,
            conv,
            "Concat",
            parts,
            (shape[0], channels, tall, wide),
            dtype,
            f"frame_{'hw'[axis - 2]}",
            [ir.AttrInt64("axis", axis)],
        )
    return current


def _pad_node(graph: ir.Graph, conv: ir.Node, value: ir.Value, zero: np.ndarray, pads: list[int]) -> ir.Value:
    dtype = value.dtype or ir.DataType.FLOAT
    half = len(pads) // 2
    amounts = constant(
        graph, f"{conv.name}.frame_pads", np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], dtype=np.int64)
    )
    fill = constant(graph, f"{conv.name}.frame_value", np.array(zero[0], dtype=dtype.numpy()))
    shape = static_shape(value) or ()
    out = tuple(
        None if dim is None else dim + (pads[i - 2] + pads[i - 2 + half] if i >= 2 else 0)
        for i, dim in enumerate(shape)
    )
    return _insert(
        graph, conv, "Pad", [value, amounts, fill], out, dtype, "frame", [ir.AttrString("mode", "constant")]
    )


def _explicit(graph: ir.Graph, value: ir.Value, current: ir.Value, affine: Affine, uses: list[Usage]) -> None:
    """Normalise by a depthwise 1x1 convolution (Mul and Add off rank 4) for `uses` of `current`."""
    prefix = f"{value.name}.normalise"
    dtype = value.dtype or ir.DataType.FLOAT
    rank = len(value.shape or ())
    first = uses[0].node if uses else None
    shape = static_shape(value) or ()

    def column(array: np.ndarray, name: str) -> ir.Value:
        spread = array.astype(dtype.numpy()).reshape(1, -1, *(1,) * (rank - 2))
        return constant(graph, f"{prefix}.{name}", spread)

    nodes: list[ir.Node]
    if rank == 4:
        weight = constant(graph, f"{prefix}.weight", affine.a.astype(dtype.numpy()).reshape(-1, 1, 1, 1))
        bias = constant(graph, f"{prefix}.bias", affine.b.astype(dtype.numpy()))
        attributes = [
            ir.AttrInt64("group", len(affine.a)),
            ir.AttrInt64s("kernel_shape", [1, 1]),
            ir.AttrInt64s("pads", [0, 0, 0, 0]),
            ir.AttrInt64s("strides", [1, 1]),
            ir.AttrInt64s("dilations", [1, 1]),
        ]
        nodes = [ir.Node("", "Conv", [value, weight, bias], attributes, name=prefix)]
    else:
        scaled = ir.Node("", "Mul", [value, column(affine.a, "scale")], name=f"{prefix}.scale")
        shifted = ir.Node("", "Add", [scaled.outputs[0], column(affine.b, "offset")], name=prefix)
        nodes = [scaled, shifted]
    for node in nodes:
        out = node.outputs[0]
        out.name, out.dtype, out.shape = f"{node.name}_output", dtype, ir.Shape(shape)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    normalised = nodes[-1].outputs[0]
    for use in uses:
        use.node.replace_input_with(use.idx, normalised)
    if current.is_graph_output():
        for index, output in enumerate(graph.outputs):
            if output is current:
                normalised.name, current.name = current.name, f"{prefix}.before"
                graph.outputs[index] = normalised


def _insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    shape: tuple[int | None, ...],
    dtype: ir.DataType,
    suffix: str,
    attributes: list[ir.Attr],
) -> ir.Value:
    """A new node in front of `before`, named after it."""
    node = ir.Node(
        "",
        op_type,
        inputs,
        attributes,
        name=f"{before.name}.{suffix}",
        metadata_props=dict(before.metadata_props),
    )
    out = node.outputs[0]
    out.name, out.dtype, out.shape = f"{before.name}.{suffix}_output", dtype, ir.Shape(shape)
    graph.insert_before(before, node)
    return out
