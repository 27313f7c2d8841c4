"""How a rule is declared.

A rule is one function `(node) -> Found | None`, registered for the operator types it looks at. Its docstring
is the text shown as the limit; names in braces are filled in from `passes.imx500.limits`, so that the
documentation cannot drift from the constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from passes.diagnostics import Severity
from passes.imx500 import limits


@dataclass(frozen=True)
class Found:
    """What a rule found: the offending parameter with its value, and a fix that works."""

    found: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        id: `imx500/...`.
        operators: operator types it looks at; empty for every operator.
        text: what the target takes.
        severity: of the diagnostics it makes.
        check: the function; None means nothing wrong.
    """

    id: str
    operators: tuple[str, ...]
    text: str
    severity: Severity
    check: Callable[[ir.Node], Found | None]


RULES: list[Rule] = []
"""Every rule, in the order of registration."""


def rule(
    name: str, *operators: str, severity: Severity = Severity.ERROR
) -> Callable[[Callable[[ir.Node], Found | None]], Callable[[ir.Node], Found | None]]:
    """Register the decorated function as rule `imx500/NAME` for the operator types (none: for all)."""

    def register(check: Callable[[ir.Node], Found | None]) -> Callable[[ir.Node], Found | None]:
        RULES.append(Rule(f"imx500/{name}", operators, rule_text(check), severity, check))
        return check

    return register


def rule_text(check: Callable[..., object]) -> str:
    """The docstring as one line, limits filled in."""
    values = {name: _words(value) for name, value in vars(limits).items() if name.isupper()}
    return " ".join((check.__doc__ or "").split()).format_map(values)


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} with {_words(entry)}" for key, entry in value.items())
    return " or ".join(map(str, value)) if isinstance(value, tuple) else str(value)
