"""Reductions and selections that are others with the sign turned."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant_ints, input_at, int_attribute, ints_attribute


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction, counted from the front; None where there is nothing to reduce."""
    rank = len(shape_of(node.inputs[0]))
    axes = ints_attribute(node, "axes") or constant_ints(input_at(node, 1))
    if axes is None and input_at(node, 1) is not None:
        return None  # computed by the network
    if not axes:
        return None if int_attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


@fix("operator", "ReduceMin", "ReduceL1", "ReduceSumSquare")
def reduction(node: ir.Node, build: Builder) -> Rewrite | None:
    """ReduceMin(x) = -ReduceMax(-x), ReduceL1(x) = ReduceSum(|x|), ReduceSumSquare(x) = ReduceSum(x*x)."""
    x, axes, keep = node.inputs[0], _axes(node), bool(int_attribute(node, "keepdims", 1))
    if x is None or axes is None:
        return None
    if node.op_type == "ReduceMin":
        y = build.op("Neg", build.reduce("ReduceMax", build.op("Neg", x), axes, keep))
        return Rewrite((y,), "ReduceMin(x) became -ReduceMax(-x)", Exactness.EXACT)
    if node.op_type == "ReduceL1":
        y = build.reduce("ReduceSum", build.op("Abs", x), axes, keep)
        return Rewrite((y,), "ReduceL1(x) became ReduceSum(|x|)", Exactness.FLOAT)
    y = build.reduce("ReduceSum", build.op("Mul", x, x), axes, keep)
    return Rewrite((y,), "ReduceSumSquare(x) became ReduceSum(x * x)", Exactness.FLOAT)


@fix("operator", "ArgMin")
def arg_min(node: ir.Node, build: Builder) -> Rewrite | None:
    """ArgMin(x) = ArgMax(-x): the first of equal values in both."""
    x = node.inputs[0]
    assert x is not None
    if int_attribute(node, "select_last_index", 0):
        return None
    axis, keep = int_attribute(node, "axis", 0), int_attribute(node, "keepdims", 1)
    y = build.op("ArgMax", build.op("Neg", x), axis=axis, keepdims=keep)
    return Rewrite((y,), "ArgMin(x) became ArgMax(-x)", Exactness.EXACT)


@fix("topk", "TopK")
def top_k(node: ir.Node, build: Builder) -> Rewrite | None:
    """The k smallest: the k largest of -x, their values negated."""
    x, count = node.inputs[0], constant_ints(input_at(node, 1))
    if x is None or count is None or int_attribute(node, "sorted", 1) == 0:
        return None
    values, indices = build.outputs(
        "TopK", 2, build.op("Neg", x), np.array(count, np.int64), axis=int_attribute(node, "axis", -1)
    )
    read = node.outputs[0].uses() or node.outputs[0].is_graph_output()
    done = "the smallest k became the largest k of -x"
    return Rewrite((build.op("Neg", values) if read else None, indices), done, Exactness.EXACT)
