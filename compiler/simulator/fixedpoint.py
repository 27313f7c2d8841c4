"""Tensors of exact rational numbers: integers times one power of two, over one odd denominator.

Every operation here is exact. NumPy's int64 holds the integers where the largest possible result is proved
to stay below 2**62; otherwise they are Python integers in an object array, which cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[Any]
"""An array of dtype int64, or of dtype object that holds Python integers."""

_INT64_LIMIT = 1 << 62
"""Integers whose magnitude is proved to be below this are kept as int64."""

_FLOAT64_LIMIT = 1 << 53
"""Below this every integer is a float64, so sums of products that stay below it are exact in float64."""


@dataclass(frozen=True)
class Grid:
    """The numbers a quantizer can write: an integer of `bits` bits times 2**exponent."""

    exponent: int
    bits: int
    signed: bool

    @property
    def step(self) -> float:
        """The real value of 1: exact, a power of two."""
        return 2.0**self.exponent

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A tensor of exact rationals: element i is mantissa[i] * 2**exponent / denominator.

    Attributes:
        mantissa: integers, any shape; int64 or object.
        exponent: one for the whole tensor.
        denominator: positive and odd, one for the whole tensor.
        grid: set while the tensor holds a quantizer's integers (mantissa = integer, exponent = grid.exponent,
            denominator = 1), which operators that only move or select values preserve.
    """

    mantissa: IntArray
    exponent: int = 0
    denominator: int = 1
    grid: Grid | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mantissa.shape

    @property
    def unit(self) -> Fraction:
        """What a mantissa of one is worth."""
        return power_of_two(self.exponent) / self.denominator

    def to_fractions(self) -> NDArray[Any]:
        """The elements as an object array of Fraction."""
        unit = self.unit
        flat = [int(m) * unit for m in self.mantissa.reshape(-1)]
        return np.array([*flat, None], dtype=object)[:-1].reshape(self.shape)


def power_of_two(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def magnitude(integers: IntArray) -> int:
    """The largest absolute value, 0 for an empty array."""
    if integers.size == 0:
        return 0
    return max(abs(int(integers.max())), abs(int(integers.min())))


def with_room(integers: IntArray, bound: int) -> IntArray:
    """The integers in a dtype in which results of magnitude up to `bound` do not overflow."""
    if bound < _INT64_LIMIT:
        return integers.astype(np.int64, copy=False)
    return integers.astype(object, copy=False)


def from_integers(integers: NDArray[Any]) -> FixedPoint:
    """Integers (any integer dtype) as they are."""
    return FixedPoint(with_room(integers, magnitude(integers)))


def from_fraction(number: Fraction) -> FixedPoint:
    """A scalar tensor (shape ())."""
    mantissa = np.array(number.numerator, dtype=object)
    exponent = 0
    denominator = number.denominator
    while denominator % 2 == 0:
        denominator //= 2
        exponent -= 1
    return FixedPoint(with_room(mantissa, abs(number.numerator)), exponent, denominator)


def from_floats(floats: NDArray[Any]) -> FixedPoint:
    """Finite floats as the dyadic rationals they are.

    Raises ValueError for NaN and infinity.
    """
    if not np.isfinite(floats).all():
        raise ValueError("NaN or infinite values")
    fractions, exponents = np.frexp(floats.astype(np.float64))
    significands = (fractions * 2.0**53).astype(np.int64)
    lowest_bits = significands & -significands
    trailing = np.where(significands == 0, 0, np.frexp(lowest_bits.astype(np.float64))[1] - 1)
    own = np.where(significands == 0, 0, exponents.astype(np.int64) - 53 + trailing)
    nonzero = significands != 0
    exponent = int(own[nonzero].min()) if nonzero.any() else 0
    shift = np.where(nonzero, own - exponent, 0)
    odd = significands >> trailing
    bound = magnitude(odd) << (int(shift.max()) if shift.size else 0)
    mantissa = with_room(odd, bound) << with_room(shift, bound)
    return FixedPoint(np.asarray(mantissa, dtype=np.int64 if bound < _INT64_LIMIT else object), exponent)


def align(values: Sequence[FixedPoint]) -> tuple[list[IntArray], int, int]:
    """Mantissas over a common exponent and denominator, with room for the sum of all of them."""
    exponent = min(v.exponent for v in values)
    denominator = math.lcm(*(v.denominator for v in values))
    factors = [(denominator // v.denominator) << (v.exponent - exponent) for v in values]
    bound = sum(magnitude(v.mantissa) * factor for v, factor in zip(values, factors, strict=True))
    mantissas = [
        _scaled(with_room(v.mantissa, bound), factor) for v, factor in zip(values, factors, strict=True)
    ]
    return mantissas, exponent, denominator


def _scaled(mantissa: IntArray, factor: int) -> IntArray:
    """mantissa * factor; an all-zero tensor may meet a factor that no int64 holds."""
    if factor == 1:
        return mantissa
    if factor >= _INT64_LIMIT and mantissa.dtype != object:
        return mantissa  # the bound of the caller is below 2**62, so every element is zero
    return np.asarray(mantissa * factor, dtype=mantissa.dtype)


def _result(mantissa: Any, dtype: np.dtype[Any], exponent: int, denominator: int = 1) -> FixedPoint:
    # NumPy turns zero-dimensional results into scalars: keep arrays.
    return FixedPoint(np.asarray(mantissa, dtype=dtype), exponent, denominator)


def add(a: FixedPoint, b: FixedPoint) -> FixedPoint:
    (x, y), exponent, denominator = align((a, b))
    return _result(x + y, x.dtype, exponent, denominator)


def negate(a: FixedPoint) -> FixedPoint:
    return _result(-a.mantissa, a.mantissa.dtype, a.exponent, a.denominator)


def multiply(a: FixedPoint, b: FixedPoint) -> FixedPoint:
    bound = magnitude(a.mantissa) * magnitude(b.mantissa)
    x, y = (with_room(v.mantissa, max(bound, magnitude(v.mantissa))) for v in (a, b))
    if x.dtype != y.dtype:
        x, y = x.astype(object), y.astype(object)
    return _result(x * y, x.dtype, a.exponent + b.exponent, a.denominator * b.denominator)


def multiply_by(a: FixedPoint, number: Fraction) -> FixedPoint:
    return multiply(a, from_fraction(number))


def absolute(a: FixedPoint) -> FixedPoint:
    return _result(np.abs(a.mantissa), a.mantissa.dtype, a.exponent, a.denominator)


def maximum(a: FixedPoint, b: FixedPoint) -> FixedPoint:
    (x, y), exponent, denominator = align((a, b))
    return _result(np.maximum(x, y), x.dtype, exponent, denominator)


def minimum(a: FixedPoint, b: FixedPoint) -> FixedPoint:
    (x, y), exponent, denominator = align((a, b))
    return _result(np.minimum(x, y), x.dtype, exponent, denominator)


def total(a: FixedPoint, axes: tuple[int, ...], *, keepdims: bool) -> FixedPoint:
    """The sum over `axes`."""
    count = math.prod(a.shape[axis] for axis in axes)
    mantissa = with_room(a.mantissa, magnitude(a.mantissa) * max(count, 1))
    return _result(mantissa.sum(axis=axes, keepdims=keepdims), mantissa.dtype, a.exponent, a.denominator)


def largest(a: FixedPoint, axes: tuple[int, ...], *, keepdims: bool) -> FixedPoint:
    """The maximum over `axes`."""
    mantissa = np.asarray(a.mantissa.max(axis=axes, keepdims=keepdims), dtype=a.mantissa.dtype)
    return FixedPoint(mantissa, a.exponent, a.denominator, a.grid)


def move(a: FixedPoint, rearrange: Callable[[NDArray[Any]], NDArray[Any]]) -> FixedPoint:
    """Apply a function that only moves, drops or repeats elements; the grid stays."""
    return FixedPoint(np.asarray(rearrange(a.mantissa)), a.exponent, a.denominator, a.grid)


def concatenate(values: Sequence[FixedPoint], axis: int) -> FixedPoint:
    mantissas, exponent, denominator = align(values)
    grids = {v.grid for v in values}
    grid = grids.pop() if len(grids) == 1 else None
    return FixedPoint(np.concatenate(mantissas, axis=axis), exponent, denominator, grid)


def accumulator(a: IntArray, b: IntArray, terms: int) -> np.dtype[Any]:
    """The fastest dtype in which a sum of `terms` products a*b is exact.

    Every partial sum is an integer of magnitude at most terms * max|a| * max|b|. Below 2**53 float64 holds
    each of them exactly, in whatever order BLAS adds them; below 2**62 int64 does; else Python integers.
    """
    bound = max(magnitude(a) * magnitude(b) * terms, magnitude(a), magnitude(b))
    if bound < _FLOAT64_LIMIT:
        return np.dtype(np.float64)
    return np.dtype(np.int64) if bound < _INT64_LIMIT else np.dtype(object)


def to_integers(accumulated: NDArray[Any]) -> IntArray:
    """The result of an exact float64 accumulation back as int64; integers pass."""
    return accumulated.astype(np.int64) if accumulated.dtype == np.float64 else accumulated


def round_half_even(numerator: IntArray, denominator: int | IntArray) -> IntArray:
    """numerator / denominator (positive) rounded to the nearest integer, ties to the even one.

    floor(n/d + 1/2) is the nearest integer, and the upper one on a tie; there an odd result steps back.
    An array of denominators broadcasts.
    """
    largest = denominator if isinstance(denominator, int) else magnitude(denominator)
    numerator = with_room(numerator, 2 * magnitude(numerator) + 2 * largest)
    doubled = 2 * numerator + denominator
    nearest = doubled // (2 * denominator)
    tie = nearest * (2 * denominator) == doubled
    odd = nearest % 2 == 1
    return np.asarray(np.where(tie & odd, nearest - 1, nearest), dtype=numerator.dtype)


def quantize(a: FixedPoint, step: Fraction, lowest: int, highest: int) -> IntArray:
    """a / step rounded half to even and saturated to lowest..highest: int64, a's shape."""
    ratio = a.unit / step
    integers = round_half_even(
        _scaled(with_room(a.mantissa, magnitude(a.mantissa) * ratio.numerator), ratio.numerator),
        ratio.denominator,
    )
    return np.asarray(np.minimum(np.maximum(integers, lowest), highest)).astype(np.int64)


def quantize_rows(a: FixedPoint, steps: FixedPoint, lowest: int, highest: int) -> IntArray:
    """`quantize` with a step of its own for each index of the first dimension: steps of shape [C]."""
    shift = a.exponent - steps.exponent
    up, down = steps.denominator << max(0, shift), a.denominator << max(0, -shift)
    bound = 2 * (magnitude(a.mantissa) * up + magnitude(steps.mantissa) * down)
    numerator = _scaled(with_room(a.mantissa, bound), up)
    denominator = _scaled(with_room(steps.mantissa, bound), down)
    integers = round_half_even(numerator, denominator.reshape(-1, *[1] * (a.mantissa.ndim - 1)))
    return np.asarray(np.minimum(np.maximum(integers, lowest), highest)).astype(np.int64)
