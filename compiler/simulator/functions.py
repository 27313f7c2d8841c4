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


def _scaled(x: Fraction, precision: int) -> Bounds:
    """x itself between two neighbouring multiples of 2**-precision."""
    shifted = x.numerator << precision
    return _floor(shifted, x.denominator), _ceil(shifted, x.denominator)


def exp(x: Fraction, precision: int) -> Bounds:
    """decimal.Decimal.exp is correctly rounded (Python library reference, "decimal", Decimal.exp).

    So the neighbours of its result, one unit in the last place away, enclose the exponential of its
    argument; argument and result are rounded down for the lower bound and up for the upper one.
    """
    if x == 0:
        return 1 << precision, 1 << precision
    whole = abs(math.floor(x))
    # exp(x) < 2**(3x/2) for x > 0: bits before the point; an argument off by 10**-d costs whole * 10**-d.
    bits = precision + (3 * whole // 2 + 2 if x > 0 else 0) + whole.bit_length()
    with decimal.localcontext() as context:
        context.prec = bits * 30103 // 100000 + 6
        context.Emax = decimal.MAX_EMAX
        context.Emin = decimal.MIN_EMIN
        unit = decimal.Decimal(1 << precision)
        context.rounding = decimal.ROUND_FLOOR
        argument = decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)
        low = math.floor(argument.exp().next_minus() * unit)
        context.rounding = decimal.ROUND_CEILING
        argument = decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)
        high = math.ceil(argument.exp().next_plus() * unit)
        return low, high


def sigmoid(x: Fraction, precision: int) -> Bounds:
    """exp(x) / (1 + exp(x)) for x < 0."""
    one = 1 << precision
    if x == 0:
        return _floor(one, 2), _ceil(one, 2)
    if x > 0:  # sigmoid(x) = 1 - sigmoid(-x)
        low, high = sigmoid(-x, precision)
        return one - high, one - low
    if -x >= precision:  # 0 < sigmoid(x) < exp(x) < 2**-precision
        return 0, 1
    working = precision + 8
    low, high = exp(x, working)
    return (
        _floor(low << precision, (1 << working) + low),
        _ceil(high << precision, (1 << working) + high),
    )


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
    low, high = _scaled(x, working)
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
    half_low, half_high = _scaled(x / 2, precision + 1)
    return _floor(half_low + low, 2), _ceil(half_high + high, 2)


def _gelu_even_part(x: Fraction, precision: int) -> Bounds:
    square = x * x
    if square / 2 >= precision + math.ceil(x).bit_length():
        # |x| (1 - Phi(|x|)) < |x| exp(-x**2/2) / 2 < 2**-precision, so even(x) is just below x/2.
        low, high = _scaled(x / 2, precision)
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
    exp_low, exp_high = exp(-square / 2, working)
    root_low, root_high = _root_of_two_pi(working)
    return (
        _floor(square.numerator * exp_low * sum_low << precision, square.denominator * root_high << working),
        _ceil(square.numerator * exp_high * sum_high << precision, square.denominator * root_low << working),
    )


@lru_cache
def _root_of_two_pi(precision: int) -> Bounds:
    low, high = pi(precision)
    unit = 1 << precision
    return (
        square_root(Fraction(2 * low, unit), precision)[0],
        square_root(Fraction(2 * high, unit), precision)[1],
    )


def gelu_tanh(x: Fraction, precision: int) -> Bounds:
    """x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))) (ONNX Gelu, approximate = "tanh").

    (1 + tanh(t))/2 = sigmoid(2t), and 2 sqrt(2/pi) = 4 / sqrt(2 pi).
    """
    if x == 0:
        return 0, 0
    size = math.ceil(abs(x)).bit_length()
    working = precision + 4 * size + 8
    cubic = 4 * x * (1 + Fraction(44715, 10**6) * x * x)
    quotients = [cubic * (1 << working) / root for root in _root_of_two_pi(working)]
    low = sigmoid(min(quotients), working)[0]
    high = sigmoid(max(quotients), working)[1]
    products = (low * x.numerator, high * x.numerator)
    divisor = x.denominator << (working - precision)
    return _floor(min(products), divisor), _ceil(max(products), divisor)
