"""Raise old operator sets, so that every later pass and rule meets one spelling of each operator.

Before opset 13 Pad, Clip, Squeeze, ReduceSum and others kept in attributes what are inputs today, and
Upsample was not yet Resize. ONNX's own converter rewrites them.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from passes.errors import InputError, first_line
from passes.graph import from_proto, message_name, to_proto

OLDEST = 13
"""From here on the operators of the target are spelled as the passes and rules expect."""

RAISED_TO = 17


class RaiseOpset(ir.passes.FunctionalPass):
    """Opsets below OLDEST become RAISED_TO; others stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if _opset(model) >= OLDEST:
            return ir.passes.PassResult(model, modified=False)
        try:
            raised = onnx.version_converter.convert_version(to_proto(model), RAISED_TO)
        except Exception as error:  # the C++ converter raises RuntimeError and its own kinds
            raise InputError(
                message_name(model),
                f"opset {_opset(model)} cannot be raised to {RAISED_TO}: {first_line(error)}",
                f"opset {OLDEST} or newer",
                f"export it again with opset_version={RAISED_TO}",
            ) from error
        result = from_proto(raised)
        result.metadata_props.update(model.metadata_props)
        return ir.passes.PassResult(result, modified=True)

    def ensures(self, model: ir.Model) -> None:
        if _opset(model) < OLDEST:
            raise ir.passes.PostconditionError(f"the opset is still {_opset(model)}")


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
