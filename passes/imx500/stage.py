"""One view of a graph for both stages: the plain float graph the chip computes, with every shape known.

A graph in the vendor dialect hides shapes behind its quantizer nodes and carries a symbolic batch. The view
leaves the quantizers out, sets the batch to 1 and infers the shapes anew, and keeps the names of nodes and
values, so that what is found there can be named to the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """

    model: ir.Model
    weight_bits: Mapping[str, int]

    def bits_of(self, value: ir.Value | None) -> int:
        name = "" if value is None else value.name or ""
        return self.weight_bits.get(name, DEFAULT_BITS)


def float_view(model: ir.Model) -> FloatView:
    """The view; a float graph is its own, a vendor-dialect graph is copied without its weights' numbers."""
    if not is_quantized(model):
        return FloatView(model, {})
    bits = {
        node.inputs[0].name or "": node.attributes["num_bits"].as_int()
        for node in model.graph
        if is_quantizer(node)
        and node.op_type.startswith("Weights")
        and node.inputs[0] is not None
        and "num_bits" in node.attributes
    }
    return FloatView(_without_quantizers(model), bits)


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
    del graph.node[:]
    graph.node.extend(kept)
    for output in graph.output:
        output.name = source.get(output.name, output.name)
        output.type.tensor_type.ClearField("shape")
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].WhichOneof("value") != "dim_value":
            dims[0].dim_value = 1
    del graph.value_info[:]
    return from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
