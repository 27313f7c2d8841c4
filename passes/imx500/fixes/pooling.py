"""Pools with ceil_mode, uneven padding, dilation or another rank.

The windows of a pool on one axis start at i*stride - pad, i below the length of the result. The first ones
hang over the start, the last ones over the end (with ceil_mode further than the padding). The picture's own
last row, repeated there, is in such a window already and so never changes a maximum, whatever its sign. A
mean is taken with zeros there and corrected for their number.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import Window, int_attribute, ints_attribute, text_attribute, window


@fix(("pool-ceil-mode", "pool-uneven-padding", "pool-padding"), "MaxPool", "AveragePool")
def uneven_windows(node: ir.Node, build: Builder) -> Rewrite | None:
    """MaxPool: first and last rows and columns repeated. AveragePool: zeros, each mean over its own count."""
    x, found = node.inputs[0], window(node)
    if x is None or found is None or len(found.kernel) != 2 or not _plain(node, found):
        return None
    result = shape_of(node.outputs[0])
    overhang = []
    for axis in range(2):
        n, start = shape_of(x)[2 + axis], (result[2 + axis] - 1) * found.strides[axis] - found.before[axis]
        if start >= n or max(found.before[axis], found.after[axis]) >= found.kernel[axis]:
            return None  # a window outside of the picture
        overhang.append(max(0, start + found.kernel[axis] - (n + found.after[axis])))
    if node.op_type == "MaxPool":
        y = _max_pool(build, x, found, overhang)
        done = "MaxPool: where windows hang over unevenly, the first and last rows and columns are repeated"
        return Rewrite((y,), done, Exactness.EXACT)
    counted = bool(int_attribute(node, "count_include_pad", 0))
    y = _average_pool(build, x, found, overhang, result, counted)
    done = "AveragePool: zeros where windows hang over, and each mean corrected for their number"
    return Rewrite((y,), done, Exactness.FLOAT)


def _plain(node: ir.Node, found: Window) -> bool:
    """Padding in numbers, no dilation, only the first output read."""
    return (
        text_attribute(node, "auto_pad", "NOTSET") == "NOTSET"
        and max(found.dilations) == 1
        and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    )


def _max_pool(build: Builder, x: ir.Value, found: Window, overhang: list[int]) -> ir.Value:
    even = [
        min(before, after, k // 2)
        for before, after, k in zip(found.before, found.after, found.kernel, strict=True)
    ]
    for axis in range(2):
        first, last = found.before[axis] - even[axis], found.after[axis] - even[axis] + overhang[axis]
        x = _repeat_ends(build, x, 2 + axis, first, last)
    return build.op(
        "MaxPool",
        x,
        kernel_shape=list(found.kernel),
        strides=list(found.strides),
        pads=even * 2,
    )


def _repeat_ends(build: Builder, x: ir.Value, axis: int, first: int, last: int) -> ir.Value:
    """x with its first row along the axis `first` times more, and its last row `last` times more."""
    if first == last == 0:
        return x
    length = shape_of(x)[axis]
    before = [build.slice(x, axis, 0, 1)] * first if first else []
    after = [build.slice(x, axis, length - 1, length)] * last if last else []
    return build.op("Concat", *before, x, *after, axis=axis)


def _average_pool(
    build: Builder,
    x: ir.Value,
    found: Window,
    overhang: list[int],
    result: tuple[int, ...],
    counted: bool,
) -> ir.Value:
    """Means of whole windows over zeros outside, times the share of the window that counts."""
    shares = []
    for axis in range(2):
        n, before = shape_of(x)[2 + axis], found.before[axis]
        starts = np.arange(result[2 + axis]) * found.strides[axis] - before
        first, end = (-before, n + found.after[axis]) if counted else (0, n)
        count = np.minimum(starts + found.kernel[axis], end) - np.maximum(starts, first)
        shares.append(found.kernel[axis] / count)
    after = [pad + more for pad, more in zip(found.after, overhang, strict=True)]
    y = build.op(
        "AveragePool",
        build.pad(x, (0, 0, *found.before), (0, 0, *after)),
        kernel_shape=list(found.kernel),
        strides=list(found.strides),
    )
    correction = np.outer(*shares)
    return y if np.all(correction == 1) else build.op("Mul", y, correction[None, None])


@fix("pool-dilation", "MaxPool")
def dilated(node: ir.Node, build: Builder) -> Rewrite | None:
    """The maximum of strided slices, one a place of the kernel, first along the rows, then the columns.

    A place in the padding is taken from another place of the same window.
    """
    y, found = node.inputs[0], window(node)
    if y is None or found is None or text_attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    result = shape_of(node.outputs[0])
    for axis in range(2, len(result)):
        k, s, d, pad = (
            numbers[axis - 2] for numbers in (found.kernel, found.strides, found.dilations, found.before)
        )
        n = shape_of(y)[axis]
        places = np.arange(result[axis])[:, None] * s + np.arange(k) * d - pad
        inside = [[place for place in row if 0 <= place < n] for row in places.tolist()]
        if not all(inside):
            return None
        lists = [
            [_closest(row, wanted) for row, wanted in zip(inside, column, strict=True)]
            for column in places.T.tolist()
        ]
        y = _largest([build.take(y, axis, positions) for positions in lists], build)
    return Rewrite(
        (y,), f"MaxPool with dilations {list(found.dilations)} became maxima of slices", Exactness.EXACT
    )


def _closest(places: list[int], wanted: int) -> int:
    return min(places, key=lambda place: abs(place - wanted))


def _largest(values: list[ir.Value], build: Builder) -> ir.Value:
    y, *others = values
    for other in others:
        y = build.op("Max", y, other)
    return y


@fix("pool-rank", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
def flat_pool(node: ir.Node, build: Builder) -> Rewrite | None:
    """One dimension: two, with height 1. Global pools of any rank: one axis of all pixels."""
    x = node.inputs[0]
    if x is None or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    shape, result = shape_of(x), shape_of(node.outputs[0])
    if node.op_type.startswith("Global"):
        y = build.op(node.op_type, build.reshape(x, (*shape[:2], 1, math.prod(shape[2:]))))
        return Rewrite(
            (build.reshape(y, result),), f"{node.op_type} on a picture of height 1", Exactness.EXACT
        )
    found = window(node)
    if len(shape) != 3 or found is None or text_attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    attributes = {
        "kernel_shape": [1, *found.kernel],
        "strides": [1, *found.strides],
        "pads": [0, *found.before, 0, *found.after],
        "ceil_mode": int_attribute(node, "ceil_mode", 0),
    }
    if ints_attribute(node, "dilations") is not None:
        attributes["dilations"] = [1, *found.dilations]
    if node.op_type == "AveragePool":
        attributes["count_include_pad"] = int_attribute(node, "count_include_pad", 0)
    y = build.op(node.op_type, build.reshape(x, (*shape[:2], 1, shape[2])), **attributes)
    done = f"the 1-D {node.op_type} became a 2-D one on a picture of height 1"
    return Rewrite((build.reshape(y, result),), done, Exactness.EXACT)
