"""Elementary functions of one rational number, enclosed between two dyadic rationals.

Each function takes a rational x and a precision p and returns two integers (low, high) with
low <= f(x) * 2**p <= high; they are equal only where f(x) * 2**p is exactly that integer. No floating point
is used; every rounding is directed outwards, so the bounds need no error analysis.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

Bounds = tuple[int, int]
Function = Callable[[Fraction, int], Bounds]


def _floor(numerator: int, denominator: int) -> int:
    return numerator // denominator


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _bounds(low: Fraction, high: Fraction, precision: int) -> Bounds:
    """Outward rounding of two rational bounds to multiples of 2**-precision."""
    return math.floor(low * (1 << precision)), math.ceil(high * (1 << precision))


def _exp_bounds(x: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """exp(x) between two rationals whose relative distance is about (|x| + 2) * 10**(1 - digits).

    decimal.Decimal.exp is correctly rounded (Python library reference, "decimal", Decimal.exp), so its
    neighbours one unit in the last place away enclose the exact exponential of its argument.
    """
    with decimal.localcontext() as context:
        context.prec = digits
        context.Emax = decimal.MAX_EMAX
        context.Emin = decimal.MIN_EMIN
        numerator, denominator = decimal.Decimal(x.numerator), decimal.Decimal(x.denominator)
        context.rounding = decimal.ROUND_FLOOR
        below = numerator / denominator
        context.rounding = decimal.ROUND_CEILING
        above = numerator / denominator
        return Fraction(below.exp().next_minus()), Fraction(above.exp().next_plus())


def _digits(precision: int, scale: int = 0) -> int:
    """Decimal digits for `precision` + `scale` bits with some to spare."""
    return (precision + scale) * 30103 // 100000 + 10


def exp(x: Fraction, precision: int) -> Bounds:
    if x == 0:
        return 1 << precision, 1 << precision
    # exp(x) < 2**(1.4427 x + 1): bits before the point; the error grows with |x| as well.
    scale = max(0, math.ceil(x * 3 / 2)) + abs(x.numerator // x.denominator).bit_length() + 2
    low, high = _exp_bounds(x, _digits(precision, scale))
    return _bounds(low, high, precision)


def sigmoid(x: Fraction, precision: int) -> Bounds:
    """1 / (1 + exp(-x))."""
    one = 1 << precision
    if x == 0:
        return _floor(one, 2), _ceil(one, 2)
    if x > 0:  # sigmoid(x) = 1 - sigmoid(-x)
        low, high = sigmoid(-x, precision)
        return one - high, one - low
    if -x >= precision:  # 0 < sigmoid(x) < exp(x) < 2**-precision
        return 0, 1
    below, above = _exp_bounds(x, _digits(precision, precision.bit_length()))
    return _bounds(below / (1 + below), above / (1 + above), precision)


def tanh(x: Fraction, precision: int) -> Bounds:
    """tanh(x) = 2 sigmoid(2x) - 1."""
    low, high = sigmoid(2 * x, precision + 1)
    return low - (1 << precision), high - (1 << precision)


def square_root(x: Fraction, precision: int) -> Bounds:
    """Square root of x >= 0."""
    scaled = x * (1 << (2 * precision))
    low = math.isqrt(math.floor(scaled))
    return low, low if low * low == scaled else low + 1


@lru_cache
def pi(precision: int) -> Bounds:
    """Machin's formula, 16 arctan(1/5) - 4 arctan(1/239), with directed rounding in every term."""
    low5, high5 = _arctan_of_inverse(5, precision + 8)
    low239, high239 = _arctan_of_inverse(239, precision + 8)
    return _floor(16 * low5 - 4 * high239, 1 << 8), _ceil(16 * high5 - 4 * low239, 1 << 8)


def _arctan_of_inverse(n: int, precision: int) -> Bounds:
    """arctan(1/n) = sum (-1)**k / ((2k+1) n**(2k+1)): the partial sums alternate around it."""
    low = high = 0
    k = 0
    while True:
        divisor = (2 * k + 1) * n ** (2 * k + 1)
        below, above = _floor(1 << precision, divisor), _ceil(1 << precision, divisor)
        if below == 0:
            return low - above, high + above
        low, high = (low + below, high + above) if k % 2 == 0 else (low - above, high - below)
        k += 1


def sine(x: Fraction, precision: int) -> Bounds:
    """The Taylor series; from the point where its terms fall, the error is below the first one left out."""
    if x == 0:
        return 0, 0
    if x < 0:
        low, high = sine(-x, precision)
        return -high, -low
    guard = 2 * math.ceil(x) + 8  # the terms grow to exp(x) < 2**(2x) before they fall
    working = precision + guard
    square = x * x
    low, high = _bounds(x, x, working)
    low_sum, high_sum = low, high
    n = 1
    sign = 1
    while True:
        n += 2
        sign = -sign
        divisor = square.denominator * (n - 1) * n
        low = _floor(low * square.numerator, divisor)
        high = _ceil(high * square.numerator, divisor)
        if high <= 1 and n > x:
            break
        low_sum, high_sum = (low_sum + low, high_sum + high) if sign > 0 else (low_sum - high, high_sum - low)
    return _floor(low_sum - high, 1 << guard), _ceil(high_sum + high, 1 << guard)


def gelu(x: Fraction, precision: int) -> Bounds:
    """x * Phi(x), Phi the normal distribution function (ONNX Gelu, approximate = "none").

    Phi(x) = 1/2 + phi(x) * (x + x**3/3 + x**5/(3*5) + ...) (Abramowitz and Stegun 26.2.11), so
    gelu(x) = x/2 + even(x) with even(x) = x**2 phi(x) * sum x**(2n) / (1*3*...*(2n+1)): no cancellation.
    """
    if x == 0:
        return 0, 0
    low, high = _gelu_even_part(abs(x), precision + 1)
    half_low, half_high = _bounds(x / 2, x / 2, precision + 1)
    return _floor(half_low + low, 2), _ceil(half_high + high, 2)


def _gelu_even_part(x: Fraction, precision: int) -> Bounds:
    square = x * x
    if square / 2 >= precision + math.ceil(x).bit_length():
        # |x| (1 - Phi(|x|)) < |x| exp(-x**2/2) / 2 < 2**-precision, so even(x) is just below x/2.
        low, high = _bounds(x / 2, x / 2, precision)
        return low - 1, high
    guard = math.ceil(square) + 16  # the sum grows to exp(x**2/2) < 2**(x**2)
    working = precision + guard
    term_low = term_high = sum_low = sum_high = 1 << working
    n = 0
    while True:
        n += 1
        divisor = square.denominator * (2 * n + 1)
        term_low = _floor(term_low * square.numerator, divisor)
        term_high = _ceil(term_high * square.numerator, divisor)
        sum_low, sum_high = sum_low + term_low, sum_high + term_high
        # From here on each term is at most half of the one before it: the rest is at most this one.
        if term_high <= 1 and 2 * square <= 2 * n + 3:
            sum_high += term_high
            break
    exp_low, exp_high = _exp_bounds(-square / 2, _digits(working))
    pi_low, pi_high = pi(working)
    one = 1 << working
    root_low = square_root(Fraction(2 * pi_low, one), working)[0]
    root_high = square_root(Fraction(2 * pi_high, one), working)[1]
    return _bounds(
        square * exp_low * Fraction(sum_low, root_high),
        square * exp_high * Fraction(sum_high, root_low),
        precision,
    )
