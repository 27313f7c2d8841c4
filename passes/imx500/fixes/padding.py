"""Padding with the picture's own pixels, and negative padding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, constant_ints, input_at, text_attribute


def _sides(node: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Padding before and after, one number an axis."""
    pads = constant_ints(input_at(node, 1))
    if pads is None:
        return None
    axes = constant_ints(input_at(node, 3)) or tuple(range(rank))
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis % rank], after[axis % rank] = pads[place], pads[place + len(axes)]
    return tuple(before), tuple(after)


@fix("pad-mode", "Pad")
def pad_from_picture(node: ir.Node, build: Builder) -> Rewrite | None:
    """reflect, edge and wrap by Gather with the constant list of positions, axis by axis."""
    x, mode = node.inputs[0], text_attribute(node, "mode", "constant")
    if x is None or (sides := _sides(node, len(shape_of(x)))) is None:
        return None
    before, after = sides
    if min((*before, *after)) < 0 or before[0] or after[0]:
        return None
    for axis, length in enumerate(shape_of(x)):
        if before[axis] or after[axis]:
            positions = np.pad(np.arange(length), (before[axis], after[axis]), mode=mode)  # type: ignore[call-overload]
            x = build.take(x, axis, [int(position) for position in positions])
    return Rewrite((x,), f"padding with mode {mode} became a Gather of fixed positions", Exactness.EXACT)


@fix("pad-amount", "Pad")
def negative_padding(node: ir.Node, build: Builder) -> Rewrite | None:
    """Negative padding by Slice; what is positive stays padding."""
    x, value = node.inputs[0], constant(input_at(node, 2))
    if x is None or text_attribute(node, "mode", "constant") != "constant":
        return None
    shape = shape_of(x)
    sides = _sides(node, len(shape))
    if sides is None or (value is None and input_at(node, 2) is not None):
        return None
    before, after = sides
    if before[0] or after[0]:
        return None
    for axis, length in enumerate(shape):
        start, end = max(-before[axis], 0), length - max(-after[axis], 0)
        if start >= end:
            return None
        x = build.slice(x, axis, start, end)
    number = 0.0 if value is None else float(value.item())
    x = build.pad(x, [max(side, 0) for side in before], [max(side, 0) for side in after], number)
    return Rewrite((x,), "negative padding became a slice", Exactness.EXACT)
