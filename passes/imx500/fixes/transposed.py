"""Transposed convolutions: one group, no dilation, no padding, a stride within the kernel.

y[i] = sum over j, k with j*stride + k*dilation = i + pad of x[j] * w[k]. So dilation is a kernel with zeros
between its elements, a short kernel one with zeros behind, groups a dense kernel with zero blocks, and
padding leaves out the first and last rows of the result.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, input_at, ints_attribute, text_attribute, window


@fix(
    ("convtranspose-padding", "convtranspose-groups", "convtranspose-dilation", "convtranspose-stride"),
    "ConvTranspose",
)
def transposed_convolution(node: ir.Node, build: Builder) -> Rewrite | None:
    """A dense, undilated, unpadded transposed convolution and the slice of its result."""
    x, weight, found = node.inputs[0], constant(input_at(node, 1)), window(node)
    bias = constant(input_at(node, 2))
    if x is None or weight is None or found is None or weight.ndim != 4:
        return None
    if text_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if ints_attribute(node, "output_shape") is not None or min((*found.before, *found.after)) < 0:
        return None
    if input_at(node, 2) is not None and bias is None:
        return None
    done = []
    if found.group > 1:
        weight = dense(weight, found.group)
        done.append(f"its {found.group} groups became zero blocks of one kernel")
    extents = tuple(max(extent, s) for extent, s in zip(found.effective, found.strides, strict=True))
    if extents != found.kernel:
        weight = spread(weight, found.dilations, extents)
        done.append(f"the kernel {list(found.kernel)} became {list(extents)} with zeros between")
    given, wanted = shape_of(x)[2:], shape_of(node.outputs[0])[2:]
    more = [
        max(0, start + size - ((n - 1) * s + extent))
        for start, size, n, s, extent in zip(found.before, wanted, given, found.strides, extents, strict=True)
    ]
    y = build.op(
        "ConvTranspose",
        x,
        build.constant(weight, "weight"),
        None if bias is None else build.constant(bias, "bias"),
        kernel_shape=list(extents),
        strides=list(found.strides),
        pads=[0, 0, 0, 0],
        dilations=[1, 1],
        group=1,
        output_padding=more,
    )
    for axis, (start, size) in enumerate(zip(found.before, wanted, strict=True), 2):
        y = build.slice(y, axis, start, start + size)
    if any((*found.before, *found.after)):
        done.append(f"the padding {[*found.before, *found.after]} became a slice of the result")
    return Rewrite((y,), f"transposed convolution: {', '.join(done)}", Exactness.EXACT)


def dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """[Cin, Cout/groups, kh, kw] of a grouped layer -> [Cin, Cout, kh, kw] with zero blocks."""
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    whole = np.zeros((weight.shape[0], outputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        whole[rows, group * outputs : (group + 1) * outputs] = weight[rows]
    return whole


def spread(weight: np.ndarray, dilations: tuple[int, ...], extents: tuple[int, ...]) -> np.ndarray:
    """The kernel [..., kh, kw] with dilation - 1 zeros between elements, and zeros behind up to `extents`."""
    whole = np.zeros((*weight.shape[:2], *extents), weight.dtype)
    rows, columns = ((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True))
    whole[:, :, : rows : dilations[0], : columns : dilations[1]] = weight
    return whole
