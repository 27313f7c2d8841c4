"""What is tried, and what is kept."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.quantizing.judge import Drop, Verdict
from compiler.quantizing.search import Choice, require_drop, search, within
from compiler.quantizing.ways import Made, Way
from passes.errors import ExitCode, GateFailed
from tests.compiler.quantizing.small import silent

FIRST = Way("first", "", lambda best: Made(best, None))


def run(verdicts: list[tuple[float, float]], limit: float | None) -> tuple[str, Choice, list[str]]:
    """(agreement, drop's upper end) of each way -> the kept graph, the choice, what each way began with."""
    names = [f"way {index}" for index in range(len(verdicts))]
    table = dict(zip(names, verdicts, strict=True))
    began = []

    def way(name: str) -> Way:
        def make(best: str) -> Made:
            began.append(best)
            return Made(name, 1.0)

        return Way(name, "", make)

    def verdict(name: str) -> Verdict:
        agreement, high = table[name]
        return Verdict(agreement, Drop(high - 0.1, high - 0.2, high, "measured"), None)

    ways = [way(name) for name in names]
    kept, choice = search(ways[0], Made(names[0], None), ways[1:], verdict, 8, 4, limit, silent)
    return kept, choice, began


def test_without_a_limit_everything_is_tried_and_the_best_agreement_is_kept():
    kept, choice, began = run([(0.5, 0), (0.9, 0), (0.7, 0)], None)
    assert kept == choice.kept == "way 1"
    assert [one.quantizer for one in choice.tried] == ["way 0", "way 1", "way 2"]
    assert choice.met is None
    assert began == ["way 0", "way 1"]  # each begins with the best so far


def test_of_equals_the_later_is_kept():
    assert run([(0.5, 0), (0.5, 0)], None)[0] == "way 1"


def test_the_search_ends_with_the_first_that_is_within_the_limit():
    kept, choice, _ = run([(0.9, 2.0), (0.8, 0.4), (0.99, 0.1)], 0.5)
    assert kept == choice.kept == "way 1"
    assert len(choice.tried) == 2
    assert choice.met is True
    require_drop(choice)


def test_where_none_is_within_the_limit_the_best_is_kept_and_the_gate_fails():
    kept, choice, _ = run([(0.9, 2.0), (0.8, 0.7)], 0.5)
    assert kept == "way 0"
    assert choice.met is False
    with pytest.raises(
        GateFailed, match=r"way 0 loses 1\.90 points, 2\.00 at the upper end.*at most 0\.5"
    ) as error:
        require_drop(choice)
    assert error.value.exit_code is ExitCode.GATE


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 5)), min_size=1, max_size=6), st.floats(0, 5))
def test_what_is_kept_meets_the_limit_wherever_something_tried_does(verdicts, limit):
    _, choice, _ = run(verdicts, limit)
    kept = next(one for one in choice.tried if one.quantizer == choice.kept)
    assert choice.met == within(kept.drop, limit)
    assert choice.met == any(within(one.drop, limit) for one in choice.tried)
    if not choice.met:
        assert len(choice.tried) == len(verdicts)
        assert kept.agreement == max(one.agreement for one in choice.tried)


def test_what_is_not_known_is_not_within():
    assert within(Drop(0.4, 0.1, 0.5, "bound"), 0.5)
    assert not within(Drop(0.4, 0.1, 0.7, "measured"), 0.5)
    assert not within(Drop(0.4, math.nan, math.nan, "measured"), 0.5)
    assert not within(Drop(0.0, 0.0, 0.0, "none"), 0.5)
