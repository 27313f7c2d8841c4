"""Convolutions: one and three dimensions as two, strides with dilations, large depthwise kernels, padding."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import Window, constant, input_at, ints_attribute, text_attribute, window
from passes.imx500.limits import MAX_GROUPED_KERNEL


def _operands(node: ir.Node) -> tuple[ir.Value, Window, np.ndarray, np.ndarray | None] | None:
    """What is read, the window, and constant weight and bias.

    None where a weight or bias is computed, or the padding is not given as numbers.
    """
    x, found = node.inputs[0], window(node)
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    if x is None or found is None or weight is None or (bias is None and input_at(node, 2) is not None):
        return None
    if text_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    return x, found, weight, bias


def _convolve(
    build: Builder,
    x: ir.Value,
    weight: np.ndarray,
    bias: np.ndarray | None,
    strides: tuple[int, ...] = (1, 1),
    dilations: tuple[int, ...] = (1, 1),
    pads: tuple[int, ...] = (0, 0, 0, 0),
    group: int = 1,
) -> ir.Value:
    return build.op(
        "Conv",
        x,
        build.constant(weight, "weight"),
        None if bias is None else build.constant(bias, "bias"),
        kernel_shape=list(weight.shape[2:]),
        strides=list(strides),
        dilations=list(dilations),
        pads=list(pads),
        group=group,
    )


@fix("conv-rank", "Conv", "ConvTranspose")
def flat_convolution(node: ir.Node, build: Builder) -> Rewrite | None:
    """One dimension: two, with height 1. Three dimensions: the depth goes into the channels."""
    operands = _operands(node)
    if operands is None:
        return None
    x, found, weight, bias = operands
    if weight.ndim == 3:
        return _one_dimensional(node, build, x, weight, bias, found)
    if weight.ndim == 5 and node.op_type == "Conv":
        return _three_dimensional(node, build, x, weight, bias, found)
    return None


def _one_dimensional(
    node: ir.Node,
    build: Builder,
    x: ir.Value,
    weight: np.ndarray,
    bias: np.ndarray | None,
    found: Window,
) -> Rewrite | None:
    if ints_attribute(node, "output_shape") is not None:
        return None
    batch, channels, length = shape_of(x)
    attributes = {
        "kernel_shape": [1, *found.kernel],
        "strides": [1, *found.strides],
        "dilations": [1, *found.dilations],
        "pads": [0, *found.before, 0, *found.after],
        "group": found.group,
    }
    if node.op_type == "ConvTranspose":
        attributes["output_padding"] = [0, *(ints_attribute(node, "output_padding") or (0,))]
    y = build.op(
        node.op_type,
        build.reshape(x, (batch, channels, 1, length)),
        build.constant(weight[:, :, None, :], "weight"),
        None if bias is None else build.constant(bias, "bias"),
        **attributes,
    )
    y = build.reshape(y, shape_of(node.outputs[0]))
    return Rewrite((y,), "the 1-D convolution became a 2-D one on a picture of height 1", Exactness.EXACT)


def _three_dimensional(
    node: ir.Node,
    build: Builder,
    x: ir.Value,
    weight: np.ndarray,
    bias: np.ndarray | None,
    found: Window,
) -> Rewrite:
    """Channel o*D' + e of the result reads channel c*D + d of the input with the slice of the kernel at k,
    d = e*stride + k*dilation - pad."""
    batch, channels, depth, height, width = shape_of(x)
    _, outputs, deep, *_ = shape_of(node.outputs[0])
    flat = np.zeros((outputs, deep, weight.shape[1], depth, *weight.shape[3:]), weight.dtype)
    for e in range(deep):
        for k in range(weight.shape[2]):
            d = e * found.strides[0] + k * found.dilations[0] - found.before[0]
            if 0 <= d < depth:
                flat[:, e, :, d] = weight[:, :, k]
    y = _convolve(
        build,
        build.reshape(x, (batch, channels * depth, height, width)),
        flat.reshape(outputs * deep, weight.shape[1] * depth, *weight.shape[3:]),
        None if bias is None else np.repeat(bias, deep),
        found.strides[1:],
        found.dilations[1:],
        (*found.before[1:], *found.after[1:]),
        found.group,
    )
    y = build.reshape(y, shape_of(node.outputs[0]))
    done = f"the depth of {depth} went into the channels of a 2-D convolution"
    return Rewrite((y,), done, Exactness.EXACT)


@fix("conv-padding", "Conv")
def wide_padding(node: ir.Node, build: Builder) -> Rewrite | None:
    """Padding as large as the kernel by a Pad node."""
    operands = _operands(node)
    if operands is None:
        return None
    x, found, weight, bias = operands
    padded = build.pad(x, (0, 0, *found.before), (0, 0, *found.after))
    y = _convolve(build, padded, weight, bias, found.strides, found.dilations, group=found.group)
    done = f"the padding {[*found.before, *found.after]} became a layer of its own"
    return Rewrite((y,), done, Exactness.EXACT)


@fix("conv-grouped-kernel", "Conv")
def large_grouped(node: ir.Node, build: Builder) -> Rewrite | None:
    """The kernel in pieces that are small enough, each on the part of the input it reads; their sum."""
    operands = _operands(node)
    if operands is None:
        return None
    x, found, weight, bias = operands
    total, count = None, 0
    for rows in _pieces(found.kernel[0]):
        for columns in _pieces(found.kernel[1]):
            part, pads, only_padding = x, [], False
            for axis, piece in enumerate((rows, columns)):
                d, n = found.dilations[axis], shape_of(x)[2 + axis]
                before = found.before[axis] - piece.start * d
                after = found.after[axis] - (found.kernel[axis] - piece.stop) * d
                first, last = max(0, -before), n - max(0, -after)
                only_padding = only_padding or first >= last
                if not only_padding:
                    part = build.slice(part, 2 + axis, first, last)
                pads += [max(0, before), max(0, after)]
            if only_padding:  # this piece never meets a pixel
                continue
            count += 1
            small = weight[:, :, rows.start : rows.stop, columns.start : columns.stop]
            top, bottom, left, right = pads
            y = _convolve(
                build,
                part,
                small,
                bias if total is None else None,
                found.strides,
                found.dilations,
                (top, left, bottom, right),
                found.group,
            )
            total = y if total is None else build.op("Add", total, y)
    if total is None:
        return None
    done = f"the grouped kernel {list(found.kernel)} became the sum of {count} smaller ones"
    return Rewrite((total,), done, Exactness.EXACT)


def _pieces(kernel: int) -> list[range]:
    """0..kernel-1 in as few parts as the limit allows, their lengths within 1."""
    count = math.ceil(kernel / MAX_GROUPED_KERNEL)
    cuts = [kernel * index // count for index in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(cuts)]


@fix("conv-stride-dilation", "Conv")
def stride_with_dilation(node: ir.Node, build: Builder) -> Rewrite | None:
    """Where the stride divides the dilation, the convolution reads every stride-th pixel only: slice first,
    then convolve with stride 1 and dilation/stride. Elsewhere convolve with stride 1 and slice the result."""
    operands = _operands(node)
    if operands is None:
        return None
    x, found, weight, bias = operands
    before, after, dilations, behind = [], [], [], []
    sizes, wanted = shape_of(x)[2:], shape_of(node.outputs[0])[2:]
    for axis in range(2):
        k, s, d, pad = (
            numbers[axis] for numbers in (found.kernel, found.strides, found.dilations, found.before)
        )
        if s > 1 and d % s == 0:
            # Place s*j of the padded input is place s*j - pad of the input; j starts at `first`.
            first, read = math.ceil(pad / s), (wanted[axis] - 1) + (k - 1) * (d // s) + 1
            start = s * first - pad
            held = len(range(start, sizes[axis], s))
            if held <= 0 or read <= first:
                return None
            x = build.slice(x, 2 + axis, start, min(sizes[axis], start + s * (read - first - 1) + 1), s)
            before.append(first)
            after.append(max(0, read - first - held))
            dilations.append(d // s)
            behind.append(1)
        else:
            before.append(pad)
            after.append(found.after[axis])
            dilations.append(d)
            behind.append(s)
    # Strides that are left may stay where no dilation is.
    strides = tuple(behind) if max(dilations) == 1 else (1, 1)
    y = _convolve(build, x, weight, bias, strides, tuple(dilations), (*before, *after), found.group)
    for axis, step in enumerate(behind):
        if strides[axis] != step:
            y = build.slice(y, 2 + axis, 0, shape_of(y)[2 + axis], step)
    return Rewrite((y,), f"{_strided(found)} became {_instead(behind)}", Exactness.EXACT)


def _strided(found: Window) -> str:
    return f"strides {list(found.strides)} with dilations {list(found.dilations)}"


def _instead(behind: list[int]) -> str:
    if max(behind) == 1:
        return "a convolution of every stride-th pixel, with the dilation divided by the stride"
    return f"a convolution of stride 1 and a slice of its result with steps {behind}"
