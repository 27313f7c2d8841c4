"""Pixels into channels and back, and repetition: the same numbers in other places."""

from __future__ import annotations

import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant_ints, input_at, int_attribute, text_attribute


@fix("operator", "DepthToSpace")
def depth_to_space(node: ir.Node, build: Builder) -> Rewrite | None:
    """PixelShuffle by reshape, transpose, reshape at rank 6: both orders of the channels."""
    x, block = node.inputs[0], int_attribute(node, "blocksize", 1)
    assert x is not None
    _, channels, height, width = shape_of(x)
    fewer = channels // block**2
    if text_attribute(node, "mode", "DCR") == "CRD":
        split, order = (1, fewer, block, block, height, width), (0, 1, 4, 2, 5, 3)
    else:
        split, order = (1, block, block, fewer, height, width), (0, 3, 4, 1, 5, 2)
    y = build.transpose(build.reshape(x, split), order)
    y = build.reshape(y, (1, fewer, height * block, width * block))
    return Rewrite((y,), f"PixelShuffle({block}) became reshape, transpose, reshape", Exactness.EXACT)


@fix("operator", "SpaceToDepth")
def space_to_depth(node: ir.Node, build: Builder) -> Rewrite | None:
    """SpaceToDepth by reshape, transpose, reshape at rank 6; a pixel's place in its block comes first."""
    x, block = node.inputs[0], int_attribute(node, "blocksize", 1)
    assert x is not None
    _, channels, height, width = shape_of(x)
    rows, columns = height // block, width // block
    y = build.reshape(x, (1, channels, rows, block, columns, block))
    y = build.reshape(build.transpose(y, (0, 3, 5, 1, 2, 4)), (1, channels * block**2, rows, columns))
    return Rewrite((y,), f"SpaceToDepth({block}) became reshape, transpose, reshape", Exactness.EXACT)


@fix("operator", "Tile")
def tile(node: ir.Node, build: Builder) -> Rewrite | None:
    """Repetition by Concat, axis by axis; not along the batch."""
    x, repeats = node.inputs[0], constant_ints(input_at(node, 1))
    if x is None or repeats is None or repeats[0] != 1 or 0 in repeats:
        return None
    shape_of(x)
    for axis, count in enumerate(repeats):
        if count > 1:
            x = build.op("Concat", *[x] * count, axis=axis)
    return Rewrite(
        (x,), f"repeats {list(repeats)} became concatenations of the tensor with itself", Exactness.EXACT
    )
