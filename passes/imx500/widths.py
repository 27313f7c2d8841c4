"""Which tensors of a quantized graph take two bytes a number.

A quantizer of 16 bits says so, operators that only move numbers keep it, and the converter itself widens what
stands before some layers (docs/memory.md, "16-bit activations").
"""

from __future__ import annotations

import onnx_ir as ir

from passes.graph import real_inputs
from passes.imx500.geometry import behind, data_nodes
from passes.imx500.stage import DEFAULT_BITS, FloatView

CARRYING = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Expand", "Gather",
    "Identity", "Dropout",
)  # fmt: skip
"""Operators that hand on numbers without a quantizer of their own."""

TABLES = ("Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Sin", "Cos", "LeakyRelu")
"""Functions that run with the convolution before them, unless their result has 16 bits."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def wide_values(view: FloatView) -> frozenset[ir.Value]:
    """The values of the float view that are stored in 16 bits."""
    if max(view.activation_bits.values(), default=DEFAULT_BITS) <= DEFAULT_BITS:
        return frozenset()
    graph = view.model.graph
    wide = {value for value in real_inputs(graph) if view.is_wide(value)}
    for node in data_nodes(graph):
        source = node.inputs[0] if node.op_type in CARRYING else None
        carries = source is not None and behind(source) in wide
        for output in node.outputs:
            quantized = (output.name or "") in view.activation_bits
            if view.is_wide(output) or (carries and not quantized):
                wide.add(output)
    for node in data_nodes(graph):
        if node.op_type in TABLES and node.inputs[0] is not None and _result(node) in wide:
            read = behind(node.inputs[0])
            producer = read.producer()
            if producer is not None and producer.op_type in WEIGHTED:
                wide.add(read)
    return frozenset(wide)


def _result(table: ir.Node) -> ir.Value:
    """What the table makes; of a Sigmoid that only a product reads, the product."""
    made = table.outputs[0]
    readers = made.consumers()
    return readers[0].outputs[0] if len(readers) == 1 and readers[0].op_type == "Mul" else made
