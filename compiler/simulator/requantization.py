"""Requantization as a step function: for every accumulator the one integer that exact arithmetic gives.

An output channel computes round((acc * gain + offset) / divisor) with integers gain > 0, offset and divisor >
0, saturated to low..high. That never falls as acc rises, so it is known by the accumulator at which each
output integer begins: `bounds`. A float32 formula decides nearly every accumulator; where its result lies
nearer to a tie than its error bound, the bounds decide. So the integers are exact for every accumulator,
proved and not sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator.fixedpoint import IntArray, magnitude, with_room

INT32 = (1 << 31) - 1

_UNIT = 2.0**-24
"""Half a unit in the last place of float32, relative: the error of one rounding."""

_LARGEST_ERROR = 0.25
"""The two candidates of a tie are found from float32 alone as long as its error stays below this."""

_LARGEST_FLOAT = float(1 << 30)
"""Results below this become int32 without overflow."""


class Rounding(StrEnum):
    """How a quotient becomes an integer. The vendor dialect rounds half to even."""

    HALF_EVEN = "nearest_even"
    HALF_UP = "half_up"
    FLOOR = "floor"


@dataclass(frozen=True, eq=False)
class Affine:
    """Per channel c the exact number (acc * gain[c] + offset[c]) / divisor, in steps of the output.

    gain and offset are arrays of Python integers (dtype object), shape [C]; gain and divisor are positive.
    """

    gain: IntArray
    offset: IntArray
    divisor: int


@dataclass(frozen=True, eq=False)
class Requantization:
    """What the kernels need; bytes are output integers plus `zero`.

    Attributes:
        scale, shifted: float32 [C]; v = fl(fl(acc * scale) + shifted), rounded half to even, is the byte.
        bounds: int32 [C, high - low]: the smallest accumulator whose byte is at least low + 1 + index.
        low, high: saturation, bytes.
        tie: |v - round(v)| from which `bounds` decides; a float32 number.
    """

    scale: NDArray[np.float32]
    shifted: NDArray[np.float32]
    bounds: NDArray[np.int32]
    low: int
    high: int
    tie: float


def begins(affine: Affine, low: int, high: int, rounding: Rounding) -> IntArray:
    """The smallest accumulator for each output integer low + 1 .. high: [C, high - low], exact.

    Half to even: k begins where 2(acc g + o) >= (2k - 1) d, and for odd k, whose lower tie goes to k - 1,
    where it is greater. Half up: where it is at least that for every k. Floor: where acc g + o >= k d.
    """
    outputs = np.arange(low + 1, high + 1)
    largest = 4 * (
        (magnitude(outputs) + 1) * affine.divisor + magnitude(affine.offset) + magnitude(affine.gain)
    )
    gain, offset, outputs = (with_room(one, largest) for one in (affine.gain, affine.offset, outputs))
    if rounding is Rounding.FLOOR:
        numerators = (outputs * affine.divisor)[None, :] - offset[:, None]
        return np.asarray(-((-numerators) // gain[:, None]))
    numerators = ((2 * outputs - 1) * affine.divisor)[None, :] - 2 * offset[:, None]
    doubled = 2 * gain[:, None]
    at_least = -((-numerators) // doubled)
    if rounding is Rounding.HALF_UP:
        return np.asarray(at_least)
    greater = numerators // doubled + 1
    return np.asarray(np.where((outputs % 2 == 1)[None, :], greater, at_least))


def requantization(
    affine: Affine, low: int, high: int, zero: int, largest: int, rounding: Rounding = Rounding.HALF_EVEN
) -> Requantization | None:
    """The step function of output integers low..high, stored as bytes value + zero.

    Args:
        largest: an upper bound of |acc| over all channels, below 2**31 - 1.

    None where the float32 formula is too coarse to find the two candidates of a tie (offsets far beyond the
    range of the output) or could leave int32.
    """
    if largest >= INT32:
        return None
    gain = np.array([float(_ratio(g, affine.divisor)) for g in affine.gain])
    offset = np.array([float(_ratio(o, affine.divisor)) for o in affine.offset])
    # Floor is rounding to nearest half a step lower; where the two differ, at ties, the bounds decide.
    down = 0.5 if rounding is Rounding.FLOOR else 0.0
    reach = max(abs(low + zero), abs(high + zero)) + 2.0
    with np.errstate(over="ignore"):
        scale, shifted = gain.astype(np.float32), (offset + zero - down).astype(np.float32)
    magnitude = reach + float(np.abs(offset).max(initial=0.0)) + abs(zero) + 1.0
    # Roundings of v: acc to float32, the scale, the product; the offset; the sum.
    error = 1.01 * _UNIT * (3 * magnitude + magnitude + reach)
    largest_v = float((max(largest, 1) * gain + np.abs(offset)).max(initial=0.0)) + abs(zero) + 1.0
    if error >= _LARGEST_ERROR or not largest_v < _LARGEST_FLOAT:
        return None
    bounds = np.clip(begins(affine, low, high, rounding), -INT32, INT32).astype(np.int32)
    tie = float(np.nextafter(np.float32(0.5 - error), np.float32(0)))  # float32 may have rounded it up
    return Requantization(scale, shifted, bounds, low + zero, high + zero, tie)


def _ratio(numerator: Any, divisor: int) -> float:
    """The quotient of two Python integers, correctly rounded; infinite where it exceeds float64."""
    try:
        return int(numerator) / divisor
    except OverflowError:
        return float("inf") if numerator > 0 else float("-inf")
