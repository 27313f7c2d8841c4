"""Which operators the chip has, and what to write instead of the others."""

from __future__ import annotations

import onnx_ir as ir

from passes.gelu import gelu_around
from passes.imx500.geometry import is_standard
from passes.imx500.limits import ACCEPTED_OPERATORS
from passes.imx500.rules.registry import Found, rule

CHANNEL_NORM = "use nn.BatchNorm2d, or nn.LayerNorm over the channels of a channels-last tensor"

REPLACEMENTS = {
    "DepthToSpace": "replace PixelShuffle(r) by nn.Upsample(scale_factor=r) and a convolution",
    "SpaceToDepth": "write it as reshape, permute, reshape with the batch axis kept",
    "Tile": "use torch.cat([x, x], dim), or F.interpolate(mode='nearest') for height and width",
    "Elu": "use nn.LeakyReLU, nn.GELU or nn.Hardswish",
    "Celu": "use nn.LeakyReLU, nn.GELU or nn.Hardswish",
    "Selu": "use nn.LeakyReLU, nn.GELU or nn.Hardswish",
    "PRelu": "use nn.LeakyReLU with the mean of the learnt slopes",
    "ThresholdedRelu": "use nn.ReLU",
    "Softplus": "use nn.ReLU, or nn.Hardswish where it is part of Mish",
    "Mish": "use nn.SiLU or nn.Hardswish",
    "Softsign": "use nn.Tanh",
    "LogSoftmax": "return the logits, or use nn.Softmax and take the logarithm on the host",
    "Hardmax": "use argmax",
    "Log": "take the logarithm on the host, or train with a network that does not need it",
    "Reciprocal": "divide by the tensor: keep the numerator as a registered buffer of shape [C, 1, 1]",
    "Sign": "use nn.Hardtanh or torch.clamp",
    "Sum": "add the tensors two at a time",
    "Mean": "add the tensors two at a time and multiply by 1/n",
    "ReduceMin": "use -torch.amax(-x, dim)",
    "ReduceL1": "use torch.sum(torch.abs(x), dim)",
    "ReduceSumSquare": "use torch.sum(x * x, dim)",
    "ReduceProd": "multiply the slices two at a time",
    "ReduceLogSum": "compute it on the host",
    "ReduceLogSumExp": "compute it on the host",
    "LpPool": "use nn.AvgPool2d or nn.MaxPool2d",
    "GlobalLpPool": "use nn.AdaptiveAvgPool2d(1)",
    "LpNormalization": "divide by torch.linalg.vector_norm(x, dim=dim, keepdim=True)",
    "InstanceNormalization": CHANNEL_NORM,
    "GroupNormalization": CHANNEL_NORM,
    "LRN": "use nn.BatchNorm2d",
    "ArgMin": "use torch.argmax(-x, dim)",
    "GridSample": "use F.interpolate, or sample on the host",
    "GatherElements": "index with a constant list of positions (x[:, [0, 2]]) instead of torch.gather",
    "GatherND": "index one axis with a constant list of positions",
    "Einsum": "write it with transpose and torch.matmul of two rank-3 tensors",
    "CumSum": "compute it on the host",
    "LSTM": "use convolutions over time",
    "GRU": "use convolutions over time",
    "RNN": "use convolutions over time",
    "Where": "multiply by a mask that the network computes with clamp, or select on the host",
    "Greater": "compare on the host; inside the network use clamp",
    "GreaterOrEqual": "compare on the host; inside the network use clamp",
    "Less": "compare on the host; inside the network use clamp",
    "LessOrEqual": "compare on the host; inside the network use clamp",
    "Equal": "compare on the host",
    "Cast": "keep every tensor float32: drop .to(), .float(), .half() and .int()",
    "OneHot": "return the class map of argmax and expand it on the host",
    "NonZero": "return the map and look for its positions on the host",
    "QuantizeLinear": "give the float model; the compiler quantizes it itself",
    "DequantizeLinear": "give the float model; the compiler quantizes it itself",
}
"""Operator -> what to use instead, where something specific can be said."""

OTHERWISE = "leave it out of the network: split the model before it and compute it on the host"


@rule("operator")
def operator_set(node: ir.Node) -> Found | None:
    """Only operators of the target; `picosam2 rules` lists them.

    Fix: use what the table of replacements names, or compute it on the host.
    """
    if is_standard(node) and node.op_type in ACCEPTED_OPERATORS:
        return None
    name = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
    return Found(f"operator {name}", REPLACEMENTS.get(node.op_type, OTHERWISE))


@rule("erf", "Erf")
def erf_inside_gelu(node: ir.Node) -> Found | None:
    """Erf stands only inside GELU, 0.5 * x * (1 + erf(x / sqrt(2))), which becomes one look-up table.

    Fix: use nn.GELU, or torch.tanh, which has nearly the same shape.
    """
    if gelu_around(node) is not None:
        return None
    return Found("operator Erf outside GELU")
