"""What a quantized graph loses, on pictures that no candidate was fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.representative import RepresentativeSet, delivered
from compiler.gate.intervals import LEAST_PICTURES
from compiler.quantizing.yardstick import Yardstick
from passes import graph as graphs
from passes.errors import EnvironmentFault, InputError

if TYPE_CHECKING:
    from student.evaluate import Estimate

IN_REFERENCE = 64
"""Crops that decide where the slow reference has to compute a part of the network."""

OUTPUT_NUMBERS = 2**26
"""Numbers of one output of all deciding crops together, at most (256 MB)."""


@dataclass(frozen=True)
class Drop:
    """Accuracy lost against the float network, in points (hundredths), with the 95 % interval over pictures.

    Attributes:
        points, low, high: low and high are NaN where there is one picture only.
        kind: `measured`: mIoU of the float less that of the quantized masks, against annotated masks.
            `bound`: no masks are known, and this is the most that accuracy can have changed
            (`Yardstick.agreement`). `none`: an output is neither a mask nor classes, and nothing is known.
    """

    points: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Verdict:
    """What a candidate reaches on the deciding crops.

    Attributes:
        agreement: with the float network, mean over the pictures, 0..1.
        drop: accuracy lost against it.
        miou: mIoU of its masks against the annotated ones, 0..1; None where no masks are known.
    """

    agreement: float
    drop: Drop
    miou: Estimate | None


@dataclass(frozen=True)
class Accuracy:
    """What the network that is shipped reaches against annotated masks, on crops it was not fitted to.

    Attributes:
        miou: of the int8 network, 0..1, with its 95 % interval over pictures.
        drop: against the float network, paired.
        crops, pictures: their numbers.
    """

    miou: Estimate
    drop: Drop
    crops: int
    pictures: int


class Judge:
    """Scores candidates on the deciding crops.

    Attributes:
        crops: their number.
        pictures: number of pictures they were cut from.
    """

    def __init__(self, float_model: ir.Model, sets: Sequence[RepresentativeSet], quantized: ir.Model) -> None:
        """`sets`: one per input, with deciding crops. `quantized`: any candidate, for the simulator's speed.

        Raises what `compile_program` raises, before any time is spent.
        """
        from compiler.simulator.engine import compile_program

        program = compile_program(quantized)
        shapes = (graphs.static_shape(out) or () for out in quantized.graph.outputs)
        largest = max(math.prod(size or 1 for size in shape) for shape in shapes)
        count = min(len(sets[0].deciding), max(1, OUTPUT_NUMBERS // largest))
        if program.in_reference:
            count = min(count, IN_REFERENCE)
        crops = [delivered(one.deciding[:count], one.contract) for one in sets]
        self._yardstick = Yardstick(float_model, crops)
        self._ids = sets[0].deciding_pictures[:count]
        self._truth = _truth(self._yardstick, sets, count)
        self.crops, self.pictures = count, len(np.unique(self._ids))

    def verdict(self, graph: ir.Model) -> Verdict:
        from student.evaluate import estimate

        found = self._yardstick.quantized(graph)
        agreement, bounds = self._yardstick.agreement(found)
        if self._truth is None:
            kind = "bound" if bounds else "none"
            return Verdict(float(agreement.mean()), _drop(estimate(1.0 - agreement, self._ids), kind), None)
        (name,) = self._yardstick.real
        level = self._yardstick.levels[name]
        real, ours = (_ious(maps[name], self._truth, level) for maps in (self._yardstick.real, found))
        lost = _drop(estimate(real - ours, self._ids), "measured")
        return Verdict(float(agreement.mean()), lost, estimate(ours, self._ids))


def accuracy(float_model: ir.Model, sets: Sequence[RepresentativeSet], quantized: ir.Model) -> Accuracy | str:
    """The mIoU of `quantized` on the deciding crops; or why it cannot be measured."""
    if not len(sets[0].deciding):
        return "no crops are kept apart"
    try:
        judge = Judge(float_model, sets, quantized)
        found = judge.verdict(quantized)
    except (
        InputError,
        EnvironmentFault,
    ) as error:  # an operator the simulator does not know, or no C compiler
        return f"the int8 network cannot be simulated ({error.found})"
    return accuracy_of(found.miou, found.drop, judge.crops, judge.pictures)


def accuracy_of(miou: Estimate | None, drop: Drop, crops: int, pictures: int) -> Accuracy | str:
    """What a verdict says of accuracy; or why it says nothing."""
    if miou is None:
        return "the network does not give one mask of its picture's size"
    if pictures < LEAST_PICTURES:
        return f"{pictures} pictures are kept apart, and an interval needs {LEAST_PICTURES}"
    return Accuracy(miou, drop, crops, pictures)


def _truth(yardstick: Yardstick, sets: Sequence[RepresentativeSet], count: int) -> NDArray[np.bool_] | None:
    """The masks [N, H, W] where the network puts out one map of their size for one picture."""
    masks = sets[0].deciding_masks
    if masks is None or len(sets) != 1 or len(yardstick.real) != 1:
        return None
    (real,) = yardstick.real.values()
    fits = real.shape == (count, 1, *masks.shape[1:]) and set(yardstick.real) == set(yardstick.levels)
    return masks[:count] if fits else None


def _ious(maps: NDArray[np.float32], truth: NDArray[np.bool_], level: float) -> NDArray[np.float64]:
    from student.evaluate import iou

    return iou(maps[:, 0] > level, truth)


def _drop(shares: Estimate, kind: str) -> Drop:
    return Drop(100.0 * shares.mean, 100.0 * shares.low, 100.0 * shares.high, kind)
