"""The enclosures of elementary functions against published digits, the math module and themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.simulator import functions
from compiler.simulator.functions import Function

ONE = Fraction(1)

# Fifty digits: OEIS A001113, A019774 (root of e), A000796, A002193; the others from A001113 by definition,
# the normal distribution function at 1 and sin 1 (A049469).
DIGITS: list[tuple[Function, Fraction, str]] = [
    (functions.exp, ONE, "2.71828182845904523536028747135266249775724709369995"),
    (functions.exp, ONE / 2, "1.64872127070012814684865078781416357165377610071014"),
    (functions.sigmoid, ONE, "0.73105857863000487925115924182183627436514464016505"),
    (functions.tanh, ONE, "0.76159415595576488811945828260479359041276859725793"),
    (functions.sine, ONE, "0.84147098480789650665250232163029899962256306079837"),
    (functions.gelu, ONE, "0.84134474606854294858523254563203792247791296672660"),
    (functions.square_root, 2 * ONE, "1.41421356237309504880168872420969807856967187537694"),
    (lambda x, p: functions.pi(p), ONE, "3.14159265358979323846264338327950288419716939937510"),
]


@pytest.mark.parametrize(("function", "x", "digits"), DIGITS, ids=[f"{d[2][:6]}" for d in DIGITS])
def test_published_digits(function: Function, x: Fraction, digits: str) -> None:
    low, high = function(x, 160)
    ulp = Fraction(1, 10**50)
    assert Fraction(low, 1 << 160) < Fraction(digits) + ulp
    assert Fraction(high, 1 << 160) > Fraction(digits) - ulp
    assert 0 < high - low <= 4


IN_FLOAT64: list[tuple[Function, Callable[[float], float]]] = [
    (functions.exp, math.exp),
    (functions.sigmoid, lambda x: 1 / (1 + math.exp(-x))),
    (functions.tanh, math.tanh),
    (functions.sine, math.sin),
    (functions.gelu, lambda x: x * math.erfc(-x / math.sqrt(2)) / 2),
    (functions.gelu_tanh, lambda x: x / (1 + math.exp(-math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x)))),
    (lambda x, p: functions.square_root(abs(x), p), lambda x: math.sqrt(abs(x))),
]
NAMES = ["exp", "sigmoid", "tanh", "sine", "gelu", "gelu_tanh", "square_root"]


@pytest.mark.parametrize(("function", "in_float64"), IN_FLOAT64, ids=NAMES)
@given(st.integers(-20 * 64, 20 * 64))
def test_agrees_with_the_math_module(
    function: Function, in_float64: Callable[[float], float], sixty_fourths: int
) -> None:
    x = Fraction(sixty_fourths, 64)
    low, high = function(x, 80)
    assert 0 <= high - low <= 4 + high // (1 << 80)
    expected = in_float64(float(x))
    assert math.isclose(low / (1 << 80), expected, rel_tol=1e-13, abs_tol=1e-14)
    assert math.isclose(high / (1 << 80), expected, rel_tol=1e-13, abs_tol=1e-14)


@pytest.mark.parametrize("function", [f for f, _ in IN_FLOAT64], ids=NAMES)
@given(st.fractions(-300, 300, max_denominator=10**6), st.integers(20, 90), st.integers(1, 200))
def test_more_precision_stays_within_the_bounds(
    function: Function, x: Fraction, precision: int, more: int
) -> None:
    """Two enclosures of the same number overlap, whatever their precision."""
    low, high = function(x, precision)
    finer_low, finer_high = function(x, precision + more)
    assert low << more <= finer_high
    assert finer_low <= high << more


@pytest.mark.parametrize(
    ("function", "x", "exact"),
    [
        (functions.exp, Fraction(0), Fraction(1)),
        (functions.sigmoid, Fraction(0), Fraction(1, 2)),
        (functions.tanh, Fraction(0), Fraction(0)),
        (functions.sine, Fraction(0), Fraction(0)),
        (functions.gelu, Fraction(0), Fraction(0)),
        (functions.gelu_tanh, Fraction(0), Fraction(0)),
        (functions.square_root, Fraction(9, 4), Fraction(3, 2)),
    ],
)
def test_rational_values_are_exact(function: Function, x: Fraction, exact: Fraction) -> None:
    assert function(x, 30) == (exact * (1 << 30), exact * (1 << 30))


@pytest.mark.parametrize("x", [Fraction(10**6), Fraction(1, 10**30), Fraction(5000, 3)])
def test_far_from_the_usual_range(x: Fraction) -> None:
    one = 1 << 64
    assert functions.sigmoid(-x, 64)[0] >= 0
    low, high = functions.sigmoid(x, 64)
    assert one // 2 - 1 <= low <= high <= one
    low, high = functions.gelu(-x, 64)
    assert -one <= low <= 0 <= high + one
    assert high <= 1  # the bounds are rounded outwards
    assert functions.exp(-x, 64)[1] <= one + 1
