r"""Activations written with the activations the target has.

    PRelu        relu(x) + a*min(x, 0); one slope for all channels is LeakyRelu
    Elu          relu(x) + alpha*(exp(min(x, 0)) - 1); Celu and Selu are scaled forms of it
    Mish         x * tanh(softplus(x)) = x * (1 - q^2) / (1 + q^2) with q = sigmoid(-x)
    Softsign     x / (1 + |x|)
    HardSigmoid  clip(alpha*x + beta, 0, 1)
    Softplus     relu(x) + p(exp(-|x|)), p a polynomial for log(1 + q)

Mish: e^x = (1 - q)/q, so tanh(log(1 + e^x)) = (q^-2 - 1)/(q^-2 + 1). Written with q, nothing overflows and
every inner value is between 0 and 2, which 8 bits hold well; written with e^x it would reach e^|x|.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.graph import consumers
from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, float_attribute, input_at

ONE = np.array(1.0, np.float32)

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults of ONNX's Selu."""

LOG1P = (0.98745308, -0.40840632, 0.11463473)
"""Coefficients of q, q^2 and q^3 for log(1 + q) on 0..1: least maximal error, by reweighted least squares."""

LOG1P_ERROR = 5.4e-4
"""Largest error of LOG1P; half a step of an 8-bit tensor from 0 to log 2 is 1.4e-3."""


def _negative_part(build: Builder, x: ir.Value) -> ir.Value:
    """min(x, 0)."""
    return build.op("Clip", x, None, np.array(0.0, np.float32))


@fix("operator", "PRelu")
def prelu(node: ir.Node, build: Builder) -> Rewrite | None:
    """One slope: LeakyRelu. A slope per channel: relu(x) + a*min(x, 0)."""
    x, slope = node.inputs[0], constant(input_at(node, 1))
    if x is None or slope is None or not slope.size:
        return None
    if np.all(slope == slope.flat[0]):
        alpha = float(slope.flat[0])
        y = build.op("LeakyRelu", x, alpha=alpha)
        return Rewrite((y,), f"PReLU with the one slope {alpha:g} became LeakyRelu", Exactness.EXACT)
    below = build.op("Mul", _negative_part(build, x), slope)
    y = build.op("Add", build.op("Relu", x), below)
    return Rewrite(
        (y,), f"PReLU with {slope.size} slopes became relu(x) + slope * min(x, 0)", Exactness.EXACT
    )


@fix("operator", "Elu", "Celu", "Selu")
def elu(node: ir.Node, build: Builder) -> Rewrite | None:
    """above*relu(x) + below*(exp(inner*min(x, 0)) - 1)."""
    x = node.inputs[0]
    assert x is not None
    above, inner = 1.0, 1.0
    below = float_attribute(node, "alpha", SELU_ALPHA if node.op_type == "Selu" else 1.0)
    if node.op_type == "Celu" and below == 0:
        return None  # ONNX divides by alpha
    if node.op_type == "Celu":
        inner = 1.0 / below
    if node.op_type == "Selu":
        above = float_attribute(node, "gamma", SELU_GAMMA)
        below *= above
    negative = _scaled(build, _negative_part(build, x), inner)
    falling = build.op("Sub", _scaled(build, build.op("Exp", negative), below), np.array(below, np.float32))
    y = build.op("Add", _scaled(build, build.op("Relu", x), above), falling)
    done = f"{node.op_type} became relu(x) + alpha * (exp(min(x, 0)) - 1), alpha {below:g}"
    return Rewrite((y,), done, Exactness.FLOAT)


def _scaled(build: Builder, x: ir.Value, factor: float) -> ir.Value:
    return x if factor == 1.0 else build.op("Mul", x, np.array(factor, np.float32))


@fix("operator", "Mish")
def mish(node: ir.Node, build: Builder) -> Rewrite | None:
    """x * (1 - q^2) / (1 + q^2), q = sigmoid(-x)."""
    x = node.inputs[0]
    assert x is not None
    y = build.op("Mul", x, _tanh_of_softplus(build, x))
    return Rewrite((y,), "Mish became x * (1 - q^2) / (1 + q^2) with q = sigmoid(-x)", Exactness.FLOAT)


def _tanh_of_softplus(build: Builder, x: ir.Value) -> ir.Value:
    q = build.op("Sigmoid", build.op("Neg", x))
    square = build.op("Mul", q, q)
    return build.op("Div", build.op("Sub", ONE, square), build.op("Add", square, ONE))


@fix("operator", "Softsign")
def softsign(node: ir.Node, build: Builder) -> Rewrite | None:
    """x / (1 + |x|)."""
    x = node.inputs[0]
    assert x is not None
    y = build.op("Div", x, build.op("Add", build.op("Abs", x), ONE))
    return Rewrite((y,), "Softsign became x / (1 + |x|)", Exactness.EXACT)


@fix("hardsigmoid-slope", "HardSigmoid")
def hard_sigmoid(node: ir.Node, build: Builder) -> Rewrite | None:
    """clip(alpha*x + beta, 0, 1)."""
    x = node.inputs[0]
    assert x is not None
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    y = build.op("Add", _scaled(build, x, alpha), np.array(beta, np.float32))
    y = build.op("Clip", y, np.array(0.0, np.float32), ONE)
    return Rewrite((y,), f"HardSigmoid became clip({alpha:g} * x + {beta:g}, 0, 1)", Exactness.FLOAT)


@fix("operator", "Softplus")
def softplus(node: ir.Node, build: Builder) -> Rewrite | None:
    """relu(x) + p(exp(-|x|)); with the Tanh of Mish behind it, that one's exact form."""
    x = node.inputs[0]
    assert x is not None
    readers = consumers(node.outputs[0])
    if [reader.op_type for reader in readers] == ["Tanh"] and not node.outputs[0].is_graph_output():
        y = _tanh_of_softplus(build, x)
        done = "tanh(softplus(x)), which Mish has, became (1 - q^2) / (1 + q^2) with q = sigmoid(-x)"
        return Rewrite((y,), done, Exactness.FLOAT, (node, readers[0]))
    q = build.op("Exp", build.op("Neg", build.op("Abs", x)))
    first, *others = (np.array(number, np.float32) for number in reversed(LOG1P))
    tail = build.op("Mul", q, first)
    for number in others:
        tail = build.op("Mul", build.op("Add", tail, number), q)
    y = build.op("Add", build.op("Relu", x), tail)
    done = f"Softplus became relu(x) + p(exp(-|x|)) with a cubic p, {LOG1P_ERROR:g} from it at most"
    return Rewrite((y,), done, Exactness.TABLE)


@fix("operator", "Reciprocal")
def reciprocal(node: ir.Node, build: Builder) -> Rewrite | None:
    """Ones, one a channel, divided by x."""
    x = node.inputs[0]
    assert x is not None
    shape = shape_of(x)
    if len(shape) < 2:
        return None
    ones = np.ones((shape[1], *[1] * (len(shape) - 2)), np.float32)
    return Rewrite((build.op("Div", ones, x),), "Reciprocal became a division of ones", Exactness.EXACT)
