"""Rules on constants and attributes of normalisation, activation and elementwise operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from passes.imx500.geometry import (
    constant,
    float_attribute,
    input_at,
    int_attribute,
    is_constant,
    rank_of,
)
from passes.imx500.limits import POW_EXPONENTS
from passes.imx500.rules.registry import Found, rule


@rule("layernorm-axis", "LayerNormalization")
def layernorm_last_axis(node: ir.Node) -> Found | None:
    """LayerNormalization works on the last axis alone."""
    rank, axis = rank_of(input_at(node, 0)), int_attribute(node, "axis", -1)
    if rank is None or axis % rank == rank - 1:
        return None
    return Found(
        f"axis = {axis} of an input of rank {rank}: the last {rank - axis % rank} axes together",
        "use nn.BatchNorm2d, or nn.LayerNorm(channels) on x.permute(0, 2, 3, 1)",
    )


@rule("batchnorm-mode", "BatchNormalization")
def batchnorm_inference(node: ir.Node) -> Found | None:
    """BatchNormalization is in inference form, with constant statistics."""
    if int_attribute(node, "training_mode", 0) == 0 and all(map(is_constant, node.inputs[1:])):
        return None
    return Found("training_mode = 1", "call model.eval() before exporting")


@rule("clip-bounds", "Clip")
def clip_constant(node: ir.Node) -> Found | None:
    """The bounds of Clip are constants."""
    bounds = (input_at(node, 1), input_at(node, 2))
    if all(bound is None or is_constant(bound) for bound in bounds):
        return None
    return Found(
        "bounds computed by the network", "clamp with fixed numbers, or use torch.minimum and maximum"
    )


@rule("hardsigmoid-slope", "HardSigmoid")
def hardsigmoid_slope(node: ir.Node) -> Found | None:
    """HardSigmoid is PyTorch's: alpha = 1/6, beta = 1/2."""
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and math.isclose(beta, 0.5, rel_tol=1e-4):
        return None
    return Found(
        f"alpha = {alpha:g}, beta = {beta:g}", "use nn.Hardsigmoid, or clamp(alpha * x + beta, 0, 1)"
    )


@rule("pow-exponent", "Pow")
def pow_exponent(node: ir.Node) -> Found | None:
    """The exponent of Pow is a constant, {POW_EXPONENTS}."""
    exponent = constant(input_at(node, 1))
    if exponent is not None and exponent.size == 1 and float(exponent.item()) in POW_EXPONENTS:
        return None
    if exponent is None or exponent.size != 1:
        return Found("exponent that is no single constant", "multiply, or use torch.exp")
    return Found(f"exponent {float(exponent.item()):g}", "write it as products: x * x * x")


@rule("minmax-inputs", "Max", "Min")
def binary_extremum(node: ir.Node) -> Found | None:
    """Max and Min take two inputs."""
    if len(node.inputs) == 2:
        return None
    return Found(f"{len(node.inputs)} inputs", "nest torch.maximum (or minimum) of two tensors")
