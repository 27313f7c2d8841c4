"""An exception of MCT as a violation that names the ONNX node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType

import onnx_ir as ir

from passes.diagnostics import Diagnostic, Severity
from passes.errors import TargetViolation
from passes.graph import module_of

RULE = "mct/refused"


def refused(error: Exception, model: ir.Model, names: Mapping[str, str]) -> TargetViolation:
    """The exception as a violation, with the ONNX node where MCT's frames or message tell it."""
    name = _node_at_fault(error.__traceback__, str(error), names)
    node = next((n for n in model.graph if n.name == name), None)
    found = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    limit = "networks that MCT 2.5.1 can quantize for the IMX500"
    fix = "replace the operator, or report it with the model"
    return TargetViolation(
        f"node {name}" if node else "model",
        f"MCT refuses it: {found}",
        limit,
        fix,
        [
            Diagnostic(
                RULE,
                Severity.ERROR,
                name if node else "",
                module_of(node) if node else "",
                found,
                limit,
                fix,
                "model-compression-toolkit 2.5.1",
            )
        ],
    )


def _node_at_fault(trace: TracebackType | None, message: str, names: Mapping[str, str]) -> str:
    """The ONNX node MCT was at: that of the innermost frame that has one, else one the message names."""
    found = ""
    while trace is not None:
        for local in trace.tb_frame.f_locals.values():
            name = str(getattr(local, "name", ""))
            if type(local).__module__.startswith(("model_compression_toolkit", "torch.fx")) and name in names:
                found = names[name]
        trace = trace.tb_next
    if found:
        return found
    mentioned = [name for name in names if re.search(rf"\b{re.escape(name)}\b", message)]
    return names[max(mentioned, key=len)] if mentioned else ""
