"""The supported-operator page, generated from the rules: it cannot say anything the check does not do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from passes.diagnostics import Severity
from passes.imx500.fixes import FIXES
from passes.imx500.limits import (
    ACCEPTED_OPERATORS,
    CONVERTER,
    MEMORY_BUDGET,
    MEMORY_RESERVED,
    SEEN_TO_PASS,
)
from passes.imx500.rules import INPUT_RULES, OUTPUT_RULES, QUANTIZED_RULES, RULES, TENSOR_RULES, Rule
from passes.imx500.rules.operators import REPLACEMENTS

INTRODUCTION = f"""\
# Operators of the target imx500

What `picosam2 check` knows of the IMX500. `picosam2 rules` prints this page out of the rules themselves, so
it says neither more nor less than the check does. Every limit was measured by running {CONVERTER} on
networks of our own; `tests/oracle` holds the verdicts.

Operators are those of ONNX as `torch.onnx.export` writes them, after constants are folded, batch norms are
folded into the weights before them, and no-ops are dropped: what the quantizer and the converter see. A rule
broken is an **error**, which the tool chain would refuse, a **warning**, which compiles to something other
than it seems, or a **note**. A fix marked `--fix` is one that `picosam2 check --fix` and
`picosam2 compile --fix` can make by themselves, for the operators named.
"""

TITLES = {
    "convolution": "Convolutions",
    "linear": "Linear layers and matrix products",
    "pooling": "Pooling",
    "resize": "Resizing",
    "activation": "Activations",
    "normalisation": "Normalisations",
    "elementwise": "Elementwise arithmetic",
    "shape": "Reshaping, cutting and joining",
    "reduction": "Reductions",
    "selection": "Selection by index",
}
"""Group of operators -> its heading, in the order of the page."""


def operators_page() -> str:
    """Markdown: the accepted operators by group, each with its limits and fixes, then what is refused."""
    lines = [INTRODUCTION, *_general()]
    for group, title in TITLES.items():
        lines += _group(group, title)
    lines += _refused()
    lines += _quantized()
    return "\n".join(lines)


def _general() -> Iterator[str]:
    yield "## Every network\n"
    yield from _table([*INPUT_RULES, *(rule for rule in RULES if not rule.operators), *OUTPUT_RULES])
    yield (
        f"Memory: model and runtime bytes and {MEMORY_RESERVED:,} reserved ones are at most "
        f"{MEMORY_BUDGET:,} together; docs/memory.md has the forecast.\n"
    )


def _group(group: str, title: str) -> Iterator[str]:
    operators = [operator for operator, its in ACCEPTED_OPERATORS.items() if its == group]
    rules = [rule for rule in RULES if set(rule.operators) & set(operators)]
    limited = {operator for rule in rules for operator in rule.operators}
    free = [operator for operator in operators if operator not in limited]
    yield f"## {title}\n"
    yield f"Accepted: {', '.join(operators)}.\n"
    seen = [f"- {operator}: {SEEN_TO_PASS[operator]}" for operator in operators if operator in SEEN_TO_PASS]
    if seen:
        yield "\n".join(["Measured and passed:\n", *seen, ""])
    if rules:
        yield from _table(rules, operators)
    if free and rules:
        yield f"Without limits of their own: {', '.join(free)}.\n"


def _table(rules: Iterable[Rule[Any]], among: Iterable[str] = ()) -> Iterator[str]:
    """Rules as rows; with `among`, each with the operators it is about."""
    heading = "operators | " if among else ""
    yield f"| {heading}limit | fix | rule |"
    yield f"|{'---|' if among else ''}---|---|---|"
    for rule in rules:
        about = f"{', '.join(operator for operator in rule.operators if operator in set(among))} | "
        limit = rule.text if rule.severity is Severity.ERROR else f"**{rule.severity.value}:** {rule.text}"
        cells = (limit, rule.fix + _rewritten(rule), rule.id.removeprefix("imx500/"))
        yield f"| {about if among else ''}{' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _rewritten(rule: Rule[Any]) -> str:
    """`--fix` and the operators it knows, where not all that the rule is about."""
    known = [operator for answered, operator in FIXES if answered == rule.id]
    if not known or not rule.operators:
        return ""
    return " (`--fix`)" if set(known) >= set(rule.operators) else f" (`--fix`: {', '.join(known)})"


def _refused() -> Iterator[str]:
    yield "## Operators that the target does not have\n"
    yield "Every operator that is not named above is refused. For these there is something to say:\n"
    yield "| operator | instead | `--fix` |"
    yield "|---|---|---|"
    for operator, instead in sorted(REPLACEMENTS.items()):
        yield f"| {operator} | {instead} | {'yes' if ('imx500/operator', operator) in FIXES else ''} |"
    yield ""


def _quantized() -> Iterator[str]:
    yield "## Quantized graphs\n"
    yield "A graph in the vendor dialect, with quantizer nodes, keeps the rules above and these:\n"
    yield from _table([*QUANTIZED_RULES, *TENSOR_RULES])
