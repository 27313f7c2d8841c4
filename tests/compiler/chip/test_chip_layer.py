"""The requantization rule against fractions, and its parts."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.chip import ChipLayer, add_fused, addition_shifts, requantize
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.requantization import Rounding

SIGNED = Grid(-3, 8, True)
UNSIGNED = Grid(-4, 8, False)
"""Two grids with a threshold of 16."""


def layer(
    multiplier: int = 200, shift: int = 15, bias: int = 0, inputs: Grid = SIGNED, outputs: Grid = SIGNED
) -> ChipLayer:
    """One channel with the weights 3, -5."""
    return ChipLayer(
        "conv",
        np.array([3, -5], dtype=np.int8).reshape(1, 2, 1, 1),
        np.array([multiplier], dtype=np.uint8),
        np.array([shift], dtype=np.int8),
        np.array([bias], dtype=np.int32),
        inputs,
        outputs,
        outputs.highest,
    )


def rounded(number: Fraction, rounding: Rounding) -> int:
    if rounding is Rounding.FLOOR:
        return floor(number)
    return floor(number + Fraction(1, 2)) if rounding is Rounding.HALF_UP else round(number)


ROUNDING = st.sampled_from(Rounding)
GRIDS = st.sampled_from([SIGNED, UNSIGNED])


@given(
    st.integers(-(2**24), 2**24), st.integers(128, 255), st.integers(-10, 33), st.integers(-(2**30), 2**30),
    GRIDS, ROUNDING,
)  # fmt: skip
def test_requantization(
    accumulator: int, multiplier: int, shift: int, bias: int, outputs: Grid, rounding: Rounding
) -> None:
    made = layer(multiplier, shift, bias, outputs=outputs)
    bits = (32 if outputs.signed else 31) - shift
    exact = Fraction((accumulator + bias) * multiplier) / Fraction(2) ** bits
    expected = min(max(rounded(exact, rounding), outputs.lowest), outputs.highest)
    assert requantize(np.array([[accumulator]]), made, rounding).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (Rounding.HALF_EVEN, [0, 0, 2, 2, 0, -2]),
        (Rounding.HALF_UP, [0, 1, 2, 2, 0, -1]),
        (Rounding.FLOOR, [0, 0, 1, 2, -1, -2]),
    ],
)
def test_ties(rounding: Rounding, expected: list[int]) -> None:
    made = layer(multiplier=128, shift=24)  # 128 / 2^8: halves
    accumulators = np.array([0, 1, 3, 4, -1, -3]).reshape(-1, 1)
    assert requantize(accumulators, made, rounding).reshape(-1).tolist() == expected


def test_unsigned_inputs_keep_their_bias_in_accumulators_of_x() -> None:
    made = layer(bias=10 + 128 * (3 - 5), inputs=UNSIGNED)
    assert made.accumulator_bias.tolist() == [10]
    assert layer(bias=10).accumulator_bias.tolist() == [10]


def test_gain() -> None:
    assert layer(128, 25).gain.tolist() == [1.0]
    assert layer(128, 24, outputs=UNSIGNED).gain.tolist() == [1.0]


def test_the_channel_axis_may_be_any() -> None:
    made, accumulators = layer(), np.arange(-600, 600, 7)
    rows = requantize(accumulators.reshape(1, 1, -1), made, Rounding.HALF_UP).reshape(-1)
    last = requantize(accumulators.reshape(-1, 1), made, Rounding.HALF_UP, channel_axis=1).reshape(-1)
    np.testing.assert_array_equal(rows, last)


@given(
    st.integers(-(2**18), 2**18), st.integers(-128, 127), st.integers(10, 24), st.integers(-6, 0), GRIDS,
    ROUNDING,
)  # fmt: skip
def test_a_fused_addition_rounds_once(
    accumulator: int, stored: int, shift: int, exponent: int, outputs: Grid, rounding: Rounding
) -> None:
    made, grid = layer(shift=shift), Grid(exponent, 8, True)
    own = Fraction(accumulator * 200) / Fraction(2) ** (32 - shift)
    own = min(max(own, Fraction(-128)), 128 - Fraction(1, 2 ** (32 - shift)))
    total = own * Fraction(SIGNED.step) + stored * Fraction(grid.step)
    expected = min(max(rounded(total / Fraction(outputs.step), rounding), outputs.lowest), outputs.highest)
    found = add_fused(np.array([[accumulator]]), made, np.array([[stored]]), grid, outputs, rounding)
    assert found.tolist() == [[expected]]


def test_without_saturation_the_other_operand_may_bring_it_back() -> None:
    made = layer(128, 25)
    accumulators, stored = np.array([[200]]), np.array([[-100]])
    given = (accumulators, made, stored, SIGNED, SIGNED, Rounding.FLOOR)
    assert add_fused(*given).tolist() == [[27]]
    assert add_fused(*given, saturate=False).tolist() == [[100]]


@pytest.mark.parametrize(
    ("convolution", "stored", "result", "registers"),
    [
        (SIGNED, SIGNED, SIGNED, (0, 16, 1)),
        (Grid(-4, 8, True), SIGNED, SIGNED, (-1, 16, 1)),
        (SIGNED, Grid(-4, 8, True), SIGNED, (0, 15, 1)),
        (Grid(-2, 8, True), SIGNED, SIGNED, (0, 15, 2)),
        (Grid(-5, 8, True), Grid(-2, 8, True), Grid(-4, 8, True), (-3, 16, 3)),
        (SIGNED, SIGNED, Grid(-2, 8, True), (0, 16, 0)),
        (SIGNED, UNSIGNED, SIGNED, (0, 15, 1)),
    ],
)
def test_shifts_of_additions_as_read(
    convolution: Grid, stored: Grid, result: Grid, registers: tuple[int, int, int]
) -> None:
    """The registers in cfgA.bin of seven converted networks (benchmarks/chip_numbers.py)."""
    shifts = addition_shifts(convolution, stored, result)
    assert (shifts.convolution, shifts.stored, shifts.result) == registers
