"""How a rule is declared.

A rule is one function `subject -> Found | None`. Its docstring is the text shown as the limit, and behind
"Fix:" what to do about a violation; names in braces are filled in from `passes.imx500.limits`, so that the
documentation cannot drift from the constants. What the subject is depends on the list the rule stands in:

    RULES            a node of the float graph, of the operator types the rule names (none: of all)
    INPUT_RULES      a value that the network takes
    OUTPUT_RULES     a value that the network gives
    QUANTIZED_RULES  a node of a graph in the vendor dialect, of the operator types the rule names
    TENSOR_RULES     a value of a graph in the vendor dialect that a layer computes or the network takes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import onnx_ir as ir

from passes.diagnostics import Diagnostic, Severity
from passes.graph import line_of, module_of
from passes.imx500 import limits

Subject = TypeVar("Subject", ir.Node, ir.Value)


@dataclass(frozen=True)
class Found:
    """What a rule found: the offending parameter with its value.

    `fix` is the rule's fix with the numbers of this case; "" where the rule's own says it all.
    """

    found: str
    fix: str = ""


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """A registered rule.

    Attributes:
        id: `imx500/...`.
        operators: operator types it looks at; empty for every one.
        text: what the target takes.
        fix: what to do about a violation, in general.
        severity: of the diagnostics it makes.
        check: the function; None means nothing wrong.
    """

    id: str
    operators: tuple[str, ...]
    text: str
    fix: str
    severity: Severity
    check: Callable[[Subject], Found | None]

    def diagnose(self, subject: Subject) -> Diagnostic | None:
        """The diagnostic of a node, or of the node that computes a value; None where nothing is wrong."""
        found = self.check(subject)
        if found is None:
            return None
        node = subject if isinstance(subject, ir.Node) else subject.producer()
        name, module, line = (
            ("", "", "") if node is None else (node.name or "", module_of(node), line_of(node))
        )
        return Diagnostic(
            self.id,
            self.severity,
            name,
            module,
            found.found,
            self.text,
            found.fix or self.fix,
            limits.SOURCE,
            line,
        )


RULES: list[Rule[ir.Node]] = []
INPUT_RULES: list[Rule[ir.Value]] = []
OUTPUT_RULES: list[Rule[ir.Value]] = []
QUANTIZED_RULES: list[Rule[ir.Node]] = []
TENSOR_RULES: list[Rule[ir.Value]] = []


def rule(
    name: str, *operators: str, severity: Severity = Severity.ERROR
) -> Callable[[Callable[[ir.Node], Found | None]], Callable[[ir.Node], Found | None]]:
    """Register the decorated function as rule `imx500/NAME` for the operator types (none: for all)."""
    return _register(RULES, name, operators, severity)


def input_rule(
    name: str, severity: Severity = Severity.ERROR
) -> Callable[[Callable[[ir.Value], Found | None]], Callable[[ir.Value], Found | None]]:
    return _register(INPUT_RULES, name, (), severity)


def output_rule(
    name: str, severity: Severity = Severity.ERROR
) -> Callable[[Callable[[ir.Value], Found | None]], Callable[[ir.Value], Found | None]]:
    return _register(OUTPUT_RULES, name, (), severity)


def quantized_rule(
    name: str, *operators: str, severity: Severity = Severity.ERROR
) -> Callable[[Callable[[ir.Node], Found | None]], Callable[[ir.Node], Found | None]]:
    return _register(QUANTIZED_RULES, name, operators, severity)


def tensor_rule(
    name: str, severity: Severity = Severity.ERROR
) -> Callable[[Callable[[ir.Value], Found | None]], Callable[[ir.Value], Found | None]]:
    return _register(TENSOR_RULES, name, (), severity)


def _register(
    rules: list[Rule[Subject]], name: str, operators: tuple[str, ...], severity: Severity
) -> Callable[[Callable[[Subject], Found | None]], Callable[[Subject], Found | None]]:
    def register(check: Callable[[Subject], Found | None]) -> Callable[[Subject], Found | None]:
        text, fix = rule_texts(check)
        rules.append(Rule(f"imx500/{name}", operators, text, fix, severity, check))
        return check

    return register


def rule_texts(check: Callable[..., object]) -> tuple[str, str]:
    """Limit and fix from the docstring, one line each, limits filled in."""
    text, _, fix = " ".join((check.__doc__ or "").split()).format_map(_limits()).partition(" Fix: ")
    return text.removesuffix("."), fix.removesuffix(".")


@cache
def _limits() -> Mapping[str, str]:
    return {name: _words(value) for name, value in vars(limits).items() if name.isupper()}


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} with {_words(entry)}" for key, entry in value.items())
    if not isinstance(value, tuple):
        return str(value)
    *first, last = map(str, value)
    return f"{', '.join(first)} or {last}" if first else last
