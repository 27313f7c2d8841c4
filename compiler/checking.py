"""Check one graph: operator rules, memory forecast and cost, every finding at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from compiler.frontend import Loaded, ModelKind, load_model, require_free_size
from compiler.result import CheckResult, SizeResult
from passes.diagnostics import Diagnostic, Severity
from passes.errors import InputError
from passes.graph import is_quantized, real_inputs, static_shape
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
    weight_bits: int = 8,
    fix: bool = False,
    what_if: Sequence[tuple[int, int]] = (),
) -> CheckResult:
    """Load a model of any kind and check it, as the first half of a compile does.

    Args:
        path, declared, size: as `load_model` takes them.
        input_persistency: the input stays in memory while the network runs.
        weight_bits: what the weights of a float graph will get; a quantized graph has its own.
        fix: rewrite what the target refuses, where a faithful rewrite is known, and check the result.
        what_if: other heights and widths to check the same network at.

    Raises:
        InputError: for a file that cannot be read, and where the network takes none of the sizes.
    """

    def check(loaded: Loaded, resized: tuple[int, int] | None = None) -> CheckResult:
        if loaded.kind is ModelKind.QUANTIZED_ONNX:
            model = apply_all(loaded.model, QUANTIZED_TRANSFORMS)
            return check_graph(model, input_persistency=input_persistency, notes=loaded.notes)
        model, fixes = apply_all(loaded.model, FLOAT_TRANSFORMS), None
        if resized is not None:
            require_free_size(model, resized)
        if fix:
            model, fixes = fix_model(model)
        return check_graph(
            model,
            input_persistency=input_persistency,
            weight_bits=weight_bits,
            notes=loaded.notes,
            fixes=fixes,
        )

    result = check(load_model(path, declared=declared, size=size))
    rows, first = [], None
    for height, width in what_if:
        try:
            loaded = load_model(path, declared=declared, size=(height, width), replace_size=True)
            rows.append(SizeResult(height, width, check(loaded, (height, width))))
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
    weight_bits: int = 8,
    notes: Iterable[Diagnostic] = (),
    fixes: tuple[AppliedFix, ...] | None = None,
) -> CheckResult:
    """Findings of `model` (float or vendor dialect), errors first; `notes` of the front end are added.

    `weight_bits` is what a float graph's weights will get. `fixes` is what `fix_model` did; None where it was
    not asked, then a finding that it answers says so.
    """
    refused: Iterable[Diagnostic] = check_operators(model)
    if fixes is None and not is_quantized(model):
        refused = _with_hints(model, tuple(refused))
    # Without a size there are no bytes to count: the finding about the input says what to do.
    forecast = forecast_memory(model, input_persistency, weight_bits) if _is_sized(model) else None
    told = () if forecast is None else forecast.diagnostics
    found = sorted((*refused, *notes, *told), key=lambda one: _ORDER[one.severity])
    return CheckResult(tuple(found), forecast, count_macs(model), fixes or ())


def _is_sized(model: ir.Model) -> bool:
    """Every input has a size, the batch apart."""
    shapes = [static_shape(value) for value in real_inputs(model.graph)]
    return all(shape is not None and None not in shape[1:] for shape in shapes)


def _with_hints(model: ir.Model, found: tuple[Diagnostic, ...]) -> Iterable[Diagnostic]:
    """Findings that `--fix` answers say so: the rewrite is tried on a copy of the graph."""
    if all(one.severity is not Severity.ERROR or not one.node for one in found):
        return found
    from passes.imx500.fixes import fixable

    answered = fixable(model, [(one.rule, one.node) for one in found])
    return [
        dataclasses.replace(one, fix=f"{one.fix}; or run again with --fix")
        if (one.rule, one.node) in answered
        else one
        for one in found
    ]
