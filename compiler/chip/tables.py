"""Look-up tables in the compiled file: activations, and the reciprocals of the average pool.

256 entries of 16 bits, little-endian. An activation's entry k belongs to x = (k - 128) / 128 * (threshold of
the table's input) and is floor(f(x) / (output threshold) * 2^15), at most 2^15 - 1. All 256 entries were read
for Sigmoid (three input thresholds), Tanh, HardSwish and HardSigmoid. Whether the chip interpolates
between entries is not to be seen in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from compiler.simulator.functions import Bounds, sigmoid, tanh
from compiler.simulator.reference import PRECISIONS

ENTRIES = 256
HIGHEST = 2**15 - 1

UNQUANTIZED_INPUT = {"Sigmoid": 8.0, "Tanh": 4.0}
"""Input threshold of the table where no quantizer stands between the convolution and the activation: what the
converter chose in the one network of each that was tried."""


def hard_swish(x: Fraction, precision: int) -> Bounds:
    """x max(0, min(1, x/6 + 1/2)), rounded down and up to 2^-precision."""
    return _bounds(x * min(Fraction(1), max(Fraction(0), x / 6 + Fraction(1, 2))), precision)


def hard_sigmoid(alpha: Fraction, beta: Fraction) -> Callable[[Fraction, int], Bounds]:
    """max(0, min(1, alpha x + beta)) for the float32 alpha and beta of the node."""
    return lambda x, precision: _bounds(min(Fraction(1), max(Fraction(0), alpha * x + beta)), precision)


def _bounds(exact: Fraction, precision: int) -> Bounds:
    scaled = exact * (1 << precision)
    return scaled.numerator // scaled.denominator, -(-scaled.numerator // scaled.denominator)


FUNCTIONS: dict[str, Callable[[Fraction, int], Bounds]] = {
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "HardSwish": hard_swish,
}


def activation_table(
    function: Callable[[Fraction, int], Bounds], input_threshold: float, output_threshold: float
) -> NDArray[np.int16]:
    """The 256 entries for a signed input, int16, entry 0 for x = -input_threshold.

    Args:
        function: bounds of f(x) times 2^precision, see `compiler.simulator.functions`.
        input_threshold: of the quantizer before the table, a power of two.
        output_threshold: of the quantizer behind it, a power of two.
    """
    step, scale = Fraction(input_threshold) / 128, Fraction(2**15) / Fraction(output_threshold)
    entries = [_floor(function, (k - ENTRIES // 2) * step, scale) for k in range(ENTRIES)]
    return np.minimum(entries, HIGHEST).astype(np.int16)


def _floor(function: Callable[[Fraction, int], Bounds], x: Fraction, scale: Fraction) -> int:
    """floor(f(x) * scale), proved by bounds that agree."""
    for precision in PRECISIONS:
        low, high = (bound * scale // (1 << precision) for bound in function(x, precision))
        if low == high:
            return int(low)
    raise ArithmeticError(f"f({x}) * {scale} lies within 2^-{PRECISIONS[-1]} of a whole number")


def reciprocal_table() -> NDArray[np.int16]:
    """Entry n, for n numbers to average: 2^16 / n, at most 2^15 - 1, and 0 for n = 0; int16 [256].

    Rounded to nearest for n up to 127 and down from 128 on. The file holds it rotated, n = 128 to 255 first,
    and twice. So a mean is the sum times a 16-bit reciprocal: exact for 4, 8, 16, ... numbers, 1.00003 times
    too large for 9.
    """
    counts = np.arange(1, ENTRIES)
    rounded = np.floor(65536 / counts + np.where(counts < ENTRIES // 2, 0.5, 0.0))
    return np.concatenate([[0], np.minimum(rounded, HIGHEST)]).astype(np.int16)


def average_pool_record() -> bytes:
    """The 1,024 bytes of an average pool in l2staticData.bin; the same for every kernel tried."""
    table = reciprocal_table()
    rotated = np.concatenate([table[ENTRIES // 2 :], table[: ENTRIES // 2]])
    return np.concatenate([rotated, rotated]).astype("<i2").tobytes()
