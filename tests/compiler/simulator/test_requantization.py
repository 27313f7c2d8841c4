"""Requantization as a step function, against rounding in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.simulator.requantization import INT32, Affine, Requantization, Rounding, begins, requantization

ACCUMULATORS = np.arange(-3000, 3001)


def rounded(number: Fraction, rounding: Rounding) -> int:
    if rounding is Rounding.HALF_EVEN:
        return round(number)
    shift = Fraction(1, 2) if rounding is Rounding.HALF_UP else Fraction(0)
    return (number + shift).__floor__()


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """Gains from 1/5000 to 40 of a step: random ones, and small fractions that make many ties."""
    divisor = draw(st.sampled_from([1, 2, 3, 64, 1 << 20, 3 << 23, 3 << 51, 1 << 70]))
    gain = draw(st.integers(max(1, divisor // 5000), 40 * divisor))
    offset = draw(st.integers(-300 * divisor, 300 * divisor))
    return Affine(np.array([gain], dtype=object), np.array([offset], dtype=object), divisor)


def exact(affine: Affine, accumulator: int, rounding: Rounding) -> int:
    return rounded(
        Fraction(accumulator * int(affine.gain[0]) + int(affine.offset[0]), affine.divisor), rounding
    )


@given(affines(), st.sampled_from(Rounding), st.sampled_from([(-128, 127), (0, 255), (0, 96)]))
@settings(max_examples=150, deadline=None)
def test_every_output_begins_where_exact_rounding_has_it(
    affine: Affine, rounding: Rounding, limits: tuple[int, int]
) -> None:
    low, high = limits
    for output, first in zip(range(low + 1, high + 1), begins(affine, low, high, rounding)[0], strict=True):
        assert exact(affine, first, rounding) >= output > exact(affine, first - 1, rounding)


def by_formula(wanted: Requantization, accumulators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float32 formula of the kernels: bytes, and where `bounds` has to decide."""
    product = accumulators.astype(np.float32) * wanted.scale[0]
    value = (product + wanted.shifted[0]).astype(np.float32)
    nearest = np.rint(value)
    doubtful = np.abs(value - nearest) >= np.float32(wanted.tie)
    return np.clip(nearest, wanted.low, wanted.high).astype(int), doubtful


@given(affines(), st.sampled_from(Rounding), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_float_formula_is_right_wherever_it_decides(
    affine: Affine, rounding: Rounding, signed: bool
) -> None:
    low, high, zero = (-128, 127, 128) if signed else (0, 255, 0)
    wanted = requantization(affine, low, high, zero, int(np.abs(ACCUMULATORS).max()), rounding)
    assert wanted is not None
    bytes_, doubtful = by_formula(wanted, ACCUMULATORS)
    truth = [min(max(exact(affine, int(a), rounding), low), high) + zero for a in ACCUMULATORS]
    assert (bytes_ == truth)[~doubtful].all()


def test_ties_are_left_to_the_bounds() -> None:
    """acc / 2 is a tie for every odd accumulator: float32 would be right here, and is not asked."""
    halves = Affine(np.array([1], dtype=object), np.array([0], dtype=object), 2)
    wanted = requantization(halves, -128, 127, 128, 100)
    assert wanted is not None
    accumulators = np.arange(-100, 101)
    assert np.array_equal(by_formula(wanted, accumulators)[1], accumulators % 2 == 1)


def test_what_float32_cannot_carry_is_left_to_others() -> None:
    def affine(gain: int, offset: int) -> Affine:
        return Affine(np.array([gain], dtype=object), np.array([offset], dtype=object), 1)

    assert requantization(affine(1, 0), -128, 127, 128, INT32) is None
    assert requantization(affine(1, 1 << 26), -128, 127, 128, 1000) is None
    assert requantization(affine(1 << 24, 0), -128, 127, 128, 1000) is None
    assert requantization(affine(1, 1000), -128, 127, 128, 1000) is not None


@given(affines(), st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_the_tie_is_a_float32_number(affine: Affine, first: int, second: int) -> None:
    """The kernels hold it as one: rounded up on the way, it would be further out than the error allows."""
    wanted = requantization(affine, min(first, second), max(first, second), 0, 1000)
    assert wanted is None or wanted.tie == float(np.float32(wanted.tie))


def test_a_gain_beyond_float32_is_left_to_others_even_with_zero_weights() -> None:
    """0 times infinity would be no number."""
    huge = Affine(np.array([10**40], dtype=object), np.array([0], dtype=object), 1)
    assert requantization(huge, -128, 127, 128, 0) is None
