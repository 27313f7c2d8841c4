"""Pooling."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx, nn

from calib.importer.context import Context, integer, ints
from calib.importer.convolution import padding_of, require_pictures
from calib.importer.registry import UnknownForm, operator


@operator("MaxPool")
def max_pool(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    require_pictures(ctx, x)
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise UnknownForm("the Indices output is read", "the maxima only", "upsample with a Resize instead")
    kernel, strides = ints(node, "kernel_shape", ()), ints(node, "strides", (1, 1))
    dilations = ints(node, "dilations", (1, 1))
    top, left, bottom, right = padding_of(ctx, node, x, kernel, strides, dilations)
    if (top, left) != (bottom, right):
        raise UnknownForm(
            f"pads = {[top, left, bottom, right]}",
            "the same padding on both sides",
            "use even padding, or put a Pad node before the pooling",
        )
    module = nn.MaxPool2d(
        (kernel[0], kernel[1]),
        stride=(strides[0], strides[1]),
        padding=(top, left),
        dilation=(dilations[0], dilations[1]),
        ceil_mode=bool(integer(node, "ceil_mode", 0)),
    )
    return ctx.module(module, x)


@operator("AveragePool")
def average_pool(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    require_pictures(ctx, x)
    dilations = ints(node, "dilations", (1, 1))
    if dilations != [1, 1]:
        raise UnknownForm(f"dilations = {dilations}", "no dilation", "use dilation 1")
    kernel, strides = ints(node, "kernel_shape", ()), ints(node, "strides", (1, 1))
    top, left, bottom, right = padding_of(ctx, node, x, kernel, strides, dilations)
    padding, counted = (top, left), bool(integer(node, "count_include_pad", 0))
    if padding != (bottom, right):
        if not counted:
            raise UnknownForm(
                f"pads = {[top, left, bottom, right]} without count_include_pad",
                "the same padding on both sides",
                "use even padding, or count_include_pad = 1",
            )
        x = ctx.module(nn.ZeroPad2d((left, right, top, bottom)), x, suffix="_pad")
        padding = (0, 0)
    module = nn.AvgPool2d(
        (kernel[0], kernel[1]),
        stride=(strides[0], strides[1]),
        padding=padding,
        ceil_mode=bool(integer(node, "ceil_mode", 0)),
        count_include_pad=counted,
    )
    return ctx.module(module, x)


@operator("GlobalAveragePool")
def global_average_pool(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    require_pictures(ctx, x)
    return ctx.module(nn.AdaptiveAvgPool2d(1), x)


@operator("GlobalMaxPool")
def global_max_pool(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    require_pictures(ctx, x)
    return ctx.module(nn.AdaptiveMaxPool2d(1), x)
