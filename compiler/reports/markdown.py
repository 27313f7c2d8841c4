"""report.md and `check --format markdown`: short enough for a comment on a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from compiler.reports.figures import decibels, megabytes, pieces, shape_text
from compiler.reports.terminal import (
    check_rows,
    choice_text,
    diagnostic_text,
    tried_text,
    widths_text,
)
from compiler.reports.verdict import verdict
from compiler.result import CheckResult, CompileResult
from passes.diagnostics import Diagnostic

WEAKEST = 5
"""Layers named with their numbers."""

SIGNS = {True: "OK", False: "PROBLEM", None: ""}


def to_markdown(result: CompileResult, created: str) -> str:
    """report.md: the verdict, every finding, memory, the weakest layers, and how to use the outputs."""
    found = verdict(result)
    lines = [
        f"# {_text(result.network or result.model_name)} on {result.target}",
        "",
        f"**{_prose(found.headline)}**",
        "",
        "| | | |",
        "|---|---|---|",
        *(
            f"| {_cell(one.question)} | **{_cell(one.answer)}** {SIGNS[one.good]} | {_prose_cell(one.text)} |"
            for one in found.answers
        ),
        "",
        *(f"*{_text(one.question)}* {_prose(one.note)}\n" for one in found.answers if one.note),
        *(f"{number}. {_prose(step)}" for number, step in enumerate(found.next_steps, start=1)),
        "",
    ]
    lines += _failure_lines(result)
    lines += _finding_lines(result.findings)
    lines += [*_memory_lines(result), *_quantizer_lines(result), *_layer_lines(result)]
    lines += [*_input_lines(result), *_output_lines(result)]
    seconds = sum(step.seconds for step in result.steps)
    lines.append(
        f"{_text(result.model_name)} ({result.model_kind or 'not read'}, SHA-256 "
        f"{result.model_sha256[:12] or 'not known'}), {created}, picosam2-compile {result.tool_version}, "
        f"seed {result.seed}, {seconds:.0f} s. report.html has the plots, report.json every number."
    )
    return "\n".join(lines) + "\n"


def check_markdown(check: CheckResult, model_name: str) -> str:
    """`picosam2 check --format markdown`."""
    lines = [f"# Check of {_text(model_name)}", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_prose_cell(text)} |" for name, text in check_rows(check)]
    return "\n".join([*lines, "", *_finding_lines(check.diagnostics)]).rstrip("\n") + "\n"


def _failure_lines(result: CompileResult) -> list[str]:
    if (failure := result.failure) is None:
        return []
    return [
        f"## How it ended: step {failure.step}, exit code {failure.exit_code}",
        "",
        f"- What: {_prose(failure.thing)}: {_prose(failure.found)}",
        f"- Expected: {_prose(failure.limit)}",
        f"- Fix: {_prose(failure.fix)}",
        *(f"- {_prose(note)}" for note in failure.notes),
        "",
    ]


def _finding_lines(findings: Sequence[Diagnostic]) -> list[str]:
    if not findings:
        return []
    return ["## Findings", "", *(f"- {_prose(diagnostic_text(one))}" for one in findings), ""]


def _memory_lines(result: CompileResult) -> list[str]:
    memory, vendor = None if result.check is None else result.check.memory, result.vendor
    if memory is None:
        return []
    lines = ["## Memory (bytes)", "", "| | forecast | converter (measured) |", "|---|---:|---:|"]
    for name in ("model", "runtime", "total"):
        field = f"{name}_bytes"
        measured = "" if vendor is None else f"{getattr(vendor, field):,}"
        lines.append(f"| {name} | {getattr(memory, field):,} ({memory.exactness[field]}) | {measured} |")
    lines.append(f"| budget | {memory.budget_bytes:,} | |")
    if result.what_if is not None:
        other = result.what_if.persistency
        lines += [
            "",
            f"Input persistency {'on' if other.on else 'off'}: {megabytes(other.total_bytes)} (forecast).",
        ]
    return [*lines, ""]


def _quantizer_lines(result: CompileResult) -> list[str]:
    lines = []
    if result.widths is not None:
        lines.append(f"- Weights: {_text(widths_text(result.widths))}")
    if result.choice is not None:
        lines.append(f"- {_prose(choice_text(result.choice))}")
        lines += [f"  - {_text(tried_text(tried))}" for tried in result.choice.tried]
    return ["## Quantization", "", *lines, ""] if lines else []


def _layer_lines(result: CompileResult) -> list[str]:
    if result.facts is None:
        return []
    weakest = sorted(result.facts.layers, key=lambda layer: (layer.alone_db, layer.name))[:WEAKEST]
    return [
        "## Layers that lose most",
        "",
        "| layer | alone, at the output | share of noise | range | threshold |",
        "|---|---:|---:|---|---:|",
        *(
            f"| {_cell(one.name)} | {decibels(one.alone_db)} | {result.facts.share_of_noise(one):.0%} | "
            f"{one.lowest:.3g} to {one.highest:.3g} | "
            f"{'' if one.threshold is None else f'{one.threshold:g}'} |"
            for one in weakest
        ),
        "",
    ]


def _input_lines(result: CompileResult) -> list[str]:
    if (contract := result.contract) is None:
        return []
    lines = ["## Input and outputs", ""]
    if len(result.inputs) > 1:
        lines += [
            f"The network has {len(result.inputs)} inputs:",
            "",
            *(f"- {_text(one.name)}: {shape_text(one.shape)}, {one.integers}" for one in result.inputs),
            "",
        ]
    shape = f"{contract.channels}x{contract.height}x{contract.width}, {contract.colour_order}"
    lines += [
        f"Input {shape}; for sensor pixel p the network takes q, which stands for the real x:",
        "",
        "| p | q | x per channel |",
        "|---:|---:|---|",
    ]
    for pixel in (0, 64, 128, 255):
        q = pixel - 128 if contract.signed else pixel
        real = ", ".join(f"{s * q + o:.4f}" for s, o in zip(contract.scale, contract.offset, strict=True))
        lines.append(f"| {pixel} | {q} | {real} |")
    return [*lines, ""]


def _output_lines(result: CompileResult) -> list[str]:
    if not result.outputs:
        return []
    return [
        "| output | shape | type | step (real value = integer x step) | order |",
        "|---|---|---|---|---|",
        *(
            f"| {_cell(one.name)} | {shape_text(one.shape)} | {one.dtype} "
            f"| {'' if one.grid is None else f'{one.grid.step:g}'} | {','.join(one.order)} |"
            for one in result.outputs
        ),
        "",
    ]


_MARKUP = re.compile(r"([\\`*_\[\]#~])")
_SAFE_CODE = re.compile(r"[^`<>&|\\]+")


def _text(text: str) -> str:
    """On one line, with nothing in it that Markdown or HTML would take for markup."""
    return _escaped(_one_line(text))


def _prose(text: str) -> str:
    """`_text` of a sentence that may name commands."""
    return "".join(_code(part) if is_code else _escaped(part) for part, is_code in pieces(_one_line(text)))


def _code(text: str) -> str:
    """A code span; with characters that could end one or its cell, HTML, in which they are escaped."""
    return f"`{text}`" if _SAFE_CODE.fullmatch(text) else f"<code>{_escaped(text)}</code>"


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _prose_cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return html.escape(_MARKUP.sub(r"\\\1", text), quote=False)
