"""Trying ways in order of cost, and keeping the best on pictures none of them was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from compiler.quantizing.judge import Drop, Verdict
from compiler.quantizing.ways import Made, OnProgress, Way
from passes.errors import GateFailed

if TYPE_CHECKING:
    from student.evaluate import Estimate


@dataclass(frozen=True)
class Tried:
    """One way that was tried.

    Attributes:
        quantizer: name of the way.
        settings: what it worked on, in words.
        agreement: with the float network on the deciding crops, 0..1 (measured).
        drop: accuracy lost there.
        seconds: wall time it took; None where it came from the cache.
        miou: of its masks there, None where no masks are known.
    """

    quantizer: str
    settings: str
    agreement: float
    drop: Drop
    seconds: float | None
    miou: Estimate | None = None


@dataclass(frozen=True)
class Choice:
    """What was tried, in order, and what is kept.

    Attributes:
        kept: name of the way whose graph is kept.
        crops, pictures: the crops that decided, and how many pictures they are from.
        max_drop: points asked for, None where no search was asked.
        met: the interval's upper end of the one that is kept is at most `max_drop`; None without it.
        tried: every way that was tried, the cheapest first.
    """

    kept: str
    crops: int
    pictures: int
    max_drop: float | None
    met: bool | None
    tried: tuple[Tried, ...]


def within(drop: Drop, limit: float) -> bool:
    """The upper end of the drop's interval is at most `limit`; never where nothing is known of it."""
    return drop.kind != "none" and drop.high <= limit


def require_drop(choice: Choice) -> None:
    """Raises GateFailed where --max-drop was asked and no way met it."""
    if choice.met is not False:
        return
    kept = next(one for one in choice.tried if one.quantizer == choice.kept)
    drop, said, fix = kept.drop, "", "give more pictures, wider weights or a larger limit"
    if drop.kind == "bound":
        said, fix = (
            "at most ",
            "give pictures with masks (--calib coco:DIR): without them only a bound is known",
        )
    found = f"loses {said}{drop.points:.2f} points, {drop.high:.2f} at the upper end of the interval"
    if drop.kind == "none":
        found, fix = "has outputs that are no masks and no classes", "leave --max-drop out"
    raise GateFailed("--max-drop", f"{kept.quantizer} {found}", f"at most {choice.max_drop:g}", fix)


def search(
    first: Way,
    made: Made,
    others: Sequence[Way],
    verdict: Callable[[ir.Model], Verdict],
    crops: int,
    pictures: int,
    max_drop: float | None,
    progress: OnProgress,
) -> tuple[ir.Model, Choice]:
    """Try `others` after what `first` made, until the drop is met (all of them without `max_drop`).

    What meets the drop is kept; where none does, or none was asked for, the one that agrees best with the
    float network, and of equals the last, because what cost more was asked for.
    """
    tried: list[Tried] = []
    graphs: list[ir.Model] = []

    def judge(way: Way, one: Made) -> None:
        progress(f"deciding about {way.name}", None)
        found = verdict(one.graph)
        tried.append(Tried(way.name, way.settings, found.agreement, found.drop, one.seconds, found.miou))
        graphs.append(one.graph)

    def best() -> int:
        return max(range(len(tried)), key=lambda index: (tried[index].agreement, index))

    def met() -> bool:
        return max_drop is not None and within(tried[-1].drop, max_drop)

    judge(first, made)
    for way in others:
        if met():
            break
        judge(way, way.make(graphs[best()]))
    kept = len(tried) - 1 if met() else best()
    reached = None if max_drop is None else within(tried[kept].drop, max_drop)
    choice = Choice(tried[kept].quantizer, crops, pictures, max_drop, reached, tuple(tried))
    return graphs[kept], choice
