"""What the operator rules accept can be imported: no network passes the check and is refused later."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.importer import to_torch
from passes.diagnostics import has_errors
from passes.errors import TargetViolation
from passes.imx500.check import check_operators
from tests.calib.test_importer_diagnostics import FORMS as REFUSED
from tests.calib.test_importer_operators import CASES
from tests.passes.imx500.forms import LEGAL, grow


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LEGAL)), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_network_of_legal_forms_is_imported(names: list[str], seed: int) -> None:
    net, placed = grow(names, seed)
    if placed:
        imported = to_torch(net.build())
        assert not any(node.target is torch.erf for node in imported.module.graph.nodes)


@pytest.mark.parametrize("name", sorted(LEGAL))
def test_every_legal_form_is_imported(name: str) -> None:
    tries = (grow(["Flatten", "Reshape", name], seed, (1, 4, 9, 16)) for seed in range(20))
    to_torch(next(net for net, placed in tries if name in placed).build())


INVALID = {"invalid for input of size"}
"""A graph that contradicts itself breaks no rule of the target; ONNX's own checker refuses it."""


@pytest.mark.parametrize("text", sorted(set(REFUSED) - INVALID))
def test_what_the_importer_refuses_is_refused_by_check(text: str) -> None:
    model = REFUSED[text]
    with pytest.raises(TargetViolation):
        to_torch(model)
    assert has_errors(check_operators(model))


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_check_accepts_of_the_importers_cases_is_imported_as_accepted(name: str) -> None:
    if not has_errors(check_operators(CASES[name])):
        imported = to_torch(CASES[name])
        assert not any(node.target is torch.erf for node in imported.module.graph.nodes)
