"""Rules about data types on the chip's data path."""

from __future__ import annotations

import onnx_ir as ir

from passes.imx500.geometry import is_static
from passes.imx500.rules.registry import Found, rule

INDEX_OUTPUTS = {"ArgMax": 0, "TopK": 1, "MaxPool": 1}
"""Operators with an integer output, and which it is; it may only leave the network."""


@rule("data-type")
def data_is_float32(node: ir.Node) -> Found | None:
    """Data are float32 everywhere; the integers of ArgMax and TopK may only leave the network as outputs.

    Fix: call model.float() before exporting; leave masks, comparisons and integers to the host.
    """
    for value in node.inputs:
        if value is None or value.dtype in (None, ir.DataType.FLOAT) or is_static(value):
            continue
        return Found(f"input of type {value.dtype}", _fix(value.dtype))
    for index, value in enumerate(node.outputs):
        if value.dtype in (None, ir.DataType.FLOAT) or INDEX_OUTPUTS.get(node.op_type) == index:
            continue
        return Found(f"output of type {value.dtype}", _fix(value.dtype))
    return None


def _fix(dtype: ir.DataType | None) -> str:
    if dtype is ir.DataType.BOOL:
        return "compute masks with clamp and multiplication in float, or compare on the host"
    if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
        return "call model.float() before exporting"
    return "keep the network in float32 and work with integers on the host"
