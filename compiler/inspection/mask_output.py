"""Which output of a network is its mask, and where a pixel of it begins to be one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from passes.graph import is_quantizer, static_shape


@dataclass(frozen=True)
class MaskOutput:
    """A map of one channel.

    Attributes:
        name: of the graph's output.
        level: a pixel is mask where the value is greater: 0 for logits, 1/2 for what a Sigmoid puts out.
    """

    name: str
    level: float


def mask_outputs(model: ir.Model) -> tuple[MaskOutput, ...]:
    """The outputs N,1,H,W of float numbers, in the graph's order; of a float or a quantized graph."""
    found = []
    for value in model.graph.outputs:
        shape = static_shape(value)
        real = value.dtype in (None, ir.DataType.FLOAT)
        if real and shape is not None and len(shape) == 4 and shape[1] == 1:
            found.append(MaskOutput(value.name or "", 0.5 if is_probability(value) else 0.0))
    return tuple(found)


def is_probability(value: ir.Value) -> bool:
    """The value comes from a Sigmoid, perhaps through a quantizer."""
    node = value.producer()
    while node is not None and is_quantizer(node) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Sigmoid"
