"""Arithmetic with more operands, other exponents or other bounds than the target takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, input_at

MAX_EXPONENT = 8
"""Largest whole exponent written as products: each is a rounding to 8 bits."""


@fix("operator", "Sum", "Mean")
def variadic_sum(node: ir.Node, build: Builder) -> Rewrite | None:
    """Additions two at a time; Mean times 1/n."""
    first, *others = [value for value in node.inputs if value is not None]
    total = first
    for other in others:
        total = build.op("Add", total, other)
    if node.op_type == "Mean" and others:
        total = build.op("Mul", total, np.array(1 / len(node.inputs), np.float32))
    done = f"{node.op_type} of {len(node.inputs)} became additions of two"
    return Rewrite((total,), done, Exactness.FLOAT)


@fix("minmax-inputs", "Max", "Min")
def variadic_extremum(node: ir.Node, build: Builder) -> Rewrite | None:
    """Max and Min two at a time."""
    first, *others = [value for value in node.inputs if value is not None]
    y = first
    for other in others:
        y = build.op(node.op_type, y, other)
    return Rewrite(
        (y,), f"{node.op_type} of {len(node.inputs)} became a chain of two at a time", Exactness.EXACT
    )


@fix("pow-exponent", "Pow")
def power(node: ir.Node, build: Builder) -> Rewrite | None:
    """Whole exponents from 3 to MAX_EXPONENT by products."""
    x, exponent = node.inputs[0], constant(input_at(node, 1))
    if x is None or exponent is None or exponent.size != 1:
        return None
    if exponent.ndim > len(shape_of(x)):  # it would add axes
        return None
    number = float(exponent.item())
    if not number.is_integer() or not 3 <= number <= MAX_EXPONENT:
        return None
    y, remaining = build.op("Mul", x, x), int(number) - 2
    while remaining:
        y, remaining = build.op("Mul", y, x), remaining - 1
    return Rewrite((y,), f"the power {number:g} became products", Exactness.FLOAT)


@fix("clip-bounds", "Clip")
def clip(node: ir.Node, build: Builder) -> Rewrite | None:
    """Clip with computed bounds: min(max(x, low), high)."""
    y, low, high = node.inputs[0], input_at(node, 1), input_at(node, 2)
    assert y is not None
    if low is not None:
        y = build.op("Max", y, low)
    if high is not None:
        y = build.op("Min", y, high)
    return Rewrite((y,), "Clip with computed bounds became Max and Min", Exactness.EXACT)
