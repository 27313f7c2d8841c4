"""Exact tensors against Python's Fraction, beyond the range of int64 included."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.simulator import enclosures
from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import Enclosure
from compiler.simulator.fixedpoint import FixedPoint, Grid


def tensors(size: int = 4) -> st.SearchStrategy[FixedPoint]:
    """Tensors of `size` elements, some small enough for int64 and some not."""
    magnitude = st.sampled_from([3, 200, 1 << 40, 1 << 61, 1 << 90])

    def build(data: tuple[list[int], int, int]) -> FixedPoint:
        integers, exponent, denominator = data
        mantissa = np.array(integers, dtype=object)
        return FixedPoint(fp.with_room(mantissa, fp.magnitude(mantissa)), exponent, denominator)

    elements = magnitude.flatmap(lambda m: st.lists(st.integers(-m, m), min_size=size, max_size=size))
    return st.tuples(elements, st.integers(-70, 20), st.sampled_from([1, 3, 9, 35])).map(build)


def fractions(tensor: FixedPoint) -> list[Fraction]:
    return list(tensor.to_fractions().reshape(-1))


@given(tensors(), tensors())
def test_arithmetic_equals_fractions(a: FixedPoint, b: FixedPoint) -> None:
    pairs = list(zip(fractions(a), fractions(b), strict=True))
    assert fractions(fp.add(a, b)) == [x + y for x, y in pairs]
    assert fractions(fp.multiply(a, b)) == [x * y for x, y in pairs]
    assert fractions(fp.maximum(a, b)) == [max(x, y) for x, y in pairs]
    assert fractions(fp.minimum(a, b)) == [min(x, y) for x, y in pairs]
    assert fractions(fp.concatenate([a, b], 0)) == fractions(a) + fractions(b)


@given(tensors())
def test_unary_operations_equal_fractions(a: FixedPoint) -> None:
    values = fractions(a)
    assert fractions(fp.negate(a)) == [-x for x in values]
    assert fractions(fp.absolute(a)) == [abs(x) for x in values]
    assert fractions(fp.total(a, (0,), keepdims=True)) == [sum(values)]
    assert fractions(fp.largest(a, (0,), keepdims=False)) == [max(values)]


@given(tensors(), st.integers(-12, 3), st.booleans())
def test_quantize_is_python_s_own_rounding_of_fractions(a: FixedPoint, exponent: int, signed: bool) -> None:
    """round(Fraction) rounds half to even (Python library reference, "fractions")."""
    grid = Grid(exponent, 8, signed)
    step = fp.power_of_two(exponent)
    expected = [min(max(round(x / step), grid.lowest), grid.highest) for x in fractions(a)]
    result = enclosures.quantize(a, grid)
    assert result.mantissa.tolist() == expected
    assert result.mantissa.dtype == np.int64
    assert result.grid == grid


@given(tensors(6), tensors(3), st.sampled_from([2, 4, 8]))
def test_each_row_has_its_own_step(a: FixedPoint, steps: FixedPoint, bits: int) -> None:
    steps = dataclasses.replace(steps, mantissa=np.abs(steps.mantissa) + 1)
    rows = dataclasses.replace(a, mantissa=a.mantissa.reshape(3, 2))
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    expected = [
        min(max(round(x / step), lowest), highest)
        for x, step in zip(fractions(a), [s for s in fractions(steps) for _ in range(2)], strict=True)
    ]
    found = fp.quantize_rows(rows, steps, lowest, highest)
    assert found.reshape(-1).tolist() == expected
    assert (found.shape, found.dtype) == ((3, 2), np.int64)


@given(st.integers(-(1 << 70), 1 << 70), st.integers(0, 40))
def test_exact_ties_go_to_the_even_integer(quotient: int, bits: int) -> None:
    denominator = 2 << bits
    tie = np.array([quotient * denominator + denominator // 2], dtype=object)
    (rounded,) = fp.round_half_even(fp.with_room(tie, fp.magnitude(tie)), denominator)
    assert rounded % 2 == 0
    assert rounded in (quotient, quotient + 1)


@given(hnp.arrays(np.float64, 5, elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_floats_are_the_rationals_they_are(floats: Any) -> None:
    assert fractions(fp.from_floats(floats)) == [Fraction(float(f)) for f in floats]


@given(hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_too(floats: Any) -> None:
    assert fractions(fp.from_floats(floats)) == [Fraction(float(f)) for f in floats]


def test_weights_of_usual_size_stay_in_int64() -> None:
    weights = np.random.default_rng(0).normal(0, 0.05, 1000).astype(np.float32)
    assert fp.from_floats(weights).mantissa.dtype == np.int64


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_no_number(number: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        fp.from_floats(np.array([0.0, number]))


@pytest.mark.parametrize(
    ("largest", "terms", "dtype"),
    [(1 << 25, 7, np.float64), (1 << 25, 8, np.int64), (1 << 29, 15, np.int64), (1 << 29, 16, object)],
)
def test_accumulator_is_the_fastest_exact_dtype(largest: int, terms: int, dtype: Any) -> None:
    a = np.array([largest], dtype=np.int64)
    assert fp.accumulator(a, a, terms) == np.dtype(dtype)


def test_float64_accumulation_is_exact_at_its_limit() -> None:
    """Seven products of 2**50 - 1 and less: the sum, just below 2**53, has to come out to the last unit."""
    a = np.full((1, 7), (1 << 25) - 1, dtype=np.int64)
    b = np.full((7, 1), 1 << 25, dtype=np.int64)
    dtype = fp.accumulator(a, b, 7)
    assert dtype == np.float64
    assert int(fp.to_integers(a.astype(dtype) @ b.astype(dtype))[0, 0]) == 7 * ((1 << 50) - (1 << 25))


# Enclosures


def enclosed(size: int = 3) -> st.SearchStrategy[tuple[list[Fraction], Enclosure]]:
    """Some rationals and bounds around them, sometimes equal to them."""

    def build(parts: tuple[list[int], list[int], list[int]]) -> tuple[list[Fraction], Enclosure]:
        values, below, above = (np.array(p, dtype=np.int64) for p in parts)
        exact = [Fraction(int(v), 16) for v in values]
        return exact, Enclosure(FixedPoint(values - below, -4), FixedPoint(values + above, -4))

    def ints(low: int, high: int) -> st.SearchStrategy[list[int]]:
        return st.lists(st.integers(low, high), min_size=size, max_size=size)

    return st.tuples(ints(-60, 60), ints(0, 3), ints(0, 3)).map(build)


def assert_encloses(value: enclosures.Value, exact: list[Fraction]) -> None:
    for low, x, high in zip(
        fractions(enclosures.lower(value)), exact, fractions(enclosures.upper(value)), strict=True
    ):
        assert low <= x <= high


@given(enclosed(), enclosed())
def test_enclosures_enclose(a: tuple[list[Fraction], Enclosure], b: tuple[list[Fraction], Enclosure]) -> None:
    (xs, x), (ys, y) = a, b
    pairs = list(zip(xs, ys, strict=True))
    assert_encloses(enclosures.add(x, y), [p + q for p, q in pairs])
    assert_encloses(enclosures.subtract(x, y), [p - q for p, q in pairs])
    assert_encloses(enclosures.multiply(x, y), [p * q for p, q in pairs])
    assert_encloses(enclosures.maximum(x, y), [max(p, q) for p, q in pairs])
    assert_encloses(enclosures.absolute(x), [abs(p) for p in xs])
    assert_encloses(enclosures.square(x), [p * p for p in xs])
    assert_encloses(enclosures.total(x, (0,), keepdims=True), [sum(xs, Fraction(0))])
    try:
        quotient = enclosures.divide(x, y, 20)
    except (enclosures.UnsettledError, ZeroDivisionError):
        assert any(low <= 0 <= high for low, high in zip(fractions(y.lower), fractions(y.upper), strict=True))
    else:
        assert_encloses(quotient, [p / q for p, q in pairs])


@given(tensors(), tensors())
def test_exact_quotients_are_within_one_unit(a: FixedPoint, b: FixedPoint) -> None:
    if 0 in fractions(b):
        with pytest.raises(ZeroDivisionError):
            enclosures.divide(a, b, 30)
        return
    quotient = enclosures.divide(a, b, 30)
    exact = [x / y for x, y in zip(fractions(a), fractions(b), strict=True)]
    assert_encloses(quotient, exact)
    if len(set(fractions(b))) == 1:
        assert fractions(enclosures.lower(quotient)) == exact
    else:
        assert fractions(enclosures.lower(quotient)) == [
            Fraction(math.floor(x * (1 << 30)), 1 << 30) for x in exact
        ]


def test_a_rounding_between_two_integers_is_not_decided() -> None:
    around_a_tie = Enclosure(FixedPoint(np.array([7]), -4), FixedPoint(np.array([9]), -4))  # 0.4375, 0.5625
    with pytest.raises(enclosures.UnsettledError):
        enclosures.quantize(around_a_tie, Grid(0, 8, True))
    settled = Enclosure(FixedPoint(np.array([9]), -4), FixedPoint(np.array([20]), -4))
    assert enclosures.quantize(settled, Grid(0, 8, True)).mantissa.tolist() == [1]
