"""Convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from calib.importer.context import Context, integer, ints, text, to_tensor
from calib.importer.patterns import gemm_parameters, linear
from calib.importer.registry import UnknownForm, operator
from passes.explicit_pads import same_pads
from passes.graph import const_array

Padding = tuple[int, int, int, int]
"""Top, left, bottom, right: the order of ONNX `pads`."""


def padding_of(
    ctx: Context,
    node: ir.Node,
    x: fx.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Padding:
    """The padding of a convolution or pooling, with auto_pad worked out.

    SAME: out = ceil(in / stride) and the padding that takes, the odd one at the end (UPPER) or start (LOWER).
    """
    mode = text(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return explicit_padding(node)
    if mode == "VALID":
        return 0, 0, 0, 0
    (top, bottom), (left, right) = (
        same_pads(size, stride, (k - 1) * dilation + 1, mode)
        for size, k, stride, dilation in zip(ctx.shape(x)[2:], kernel, strides, dilations, strict=True)
    )
    return max(top, 0), max(left, 0), max(bottom, 0), max(right, 0)


def explicit_padding(node: ir.Node) -> Padding:
    top, left, bottom, right = ints(node, "pads", (0, 0, 0, 0))
    return top, left, bottom, right


def require_pictures(ctx: Context, x: fx.Node) -> None:
    """Raises UnknownForm where `x` is not of rank 4."""
    if ctx.rank(x) != 4:
        raise UnknownForm(
            f"rank {ctx.rank(x)}", "pictures [N, C, H, W]", "reshape it to rank 4 before the node"
        )


def load(module: nn.Conv2d | nn.ConvTranspose2d, weight: np.ndarray, bias: np.ndarray | None) -> None:
    module.weight.data = to_tensor(weight)
    if module.bias is not None and bias is not None:
        module.bias.data = to_tensor(bias)


@operator("Conv")
def conv(ctx: Context, node: ir.Node) -> fx.Node:
    x, weight, bias = ctx.activation(node), ctx.required(node, 1), ctx.constant(node, 2)
    require_pictures(ctx, x)
    kernel, strides, dilations = (
        weight.shape[2:],
        ints(node, "strides", (1, 1)),
        ints(node, "dilations", (1, 1)),
    )
    groups = integer(node, "group", 1)
    top, left, bottom, right = padding_of(ctx, node, x, kernel, strides, dilations)
    even = (top, left) == (bottom, right)
    if not even:
        # torch pads both sides alike, so an uneven padding is a layer of its own.
        x = ctx.module(nn.ZeroPad2d((left, right, top, bottom)), x, suffix="_pad")
    module = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (kernel[0], kernel[1]),
        stride=(strides[0], strides[1]),
        padding=(top, left) if even else (0, 0),
        dilation=(dilations[0], dilations[1]),
        groups=groups,
        bias=bias is not None,
    )
    load(module, weight, bias)
    return ctx.module(module, x)


@operator("ConvTranspose")
def conv_transpose(ctx: Context, node: ir.Node) -> fx.Node:
    x, weight, bias = ctx.activation(node), ctx.required(node, 1), ctx.constant(node, 2)
    require_pictures(ctx, x)
    if text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in node.attributes:
        raise UnknownForm("padding by auto_pad or output_shape", "explicit pads", "export it with pads")
    top, left, bottom, right = explicit_padding(node)
    if (top, left) != (bottom, right):
        raise UnknownForm(
            f"pads = {[top, left, bottom, right]}",
            "the same padding on both sides",
            "crop with a Slice instead",
        )
    kernel, strides, dilations = (
        weight.shape[2:],
        ints(node, "strides", (1, 1)),
        ints(node, "dilations", (1, 1)),
    )
    groups, extra = integer(node, "group", 1), ints(node, "output_padding", (0, 0))
    module = nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * groups,
        (kernel[0], kernel[1]),
        stride=(strides[0], strides[1]),
        padding=(top, left),
        output_padding=(extra[0], extra[1]),
        dilation=(dilations[0], dilations[1]),
        groups=groups,
        bias=bias is not None,
    )
    load(module, weight, bias)
    return ctx.module(module, x)


@operator("Gemm")
def gemm(ctx: Context, node: ir.Node) -> fx.Node:
    """alpha * A @ B + beta * C with constant B and C: a linear layer."""
    x, weight, bias = ctx.activation(node), ctx.required(node, 1), ctx.constant(node, 2)
    if integer(node, "transA", 0):
        raise UnknownForm("transA = 1", "transA = 0", "transpose the input before the layer")
    outputs = weight.shape[0] if integer(node, "transB", 0) else weight.shape[1]
    if bias is not None and bias.size not in (1, outputs):
        raise UnknownForm(f"C of shape {bias.shape}", "one number per output", "export it as a bias")
    return ctx.module(linear(*gemm_parameters(node, weight, bias)), x)


@operator("MatMul")
def matmul(ctx: Context, node: ir.Node) -> fx.Node:
    left, right = const_array(node.inputs[0]), const_array(node.inputs[1])
    if right is not None and right.ndim == 2:
        return ctx.module(linear(right.T, None), ctx.activation(node))
    first = ctx.activation(node, 0) if left is None else ctx.buffer(left)
    second = ctx.activation(node, 1) if right is None else ctx.buffer(right)
    return ctx.call(torch.matmul, first, second)
