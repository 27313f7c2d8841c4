"""Activations."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx, nn

from calib.importer.context import Context, integer, real, text, to_tensor
from calib.importer.patterns import is_torch_hard_sigmoid
from calib.importer.registry import Importer, UnknownForm, operator

_PLAIN: dict[str, type[nn.Module]] = {
    "Relu": nn.ReLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "HardSwish": nn.Hardswish,
    "Softplus": nn.Softplus,
    "Mish": nn.Mish,
}


def _plain(module: type[nn.Module]) -> Importer:
    return lambda ctx, node: ctx.module(module(), ctx.activation(node))


for _name, _module in _PLAIN.items():
    operator(_name)(_plain(_module))


@operator("LeakyRelu")
def leaky_relu(ctx: Context, node: ir.Node) -> fx.Node:
    return ctx.module(nn.LeakyReLU(real(node, "alpha", 0.01)), ctx.activation(node))


@operator("Elu")
def elu(ctx: Context, node: ir.Node) -> fx.Node:
    return ctx.module(nn.ELU(real(node, "alpha", 1.0)), ctx.activation(node))


@operator("Gelu")
def gelu(ctx: Context, node: ir.Node) -> fx.Node:
    return ctx.module(nn.GELU(text(node, "approximate", "none")), ctx.activation(node))


@operator("HardSigmoid")
def hard_sigmoid(ctx: Context, node: ir.Node) -> fx.Node:
    if not is_torch_hard_sigmoid(node):
        raise UnknownForm(
            f"alpha = {real(node, 'alpha', 0.2):g}, beta = {real(node, 'beta', 0.5):g}",
            "alpha = 1/6, beta = 0.5",
            "use nn.Hardsigmoid, or write it as Mul, Add and Clip",
        )
    return ctx.module(nn.Hardsigmoid(), ctx.activation(node))


@operator("PRelu")
def prelu(ctx: Context, node: ir.Node) -> fx.Node:
    x, slope = ctx.activation(node), ctx.required(node, 1)
    rank = ctx.rank(x)
    shape = (1,) * (rank - slope.ndim) + slope.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        raise UnknownForm(f"slope of shape {slope.shape}", "one slope, or one per channel", "use nn.PReLU")
    module = nn.PReLU(slope.size)
    module.weight.data = to_tensor(slope.reshape(-1))
    return ctx.module(module, x)


@operator("Clip")
def clip(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    low, high = _bound(ctx, node, 1, "min"), _bound(ctx, node, 2, "max")
    if low == 0.0 and high == 6.0:
        return ctx.module(nn.ReLU6(), x)
    if low == 0.0 and high is None:
        return ctx.module(nn.ReLU(), x)
    if low is not None and high is not None and low < high:
        return ctx.module(nn.Hardtanh(low, high), x)
    return ctx.call(torch.clamp, x, min=low, max=high)


def _bound(ctx: Context, node: ir.Node, index: int, attribute: str) -> float | None:
    array = ctx.constant(node, index)
    if array is not None:
        return float(array.reshape(-1)[0])
    return real(node, attribute, 0.0) if attribute in node.attributes else None


@operator("Softmax", "LogSoftmax")
def softmax(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    axis = ctx.axis(x, integer(node, "axis", -1 if ctx.opset > 12 else 1))
    # Before operator set 13 the softmax ran over all axes from `axis` on.
    if ctx.opset < 13 and any(size != 1 for size in ctx.shape(x)[axis + 1 :]):
        raise UnknownForm(
            f"axis = {axis} of rank {ctx.rank(x)} in operator set {ctx.opset}",
            "a softmax over one axis",
            "export with operator set 13 or later",
        )
    module = nn.Softmax(axis) if node.op_type == "Softmax" else nn.LogSoftmax(axis)
    return ctx.module(module, x)
