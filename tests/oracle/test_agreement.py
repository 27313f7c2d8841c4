"""Our verdict against the real converter's: every difference is listed, with its reason, in known.json."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from passes.imx500.check import check_operators
from tests.oracle import loader

SAMPLE = 9
"""Every ninth case is in the fast sample: 40 of 360."""

FRONT_END_NAMES = {
    "Conv2dBias": {"Conv"},
    "Conv2dTransposeBias": {"ConvTranspose"},
    "FullyConnected": {"MatMul", "Gemm", "Reshape"},
    "StridedSlice": {"Slice"},
    "ExpandDims": {"Unsqueeze", "Reshape"},
    "LayerNorm": {"LayerNormalization"},
}
"""The converter's own names of operators -> what they are in our graph.

A linear layer of rank 3 or 5 may have been flattened, then its Reshape is what breaks the rule.
"""


def differences(verdicts: Iterable[tuple[str, bool, bool]]) -> tuple[set[str], set[str]]:
    """(accepted by us alone, refused by us alone) of (name, oracle's verdict, ours)."""
    ours_alone, theirs_alone = set(), set()
    for name, oracle, ours in verdicts:
        if ours and not oracle:
            ours_alone.add(name)
        if oracle and not ours:
            theirs_alone.add(name)
    return ours_alone, theirs_alone


def check(ours_alone: set[str], theirs_alone: set[str]) -> None:
    known = loader.known()
    assert ours_alone <= set(known["better"]) | set(known["wrong_accepts"])
    assert theirs_alone <= set(known["on_purpose"]) | set(known["wrong_rejects"])


def case_verdicts(cases: Iterable[dict[str, Any]]) -> list[tuple[str, bool, bool]]:
    return [
        (c["name"], c["verdict"] == "accepted", loader.accepts(loader.case_graph(c), with_memory=True))
        for c in cases
    ]


def test_nothing_is_accepted_wrongly() -> None:
    assert loader.known()["wrong_accepts"] == {}


def test_the_lists_name_cases_and_probes_that_exist() -> None:
    names = {entry["name"] for entry in (*loader.cases(), *loader.probes())}
    assert {name for listed in loader.known().values() for name in listed} <= names


def test_a_sample_of_cases_agrees() -> None:
    check(*differences(case_verdicts(loader.cases()[::SAMPLE])))


@pytest.mark.slow
def test_all_cases_agree() -> None:
    check(*differences(case_verdicts(loader.cases())))


@pytest.mark.slow
def test_all_probes_agree() -> None:
    check(
        *differences(
            (p["name"], p["ok"], loader.accepts(loader.probe_graph(p), with_memory=False))
            for p in loader.probes()
        )
    )


@pytest.mark.slow
def test_refused_cases_name_the_converters_operator() -> None:
    """Each refusal by the converter's front end names the operator that the converter names."""
    unnamed = []
    for case in loader.cases():
        if case["stage"] != "converter-frontend":
            continue
        model = loader.case_graph(case)
        assert model is not None
        by_name = {node.name: node.op_type for node in model.graph}
        ours = {by_name.get(diagnostic.node, "") for diagnostic in check_operators(model)}
        if not all(operators & ours for operators in operators_in(case["message"])):
            unnamed.append((case["name"], operators_in(case["message"]), ours))
    assert unnamed == []


def operators_in(message: str) -> list[set[str]]:
    """The operators a message of the front end names, each as the set of what it may be in our graph."""
    listed = re.search(r"unsupported ops: (.*)", message)
    if listed:
        return [{name.strip()} for name in listed.group(1).split(",")]
    names = re.findall(r"Node \[Framework\.\w+\] op: (\w+)", message)
    return [FRONT_END_NAMES.get(name, {name}) for name in names]
