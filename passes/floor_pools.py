"""Drop ceil_mode from pools where it changes nothing.

With padded length n, effective kernel k and stride s a pool gives floor((n - k)/s) + 1 positions, or with
ceil_mode ceil((n - k)/s) + 1. Both are the same where s divides n - k on every axis. The target refuses the
attribute, whatever it does; torchvision's squeezenet carries it at sizes where it does nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from passes.graph import static_shape

POOLS = ("MaxPool", "AveragePool", "LpPool")


class FloorPools(ir.passes.InPlacePass):
    """ceil_mode = 1 becomes 0 where the output is the same; elsewhere it stays for the rules to name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        pools = [node for node in model.graph if ceil_is_floor(node)]
        for node in pools:
            node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
        return ir.passes.PassResult(model, modified=bool(pools))

    def ensures(self, model: ir.Model) -> None:
        left = [node.name for node in model.graph if ceil_is_floor(node)]
        if left:
            raise ir.passes.PostconditionError(f"pools whose ceil_mode does nothing: {left}")


def ceil_is_floor(node: ir.Node) -> bool:
    """The node is a pool with ceil_mode that has no effect (explicit padding, fixed size)."""
    if node.op_type not in POOLS or node.attributes.get_int("ceil_mode", 0) != 1:
        return False
    shape = static_shape(node.inputs[0])
    kernel = node.attributes.get_ints("kernel_shape", [])
    if shape is None or not kernel or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    axes = len(kernel)
    pads = node.attributes.get_ints("pads", [0] * 2 * axes)
    strides = node.attributes.get_ints("strides", [1] * axes)
    dilations = node.attributes.get_ints("dilations", [1] * axes)
    for axis in range(axes):
        length = shape[2 + axis]
        if length is None:
            return False
        effective = (kernel[axis] - 1) * dilations[axis] + 1
        if (length + pads[axis] + pads[axis + axes] - effective) % strides[axis]:
            return False
    return True
