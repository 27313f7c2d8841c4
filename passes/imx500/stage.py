"""One view of a graph for both stages: the plain float graph the chip computes, with every shape known.

A graph in the vendor dialect hides shapes behind its quantizer nodes and carries a symbolic batch. The view
leaves the quantizers out, sets the batch to 1 and infers the shapes anew, and keeps the names of nodes and
values, so that what is found there can be named to the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from passes.graph import QUANTIZER_DOMAIN, from_proto, is_quantized, is_quantizer, to_proto

DEFAULT_BITS = 8
"""Bits of a weight without a quantizer: what quantization will give it."""


@dataclass(frozen=True)
class FloatView:
    """The graph without quantizers.

    Attributes:
        model: float graph with inferred shapes, batch 1.
        weight_bits: bits of each quantized constant, by the name of its value.
        activation_bits: bits of each quantized tensor, by the name of the value before its quantizer.
        other_weights: bits of the weights without a quantizer.
    """

    model: ir.Model
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int] = field(default_factory=dict)
    other_weights: int = DEFAULT_BITS

    def bits_of(self, value: ir.Value | None) -> int:
        name = "" if value is None else value.name or ""
        return self.weight_bits.get(name, self.other_weights)

    def is_wide(self, value: ir.Value) -> bool:
        """A quantizer gives the value more than 8 bits."""
        return self.activation_bits.get(value.name or "", DEFAULT_BITS) > DEFAULT_BITS


def float_view(model: ir.Model, weight_bits: int = DEFAULT_BITS) -> FloatView:
    """The view; a float graph is its own, a vendor-dialect graph is copied without its weights' numbers.

    `weight_bits` is what the weights of a float graph will get.
    """
    if not is_quantized(model):
        return FloatView(model, {}, other_weights=weight_bits)
    weights: dict[str, int] = {}
    activations: dict[str, int] = {}
    for node in model.graph:
        bits = node.attributes.get_int("num_bits") if is_quantizer(node) else None
        if bits is None or node.inputs[0] is None:
            continue
        if node.op_type.startswith("Weights"):
            weights[node.inputs[0].name or ""] = bits
        else:
            # Of two quantizers in a row the wider one says how the tensor is stored.
            name = behind_quantizers(node.inputs[0]).name or ""
            activations[name] = max(bits, activations.get(name, 0))
    return FloatView(_without_quantizers(model), weights, activations)


def behind_quantizers(value: ir.Value) -> ir.Value:
    """The value itself, or what the quantizers before it read."""
    producer = value.producer()
    while producer is not None and is_quantizer(producer) and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


LARGE = 4_096
"""Bytes from which a constant's numbers are left out while shapes are inferred: they are no shapes."""


def _without_quantizers(model: ir.Model) -> ir.Model:
    proto = to_proto(model)
    graph = proto.graph
    source: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = source.get(name, name)
        if node.domain == QUANTIZER_DOMAIN:
            source[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    del graph.node[:]
    graph.node.extend(node for node in kept if node.op_type != "Constant" or node.output[0] in used)
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].WhichOneof("value") != "dim_value":
            dims[0].dim_value = 1
    inputs = {value.name: value.type for value in graph.input}
    for output in graph.output:
        output.name = source.get(output.name, output.name)
        output.type.tensor_type.ClearField("shape")
        if output.name in inputs:
            output.type.CopyFrom(inputs[output.name])
    del graph.value_info[:]
    numbers = {tensor.name: tensor for tensor in graph.initializer if len(tensor.raw_data) >= LARGE}
    for tensor in numbers.values():
        tensor.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    if _fold_static(inferred):
        inferred = onnx.shape_inference.infer_shapes(inferred, data_prop=True)
    view = from_proto(inferred)
    for name in numbers:
        if name in view.graph.initializers and name in model.graph.initializers:
            view.graph.initializers[name].const_value = model.graph.initializers[name].const_value
    return view


def _fold_static(proto: onnx.ModelProto) -> bool:
    """Compute what depends on constants and shapes alone, in place; tells whether there was any.

    MCT writes the pads of a Pad and the transposed weights of a linear layer as chains of such nodes.
    """
    graph = proto.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input)}
    kept, folded = [], False
    for node in graph.node:
        result = _computed(node, known, shapes, proto)
        if result is None:
            kept.append(node)
            continue
        known[node.output[0]] = result
        graph.initializer.append(result)
        folded = True
    del graph.node[:]
    graph.node.extend(kept)
    return folded


def _computed(
    node: onnx.NodeProto,
    known: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, Sequence[onnx.TensorShapeProto.Dimension]],
    proto: onnx.ModelProto,
) -> onnx.TensorProto | None:
    """The node's one output as a named constant, None where it depends on data."""
    if len(node.output) != 1 or any(attribute.HasField("g") for attribute in node.attribute):
        return None
    if node.op_type == "Shape":
        dims = shapes.get(node.input[0])
        if dims is None or any(dim.WhichOneof("value") != "dim_value" for dim in dims):
            return None
        array = np.array([dim.dim_value for dim in dims], dtype=np.int64)
    elif node.op_type == "Constant":
        return _constant(node)
    elif all(name == "" or name in known for name in node.input):
        from onnx.reference import ReferenceEvaluator

        feeds = {name: _array(known[name]) for name in node.input if name}
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        computed: list[np.ndarray] = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)  # type: ignore[assignment]
        array = np.asarray(computed[0])
    else:
        return None
    return onnx.numpy_helper.from_array(array, node.output[0])


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node; None where it is written as a list or a string."""
    if len(node.attribute) != 1 or not node.attribute[0].HasField("t"):
        return None
    tensor = onnx.TensorProto()
    tensor.CopyFrom(node.attribute[0].t)
    tensor.name = node.output[0]
    return tensor


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    """The numbers, or zeros where they were left out (then only the result's shape is of use)."""
    if tensor.raw_data or not any(tensor.dims) or _has_typed_data(tensor):
        return onnx.numpy_helper.to_array(tensor)
    return np.zeros(tuple(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _has_typed_data(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.float_data or tensor.int64_data or tensor.int32_data or tensor.double_data)
