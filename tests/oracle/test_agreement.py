"""Our verdict against the real converter's: every difference is listed, with its reason, in known.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import pytest

from passes.diagnostics import Diagnostic
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


@dataclass(frozen=True)
class Complaint:
    """What the converter's front end says of one node.

    Attributes:
        operators: what the node may be in our graph; empty where the message names it by operator alone.
        path: the node's name as MCT wrote it, for instance `/o/layer/Conv`.
        words: what our finding has to mention, all of them (patterns).
    """

    operators: frozenset[str]
    path: str
    words: tuple[str, ...]


PARAMETERS = {
    "padding": ("pads =",),
    "pads": ("pads =",),
    "mode": ("mode =",),
    "ceil_mode": ("ceil_mode =",),
    "stride, dilation": ("strides =", "dilations ="),
    "kernel size": ("kernel_shape =",),
    "groups": ("group =",),
    "dilation": ("dilations =",),
    "dilations": ("dilations =",),
    "stride, kernel size": ("strides =", "kernel_shape ="),
    "coordinate_transformation_mode": ("coordinate_transformation_mode =",),
    "axis": ("ax[ei]s",),
    "axes": ("perm =",),
    "stride": ("steps =",),
    "target shape": ("shape",),
    "largest": ("largest =",),
    "sorted": ("sorted =",),
}
"""The converter's name of a parameter -> what our finding mentions: ONNX's own name of it, with the value."""


def complaints(message: str) -> list[Complaint]:
    """Every complaint of a message; the oracle cut long messages, so what is not whole is left out."""
    listed = re.search(r"unsupported ops: (.*)", message)
    if listed:
        return [
            Complaint(frozenset({name.strip()}), "", (f"operator {name.strip()}\\b",))
            for name in listed.group(1).split(",")
        ]
    found = []
    for block in re.split(r"\nNode ", message)[1:]:
        names = [FRONT_END_NAMES.get(name, {name}) for name in re.findall(r"op: (\w+)", block)]
        path = re.search(r"id: (\S+?),", block)
        words = [PARAMETERS[name] for name in re.findall(r"param: (.+?), value: .+, reason: ", block)]
        words += [("rank",) for _ in re.findall(r"Input error - .+ reason: Only 2d", block)]
        assert names
        operators = frozenset().union(*names)
        found += [Complaint(operators, path[1] if path else "", each) for each in words]
    return found


def is_about(diagnostic: Diagnostic, operator: str, complaint: Complaint) -> bool:
    """The finding names the same node and the same parameter."""
    if operator not in complaint.operators or not all(
        re.search(word, diagnostic.found) for word in complaint.words
    ):
        return False
    scope, *inner = complaint.path.removeprefix("/").split("/")
    ours = diagnostic.node.removeprefix("/").split("/")[0]
    # A node outside of any module is known by its operator; MCT appends to the names of what it merged.
    return not inner or scope == ours or scope.startswith(f"{ours}_")


FOLDED = {"Softmax axis=0 r4"}
"""A softmax over a batch of 1 is 1, and simplification folds it: we refuse the constant output instead."""


def unnamed(entries: Iterable[tuple[dict[str, Any], ir.Model | None]]) -> list[tuple[str, Complaint]]:
    """The converter's complaints that none of our findings is about."""
    left = []
    for entry, model in entries:
        if model is None or entry["name"] in loader.known()["better"]:
            continue
        operators = {node.name: node.op_type for node in model.graph}
        found = [(d, operators.get(d.node, "")) for d in check_operators(model) if d.severity == "error"]
        left += [
            (entry["name"], complaint)
            for complaint in complaints(entry["message"])
            if not any(is_about(diagnostic, operator, complaint) for diagnostic, operator in found)
        ]
    return left


def refused_cases(every: int = 1) -> Iterator[tuple[dict[str, Any], ir.Model | None]]:
    refused = [case for case in loader.cases() if case["stage"] == "converter-frontend"]
    return ((case, loader.case_graph(case)) for case in refused[::every])


def test_a_sample_of_refused_cases_names_node_and_parameter() -> None:
    assert unnamed(refused_cases(6)) == []


@pytest.mark.slow
def test_refused_cases_name_the_converters_nodes_and_parameters() -> None:
    assert unnamed(refused_cases()) == []


@pytest.mark.slow
def test_refused_probes_name_the_converters_nodes_and_parameters() -> None:
    refused = [probe for probe in loader.probes() if not probe["ok"] and probe["name"] not in FOLDED]
    assert unnamed((probe, loader.probe_graph(probe)) for probe in refused) == []


def test_every_reason_of_the_oracle_is_a_complaint() -> None:
    """The parser misses none of the reasons that were recorded apart from the message."""
    for case in loader.cases():
        recorded = [PARAMETERS[reason["param"]] for reason in case.get("reasons") or ()]
        words = [complaint.words for complaint in complaints(case["message"])]
        assert all(each in words for each in recorded), case["name"]
