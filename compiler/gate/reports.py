"""A gate's result as text for a terminal, Markdown for a pull request, and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from compiler.gate.criteria import Criterion, Verdict
from compiler.gate.gate import GateResult
from compiler.gate.intervals import Interval

HEADLINES = {
    Verdict.PASS: "PASS",
    Verdict.FAIL: "FAIL",
    Verdict.UNDECIDED: "TOO FEW SAMPLES TO TELL",
}
MARKS = {Verdict.PASS: "pass", Verdict.FAIL: "FAIL", Verdict.UNDECIDED: "too few"}


def to_text(result: GateResult) -> str:
    """The terminal's report; its first line is the verdict. Ends in a newline."""
    lines = [headline(result), ""]
    rows = [(f"  {MARKS[one.verdict]}", one.name, one.figure, one.bound, one.what) for one in result.criteria]
    lines += _columns(rows)
    lines += [f"           {one.name}: {one.wanted}" for one in _undecided(result)]
    lines += ["", f"mIoU on the same instances [{_percent(result)} interval over pictures]:"]
    lines += _columns([(f"  {name}", interval_text(miou), text) for name, miou, text in scores(result)])
    said = [f"warning: {one.found}. Fix: {one.fix}" for one in result.cautions if one.found is not None]
    said += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, *([""] if said else []), *said]) + "\n"


def to_markdown(result: GateResult) -> str:
    """Short enough for a pull-request comment."""
    lines = [f"### {headline(result)}", "", "| criterion | verdict | measured | limit |", "|---|---|---|---|"]
    lines += [
        f"| {_cell(f'{one.name}: {one.what}')} | {'**FAIL**' if result.fails(one) else one.verdict.value} "
        f"| {one.figure} | {one.bound} |"
        for one in result.criteria
    ]
    lines += [
        "",
        f"| on the same instances | mIoU [{_percent(result)} interval over pictures] |",
        "|---|---|",
    ]
    lines += [f"| {_cell(name)} | {interval_text(miou)} |" for name, miou, _ in scores(result)]
    said = [f"- {one.name}: {one.wanted}" for one in _undecided(result)]
    said += [f"- **warning**: {_cell(one.found)}. {one.fix}" for one in result.cautions if one.found]
    said += [f"- {_cell(note)}" for note in result.notes]
    return "\n".join([*lines, *([""] if said else []), *said]) + "\n"


def to_json_text(result: GateResult) -> str:
    """`GateResult.to_json`, one line for each of its keys."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.to_json().items()]
    return "{\n" + ",\n".join(parts) + "\n}"


def headline(result: GateResult) -> str:
    """The verdict, what it is about, and how it counts where it is undecided."""
    measured, verdict = result.measured, result.verdict
    counted = f" (exit code {int(result.exit_code)})" if verdict is Verdict.UNDECIDED else ""
    return (
        f"gate {measured.package}: {HEADLINES[verdict]}{counted}; {measured.data}, {measured.protocol}, "
        f"{len(measured.int8)} instances, {measured.pictures} pictures, seed {result.options.seed}"
    )


def scores(result: GateResult) -> list[tuple[str, Interval, str]]:
    """Name, mIoU and description of the networks and the trivial masks."""
    rows = [("int8 network", result.int8, "")]
    if result.real is not None:
        rows.append(("float network", result.real, ""))
    rows += [
        (one.name, one.miou, one.description + (", would pass" if one.passes else ""))
        for one in result.trivial
    ]
    return rows


def interval_text(found: Interval) -> str:
    """`0.5161 [0.4950, 0.5370]`."""
    if not math.isfinite(found.low):
        return f"{found.value:.4f}"
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _undecided(result: GateResult) -> list[Criterion]:
    return [one for one in result.criteria if one.verdict is Verdict.UNDECIDED]


def _percent(result: GateResult) -> str:
    return f"{100 * result.options.confidence:g} %"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _cell(text: str | None) -> str:
    """Text that does not end a cell of a table."""
    return (text or "").replace("|", r"\|").replace("\n", " ")
