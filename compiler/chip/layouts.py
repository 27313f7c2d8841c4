"""How the converter orders the bytes of a kernel in l2staticData.bin.

The chip works on 32 channels at a time, so channel counts are padded with zeros to multiples of 32
(`round_up`). Found by giving the weights random numbers and looking for them in the file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passes.imx500.geometry import ceil_div, even, is_polyphase, round_up
from passes.imx500.weights import LANES

DEPTHWISE_CHANNELS = 8
"""Channels side by side in a depthwise kernel."""


def kernel_places(
    shape: tuple[int, ...], strides: tuple[int, int], *, depthwise: bool, bits: int = 8
) -> tuple[NDArray[np.int64], ...]:
    """The orders a kernel may have: for each number of its record the flat index of its weight, or -1.

    With 4 or 2 bits a number, the 8 / bits output channels (of a depthwise kernel: blocks of 8) that follow
    each other take turns, 32 numbers at a time.

    More than one only for a dense kernel with a stride, which the converter splits into phases or not by a
    criterion of its own; what `is_polyphase` expects comes first.

    Args:
        shape: of the ONNX weights, [Cout, Cin / groups, kh, kw].
        strides: of the convolution.
        depthwise: groups = Cin = Cout.
        bits: of a weight.
    """
    rows = round_up(shape[0]) // (DEPTHWISE_CHANNELS if depthwise else 1)
    orders = _byte_orders(shape, strides, depthwise=depthwise)
    return tuple(_in_turns(places, rows, 8 // bits) for places in orders)


def _in_turns(places: NDArray[np.int64], rows: int, together: int) -> NDArray[np.int64]:
    return places.reshape(rows // together, together, -1, LANES).transpose(0, 2, 1, 3).reshape(-1)


def _byte_orders(
    shape: tuple[int, ...], strides: tuple[int, int], *, depthwise: bool
) -> tuple[NDArray[np.int64], ...]:
    """`kernel_places` of 8-bit weights."""
    indices = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    if depthwise:
        return (_depthwise(indices[:, 0], strides),)
    if shape[1] < LANES and min(shape[2:]) > 3:
        whole = _dense(_padded(indices, (*shape[:2], even(shape[2]), even(shape[3]))))
    else:
        whole = _dense(indices)
    if max(strides) == 1:
        return (whole,)
    split = _dense(_phases(indices, strides))
    return (split, whole) if is_polyphase(shape[1], shape[0], shape[2:], strides) else (whole, split)


def pack(weights: NDArray[np.int8], places: NDArray[np.int64], bits: int = 8) -> NDArray[np.uint8]:
    """The bytes of a kernel's record: weights at their places, zero elsewhere, the first in the lowest bits.

    Of a weight its upper `bits` bits are kept.
    """
    numbers = np.where(places < 0, np.int8(0), weights.reshape(-1)[np.maximum(places, 0)]).view(np.uint8)
    upper = numbers.reshape(-1, 8 // bits) >> (8 - bits)
    record: NDArray[np.uint8] = np.bitwise_or.reduce(upper << np.arange(0, 8, bits, dtype=np.uint8), axis=1)
    return record


def numbers_of(record: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """The 8 / bits numbers in each byte of a record as the chip reads them: the upper bits of an int8."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    upper = (record[:, None] << shifts) & np.uint8(256 - (1 << (8 - bits)))
    return upper.reshape(-1).view(np.int8)


def unpack(numbers: NDArray[np.int8], places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The weights [Cout, Cin / groups, kh, kw] from the numbers of a record."""
    weights = np.zeros(int(np.prod(shape)), dtype=np.int8)
    weights[places[places >= 0]] = numbers[places >= 0]
    return weights.reshape(shape)


def _padded(indices: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.pad(
        indices, [(0, n - m) for n, m in zip(shape, indices.shape, strict=True)], constant_values=-1
    )


def _dense(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """[Cout][block of 32 input channels][kw][kh][32 input channels]."""
    out, inner, rows, columns = indices.shape
    padded = _padded(indices, (round_up(out), round_up(inner), rows, columns))
    blocks = padded.reshape(round_up(out), -1, LANES, rows, columns)
    return blocks.transpose(0, 1, 4, 3, 2).reshape(-1)


def _phases(indices: NDArray[np.int64], strides: tuple[int, int]) -> NDArray[np.int64]:
    """A strided kernel as one of stride 1 on sh * sw * Cin channels, the phase (row, column) outermost."""
    out, inner, rows, columns = indices.shape
    (sh, sw), taps = strides, (ceil_div(rows, strides[0]), ceil_div(columns, strides[1]))
    padded = _padded(indices, (out, inner, taps[0] * sh, taps[1] * sw))
    split = padded.reshape(out, inner, taps[0], sh, taps[1], sw).transpose(0, 3, 5, 1, 2, 4)
    return split.reshape(out, sh * sw * inner, *taps)


def _depthwise(indices: NDArray[np.int64], strides: tuple[int, int]) -> NDArray[np.int64]:
    """[block of 8 channels][x outer][y outer][x of 2][y of 2][8 channels]; padded to an even square.

    Odd strides: a tap is outer + (of 2) * side / 2. Even strides: it is 2 * outer + (of 2). Read for strides
    1 to 4 that are equal on both axes.
    """
    channels, rows, columns = indices.shape
    side = even(max(rows, columns))
    padded = _padded(indices, (round_up(channels), side, side))
    blocks = padded.reshape(-1, DEPTHWISE_CHANNELS, side, side)
    if strides[0] % 2:
        pairs = blocks.reshape(len(blocks), DEPTHWISE_CHANNELS, 2, side // 2, 2, side // 2)
        ordered = pairs.transpose(0, 5, 3, 4, 2, 1)
    else:
        pairs = blocks.reshape(len(blocks), DEPTHWISE_CHANNELS, side // 2, 2, side // 2, 2)
        ordered = pairs.transpose(0, 4, 2, 5, 3, 1)
    return ordered.reshape(-1)
