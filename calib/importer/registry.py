"""What an operator's importer is, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
from torch import fx

if TYPE_CHECKING:
    from calib.importer.context import Context

Result = fx.Node | Sequence[fx.Node | None]
"""The fx node of the only output, or one per output (None where nothing reads it)."""

Importer = Callable[["Context", ir.Node], Result]

OPERATORS: dict[str, Importer] = {}
"""Operator type of the standard domain -> its importer."""


def operator(*op_types: str) -> Callable[[Importer], Importer]:
    """Register an importer for the operator types."""

    def register(function: Importer) -> Importer:
        for op_type in op_types:
            OPERATORS[op_type] = function
        return function

    return register


class UnknownForm(Exception):
    """The operator is known, but not in this form; becomes a Diagnostic.

    `found` is the parameter and its value, `limit` the forms known, `fix` an instruction.
    """

    def __init__(self, found: str, limit: str, fix: str) -> None:
        super().__init__(f"{found} ({limit}). Fix: {fix}")
        self.found = found
        self.limit = limit
        self.fix = fix
