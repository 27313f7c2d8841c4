"""Steps of a program that the compiled kernels run: what each computes, before any memory layout."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator.fixedpoint import Grid
from compiler.simulator.requantization import Requantization


class Kind(IntEnum):
    """The kernels, as native/kernels.c numbers them."""

    DENSE = 0
    DEPTHWISE = 1
    GROUPED = 2
    ADD = 3
    NEAREST = 4
    MAX_POOL = 5
    CONCAT = 6
    ZERO_INSERT = 7


@dataclass(frozen=True)
class Image:
    """A tensor of 8-bit integers with channels and, where it has them, rows and columns ([N, C] is 1 x 1).

    Attributes:
        shape: without the batch, as the graph has it: (C,) or (C, H, W).
    """

    name: str
    shape: tuple[int, ...]
    grid: Grid

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def height(self) -> int:
        return self.shape[1] if len(self.shape) == 3 else 1

    @property
    def width(self) -> int:
        return self.shape[2] if len(self.shape) == 3 else 1

    @property
    def zero(self) -> int:
        """The byte that stands for 0: signed integers are stored plus 128."""
        return 128 if self.grid.signed else 0


Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Window:
    """Kernel geometry, rows before columns; `pad` is that of the top and the left."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    pad: Pair = (0, 0)


@dataclass(frozen=True, eq=False)
class NativeStep:
    """One kernel call.

    Attributes:
        weights: int8 [Cout, Cin / groups, kh, kw], for convolutions.
        requantization: how accumulators become bytes; None where the raw int32 accumulators are wanted.
        low, high: saturation of other kernels, bytes.
        shift: for ADD the left shifts of both inputs and the right shift of the sum.
        rows, columns: for NEAREST the source of every output row and column.
        tables: [inputs, 256], bytes to bytes; None where every byte stays.
    """

    kind: Kind
    inputs: tuple[Image, ...]
    output: Image
    window: Window = Window()
    groups: int = 1
    weights: NDArray[np.int8] | None = None
    requantization: Requantization | None = None
    low: int = 0
    high: int = 255
    shift: tuple[int, int, int] = (0, 0, 0)
    rows: NDArray[np.int32] | None = None
    columns: NDArray[np.int32] | None = None
    tables: NDArray[np.uint8] | None = None

    @property
    def raw(self) -> bool:
        """The output holds int32 accumulators."""
        return self.weights is not None and self.requantization is None

    def border(self, image: Image) -> tuple[int, int, int, int]:
        """Pixels read beyond the top, left, bottom and right of an input."""
        if self.weights is None:
            return (0, 0, 0, 0)
        window = self.window
        sizes: Any = ((image.height, self.output.height), (image.width, self.output.width))
        after = [
            max(
                0,
                (to - 1) * window.stride[axis]
                - window.pad[axis]
                + (window.kernel[axis] - 1) * window.dilation[axis]
                - (size - 1),
            )
            for axis, (size, to) in enumerate(sizes)
        ]
        return (window.pad[0], window.pad[1], after[0], after[1])
