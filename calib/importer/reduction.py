"""Reductions and selections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from calib.importer.context import Context, integer
from calib.importer.registry import UnknownForm, operator

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL2": torch.linalg.vector_norm,
}


@operator(*_REDUCTIONS)
def reduction(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    axes = ctx.either(node, 1, "axes")
    if not axes:
        if integer(node, "noop_with_empty_axes", 0):
            raise UnknownForm("noop_with_empty_axes = 1 without axes", "axes to reduce", "remove the node")
        axes = list(range(ctx.rank(x)))
    dims = tuple(ctx.axis(x, axis) for axis in axes)
    keep = bool(integer(node, "keepdims", 1))
    return ctx.call(_REDUCTIONS[node.op_type], x, dim=dims, keepdim=keep)


@operator("ArgMax")
def arg_max(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    if integer(node, "select_last_index", 0):
        raise UnknownForm("select_last_index = 1", "the first of equal maxima", "use torch.argmax")
    axis, keep = ctx.axis(x, integer(node, "axis", 0)), bool(integer(node, "keepdims", 1))
    return ctx.call(torch.argmax, x, dim=axis, keepdim=keep)
