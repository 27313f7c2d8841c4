"""Resizing."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from torch import fx, nn

from calib.importer.context import Context, integer, ints, text
from calib.importer.convolution import require_pictures
from calib.importer.registry import UnknownForm, operator

KNOWN = "nearest (asymmetric, floor) and linear (half_pixel, pytorch_half_pixel or align_corners)"


@operator("Resize")
def resize(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    require_pictures(ctx, x)
    given = ctx.shape(x)[2:]
    factors, size = _target(ctx, node, ctx.shape(x))
    # With a scale the ONNX exporter writes one constant, with a size it writes shape arithmetic: so a scale
    # wherever float32 holds it exactly.
    exact = all(Fraction(float(np.float32(f))) * g == s for f, g, s in zip(factors, given, size, strict=True))
    by_size = not exact and _sizes_given(ctx, node)
    mode, align_corners = _mode(ctx, node, given, size, factors)
    module = nn.Upsample(
        size=size if by_size else None,
        scale_factor=None if by_size else factors,
        mode=mode,
        align_corners=align_corners,
    )
    return ctx.module(module, x)


def _sizes_given(ctx: Context, node: ir.Node) -> bool:
    sizes = ctx.constant(node, 3)
    return sizes is not None and sizes.size > 0


def _target(
    ctx: Context, node: ir.Node, shape: tuple[int, ...]
) -> tuple[tuple[float, float], tuple[int, int]]:
    """Scale and size of height and width; raises UnknownForm where batch or channels are resized."""
    axes = [a % 4 for a in ints(node, "axes", (0, 1, 2, 3))]
    scales, sizes = [1.0] * 4, list(shape)
    if _sizes_given(ctx, node):
        if (policy := text(node, "keep_aspect_ratio_policy", "stretch")) != "stretch":
            raise UnknownForm(f"keep_aspect_ratio_policy = {policy}", "stretch", "give the size itself")
        for axis, number in zip(axes, ctx.required(node, 3).reshape(-1), strict=True):
            sizes[axis], scales[axis] = int(number), int(number) / shape[axis]
    else:
        # Operator set 10 has the scales at input 1, later ones at input 2 behind the region of interest.
        for axis, number in zip(
            axes, ctx.required(node, 1 if ctx.opset < 11 else 2).reshape(-1), strict=True
        ):
            sizes[axis], scales[axis] = math.floor(shape[axis] * float(number)), float(number)
    if scales[:2] != [1.0, 1.0]:
        raise UnknownForm(f"scales = {scales}", "scale 1 for batch and channels", "resize height and width")
    return (scales[2], scales[3]), (sizes[2], sizes[3])


def _mode(
    ctx: Context,
    node: ir.Node,
    given: tuple[int, ...],
    size: tuple[int, int],
    factors: tuple[float, float],
) -> tuple[str, bool | None]:
    """torch's mode and align_corners for the same arithmetic; raises UnknownForm where torch has none."""
    mode = text(node, "mode", "nearest")
    coordinates = text(
        node, "coordinate_transformation_mode", "half_pixel" if ctx.opset > 10 else "asymmetric"
    )
    rounding = text(node, "nearest_mode", "round_prefer_floor" if ctx.opset > 10 else "floor")
    half_pixel = coordinates in ("half_pixel", "pytorch_half_pixel")
    plain = not integer(node, "antialias", 0) and not integer(node, "exclude_outside", 0)
    if plain and mode == "nearest":
        # For a whole number of copies of each pixel the half-pixel forms pick the same pixels.
        copies = all(f >= 1 and float(f).is_integer() for f in factors)
        # torch copies or doubles where the sizes say so, whatever the scale says.
        plain = all(s not in (g, 2 * g) or g * f == s for g, s, f in zip(given, size, factors, strict=True))
        if plain and (
            (coordinates, rounding) == ("asymmetric", "floor")
            or (half_pixel and copies and rounding.startswith("round_prefer"))
        ):
            return "nearest", None
    if plain and mode == "linear":
        # pytorch_half_pixel puts a single output pixel at coordinate 0, half_pixel (and torch) in the middle.
        single = any(s == 1 and g > 1 for s, g in zip(size, given, strict=True))
        if half_pixel and not (single and coordinates == "pytorch_half_pixel"):
            return "bilinear", False
        if coordinates == "align_corners":
            return "bilinear", True
    raise UnknownForm(
        f"mode = {mode}, coordinate_transformation_mode = {coordinates}, nearest_mode = {rounding}, "
        f"{given[0]}x{given[1]} to {size[0]}x{size[1]} by {factors[0]:g} and {factors[1]:g}",
        KNOWN,
        "use nn.Upsample with mode nearest, or bilinear with align_corners=False",
    )
