"""Flips and indices that the target spells differently."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, constant_ints, input_at, int_attribute


@fix("slice", "Slice")
def flip(node: ir.Node, build: Builder) -> Rewrite | None:
    """A slice with a negative step by Gather with the constant list of its positions."""
    x = node.inputs[0]
    starts, ends = constant_ints(input_at(node, 1)), constant_ints(input_at(node, 2))
    if x is None or starts is None or ends is None:
        return None
    shape = shape_of(x)
    axes = constant_ints(input_at(node, 3)) or tuple(range(len(starts)))
    steps = constant_ints(input_at(node, 4)) or (1,) * len(starts)
    if min(steps) > 0:
        return None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)
        positions = range(shape[axis])[_cut(start, end, step, shape[axis])]
        if axis == 0 and list(positions) != [0]:
            return None
        if not positions:
            return None
        if axis:
            x = build.take(x, axis, positions)
    return Rewrite(
        (x,), f"the slice with steps {list(steps)} became a Gather of fixed positions", Exactness.EXACT
    )


def _cut(start: int, end: int, step: int, length: int) -> slice:
    """Python's slice for ONNX's: there an end below -length means "past the first element"."""
    return slice(start, None if step < 0 and end < -length else end, step)


@fix("gather-indices", "Gather")
def gather(node: ir.Node, build: Builder) -> Rewrite | None:
    """Constant indices counted from the front, in one list; a table of indices is reshaped behind."""
    x, indices = node.inputs[0], constant(input_at(node, 1))
    if x is None or indices is None:
        return None
    shape = shape_of(x)
    axis = int_attribute(node, "axis", 0) % len(shape)
    flat = np.where(indices < 0, indices + shape[axis], indices)
    if axis == 0:
        return None
    y = build.op("Gather", x, flat.ravel() if flat.ndim else flat, axis=axis)
    if flat.ndim > 1:
        y = build.reshape(y, (*shape[:axis], *flat.shape, *shape[axis + 1 :]))
    return Rewrite((y,), "the indices became one list, counted from the front", Exactness.EXACT)
