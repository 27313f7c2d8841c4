"""Convolutions, transposed convolutions and linear layers."""

from __future__ import annotations

import onnx_ir as ir

from passes.imx500.geometry import (
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    is_constant,
    padding_layer,
    rank_of,
    shape_behind,
    text_attribute,
    window,
)
from passes.imx500.limits import MAX_GROUPED_KERNEL
from passes.imx500.rules.registry import Found, rule


@rule("conv-rank", "Conv", "ConvTranspose")
def convolution_is_2d(node: ir.Node) -> Found | None:
    """Convolutions are two-dimensional: the input is batch x channels x height x width.

    Fix: use nn.Conv2d with kernel (1, k) on a tensor reshaped to (batch, channels, 1, length).
    """
    rank = rank_of(input_at(node, 0))
    if rank is None or rank == 4:
        return None
    instead = "nn.Conv2d" if node.op_type == "Conv" else "nn.ConvTranspose2d"
    return Found(
        f"input of rank {rank}",
        f"use {instead} with kernel (1, k) on a tensor reshaped to (batch, channels, 1, length)"
        if rank == 3
        else f"use {instead} on each slice of the extra axis, or take the axis into the channels",
    )


@rule("conv-weight", "Conv", "ConvTranspose", "Gemm")
def weights_are_constant(node: ir.Node) -> Found | None:
    """Weights and biases are constants.

    Fix: make them nn.Parameter or a registered buffer.
    """
    if is_constant(input_at(node, 1)) and (input_at(node, 2) is None or is_constant(input_at(node, 2))):
        return None
    return Found("weights or bias computed by the network")


@rule("conv-padding", "Conv")
def padding_below_kernel(node: ir.Node) -> Found | None:
    """Even padding is 0 or more and smaller than the effective kernel, (k - 1) * dilation + 1.

    Uneven padding has no limit: it becomes a layer of its own.

    Fix: put nn.ZeroPad2d before the convolution and give it padding=0, which is the same.
    """
    found = window(node)
    if found is None:
        return None
    if min((*found.before, *found.after), default=0) < 0:
        return Found(f"pads = {[*found.before, *found.after]}", "crop with a slice before the convolution")
    if found.before != found.after:
        return None
    if all(pad < extent for pad, extent in zip(found.before, found.effective, strict=True)):
        return None
    layer = padding_layer(found)
    return Found(
        f"pads = {[*found.before, *found.after]} with effective kernel {list(found.effective)}",
        f"put {layer} before the convolution and give it padding=0, which is the same",
    )


@rule("conv-stride-dilation", "Conv")
def no_stride_with_dilation(node: ir.Node) -> Found | None:
    """A stride above 1 does not go together with a dilation above 1.

    Fix: keep the dilation with stride 1 and take every stride-th pixel after it (x[:, :, ::s, ::s]), or
    keep the stride with dilation 1.
    """
    found = window(node)
    if found is None or max(found.strides, default=1) == 1 or max(found.dilations, default=1) == 1:
        return None
    return Found(f"strides = {list(found.strides)}, dilations = {list(found.dilations)}")


@rule("conv-grouped-kernel", "Conv")
def grouped_kernel(node: ir.Node) -> Found | None:
    """A depthwise or grouped kernel has at most {MAX_GROUPED_KERNEL} rows and {MAX_GROUPED_KERNEL} columns.

    Fix: chain smaller convolutions (two of 7x7 see 13x13), or dilate a smaller one.
    """
    # Of depthwise ones the front end says so, of grouped ones the back end, in a full conversion only.
    found = window(node)
    if found is None or found.group == 1 or max(found.kernel) <= MAX_GROUPED_KERNEL:
        return None
    return Found(f"kernel_shape = {list(found.kernel)} with group = {found.group}")


@rule("convtranspose-padding", "ConvTranspose")
def transposed_without_padding(node: ir.Node) -> Found | None:
    """A transposed convolution has no padding, given as numbers.

    Fix: use padding=0 and crop the result with a slice.
    """
    found, auto_pad = window(node), text_attribute(node, "auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return Found(f"auto_pad = {auto_pad}")
    if ints_attribute(node, "output_shape") is not None:
        return Found("output_shape")
    if found is None or not any((*found.before, *found.after)):
        return None
    size = (shape_behind(node.outputs[0]) or ())[2:]
    crop = ", ".join(
        f"{start}:{start + length}" if length is not None else f"{start}:..."
        for start, length in zip(found.before, size, strict=False)
    )
    return Found(
        f"pads = {[*found.before, *found.after]}",
        f"use padding=0, output_padding=0 and crop the result, x[:, :, {crop}], "
        "or nn.Upsample and a convolution",
    )


@rule("convtranspose-groups", "ConvTranspose")
def transposed_without_groups(node: ir.Node) -> Found | None:
    """A transposed convolution has one group.

    Fix: use groups=1, or nn.Upsample and a depthwise convolution.
    """
    group = int_attribute(node, "group", 1)
    if group == 1:
        return None
    return Found(f"group = {group}")


@rule("convtranspose-dilation", "ConvTranspose")
def transposed_without_dilation(node: ir.Node) -> Found | None:
    """A transposed convolution has dilation 1.

    Fix: use dilation=1 with a larger kernel.
    """
    found = window(node)
    if found is None or max(found.dilations, default=1) == 1:
        return None
    return Found(f"dilations = {list(found.dilations)}")


@rule("convtranspose-stride", "ConvTranspose")
def transposed_stride(node: ir.Node) -> Found | None:
    """The stride of a transposed convolution is at most its kernel.

    Fix: use a kernel_size that is at least the stride.
    """
    found = window(node)
    if found is None or all(s <= k for s, k in zip(found.strides, found.kernel, strict=True)):
        return None
    return Found(
        f"strides = {list(found.strides)} with kernel_shape = {list(found.kernel)}",
        f"use kernel_size={tuple(max(s, k) for s, k in zip(found.strides, found.kernel, strict=True))}",
    )


@rule("convtranspose-output-padding", "ConvTranspose")
def transposed_output_padding(node: ir.Node) -> Found | None:
    """The output padding of a transposed convolution is smaller than its stride.

    Fix: use output_padding below stride (PyTorch's own limit), or pad the result.
    """
    found, extra = window(node), ints_attribute(node, "output_padding")
    if found is None or extra is None or all(e < s for e, s in zip(extra, found.strides, strict=True)):
        return None
    return Found(f"output_padding = {list(extra)} with strides = {list(found.strides)}")


@rule("gemm-form", "Gemm")
def gemm_is_a_linear_layer(node: ir.Node) -> Found | None:
    """Gemm has alpha = 1, beta = 1 and transA = 0, as nn.Linear writes it.

    Fix: use nn.Linear, scaling its weights instead of its result.
    """
    wrong = [
        f"{name} = {value}"
        for name, value, wanted in (
            ("alpha", float_attribute(node, "alpha", 1.0), 1.0),
            ("beta", float_attribute(node, "beta", 1.0), 1.0),
            ("transA", float(int_attribute(node, "transA", 0)), 0.0),
        )
        if value != wanted
    ]
    return Found(", ".join(wrong)) if wrong else None


@rule("linear-rank", "MatMul")
def linear_rank(node: ir.Node) -> Found | None:
    """A linear layer (MatMul with constant weights) takes an input of rank 2 or 4.

    Fix: use nn.Conv2d(in, out, 1) on the map before it is flattened, or reshape to rank 4 around the
    layer.
    """
    rank = rank_of(input_at(node, 0))
    if not is_constant(input_at(node, 1)) or rank in (None, 2, 4):
        return None
    return Found(
        f"input of rank {rank}",
        "use nn.Conv2d(in, out, 1) on the map before it is flattened"
        if rank == 3
        else "reshape to rank 4 before the layer and back after it",
    )


@rule("linear-weight", "MatMul")
def linear_weight_shape(node: ir.Node) -> Found | None:
    """The constant of a MatMul stands second and has shape (in, out).

    Fix: put the constant second, as one matrix; different matrices per channel are a grouped nn.Conv2d.
    """
    if is_constant(input_at(node, 0)):
        return Found("constant first operand", "compute x @ k.T with the constant second, then transpose")
    if not is_constant(input_at(node, 1)):
        return None
    shape = shape_behind(input_at(node, 1))
    if shape is None or len(shape) == 2:
        return None
    return Found(
        f"constant of shape {list(shape)}",
        "use one matrix of shape (in, out); different matrices per channel are a grouped nn.Conv2d",
    )


@rule("matmul-rank", "MatMul")
def matmul_rank(node: ir.Node) -> Found | None:
    """A MatMul of two activations takes two inputs of the same rank, 3 or more.

    Fix: unsqueeze both to (batch, rows, columns).
    """
    if is_constant(input_at(node, 0)) or is_constant(input_at(node, 1)):
        return None
    ranks = [rank_of(input_at(node, index)) for index in (0, 1)]
    if None in ranks or (ranks[0] == ranks[1] and (ranks[0] or 0) >= 3):
        return None
    return Found(f"inputs of rank {ranks[0]} and {ranks[1]}")
