"""Write auto_pad as explicit pads, so that the other passes and the rules meet one spelling.

ONNX: VALID is no padding; SAME pads each axis by (ceil(n/s) - 1) s + (k - 1) d + 1 - n in total, the odd one
at the end (SAME_UPPER) or at the beginning (SAME_LOWER).
"""

from __future__ import annotations

import onnx_ir as ir

from passes.graph import const_array, static_shape

PADDED = ("Conv", "MaxPool", "AveragePool", "LpPool")


class ExplicitPads(ir.passes.InPlacePass):
    """auto_pad of convolutions and pools of a known size becomes pads."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            pads = explicit_pads(node)
            if pads is not None:
                del node.attributes["auto_pad"]
                node.attributes["pads"] = ir.AttrInt64s("pads", pads)
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        left = [node.name for node in model.graph if explicit_pads(node) is not None]
        if left:
            raise ir.passes.PostconditionError(f"auto_pad that could be explicit: {left}")


def explicit_pads(node: ir.Node) -> list[int] | None:
    """The pads that auto_pad stands for, None where there is no auto_pad, or where it does not say."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if node.op_type not in PADDED or "auto_pad" not in node.attributes:
        return None
    if mode == "NOTSET":
        return list(node.attributes.get_ints("pads", [])) or None
    kernel = node.attributes.get_ints("kernel_shape", [])
    if not kernel and node.op_type == "Conv" and (weight := const_array(node.inputs[1])) is not None:
        kernel = list(weight.shape[2:])
    sizes = (static_shape(node.inputs[0]) or ())[2:]
    if not kernel or len(sizes) != len(kernel):
        return None
    if mode == "VALID":
        return [0] * (2 * len(kernel))
    strides = node.attributes.get_ints("strides", [1] * len(kernel))
    dilations = node.attributes.get_ints("dilations", [1] * len(kernel))
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None:
            return None
        pads = same_pads(size, stride, (k - 1) * dilation + 1, mode)
        if sum(pads) < 0:
            return None  # a stride above the kernel's extent: runtimes differ on what SAME then means
        begin.append(pads[0])
        end.append(pads[1])
    return [*begin, *end]


def same_pads(size: int, stride: int, extent: int, mode: str) -> tuple[int, int]:
    """Pixels that SAME_UPPER or SAME_LOWER puts before and after an axis; a stride above `extent` takes some.

    `extent` is the kernel's with its dilation, (k - 1) d + 1.
    """
    total = (-(-size // stride) - 1) * stride + extent - size
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)
