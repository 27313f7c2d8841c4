"""Random networks: the check tells exactly when a form that the target refuses was planted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.checking import check_graph
from passes.diagnostics import has_errors
from passes.imx500.check import check_operators
from passes.imx500.fixes import fix_graph
from passes.imx500.memory import forecast_memory
from tests.passes.imx500.forms import ILLEGAL, LEGAL, grow

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from([(1, 4, 8, 8), (1, 3, 16, 12), (1, 2, 5, 7), (1, 8, 4, 4)])


@settings(max_examples=150, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(LEGAL)), min_size=1, max_size=12), seed=SEEDS, shape=SHAPES)
def test_a_network_of_legal_forms_has_no_error(names: list[str], seed: int, shape: tuple[int, ...]) -> None:
    net, placed = grow(names, seed, shape)
    if placed:
        network = net.build()
        assert not has_errors(check_operators(network))
        assert forecast_memory(network).fits
        assert check_graph(network).ok


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LEGAL)), max_size=9),
    planted=st.dictionaries(st.integers(0, 9), st.sampled_from(sorted(ILLEGAL)), min_size=1, max_size=3),
    seed=SEEDS,
    shape=SHAPES,
)
def test_a_planted_illegal_form_is_an_error(
    names: list[str], planted: dict[int, str], seed: int, shape: tuple[int, ...]
) -> None:
    for position, name in sorted(planted.items()):
        names.insert(position, name)
    net, placed = grow(names, seed, shape)
    if placed:
        network, bad = net.build(), any(name in ILLEGAL for name in placed)
        assert has_errors(check_operators(network)) == bad
        result = check_graph(network)
        assert result.ok != bad
        offered = any("run again with --fix" in found.fix for found in result.diagnostics)
        assert offered == bool(fix_graph(network).applied)


@pytest.mark.parametrize("name", sorted(LEGAL | ILLEGAL))
def test_every_form_can_be_placed_and_is_judged(name: str) -> None:
    tries = (grow(["Flatten", "Reshape", name], seed, (1, 4, 9, 16)) for seed in range(20))
    net = next(net for net, placed in tries if name in placed)
    network = net.build()
    assert has_errors(check_operators(network)) == (name in ILLEGAL)
    assert check_graph(network).ok == (name in LEGAL)
