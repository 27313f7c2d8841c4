"""Diagnostics: what a check found. A check returns all of them, never stops at the first, never prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Severity(StrEnum):
    ERROR = "error"
    """The target will refuse the model."""
    WARNING = "warning"
    """It compiles, but probably not to what the user wants."""
    NOTE = "note"


@dataclass(frozen=True)
class Diagnostic:
    """One finding about one node (or about the whole model, then `node` is empty).

    Attributes:
        rule: stable identifier, `area/what`, for instance `imx500/conv-padding`.
        severity: error, warning or note.
        node: name of the ONNX node, "" for the whole model.
        module: dotted path in the user's torch model where known, else "".
        found: the offending parameter and its value, for instance `pads = [3, 3, 3, 3]`.
        limit: what the target takes, with its number.
        fix: an instruction that works.
        source: where the limit comes from, for instance `imx500-converter 3.19.2, measured`.
        line: `FILE:LINE` in the user's torch code where the export tells it, else "".
    """

    rule: str
    severity: Severity
    node: str
    module: str
    found: str
    limit: str
    fix: str
    source: str
    line: str = ""

    def to_json(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items()}


def about_input(
    rule: str, severity: Severity, *, found: str, limit: str, fix: str, source: str
) -> Diagnostic:
    """One on what the model takes, which is about no node: `input/RULE`."""
    return Diagnostic(f"input/{rule}", severity, "", "", found, limit, fix, source)


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    return any(d.severity is Severity.ERROR for d in diagnostics)
