"""One layer with weights as the chip holds it, and the integer rule of its requantization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.simulator.fixedpoint import Grid
from compiler.simulator.requantization import Rounding

ROUNDINGS: tuple[Rounding, ...] = tuple(Rounding)
"""What the final shift may do with the bits it drops. The compiled file does not say which."""

UNSIGNED_OFFSET = 128
"""The multiplier array reads an unsigned number x as the signed x - 128; the bias makes up for it."""

SHIFT_BASE = 39
"""right shift = SHIFT_BASE - S - (bits of magnitude of the output): see `ChipLayer.right_shift`."""


@dataclass(frozen=True, eq=False)
class ChipLayer:
    """The integers of one convolution in l2staticData.bin.

    With x the input's integers (0..255 unsigned, -128..127 signed), zero padding counting as 0, and
    acc[c] the sum of weights[c] * x over the window, the output's integers are

        q = clamp(round_shift((acc[c] + accumulator_bias[c]) * multiplier[c], right_shift[c]))

    Attributes:
        name: ONNX node of the convolution.
        weights: int8 [Cout, Cin / groups, kh, kw]; a linear layer has kh = kw = 1. A transposed
            convolution's are [Cout, Cin, kh, kw] too, the kernel as in the ONNX file.
        multiplier: uint8 [Cout], 128..255.
        shift: int8 [Cout], the file's byte S: 32 + floor(log2(s_w s_x)) - log2(output threshold).
        bias: int32 [Cout], the file's: for unsigned inputs it holds 128 times the sum of the weights, about.
        input_grid, output_grid: of the activation quantizers before and behind.
        highest: the clamp's upper end, below output_grid.highest for a ReLU6. The lower end is the grid's.
        weight_bits: 8, 4 or 2: the weights are stored in as many and read as the upper bits of a byte, so
            `weights` are multiples of 2^(8 - bits).
    """

    name: str
    weights: NDArray[np.int8]
    multiplier: NDArray[np.uint8]
    shift: NDArray[np.int8]
    bias: NDArray[np.int32]
    input_grid: Grid
    output_grid: Grid
    highest: int
    weight_bits: int = 8

    @property
    def right_shift(self) -> NDArray[np.int64]:
        """Bits to drop from (acc + bias) * M, int64 [Cout]: 31 - S for an unsigned output, 32 - S for signed.

        M / 2^7 * 2^(S - 32) * threshold is s_w s_x, and the output's step is threshold / 2^8 or / 2^7.
        """
        magnitude_bits = self.output_grid.bits - int(self.output_grid.signed)
        return SHIFT_BASE - self.shift.astype(np.int64) - magnitude_bits

    @property
    def accumulator_bias(self) -> NDArray[np.int64]:
        """The bias to add to accumulators over x itself, int64 [Cout].

        For an unsigned input the file's bias belongs to accumulators over x - 128: 128 times the sum of the
        weights is taken off again, exactly, so what remains is the float bias rounded, and the 0 or 1 by
        which the converter's own correction falls short.
        """
        bias: NDArray[np.int64] = self.bias.astype(np.int64)
        if self.input_grid.signed:
            return bias
        sums: NDArray[np.int64] = self.weights.astype(np.int64).reshape(len(bias), -1).sum(axis=1)
        return bias - UNSIGNED_OFFSET * sums

    @property
    def gain(self) -> NDArray[np.float64]:
        """Output steps per unit of the accumulator, float64 [Cout]: M 2^-right_shift, exactly."""
        return np.ldexp(self.multiplier.astype(np.float64), -self.right_shift)


def requantize(
    accumulators: NDArray[np.int64], layer: ChipLayer, rounding: Rounding, channel_axis: int = 1
) -> NDArray[np.int64]:
    """The output's integers from accumulators over x (int64, any shape with Cout along `channel_axis`).

    A ReLU needs no step of its own: its quantizer is unsigned, so the clamp does it.
    """
    shape = [1] * accumulators.ndim
    shape[channel_axis] = -1
    products = accumulators + layer.accumulator_bias.reshape(shape)
    products = products * layer.multiplier.astype(np.int64).reshape(shape)
    shift = layer.right_shift.reshape(shape)
    shifted = round_shift(products << np.maximum(-shift, 0), np.maximum(shift, 0), rounding)
    return np.clip(shifted, layer.output_grid.lowest, layer.highest)


def round_shift(
    values: NDArray[np.int64], bits: NDArray[np.int64] | np.int64, rounding: Rounding
) -> NDArray[np.int64]:
    """values / 2^bits, rounded; bits >= 0. `>>` of a negative number is the floor."""
    floor: NDArray[np.int64] = values >> bits
    if rounding is Rounding.FLOOR:
        return floor
    half = (np.int64(1) << bits) >> 1
    if rounding is Rounding.HALF_UP:
        rounded: NDArray[np.int64] = (values + half) >> bits
        return rounded
    rest = values - (floor << bits)
    up = (rest > half) | ((rest == half) & (half > 0) & (floor & 1 == 1))
    nearest: NDArray[np.int64] = floor + up
    return nearest
