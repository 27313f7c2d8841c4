"""report.html: one file without references to any other, for a browser, a phone, a screen reader or paper."""

from __future__ import annotations

from typing import Any

from compiler.inspection.layers import WARNING_DB
from compiler.reports import figures, terminal
from compiler.reports.mask_picture import overlay_picture
from compiler.reports.memory_plot import alive, memory_plot
from compiler.reports.verdict import verdict
from compiler.result import CompileResult
from passes.diagnostics import Severity
from passes.imx500.latency import CLOCK_HZ, PUBLISHED
from passes.imx500.limits import MEMORY_RESERVED

TEMPLATE = "report.html.jinja"

AT_PEAK = 12
"""Tensors named that make the peak."""


def to_html(result: CompileResult, created: str) -> str:
    """report.html; all text of the result is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("compiler.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "mb": figures.megabytes,
        "db": figures.decibels,
        "ms": figures.milliseconds,
        "shape": figures.shape_text,
    }
    memory = None if result.check is None else result.check.memory
    facts = result.facts
    context: dict[str, Any] = {
        "result": result,
        "created": created,
        "verdict": verdict(result),
        "severities": list(Severity),
        "memory": memory,
        "plot": Markup("" if memory is None else memory_plot(memory)),
        "at_peak": () if memory is None else alive(memory, memory.peak_step)[:AT_PEAK],
        "peak_step": memory.steps[memory.peak_step] if memory is not None and memory.steps else "",
        "reserved": MEMORY_RESERVED,
        "overlays": [] if facts is None else [(one, Markup(overlay_picture(one))) for one in facts.overlays],
        "published": PUBLISHED,
        "clock_hz": CLOCK_HZ,
        "warning_db": WARNING_DB,
        "terminal": terminal,
        "total_seconds": sum(step.seconds for step in result.steps),
    }
    return environment.get_template(TEMPLATE).render(context)
