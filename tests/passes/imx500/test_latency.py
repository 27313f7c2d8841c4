"""The latency estimate against the two published measurements, and what it must not claim."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.imx500.latency import PUBLISHED, estimate_latency


def test_the_published_rate():
    """arXiv 2506.18807 says 86 MACs per cycle for PicoSAM2."""
    assert PUBLISHED[0].macs_per_cycle == pytest.approx(86, abs=0.5)


def test_the_published_macs():
    """arXiv 2603.11917 says 330.2 M MACs for PicoSAM3."""
    assert round(PUBLISHED[1].macs / 1e6, 1) == 330.2


@pytest.mark.parametrize("point", PUBLISHED, ids=lambda point: point.network)
def test_the_range_holds_every_published_point(point):
    estimate = estimate_latency(point.macs)
    assert estimate.low_ms <= point.ms * (1 + 1e-12)
    assert estimate.high_ms >= point.ms * (1 - 1e-12)
    assert point.ms == pytest.approx(estimate.low_ms) or point.ms == pytest.approx(estimate.high_ms)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_parts_add_up(a, b):
    whole, one, other = estimate_latency(a + b), estimate_latency(a), estimate_latency(b)
    assert whole.low_ms == pytest.approx(one.low_ms + other.low_ms)
    assert whole.high_ms == pytest.approx(one.high_ms + other.high_ms)
    assert whole.low_ms <= whole.high_ms
