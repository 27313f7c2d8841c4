"""Rules on constants and attributes of normalisation, activation and elementwise operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from passes.graph import static_shape
from passes.imx500.geometry import (
    constant,
    float_attribute,
    input_at,
    int_attribute,
    is_constant,
    rank_of,
)
from passes.imx500.limits import MAX_NORM_ROW, POW_EXPONENTS
from passes.imx500.rules.registry import Found, rule


@rule("layernorm-axis", "LayerNormalization")
def layernorm_last_axis(node: ir.Node) -> Found | None:
    """LayerNormalization works on the last axis alone.

    Fix: use nn.BatchNorm2d, or nn.LayerNorm(channels) on x.permute(0, 2, 3, 1).
    """
    rank, axis = rank_of(input_at(node, 0)), int_attribute(node, "axis", -1)
    if rank is None or axis % rank == rank - 1:
        return None
    return Found(f"axis = {axis} of an input of rank {rank}: the last {rank - axis % rank} axes together")


@rule("layernorm-outputs", "LayerNormalization")
def layernorm_has_one_output(node: ir.Node) -> Found | None:
    """LayerNormalization has one output: the mean and the deviation that ONNX also offers stay inside.

    Fix: compute the mean with ReduceMean.
    """
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    return Found(f"output {used[0].name} is used") if used else None


@rule("layernorm-length", "LayerNormalization")
def layernorm_length(node: ir.Node) -> Found | None:
    """The last axis of a LayerNormalization has at most {MAX_NORM_ROW} numbers.

    Fix: use nn.BatchNorm2d, or normalise over fewer numbers.
    """
    shape = static_shape(input_at(node, 0))
    if not shape or shape[-1] is None or shape[-1] <= MAX_NORM_ROW:
        return None
    return Found(f"shape {list(shape)}: {shape[-1]} numbers on the last axis")


@rule("batchnorm-mode", "BatchNormalization")
def batchnorm_inference(node: ir.Node) -> Found | None:
    """BatchNormalization is in inference form, with constant statistics.

    Fix: call model.eval() before exporting.
    """
    roles = zip(("scale", "bias", "mean", "variance"), node.inputs[1:], strict=False)
    computed = [role for role, value in roles if not is_constant(value)]
    training = "training_mode = 1" if int_attribute(node, "training_mode", 0) else ""
    if not computed:
        return Found(training) if training else None
    found = f"{' and '.join(computed)} computed by the network"
    return Found(
        ", ".join(filter(None, (training, found))), "write it with * and +, which take computed numbers"
    )


@rule("batchnorm-rank", "BatchNormalization")
def batchnorm_rank(node: ir.Node) -> Found | None:
    """BatchNormalization works on an input of 2 to 4 axes.

    Fix: reshape to (batch, channels, height, width) before it.
    """
    rank = rank_of(input_at(node, 0))
    if rank is None or rank in (2, 3, 4):
        return None
    return Found(f"input of rank {rank}")


@rule("clip-bounds", "Clip")
def clip_constant(node: ir.Node) -> Found | None:
    """The bounds of Clip are constants.

    Fix: clamp with fixed numbers, or use torch.minimum and maximum.
    """
    bounds = (input_at(node, 1), input_at(node, 2))
    if all(bound is None or is_constant(bound) for bound in bounds):
        return None
    return Found("bounds computed by the network")


@rule("hardsigmoid-slope", "HardSigmoid")
def hardsigmoid_slope(node: ir.Node) -> Found | None:
    """HardSigmoid is PyTorch's: alpha = 1/6, beta = 1/2.

    Fix: use nn.Hardsigmoid, or clamp(alpha * x + beta, 0, 1).
    """
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5:
        return None
    return Found(f"alpha = {alpha:g}, beta = {beta:g}")


@rule("pow-exponent", "Pow")
def pow_exponent(node: ir.Node) -> Found | None:
    """The exponent of Pow is a constant, {POW_EXPONENTS}.

    Fix: write powers as products, x * x * x.
    """
    exponent = constant(input_at(node, 1))
    if exponent is not None and exponent.size == 1 and float(exponent.item()) in POW_EXPONENTS:
        return None
    if exponent is None or exponent.size != 1:
        return Found("exponent that is no single constant", "multiply, or use torch.exp")
    return Found(f"exponent {float(exponent.item()):g}", "write it as products: x * x * x")


@rule("minmax-inputs", "Max", "Min")
def binary_extremum(node: ir.Node) -> Found | None:
    """Max and Min take two inputs.

    Fix: nest torch.maximum (or minimum) of two tensors.
    """
    if len(node.inputs) == 2:
        return None
    return Found(f"{len(node.inputs)} inputs")
