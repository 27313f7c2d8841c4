"""Never worse: what was trained is kept only where it is at least as good on pictures it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

Score = Callable[[ir.Model], float]
"""Agreement of a quantized graph with the float network, 0..1, higher is better."""


@dataclass(frozen=True)
class Tried:
    """One way that was tried.

    Attributes:
        quantizer: its name.
        agreement: with the float network on the pictures that decide, 0..1 (measured).
        seconds: wall time it took; None where it came from the cache.
    """

    quantizer: str
    agreement: float
    seconds: float | None


@dataclass(frozen=True)
class Choice:
    """What was tried, in order, and what is kept.

    Attributes:
        kept: name of the quantizer whose graph is kept.
        pictures: number of pictures that decided.
        tried: every way that was tried, the cheapest first.
    """

    kept: str
    pictures: int
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Candidate:
    """A quantizer's name, its graph, and the seconds it took to make (None: from the cache)."""

    quantizer: str
    model: ir.Model
    seconds: float | None


def choose(candidates: Sequence[Candidate], score: Score, pictures: int) -> tuple[ir.Model, Choice]:
    """The candidate with the highest score; of equals the last, because what cost more was asked for."""
    tried = tuple(Tried(one.quantizer, score(one.model), one.seconds) for one in candidates)
    best = max(range(len(tried)), key=lambda index: (tried[index].agreement, index))
    return candidates[best].model, Choice(tried[best].quantizer, pictures, tried)
