"""Intervals: the right width for few pictures, repeatable, and the number of samples needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compiler.gate import intervals as module
from compiler.gate.intervals import (
    LEAST_PICTURES,
    Interval,
    intervals,
    needed_pictures,
    student_t,
    tail,
    unpaired_drop,
)


@given(st.integers(LEAST_PICTURES - 1, 5000), st.sampled_from([0.75, 0.9, 0.95, 0.975, 0.995]))
def test_the_quantile_of_students_t(freedom: int, probability: float) -> None:
    assert student_t(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-4)


def test_many_pictures_need_no_expansion() -> None:
    assert tail(100_000, 0.95) == pytest.approx(0.025, rel=1e-3)
    assert tail(LEAST_PICTURES, 0.95) < 0.01


def test_a_normal_mean_of_few_pictures_is_missed_as_rarely_as_promised() -> None:
    random = np.random.default_rng(0)
    columns = random.normal(size=(LEAST_PICTURES, 2000))
    found = intervals(columns, np.arange(LEAST_PICTURES), 0.95, 0)
    missed = np.mean([not one.low <= 0 <= one.high for one in found])
    plain = np.quantile(
        columns[random.integers(0, LEAST_PICTURES, (1000, LEAST_PICTURES))].mean(axis=1),
        (0.025, 0.975),
        axis=0,
    )
    assert missed < 0.07
    assert np.mean((plain[0] > 0) | (plain[1] < 0)) > 0.08  # what the expansion is for


def test_instances_of_one_picture_do_not_count_as_many() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)[:, None]
    (by_picture,) = intervals(values, np.repeat(np.arange(20), 50), 0.95, 0)
    (by_instance,) = intervals(values, np.arange(1000), 0.95, 0)
    assert by_picture.high - by_picture.low > 5 * (by_instance.high - by_instance.low)


def test_columns_are_drawn_together_and_repeatably() -> None:
    random = np.random.default_rng(0)
    columns, ids = random.random((60, 3)), np.repeat(np.arange(20), 3)
    found = intervals(columns, ids, 0.9, seed=4)
    assert found == intervals(columns, ids, 0.9, seed=4)
    assert found != intervals(columns, ids, 0.9, seed=5)
    (alone,) = intervals(columns[:, 1:2], ids, 0.9, seed=4)
    assert alone.low == pytest.approx(found[1].low)
    assert all(one.low < one.value < one.high for one in found)


def test_too_few_pictures_have_no_interval() -> None:
    (found,) = intervals(np.ones((9, 1)), np.arange(9), 0.95, 0)
    assert found.value == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.to_json() == {"value": 1.0, "low": None, "high": None}
    assert math.isnan(Interval.of_json(found.to_json()).high)


@given(st.floats(0.01, 0.5), st.floats(0.02, 0.5), st.integers(10, 500))
def test_the_needed_number_grows_as_the_limit_comes_near(half: float, distance: float, pictures: int) -> None:
    found = Interval(0.5, 0.5 - half, 0.5 + half)
    near = needed_pictures(found, 0.5 - distance / 2, pictures, 0.95)
    far = needed_pictures(found, 0.5 + distance, pictures, 0.95)
    assert far is not None
    assert far > pictures
    assert near is None or near >= far


def test_the_needed_number_decides_about_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    first = random.normal(0.1, 1, 100)
    first += 0.1 - first.mean()
    (found,) = intervals(first[:, None], np.arange(100), 0.95, 0)
    assert found.low < 0 < found.high
    needed = needed_pictures(found, 0.0, 100, 0.95)
    assert needed is not None
    means = random.normal(0.1, first.std(), (2000, needed)).mean(axis=1)
    decided = np.mean(np.abs(means) > 1.96 * first.std() / math.sqrt(needed))
    assert decided == pytest.approx(module.POWER, abs=0.06)


def test_on_the_limit_no_number_is_enough() -> None:
    assert needed_pictures(Interval(0.5, 0.4, 0.6), 0.5, 100, 0.95) is None
    assert needed_pictures(Interval(0.5, 0.4, 0.6), 0.50001, 100, 0.95) is None


def test_a_drop_from_two_intervals() -> None:
    found = unpaired_drop(Interval(0.6, 0.57, 0.64), Interval(0.5, 0.46, 0.53))
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - math.hypot(0.03, 0.03))
    assert found.high == pytest.approx(0.1 + math.hypot(0.04, 0.04))
