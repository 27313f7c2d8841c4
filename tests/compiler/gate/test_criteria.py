"""Verdicts: what the interval says, on either side of a limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.gate.criteria import Limits, Verdict, accuracy, against_earlier, decide, memory
from compiler.gate.earlier import Earlier
from compiler.gate.intervals import Interval
from tests.compiler.gate.measurements import measurement

ENDS = st.tuples(*[st.floats(-1, 1)] * 3).map(sorted)


@given(ENDS, st.floats(-1, 1))
def test_an_interval_decides_where_it_lies_wholly(ends: list[float], limit: float) -> None:
    low, value, high = ends
    expected = Verdict.PASS if low >= limit else Verdict.FAIL if high < limit else Verdict.UNDECIDED
    assert decide(Interval(value, low, high), limit, at_least=True) is expected
    mirrored = Interval(-value, -high, -low)
    assert decide(mirrored, -limit, at_least=False) is expected


def test_without_an_interval_there_is_no_verdict() -> None:
    assert decide(Interval(0.9, math.nan, math.nan), 0.1, at_least=True) is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("drop", "limit", "expected"),
    [
        (0.0, 1.0, Verdict.PASS),
        (3.0, 1.0, Verdict.FAIL),
        (1.0, 1.0, Verdict.UNDECIDED),
        (-3.0, 0.0, Verdict.PASS),
    ],
)
def test_the_drop(drop: float, limit: float, expected: Verdict) -> None:
    made = measurement(drop=drop)
    (found,) = accuracy(made.int8, made.real, made.picture_ids, Limits(max_drop=limit))
    assert found.verdict is expected
    assert found.found.value == pytest.approx(drop, abs=0.05)
    assert (found.needed is not None) <= (expected is Verdict.UNDECIDED)
    assert f"{found.found.value:+.2f} points [" in found.sentence()
    assert expected.value in found.sentence()


@pytest.mark.parametrize(
    ("limit", "expected"), [(0.5, Verdict.PASS), (0.7, Verdict.FAIL), (0.6, Verdict.UNDECIDED)]
)
def test_the_least_miou(limit: float, expected: Verdict) -> None:
    made = measurement()
    (found,) = accuracy(made.int8, made.real, made.picture_ids, Limits(min_miou=limit))
    assert found.verdict is expected


def test_the_same_network_loses_nothing() -> None:
    made = measurement()
    (found,) = accuracy(made.real, made.real, made.picture_ids, Limits(max_drop=0.0))
    assert found.verdict is Verdict.PASS
    assert found.found == Interval(0.0, 0.0, 0.0)


def test_an_undecided_criterion_says_how_many_would_decide() -> None:
    made = measurement(pictures=40)
    (found,) = accuracy(
        made.int8, made.real, made.picture_ids, Limits(min_miou=float(made.int8.mean()) - 0.01)
    )
    assert found.verdict is Verdict.UNDECIDED
    assert found.needed is not None
    assert 40 < found.needed.pictures < 1000
    assert found.needed.instances == 5 * found.needed.pictures
    assert f"about {found.needed.pictures:,} pictures" in found.sentence()


def test_too_few_pictures_say_so() -> None:
    made = measurement(pictures=4)
    (found,) = accuracy(made.int8, made.real, made.picture_ids, Limits(max_drop=50.0))
    assert found.verdict is Verdict.UNDECIDED
    assert "at least 10 pictures are needed" in found.sentence()


@pytest.mark.parametrize(("used", "expected"), [(100, Verdict.PASS), (101, Verdict.FAIL)])
def test_memory(used: int, expected: Verdict) -> None:
    found = memory(used, "exact", 100)
    assert found.verdict is expected
    assert found.figure == f"{used} bytes (exact)"
    assert found.bound == "at most 100"


def earlier(drop: float, single: bool) -> Earlier:
    """A report of a network that is `drop` points better than `measurement()`'s."""
    made = measurement()
    mean, ious = float(made.int8.mean()) + drop / 100, made.int8 + drop / 100
    return Earlier(
        "old.json",
        made.data,
        made.protocol,
        Interval(mean, mean - 0.01, mean + 0.01),
        0.95,
        made.crops_sha256 if single else None,
        made.annotation_ids[::-1].copy() if single else None,
        ious[::-1].copy() if single else None,
    )


@pytest.mark.parametrize(("drop", "expected"), [(0.0, Verdict.PASS), (1.5, Verdict.FAIL)])
def test_against_every_instance_of_an_earlier_report(drop: float, expected: Verdict) -> None:
    made = measurement()
    found = against_earlier(made.int8, made.annotation_ids, made.picture_ids, earlier(drop, True), 1.0)
    assert found.verdict is expected
    assert found.found.value == pytest.approx(drop)
    assert "paired, 500 instances" in found.what


@pytest.mark.parametrize(("drop", "expected"), [(1.5, Verdict.UNDECIDED), (6.0, Verdict.FAIL)])
def test_against_the_interval_of_an_earlier_report(drop: float, expected: Verdict) -> None:
    made = measurement()
    found = against_earlier(made.int8, made.annotation_ids, made.picture_ids, earlier(drop, False), 1.0)
    assert found.verdict is expected
    assert found.found.high - found.found.low > 2  # points: two intervals of a point each, put together


def test_instances_that_only_one_of_them_knows_are_left_out() -> None:
    made = measurement()
    known = earlier(2.0, True)
    ids = np.concatenate([made.annotation_ids[:400], [7, 8]])
    order = np.concatenate([np.arange(400), [400, 401]])
    found = against_earlier(made.int8[order], ids, made.picture_ids[order], known, 1.0)
    assert "400 instances" in found.what
    assert found.found.value == pytest.approx(2.0)
