"""Check one graph: operator rules, memory forecast and cost, every finding at once."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from compiler.result import CheckResult
from passes.diagnostics import Diagnostic, Severity
from passes.imx500.check import check_operators
from passes.imx500.macs import count_macs
from passes.imx500.memory import forecast_memory

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def check_graph(
    model: ir.Model, *, input_persistency: bool = True, notes: Iterable[Diagnostic] = ()
) -> CheckResult:
    """Findings of `model` (float or vendor dialect), errors first; `notes` of the front end are added."""
    found = [*check_operators(model), *notes]
    forecast = forecast_memory(model, input_persistency=input_persistency)
    found.extend(forecast.diagnostics)
    found.sort(key=lambda diagnostic: _ORDER[diagnostic.severity])
    return CheckResult(tuple(found), forecast, tuple(count_macs(model)))
