"""Real tensors the simulator cannot write down exactly, kept between two exact ones.

A value that depends on exp, a square root or a quotient of tensors is irrational or has a denominator of
its own per element. It is carried as an Enclosure at a working precision of `precision` bits after the
binary point. A quantizer that cannot decide raises UnsettledError, and the caller starts again with more
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator import fixedpoint as fp
from compiler.simulator.fixedpoint import FixedPoint, Grid, IntArray
from compiler.simulator.functions import Function


class UnsettledError(Exception):
    """The bounds lie on two sides of a rounding tie or of zero: more precision is needed."""


@dataclass(frozen=True, eq=False)
class Enclosure:
    """Element i is known to lie between lower[i] and upper[i]; both have the same shape."""

    lower: FixedPoint
    upper: FixedPoint

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lower.shape


Value = FixedPoint | Enclosure
"""A tensor of real numbers: exact, or enclosed."""


def lower(value: Value) -> FixedPoint:
    return value if isinstance(value, FixedPoint) else value.lower


def upper(value: Value) -> FixedPoint:
    return value if isinstance(value, FixedPoint) else value.upper


def increasing(function: Callable[..., FixedPoint], *values: Value) -> Value:
    """Lift an exact function that grows (weakly) with every argument."""
    if all(isinstance(v, FixedPoint) for v in values):
        return function(*values)
    return Enclosure(function(*map(lower, values)), function(*map(upper, values)))


def move(value: Value, rearrange: Callable[[NDArray[Any]], NDArray[Any]]) -> Value:
    """Apply a function that only moves, drops or repeats elements."""
    return increasing(lambda v: fp.move(v, rearrange), value)


def negate(a: Value) -> Value:
    if isinstance(a, FixedPoint):
        return fp.negate(a)
    return Enclosure(fp.negate(a.upper), fp.negate(a.lower))


def add(a: Value, b: Value) -> Value:
    return increasing(fp.add, a, b)


def subtract(a: Value, b: Value) -> Value:
    return add(a, negate(b))


def multiply(a: Value, b: Value) -> Value:
    if isinstance(a, FixedPoint) and isinstance(b, FixedPoint):
        return fp.multiply(a, b)
    corners = [fp.multiply(x, y) for x in (lower(a), upper(a)) for y in (lower(b), upper(b))]
    return _hull(corners)


def multiply_by(a: Value, number: Fraction) -> Value:
    return multiply(a, fp.from_fraction(number))


def square(a: Value) -> Value:
    return multiply(absolute(a), absolute(a))


def absolute(a: Value) -> Value:
    if isinstance(a, FixedPoint):
        return fp.absolute(a)
    zero = fp.from_fraction(Fraction(0))
    outside = fp.maximum(a.lower, fp.negate(a.upper))
    return Enclosure(fp.maximum(outside, zero), fp.maximum(a.upper, fp.negate(a.lower)))


def maximum(a: Value, b: Value) -> Value:
    return increasing(fp.maximum, a, b)


def minimum(a: Value, b: Value) -> Value:
    return increasing(fp.minimum, a, b)


def total(a: Value, axes: tuple[int, ...], *, keepdims: bool) -> Value:
    return increasing(lambda v: fp.total(v, axes, keepdims=keepdims), a)


def divide(a: Value, b: Value, precision: int) -> Value:
    """a / b; exact where b is one number for the whole tensor, else rounded outwards to 2**-precision.

    A quotient that is a multiple of 2**-precision is exact in both bounds, so every rounding tie of a
    quotient is met exactly. Raises ZeroDivisionError where a divisor is zero, UnsettledError where its
    bounds enclose zero.
    """
    if isinstance(b, FixedPoint):
        if (b.mantissa == 0).any():
            raise ZeroDivisionError
        first = b.mantissa.reshape(-1)[:1]
        if b.mantissa.size and (b.mantissa == first[0]).all():
            shape = np.broadcast_shapes(a.shape, b.shape)
            scaled = multiply_by(a, 1 / (int(first[0]) * b.unit))
            return move(scaled, lambda m: np.broadcast_to(m, shape))
    signs = np.sign(np.stack([np.broadcast_to(v.mantissa, b.shape) for v in (lower(b), upper(b))]))
    if (signs == 0).all(axis=0).any():
        raise ZeroDivisionError
    if (signs[0] * signs[1] <= 0).any():
        raise UnsettledError
    corners = [(x, y) for x in (lower(a), upper(a)) for y in (lower(b), upper(b))]
    lows = [_quotient(x, y, precision, up=False) for x, y in corners]
    highs = [_quotient(x, y, precision, up=True) for x, y in corners]
    return Enclosure(_hull(lows).lower, _hull(highs).upper)


def _quotient(a: FixedPoint, b: FixedPoint, precision: int, *, up: bool) -> FixedPoint:
    """a / b rounded down (or up) to a multiple of 2**-precision."""
    ratio = a.unit / b.unit * (1 << precision)
    numerator = a.mantissa.astype(object) * ratio.numerator
    denominator = b.mantissa.astype(object) * ratio.denominator
    quotient = -(-numerator // denominator) if up else numerator // denominator
    return FixedPoint(np.asarray(quotient, dtype=object), -precision)


def _hull(corners: list[FixedPoint]) -> Enclosure:
    low, high = corners[0], corners[0]
    for corner in corners[1:]:
        low, high = fp.minimum(low, corner), fp.maximum(high, corner)
    return Enclosure(low, high)


def apply(function: Function, a: FixedPoint, precision: int) -> Value:
    """An elementary function of an exact tensor, one evaluation per distinct element.

    A quantized tensor of 8 bits has at most 256 distinct elements: this is the look-up table.
    """
    distinct, where = np.unique(a.mantissa, return_inverse=True)
    unit = a.unit
    table = [function(int(m) * unit, precision) for m in distinct]
    low, high = (
        FixedPoint(_gather([bounds[side] for bounds in table], where, a.shape), -precision) for side in (0, 1)
    )
    return low if all(bounds[0] == bounds[1] for bounds in table) else Enclosure(low, high)


def apply_increasing(function: Function, a: Value, precision: int) -> Value:
    """An increasing elementary function of an exact or enclosed tensor."""
    if isinstance(a, FixedPoint):
        return apply(function, a, precision)
    return Enclosure(lower(apply(function, a.lower, precision)), upper(apply(function, a.upper, precision)))


def _gather(table: list[int], where: NDArray[Any], shape: tuple[int, ...]) -> IntArray:
    entries = fp.with_room(np.array([*table, None], dtype=object)[:-1], max(map(abs, table), default=0))
    return np.asarray(entries[where.reshape(-1)].reshape(shape), dtype=entries.dtype)


def quantize(value: Value, grid: Grid) -> FixedPoint:
    """Round to the grid, half to even, and saturate.

    Raises UnsettledError where the bounds of an element round to different integers.
    """
    step = fp.power_of_two(grid.exponent)
    integers = fp.quantize(lower(value), step, grid.lowest, grid.highest)
    if isinstance(value, Enclosure):
        above = fp.quantize(value.upper, step, grid.lowest, grid.highest)
        if not np.array_equal(integers, above):
            raise UnsettledError
    return FixedPoint(integers, grid.exponent, 1, grid)
