"""Resizing and padding."""

from __future__ import annotations

import onnx_ir as ir

from passes.imx500.geometry import (
    constant,
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
    """Resize works on height and width of a rank-4 tensor; batch and channels stay.

    Fix: reshape to (batch, channels, height, width) first; repeat channels with torch.cat.
    """
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
    """mode and coordinate transformation are {RESIZE_MODES}.

    Fix: use F.interpolate with mode='nearest', or mode='bilinear' and align_corners=False.
    """
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
    """Nearest-neighbour resizing rounds down: nearest_mode is {NEAREST_MODE}.

    Fix: use F.interpolate(mode='nearest'), which rounds down.
    """
    rounding = text_attribute(node, "nearest_mode", "round_prefer_floor")
    if text_attribute(node, "mode", "nearest") != "nearest" or rounding == NEAREST_MODE:
        return None
    return Found(f"nearest_mode = {rounding}")


@rule("resize-to-one", "Resize")
def resize_to_one_pixel(node: ir.Node) -> Found | None:
    """Linear resizing to one row or column is half_pixel; pytorch_half_pixel then means the first pixel.

    Fix: use nn.AdaptiveAvgPool2d, or take the pixels themselves (x[:, :, :1, :1]).
    """
    source, result = shape_behind(input_at(node, 0)), shape_behind(node.outputs[0])
    if source is None or result is None or text_attribute(node, "mode", "nearest") != "linear":
        return None
    form = text_attribute(node, "coordinate_transformation_mode", "half_pixel")
    single = any(made == 1 and given != 1 for given, made in zip(source[2:], result[2:], strict=False))
    if form != "pytorch_half_pixel" or not single:
        return None
    return Found(f"{form} from {_size(source)} to {_size(result)}")


@rule("resize-scale", "Resize")
def resize_scale_is_whole(node: ir.Node) -> Found | None:
    """A scale of nearest resizing that leaves a side as it is is 1, and one that doubles it is 2.

    Fix: give F.interpolate the size instead of the scale, or a scale that gives the size exactly.
    """
    source, result = shape_behind(input_at(node, 0)), shape_behind(node.outputs[0])
    scales = constant(input_at(node, 2))
    if source is None or result is None or scales is None or scales.size != len(source):
        return None
    if text_attribute(node, "mode", "nearest") != "nearest":
        return None
    for given, made, scale in zip(source, result, scales.tolist(), strict=True):
        if given is not None and made in (given, 2 * given) and made != given * scale:
            return Found(f"scales = {scales.tolist()} from {_size(source)} to {_size(result)}")
    return None


def _size(shape: tuple[int | None, ...]) -> str:
    return "x".join(str(side) for side in shape[2:])


@rule("resize-antialias", "Resize")
def no_antialias(node: ir.Node) -> Found | None:
    """antialias is 0.

    Fix: set antialias=False and put an nn.AvgPool2d before the resize.
    """
    if int_attribute(node, "antialias", 0) == 0:
        return None
    return Found("antialias = 1")


@rule("pad-mode", "Pad")
def pad_is_constant(node: ir.Node) -> Found | None:
    """Padding is constant.

    Fix: use padding_mode='zeros', or F.pad(x, pads, mode='constant').
    """
    mode = text_attribute(node, "mode", "constant")
    if mode == "constant":
        return None
    return Found(f"mode = {mode}")


@rule("pad-amount", "Pad")
def pad_amount(node: ir.Node) -> Found | None:
    """Pads are constants, not negative, and zero on the batch axis.

    Fix: give F.pad fixed numbers; crop with a slice instead of negative padding.
    """
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
