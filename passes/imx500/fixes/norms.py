"""Group, instance and several-axes layer norms, which all standardise groups of numbers:
(x - mean) / sqrt(variance + epsilon).

A reshape that makes the groups rows lets LayerNormalization do it, which keeps the most precision (28.9 dB
against 27.4 dB for 4 groups, 25.6 against 23.4 for 32, on one quantized convolution of 32 channels). Few long
rows cost memory, because their number is rounded up to 32, and there is a longest row. Elsewhere the formula
is written out on the picture as it is. Its deviation is a Euclidean norm, not a mean of squares: 8 bits hold
squares of unlike channels too coarsely (-0.2 dB for those 32 groups).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from passes.graph import consumers
from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, float_attribute, input_at, int_attribute, round_up
from passes.imx500.limits import MAX_NORM_ROW

MAX_ROUNDING = 65_536
"""Bytes that rounding the number of rows up may cost; our choice."""


@fix("operator", "InstanceNormalization", "GroupNormalization")
def group_norm(node: ir.Node, build: Builder) -> Rewrite | None:
    """Groups of channels; the scale and the shift are per channel."""
    x, scale, bias = node.inputs[0], constant(input_at(node, 1)), constant(input_at(node, 2))
    if x is None or scale is None or bias is None or len(shape_of(x)) < 3:
        return None
    groups = int_attribute(node, "num_groups", shape_of(x)[1])
    nodes = [node]
    if around := _reshapes_around(node):
        x, back = around
        nodes.append(back)
    shape = shape_of(x)
    if scale.size == groups != shape[1]:  # a scale per group: opsets 18 to 20, and torch's export
        scale, bias = (np.repeat(numbers, shape[1] // groups) for numbers in (scale, bias))
    y, how = _standardised(build, x, groups, float_attribute(node, "epsilon", 1e-5))
    per_channel = (shape[1], *[1] * (len(shape) - 2))
    y = _affine(build, y, scale.reshape(per_channel), bias.reshape(per_channel))
    done = f"{node.op_type} of {groups} groups became {how}"
    return Rewrite((y,), done, Exactness.FLOAT, tuple(nodes))


def _reshapes_around(node: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """The picture and the last Reshape of torch's GroupNorm: Reshape(InstanceNormalization(Reshape(x)))."""
    rows = node.inputs[0]
    before = None if rows is None else rows.producer()
    readers = consumers(node.outputs[0])
    if before is None or before.op_type != "Reshape" or len(readers) != 1 or readers[0].op_type != "Reshape":
        return None
    x = before.inputs[0]
    if x is None or readers[0].inputs[0] is not node.outputs[0] or node.outputs[0].is_graph_output():
        return None
    shape, groups = shape_of(x), shape_of(rows)
    whole = len(shape) > 2 and shape[0] == groups[0] and shape[1] % groups[1] == 0
    return (x, readers[0]) if whole and shape_of(readers[0].outputs[0]) == shape else None


@fix("layernorm-axis", "LayerNormalization")
def wide_layer_norm(node: ir.Node, build: Builder) -> Rewrite | None:
    """The numbers before the axis are the groups; the scale and the shift are per number."""
    x, scale, bias = node.inputs[0], constant(input_at(node, 1)), constant(input_at(node, 2))
    if x is None or scale is None or (bias is None and input_at(node, 2) is not None):
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    shape = shape_of(x)
    axis = int_attribute(node, "axis", -1) % len(shape)
    if axis == 0:
        return None
    groups = math.prod(shape[:axis])
    y = x if axis < 3 and len(shape) > 2 else build.reshape(x, (1, groups, math.prod(shape[axis:])))
    y, how = _standardised(build, y, groups, float_attribute(node, "epsilon", 1e-5))
    y = build.reshape(y, shape) if shape_of(y) != shape else y
    y = _affine(build, y, scale, bias)
    done = f"LayerNormalization over {len(shape) - axis} axes became {how}"
    return Rewrite((y,), done, Exactness.FLOAT)


def _affine(build: Builder, x: ir.Value, scale: np.ndarray, bias: np.ndarray | None) -> ir.Value:
    if np.any(scale != 1):
        x = build.op("Mul", x, scale)
    return x if bias is None or not np.any(bias != 0) else build.op("Add", x, bias)


def _standardised(build: Builder, x: ir.Value, groups: int, epsilon: float) -> tuple[ir.Value, str]:
    """x [1, C, ...] with mean 0 and variance 1 in each group of its channels; and how."""
    shape = shape_of(x)
    length = math.prod(shape) // groups
    if length > MAX_NORM_ROW or (round_up(groups) - groups) * length > MAX_ROUNDING:
        return _by_formula(build, x, groups, epsilon), "the operators of its formula"
    rows = (1, groups, length)
    y = build.op(
        "LayerNormalization",
        build.reshape(x, rows) if shape != rows else x,
        build.constant(np.ones(length, np.float32), "scale"),
        axis=-1,
        epsilon=epsilon,
    )
    return build.reshape(y, shape) if shape != rows else y, f"LayerNormalization of {groups} rows"


def _by_formula(build: Builder, x: ir.Value, groups: int, epsilon: float) -> ir.Value:
    """First over the pixels of each channel, then over the channels of each group, [1, groups, channels]."""
    shape = shape_of(x)
    pixels = range(2, len(shape))
    per_channel, per_group = (1, shape[1], *[1 for _ in pixels]), (1, groups, shape[1] // groups)
    mean = build.reduce("ReduceMean", x, pixels)
    if per_group[2] > 1:
        mean = build.reduce("ReduceMean", build.reshape(mean, per_group), [2])
        mean = build.reshape(build.op("Expand", mean, np.array(per_group, np.int64)), per_channel)
    centred = build.op("Sub", x, mean)
    # sqrt(variance + epsilon) is the norm of every centred number / sqrt(their count), and of sqrt(epsilon).
    share = np.array(1 / math.sqrt(math.prod(shape) // groups), np.float32)
    sizes = build.op("Mul", build.reduce("ReduceL2", centred, pixels), share)
    least = np.full((1, groups, 1), math.sqrt(epsilon), np.float32)
    sizes = build.op("Concat", build.reshape(sizes, per_group), least, axis=2)
    deviation = build.reduce("ReduceL2", sizes, [2])
    # A product with 1/deviation: divided by it, MCT's reader would find one layer norm again.
    inverse = build.op("Div", np.ones(per_group[1:], np.float32), deviation)
    return build.op("Mul", centred, build.reshape(inverse, per_channel))
