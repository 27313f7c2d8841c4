"""report.html: one file without references to any other, for a browser, a phone, a screen reader or paper."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from compiler.inspection.layers import WARNING_DB
from compiler.reports import figures, terminal
from compiler.reports.mask_picture import overlay_picture
from compiler.reports.memory_plot import alive, memory_plot
from compiler.reports.verdict import verdict
from compiler.result import CompileResult
from passes.diagnostics import Severity
from passes.imx500.latency import CLOCK_HZ, PUBLISHED
from passes.imx500.limits import MEMORY_RESERVED

if TYPE_CHECKING:
    from markupsafe import Markup

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
        "prose": _prose,
        "dotted": _dotted,
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


def _prose(text: str) -> Markup:
    """A sentence, with its commands as code."""
    from markupsafe import Markup

    parts = (_code(part) if is_code else Markup.escape(part) for part, is_code in figures.pieces(text))
    return Markup("").join(parts)


def _code(text: str) -> Markup:
    """Code whose options no line ends within: a browser takes their hyphens for places to break."""
    from markupsafe import Markup

    option = Markup('<span class="whole">{}</span>')
    parts = re.split(f"({figures.OPTION})", text)  # every second one is an option
    shown = (option.format(part) if at % 2 else Markup.escape(part) for at, part in enumerate(parts))
    return Markup("<code>{}</code>").format(Markup("").join(shown))


def _dotted(name: str) -> Markup:
    """A name of a module or tensor that, where it must, breaks before a slash, else before a dot."""
    from markupsafe import Markup

    parts = [Markup("<wbr>").join(re.split(r"(?<=[^.])(?=\.)", part)) for part in re.split("(?=/)", name)]
    return Markup("").join(Markup('<span class="part">{}</span>').format(part) for part in parts if part)
