"""Resizing and padding."""

from __future__ import annotations

import onnx_ir as ir

from passes.imx500.geometry import (
    constant_ints,
    input_at,
    int_attribute,
    rank_of,
    shape_behind,
    text_attribute,
)
from passes.imx500.limits import NEAREST_MODE, RESIZE_MODES
from passes.imx500.rules.registry import Found, rule


@rule("resize-rank", "Resize")
def resize_is_2d(node: ir.Node) -> Found | None:
    """Resize works on height and width of a rank-4 tensor; batch and channels stay."""
    source, result = shape_behind(input_at(node, 0)), shape_behind(node.outputs[0])
    if source is None:
        return None
    if len(source) != 4:
        return Found(f"input of rank {len(source)}", "reshape to (batch, channels, height, width) first")
    if result is None or source[1] == result[1]:
        return None
    return Found(f"channels {source[1]} -> {result[1]}", "repeat channels with torch.cat")


@rule("resize-mode", "Resize")
def resize_mode(node: ir.Node) -> Found | None:
    """mode and coordinate transformation are {RESIZE_MODES}."""
    mode = text_attribute(node, "mode", "nearest")
    if mode not in RESIZE_MODES:
        return Found(f"mode = {mode}", "use mode='bilinear' or mode='nearest'")
    transformation = text_attribute(node, "coordinate_transformation_mode", "half_pixel")
    if transformation not in RESIZE_MODES[mode]:
        fix = (
            "set align_corners=False"
            if transformation == "align_corners"
            else "export F.interpolate from PyTorch, which writes "
            f"{' or '.join(RESIZE_MODES[mode])} for mode='{mode}'"
        )
        return Found(f"coordinate_transformation_mode = {transformation} with mode = {mode}", fix)
    return None


@rule("resize-nearest-mode", "Resize")
def resize_rounding(node: ir.Node) -> Found | None:
    """Nearest-neighbour resizing rounds down: nearest_mode is {NEAREST_MODE}."""
    rounding = text_attribute(node, "nearest_mode", "round_prefer_floor")
    if text_attribute(node, "mode", "nearest") != "nearest" or rounding == NEAREST_MODE:
        return None
    return Found(f"nearest_mode = {rounding}", "use F.interpolate(mode='nearest'), which rounds down")


@rule("resize-antialias", "Resize")
def no_antialias(node: ir.Node) -> Found | None:
    """antialias is 0."""
    if int_attribute(node, "antialias", 0) == 0:
        return None
    return Found("antialias = 1", "set antialias=False and put an nn.AvgPool2d before the resize")


@rule("pad-mode", "Pad")
def pad_is_constant(node: ir.Node) -> Found | None:
    """Padding is constant."""
    mode = text_attribute(node, "mode", "constant")
    if mode == "constant":
        return None
    return Found(f"mode = {mode}", "use padding_mode='zeros', or F.pad(x, pads, mode='constant')")


@rule("pad-amount", "Pad")
def pad_amount(node: ir.Node) -> Found | None:
    """Pads are constants, not negative, and zero on the batch axis."""
    pads, rank = constant_ints(input_at(node, 1)), rank_of(input_at(node, 0))
    if pads is None:
        return Found("pads computed by the network", "give F.pad fixed numbers")
    if any(pad < 0 for pad in pads):
        return Found(f"pads = {list(pads)}", "crop with a slice instead of negative padding")
    axes = constant_ints(input_at(node, 3)) or tuple(range(len(pads) // 2))
    on_batch = [axis % (rank or len(axes)) == 0 for axis in axes] * 2
    if any(pad and batch for pad, batch in zip(pads, on_batch, strict=True)):
        return Found(f"pads = {list(pads)}", "do not pad the batch axis")
    return None
