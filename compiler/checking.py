"""Check one graph: operator rules, memory forecast and cost, every finding at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from compiler.frontend import Loaded, ModelKind, load_model
from compiler.result import CheckResult, SizeResult
from passes.diagnostics import Diagnostic, Severity
from passes.errors import InputError
from passes.graph import all_values, from_proto, is_quantized, to_proto
from passes.imx500.check import check_operators
from passes.imx500.macs import count_macs
from passes.imx500.memory import forecast_memory
from passes.pipeline import FLOAT_TRANSFORMS, QUANTIZED_TRANSFORMS, apply_all

if TYPE_CHECKING:
    from passes.imx500.fixes import AppliedFix

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def check_model(
    path: Path,
    *,
    declared: str | None = None,
    size: tuple[int, int] | None = None,
    input_persistency: bool = True,
    fix: bool = False,
    what_if: Sequence[tuple[int, int]] = (),
) -> CheckResult:
    """Load a model of any kind and check it, as the first half of a compile does.

    Args:
        path, declared, size: as `load_model` takes them.
        input_persistency: the input stays in memory while the network runs.
        fix: rewrite what the target refuses, where a faithful rewrite is known, and check the result.
        what_if: other heights and widths to check the same network at.

    Raises:
        InputError: for a file that cannot be read, and where the network takes none of the sizes.
    """

    def check(loaded: Loaded) -> CheckResult:
        if loaded.kind is ModelKind.QUANTIZED_ONNX:
            model = apply_all(loaded.model, QUANTIZED_TRANSFORMS)
            return check_graph(model, input_persistency=input_persistency, notes=loaded.notes)
        model, fixes = apply_all(loaded.model, FLOAT_TRANSFORMS), None
        if fix:
            model, fixes = fix_model(model)
        return check_graph(model, input_persistency=input_persistency, notes=loaded.notes, fixes=fixes)

    result = check(load_model(path, declared=declared, size=size))
    rows, first = [], None
    for height, width in what_if:
        try:
            loaded = load_model(path, declared=declared, size=(height, width), replace_size=True)
            rows.append(SizeResult(height, width, check(loaded)))
        except InputError as error:
            first = first or error
            rows.append(SizeResult(height, width, None, str(error)))
    if first is not None and all(row.check is None for row in rows):
        raise first
    return dataclasses.replace(result, what_if=tuple(rows))


def fix_model(model: ir.Model) -> tuple[ir.Model, tuple[AppliedFix, ...]]:
    """The float graph, after the transforms, with every rewrite that a rule calls for; and what they were."""
    from passes.imx500.fixes import fix_graph

    fixed = fix_graph(model)
    return fixed.model, fixed.applied


def check_graph(
    model: ir.Model,
    *,
    input_persistency: bool = True,
    notes: Iterable[Diagnostic] = (),
    fixes: tuple[AppliedFix, ...] | None = None,
) -> CheckResult:
    """Findings of `model` (float or vendor dialect), errors first; `notes` of the front end are added.

    `fixes` is what `fix_model` did; None where it was not asked, then a finding that it answers says so.
    """
    refused: Iterable[Diagnostic] = check_operators(model)
    if fixes is None and not is_quantized(model):
        refused = _with_hints(model, tuple(refused))
    forecast = forecast_memory(model, input_persistency=input_persistency)
    found = sorted((*refused, *notes, *forecast.diagnostics), key=lambda one: _ORDER[one.severity])
    return CheckResult(tuple(found), forecast, count_macs(model), fixes or ())


def _with_hints(model: ir.Model, found: tuple[Diagnostic, ...]) -> Iterable[Diagnostic]:
    """Findings that `--fix` answers say so: the rewrite is tried on a copy of the graph."""
    if all(one.severity is not Severity.ERROR or not one.node for one in found):
        return found
    fixable = _fixable(model, {(one.rule, one.node) for one in found})
    return [
        dataclasses.replace(one, fix=f"{one.fix}; or run again with --fix")
        if (one.rule, one.node) in fixable
        else one
        for one in found
    ]


def _fixable(model: ir.Model, found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Of the (rule, node name) pairs, those with a rewrite for this very node."""
    from passes.imx500.fixes import FIXES
    from passes.imx500.fixes.apply import NORM_OPSET
    from passes.imx500.fixes.builder import Builder, UnknownShape

    copy = from_proto(to_proto(model))
    opset = max(NORM_OPSET, copy.opset_imports.get("", NORM_OPSET))
    nodes = {node.name or "": node for node in copy.graph}
    taken = {*nodes, *(value.name or "" for value in all_values(copy.graph))}
    fixable = set()
    for rule, name in found:
        if name not in nodes or (rule, nodes[name].op_type) not in FIXES:
            continue
        node = nodes[name]
        build = Builder(node, opset, taken)
        try:
            rewrite = FIXES[rule, node.op_type](node, build)
        except UnknownShape:
            rewrite = None
        if rewrite is not None:
            fixable.add((rule, name))
        for made in build.nodes:  # the next rewrite looks at who reads its tensors
            for index in range(len(made.inputs)):
                made.replace_input_with(index, None)
    return fixable
