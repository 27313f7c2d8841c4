"""Elementwise operators, functions and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator import enclosures, functions
from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import Value
from compiler.simulator.fixedpoint import FixedPoint
from compiler.simulator.node import AnyValue, Call, operator

_HALF = Fraction(1, 2)
_MAX_POWER = 8
_GELUS = {"none": functions.gelu, "tanh": functions.gelu_tanh}


def _constant(number: Fraction) -> FixedPoint:
    return fp.from_fraction(number)


def _fold(
    call: Call, on_integers: Callable[[Any, Any], Any], on_values: Callable[[Value, Value], Value]
) -> AnyValue:
    """The first input combined with each further one."""
    if call.are_integers():
        whole = call.integers(0)
        for index in range(1, len(call.inputs)):
            whole = on_integers(whole, call.integers(index))
        return np.asarray(whole)
    value = call.value(0)
    for index in range(1, len(call.inputs)):
        value = on_values(value, call.value(index))
    return value


@operator("Add")
def add(call: Call) -> AnyValue:
    return _fold(call, np.add, enclosures.add)


@operator("Sub")
def subtract(call: Call) -> AnyValue:
    return _fold(call, np.subtract, enclosures.subtract)


@operator("Mul")
def multiply(call: Call) -> AnyValue:
    return _fold(call, np.multiply, enclosures.multiply)


@operator("Div")
def divide(call: Call) -> AnyValue:
    """The quotient; integers that describe shapes are divided towards zero, as ONNX does."""
    return _fold(call, _divide_integers, lambda a, b: enclosures.divide(a, b, call.precision))


def _divide_integers(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if (b == 0).any():
        raise ZeroDivisionError
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


@operator("Max")
def maximum(call: Call) -> AnyValue:
    return _fold(call, np.maximum, enclosures.maximum)


@operator("Min")
def minimum(call: Call) -> AnyValue:
    return _fold(call, np.minimum, enclosures.minimum)


@operator("Neg")
def negate(call: Call) -> Value:
    return enclosures.negate(call.value(0))


@operator("Abs")
def absolute(call: Call) -> Value:
    return enclosures.absolute(call.value(0))


@operator("Relu")
def relu(call: Call) -> Value:
    return enclosures.maximum(call.value(0), _constant(Fraction(0)))


@operator("Clip")
def clip(call: Call) -> Value:
    """min(max(x, low), high); a bound left out does not limit."""
    x = call.value(0)
    if call.has(1):
        x = enclosures.maximum(x, call.value(1))
    return enclosures.minimum(x, call.value(2)) if call.has(2) else x


@operator("LeakyRelu", "alpha")
def leaky_relu(call: Call) -> Value:
    """x where x >= 0, alpha * x below; alpha is the float32 of the file."""
    alpha = call.number("alpha", Fraction(0.01))
    zero = _constant(Fraction(0))
    x = call.value(0)
    positive = enclosures.maximum(x, zero)
    negative = enclosures.minimum(x, zero)
    return enclosures.add(positive, enclosures.multiply_by(negative, alpha))


def _unit_interval(x: Value) -> Value:
    return enclosures.minimum(enclosures.maximum(x, _constant(Fraction(0))), _constant(Fraction(1)))


def _affine(x: Value, slope: Fraction, offset: Fraction) -> Value:
    return enclosures.add(enclosures.multiply_by(x, slope), _constant(offset))


@operator("HardSigmoid", "alpha", "beta")
def hard_sigmoid(call: Call) -> Value:
    """max(0, min(1, alpha * x + beta)); alpha and beta are the float32 of the file."""
    alpha, beta = call.number("alpha", Fraction(np.float32(0.2).item())), call.number("beta", _HALF)
    return _unit_interval(_affine(call.value(0), alpha, beta))


@operator("HardSwish")
def hard_swish(call: Call) -> Value:
    """x * max(0, min(1, x/6 + 1/2)) with the sixth exact."""
    x = call.value(0)
    return enclosures.multiply(x, _unit_interval(_affine(x, Fraction(1, 6), _HALF)))


@operator("Sigmoid")
def sigmoid(call: Call) -> Value:
    return enclosures.apply_increasing(functions.sigmoid, call.value(0), call.precision)


@operator("Tanh")
def tanh(call: Call) -> Value:
    return enclosures.apply_increasing(functions.tanh, call.value(0), call.precision)


@operator("Exp")
def exponential(call: Call) -> Value:
    return enclosures.apply_increasing(functions.exp, call.value(0), call.precision)


@operator("Sin")
def sine(call: Call) -> Value:
    return enclosures.apply(functions.sine, call.exact(0), call.precision)


@operator("Gelu", "approximate")
def gelu(call: Call) -> Value:
    """x * Phi(x) with the exact normal distribution function, or ONNX's formula with tanh on request."""
    approximate = call.string("approximate", "none")
    if approximate not in _GELUS:
        raise call.refuse(f"approximate = {approximate}", "none or tanh", "use one of these")
    return enclosures.apply(_GELUS[approximate], call.exact(0), call.precision)


class NegativeRootError(ValueError):
    """The square root of a negative number: whether it is met depends on the picture."""


def _square_root(x: Value, precision: int) -> Value:
    if (enclosures.upper(x).mantissa < 0).any():
        raise NegativeRootError("square root of a negative number")
    if (enclosures.lower(x).mantissa < 0).any():
        raise enclosures.UnsettledError
    return enclosures.apply_increasing(functions.square_root, x, precision)


@operator("Sqrt")
def square_root(call: Call) -> Value:
    return _square_root(call.value(0), call.precision)


@operator("Pow")
def power(call: Call) -> Value:
    """x to a constant power: a whole number from 1 to 8, or one half."""
    x = call.value(0)
    exponents = sorted(set(call.exact(1).to_fractions().reshape(-1)))
    if exponents == [_HALF]:
        return _square_root(x, call.precision)
    if len(exponents) != 1 or exponents[0] not in range(1, _MAX_POWER + 1):
        raise call.refuse(
            f"exponents {', '.join(str(float(e)) for e in exponents[:4])}",
            f"one exponent for all elements, a whole number from 1 to {_MAX_POWER}, or 0.5",
            "use another power",
        )
    exponent = exponents[0]
    even, odd = divmod(int(exponent), 2)
    result = x if odd else _constant(Fraction(1))
    for _ in range(even):
        result = enclosures.multiply(result, enclosures.square(x))
    return result


@operator("Softmax", "axis")
def softmax(call: Call) -> Value:
    """exp(x_i - max) / sum exp(x_j - max): the same number as without the maximum, and the sum is >= 1."""
    x = call.exact(0)
    axis = call.integer("axis", -1) % len(x.shape)
    centred = fp.add(x, fp.negate(fp.largest(x, (axis,), keepdims=True)))
    powers = enclosures.apply(functions.exp, centred, call.precision)
    return enclosures.divide(powers, enclosures.total(powers, (axis,), keepdims=True), call.precision)


@operator("LayerNormalization", "axis", "epsilon", "stash_type")
def layer_normalization(call: Call) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the axes from `axis` on."""
    x = call.exact(0)
    rank = len(x.shape)
    axes = tuple(range(call.integer("axis", -1) % rank, rank))
    inverse = Fraction(1, math.prod(x.shape[axis] for axis in axes))
    mean = fp.multiply_by(fp.total(x, axes, keepdims=True), inverse)
    centred = fp.add(x, fp.negate(mean))
    variance = fp.multiply_by(fp.total(fp.multiply(centred, centred), axes, keepdims=True), inverse)
    shifted = fp.add(variance, _constant(call.number("epsilon", Fraction(np.float32(1e-5).item()))))
    deviation = _square_root(shifted, call.precision)
    result = enclosures.multiply(enclosures.divide(centred, deviation, call.precision), call.value(1))
    return enclosures.add(result, call.value(2)) if call.has(2) else result


@operator("BatchNormalization", "epsilon", "momentum", "training_mode")
def batch_normalization(call: Call) -> Value:
    """(x - mean) * scale / sqrt(variance + epsilon) + bias per channel (axis 1)."""
    call.only("training_mode", call.integer("training_mode", 0), 0)
    x = call.value(0)
    shape = (1, -1) + (1,) * (len(x.shape) - 2)
    scale, bias, mean, variance = (
        fp.move(call.exact(index), lambda m: m.reshape(shape)) for index in (1, 2, 3, 4)
    )
    shifted = fp.add(variance, _constant(call.number("epsilon", Fraction(np.float32(1e-5).item()))))
    gain = enclosures.divide(scale, _square_root(shifted, call.precision), call.precision)
    return enclosures.add(enclosures.multiply(enclosures.subtract(x, mean), gain), bias)
