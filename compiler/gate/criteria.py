"""Criteria and their verdicts.

A criterion passes where the whole confidence interval keeps to the limit, fails where the whole interval is
beyond it, and is undecided (`too few samples to tell`) where the limit lies in the interval. So a network
that is just at the limit fails wrongly in (1 - confidence) / 2 of all cases, and passes wrongly in as many;
one that keeps to the limit by some margin fails less often still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.gate.intervals import (
    LEAST_PICTURES,
    Interval,
    exactly,
    intervals,
    needed_pictures,
    unpaired_drop,
)

if TYPE_CHECKING:
    from compiler.gate.earlier import Earlier
    from student.cropset import Integers
    from student.evaluate import Floats


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "too few samples to tell"


@dataclass(frozen=True)
class Limits:
    """What is asked for; None: not asked.

    Attributes:
        min_miou: 0..1, of the int8 network.
        max_drop: points (hundredths of mIoU) that the int8 network may lose against the float network, and
            against an earlier report where one is given.
        max_memory: bytes.
    """

    min_miou: float | None = None
    max_drop: float | None = None
    max_memory: int | None = None


@dataclass(frozen=True)
class Needed:
    """So many samples would decide (`needed_pictures`), instances at the rate of these pictures."""

    pictures: int
    instances: int


@dataclass(frozen=True)
class Criterion:
    """One thing asked for, and what was found.

    Attributes:
        name: the option that asks for it, or `baseline`.
        what: what was measured.
        unit: mIoU, points or bytes.
        found: the figure with its interval.
        limit: what it is held against.
        at_least: the figure has to reach the limit, not to keep below it.
        verdict: see the module.
        needed: of an undecided criterion, None where no number of samples would decide.
        kind: measured, exact or estimated.
        fix: what to do where it fails.
    """

    name: str
    what: str
    unit: str
    found: Interval
    limit: float
    at_least: bool
    verdict: Verdict
    needed: Needed | None
    kind: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "kind": self.kind,
            **self.found.to_json(),
            "limit": self.limit,
            "side": self.side,
            "verdict": self.verdict.value,
            "needed": None if self.needed is None else vars(self.needed),
        }

    @property
    def side(self) -> str:
        return "at least" if self.at_least else "at most"

    def number(self, value: float) -> str:
        """`0.5161` of a mIoU, `+0.12` points, `3,726,784` bytes."""
        if self.unit == "bytes":
            return f"{value:,.0f}"
        return f"{value:.4f}" if self.unit == "mIoU" else f"{value:+.2f}"

    @property
    def figure(self) -> str:
        """`+0.12 points [-0.05, +0.30]`."""
        text = f"{self.number(self.found.value)} {self.unit}"
        if self.kind == "measured" and math.isfinite(self.found.low):
            text += f" [{self.number(self.found.low)}, {self.number(self.found.high)}]"
        return text if self.kind == "measured" else f"{text} ({self.kind})"

    @property
    def bound(self) -> str:
        """`at most 1.00`."""
        return f"{self.side} {self.number(self.limit).removeprefix('+')}"

    @property
    def wanted(self) -> str:
        """Of an undecided criterion: how many samples would decide, as a clause."""
        if self.needed is None:
            return "the value is as good as on the limit, no number of samples would tell"
        if not math.isfinite(self.found.low):
            return f"at least {self.needed.pictures} pictures are needed"
        return (
            f"about {self.needed.pictures:,} pictures ({self.needed.instances:,} instances) "
            "would tell, if the true value is the one measured"
        )

    def sentence(self) -> str:
        """`drop of mIoU, float less int8: +3.10 points [+2.2, +4.1], at most 1.00: fail`."""
        text = f"{self.what}: {self.figure}, {self.bound}: {self.verdict.value}"
        return f"{text}; {self.wanted}" if self.verdict is Verdict.UNDECIDED else text


def decide(found: Interval, limit: float, at_least: bool) -> Verdict:
    """Where the interval lies; an interval whose ends are NaN is undecided."""
    inside, outside = (found.low, found.high) if at_least else (-found.high, -found.low)
    limit = limit if at_least else -limit
    if inside >= limit:
        return Verdict.PASS
    return Verdict.FAIL if outside < limit else Verdict.UNDECIDED


def accuracy(
    int8: Floats,
    real: Floats | None,
    picture_ids: Integers,
    limits: Limits,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Criterion, ...]:
    """The criteria of `limits` about accuracy.

    Args:
        int8, real: IoU of each instance under the int8 and the float network, float64 [N]; `real` is None
            where `limits` asks for no drop.
        picture_ids: int64 [N].
    """
    columns = [int8] if real is None else [int8, 100 * (real - int8)]
    score, *drops = intervals(np.stack(columns, axis=1), picture_ids, confidence, seed)
    samples = len(np.unique(picture_ids)), len(int8)
    criteria = []
    if limits.min_miou is not None:
        criteria.append(
            _criterion(
                "min-miou",
                "mIoU of the int8 network",
                "mIoU",
                score,
                limits.min_miou,
                at_least=True,
                samples=samples,
                confidence=confidence,
                fix="train the student longer or on more data: the float network's mIoU is the most that "
                "quantization can keep",
            )
        )
    if limits.max_drop is not None:
        (drop,) = drops
        criteria.append(
            _criterion(
                "max-drop",
                "drop of mIoU, float network less int8",
                "points",
                drop,
                limits.max_drop,
                at_least=False,
                samples=samples,
                confidence=confidence,
                fix="compile with --max-drop, which tries better quantizers one after the other, or look at "
                "`picosam2 sensitivity` for the layer that loses most",
            )
        )
    return tuple(criteria)


def against_earlier(
    int8: Floats,
    annotation_ids: Integers,
    picture_ids: Integers,
    earlier: Earlier,
    max_drop: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> Criterion:
    """Is it worse than an earlier package by more than `max_drop` points?

    Paired over the instances that both know, where the earlier report has every instance's IoU; otherwise
    from both intervals (`unpaired_drop`), which says the same less sharply.
    """
    if earlier.ious is not None and earlier.annotation_ids is not None:
        shared = np.isin(annotation_ids, earlier.annotation_ids)
        order = np.argsort(earlier.annotation_ids)
        place = order[np.searchsorted(earlier.annotation_ids, annotation_ids[shared], sorter=order)]
        lost = 100 * (earlier.ious[place] - int8[shared])
        ids = picture_ids[shared]
        (drop,) = intervals(lost[:, None], ids, confidence, seed)
        how = f"paired, {len(lost)} instances"
    else:
        (now,) = intervals(int8[:, None], picture_ids, confidence, seed)
        both = unpaired_drop(earlier.interval(confidence), now)
        drop = Interval(100 * both.value, 100 * both.low, 100 * both.high)
        ids, how = picture_ids, "from the intervals alone"
    return _criterion(
        "baseline",
        f"drop of mIoU, {earlier.file} less this ({how})",
        "points",
        drop,
        max_drop,
        at_least=False,
        samples=(len(np.unique(ids)), len(ids)),
        confidence=confidence,
        fix="compare the two packages' reports: model, quantizer and calibration pictures",
    )


def memory(used: int, kind: str, limit: int) -> Criterion:
    """Bytes of the chip's memory; `kind` is exact (the converter's report) or estimated (the forecast)."""
    found = exactly(float(used))
    return Criterion(
        "max-memory",
        "memory of the chip",
        "bytes",
        found,
        float(limit),
        False,
        decide(found, limit, at_least=False),
        None,
        kind,
        "`picosam2 check MODEL --what-if 64x64,96x96` shows what a smaller input saves",
    )


def _criterion(
    name: str,
    what: str,
    unit: str,
    found: Interval,
    limit: float,
    *,
    at_least: bool,
    samples: tuple[int, int],
    confidence: float,
    fix: str,
) -> Criterion:
    verdict = decide(found, limit, at_least)
    needed = None
    if verdict is Verdict.UNDECIDED:
        pictures, instances = samples
        count = LEAST_PICTURES
        if pictures >= LEAST_PICTURES:
            count = needed_pictures(found, limit, pictures, confidence) or 0
        needed = Needed(count, math.ceil(count * instances / pictures)) if count else None
    return Criterion(name, what, unit, found, limit, at_least, verdict, needed, "measured", fix)
