"""A latency estimate from the multiply-accumulates alone, as wide as the published measurements are apart.

Two networks were measured on the IMX500 by their authors. Their rates, in multiply-accumulates per clock
cycle at 262.5 MHz, differ by a quarter, although PicoSAM3 is PicoSAM2 with a few layers more:

    PicoSAM2   323.05 M / (14.30 ms * 262.5 MHz) =  86.1
    PicoSAM3   330.16 M / (11.82 ms * 262.5 MHz) = 106.4

So the estimate is a range: the network at the one rate and at the other. What two points of nearly the same
network cannot tell: what a layer costs that multiplies nothing (pools, resizes and copies between layouts are
part of the rates), how depthwise and dense convolutions differ, what moving weights and tensors costs, and
how far the rates hold for networks of another kind or size. A node's share is its share of the
multiply-accumulates.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_HZ = 262_500_000
"""Clock of the chip's array (arXiv 2506.18807)."""


@dataclass(frozen=True)
class PublishedPoint:
    """One network measured on the chip by its authors.

    Attributes:
        network: its name.
        macs: multiply-accumulates of one picture, counted from the architecture (published for PicoSAM3:
            330.2 M).
        ms: milliseconds of one inference, as published.
        source: where it was published.
    """

    network: str
    macs: int
    ms: float
    source: str

    @property
    def macs_per_cycle(self) -> float:
        return self.macs / (self.ms * 1e-3 * CLOCK_HZ)


PUBLISHED = (
    PublishedPoint("PicoSAM2", 323_053_056, 14.3, "arXiv 2506.18807"),
    PublishedPoint("PicoSAM3", 330_162_496, 11.82, "arXiv 2603.11917"),
)
"""The points the estimate is calibrated on."""


@dataclass(frozen=True)
class LatencyEstimate:
    """Milliseconds of one inference at the fastest and at the slowest published rate."""

    low_ms: float
    high_ms: float


def estimate_latency(macs: int) -> LatencyEstimate:
    """The range for a network, or for a part of one, of so many multiply-accumulates."""
    rates = [point.macs_per_cycle * CLOCK_HZ for point in PUBLISHED]
    return LatencyEstimate(1e3 * macs / max(rates), 1e3 * macs / min(rates))
