"""Elementwise arithmetic."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from calib.importer.context import Context
from calib.importer.registry import Importer, operator
from passes.graph import const_array

_UNARY: dict[str, Callable[..., Any]] = {
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
}

_BINARY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Add": (python.add, torch.add),
    "Sub": (python.sub, torch.sub),
    "Mul": (python.mul, torch.mul),
    "Div": (python.truediv, torch.div),
}
"""Function for an activation on the left, and for a constant tensor there (which has no operator form)."""


def _unary(function: Callable[..., Any]) -> Importer:
    return lambda ctx, node: ctx.call(function, ctx.activation(node))


for _name, _function in _UNARY.items():
    operator(_name)(_unary(_function))


@operator(*_BINARY)
def binary(ctx: Context, node: ir.Node) -> fx.Node:
    on_left, on_right = _BINARY[node.op_type]
    left, right = const_array(node.inputs[0]), const_array(node.inputs[1])
    if left is not None:
        x = ctx.activation(node, 1)
        if node.op_type in ("Add", "Mul"):
            return ctx.call(on_left, x, _operand(ctx, left, x))
        # A tensor, not a number: the exporter writes number / x as Reciprocal, which the chip has not.
        return ctx.call(on_right, ctx.buffer(left.reshape(left.shape or (1,))), x)
    x = ctx.activation(node, 0)
    if right is not None:
        return ctx.call(on_left, x, _operand(ctx, right, x))
    return ctx.call(on_left, x, ctx.activation(node, 1))


def _operand(ctx: Context, array: np.ndarray, x: fx.Node) -> fx.Node | float:
    """A number where the constant is one and does not raise the rank, else a constant tensor."""
    if array.size == 1 and array.ndim <= ctx.rank(x):
        return float(array.reshape(-1)[0])
    return ctx.buffer(array)


@operator("Max", "Min", "Sum")
def variadic(ctx: Context, node: ir.Node) -> fx.Node:
    function = {"Max": torch.maximum, "Min": torch.minimum, "Sum": python.add}[node.op_type]
    constants = [const_array(value) for value in node.inputs]
    result = ctx.activation(node, next((i for i, c in enumerate(constants) if c is None), 0))
    first = True
    for index, array in enumerate(constants):
        if array is None and first:
            first = False
            continue
        other: fx.Node
        if array is None:
            other = ctx.activation(node, index)
        elif array.size == 1 and node.op_type != "Sum":
            bound = {"min" if node.op_type == "Max" else "max": float(array.reshape(-1)[0])}
            result = ctx.call(torch.clamp, result, **bound)
            continue
        else:
            other = ctx.buffer(array)
        result = ctx.call(function, result, other)
    return result


@operator("Pow")
def power(ctx: Context, node: ir.Node) -> fx.Node:
    x, exponent = ctx.activation(node), const_array(node.inputs[1])
    if exponent is None:
        return ctx.call(torch.pow, x, ctx.activation(node, 1))
    if exponent.size != 1:
        return ctx.call(torch.pow, x, ctx.buffer(exponent))
    number = float(exponent.reshape(-1)[0])
    return ctx.call(torch.pow, x, int(number) if number.is_integer() else number)
