"""Table and plot of `picosam2 sensitivity`: pure functions of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from compiler.inspection.layers import WARNING_DB
from compiler.inspection.sensitivity import LayerSensitivity, Sensitivity

if TYPE_CHECKING:
    from rich.table import Table

FLOAT32_DB = 120.0
"""Ratios above this are the rounding of float32 itself: nothing was lost."""

WHY_THE_THRESHOLD = (
    f"Why {WARNING_DB:g} dB: the shipped student, broken in one layer in 88 ways, lost at most 0.004 mIoU",
    f"where that layer alone stayed above {WARNING_DB:g} dB, and up to 0.34 below (docs/simulator.md).",
)
"""Two lines; measured by benchmarks/sensitivity_threshold.py."""


def decibels(ratio: float | None) -> str:
    """`41.3`; `exact` where nothing is lost, `-` where nothing is quantized."""
    if ratio is None:
        return "-"
    return "exact" if ratio > FLOAT32_DB else f"{ratio:.1f}"


def table(found: Sensitivity) -> Table:
    """The terminal's table, 80 columns wide."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=f"{found.model}: int8 against float, signal to noise in dB, {found.pictures} pictures",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        caption="\n".join(verdict(found)),
        caption_justify="left",
    )
    made.add_column("layer", overflow="fold")
    for heading in (
        "here\nboth",
        "here\nwts",
        "here\nact",
        "out\nboth",
        "out\nwts",
        "out\nact",
        "noise\nshare",
        "mask\nIoU",
    ):
        made.add_column(heading, justify="right", no_wrap=True)
    for layer in found.layers:
        mark = " (!)" if layer.warned else " (most)" if layer is found.worst else ""
        made.add_row(
            Text(layer.name + mark),
            *map(decibels, (layer.here.both, layer.here.weights, layer.here.activations)),
            *map(decibels, (layer.alone.both, layer.alone.weights, layer.alone.activations)),
            f"{layer.share:.1%}",
            _iou(layer.agreement),
            style="bold" if layer.warned or layer is found.worst else "",
        )
    made.add_section()
    whole = found.output
    ratios = [decibels(ratio) for ratio in (whole.both, whole.weights, whole.activations)]
    made.add_row(Text("whole network"), "", "", "", *ratios, "100%", _iou(found.agreement))
    return made


def _iou(agreement: float | None) -> str:
    return "-" if agreement is None else f"{agreement:.3f}"


def verdict(found: Sensitivity) -> list[str]:
    """What the table says, in words."""
    worst = found.worst
    lines = [
        "here: at the layer's result, the whole network quantized (both; weights or activations only).",
        "out: at the network's output, this layer alone quantized (both; its weights or its result only).",
        f"Loses most: {worst.name}, {worst.share:.0%} of the noise at the output, {_culprit(worst)}.",
    ]
    warned = [layer.name for layer in found.layers if layer.warned]
    if warned:
        lines.append(f"Warning (!): alone below {WARNING_DB:g} dB: {', '.join(warned)}.")
    else:
        lines.append(f"No layer alone is below {WARNING_DB:g} dB: none needs repair.")
    lines.append(" ".join(WHY_THE_THRESHOLD))
    if found.sum_of_parts > 1.1:
        lines.append(
            f"The layers' noises sum to {found.sum_of_parts:.2f} of the whole network's: a layer that only "
            "copies the integers before it (a nearest resize) is counted with them."
        )
    lines.append(f"{found.pictures} pictures: {found.source}.")
    return lines


def _culprit(layer: LayerSensitivity) -> str:
    """Which of the two parts of a layer does it, and for a layer warned of where to look."""
    weights, result = layer.alone.weights, layer.alone.activations
    if weights is None or (result is not None and result < weights - 3):
        return "by rounding its result" + (": look at its activation's threshold" if layer.warned else "")
    if result is None or weights < result - 3:
        return "by rounding its weights" + (
            ": look for channels of very different size" if layer.warned else ""
        )
    return "by its weights and its result alike"


# The plot

ROW, TOP, BOTTOM = 18, 96, 80
NAMES, RATIOS, GAP, SHARES, RIGHT = 190, 420, 30, 200, 120
"""Widths in pixels of the names, the two panels, what is between them, and what is right of them."""

LOWEST_DB, HIGHEST_DB = 0.0, 80.0


def plot(found: Sensitivity) -> str:
    """An SVG: for every layer its ratios, and its share of the noise as a bar. Shapes tell, not colours."""
    height = TOP + ROW * len(found.layers) + BOTTOM
    width = NAMES + RATIOS + GAP + SHARES + RIGHT
    lowest = min([LOWEST_DB, *(layer.alone.both or 0.0 for layer in found.layers)])
    lowest = 10.0 * math.floor(lowest / 10.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(8, 18, f"{found.model}: where the accuracy goes", size=14, weight="bold"),
        _text(8, 34, f"int8 against float on {found.pictures} pictures, signal to noise in dB, measured"),
        *_legend(),
        *_axes(found, lowest),
    ]
    for index, layer in enumerate(found.layers):
        parts += _row(found, layer, TOP + ROW * index + ROW / 2, lowest)
    return "\n".join([*parts, "</svg>", ""])


def _x(ratio: float, lowest: float) -> float:
    inside = min(max(ratio, lowest), HIGHEST_DB)
    return NAMES + RATIOS * (inside - lowest) / (HIGHEST_DB - lowest)


def _legend() -> Iterable[str]:
    entries = (
        ("dot", "this layer alone, at the output"),
        ("up", "its weights alone"),
        ("down", "its result alone"),
        ("cross", "everything quantized, at the layer"),
    )
    x = 14.0
    for shape, words in entries:
        yield _mark(shape, x, 52)
        yield _text(x + 9, 56, words)
        x += 30 + 5.8 * len(words)


def _axes(found: Sensitivity, lowest: float) -> Iterable[str]:
    end = TOP + ROW * len(found.layers)
    for tick in range(int(lowest), int(HIGHEST_DB) + 1, 10):
        x = _x(tick, lowest)
        yield _line(x, TOP, x, end, "#dddddd")
        yield _text(x, end + 14, f"{tick}", anchor="middle")
    yield _text(NAMES + RATIOS / 2, end + 30, "dB (left: more is lost)", anchor="middle")
    for number, line in enumerate(WHY_THE_THRESHOLD):
        yield _text(8, end + 52 + 15 * number, line)
    x = _x(WARNING_DB, lowest)
    yield _line(x, TOP - 6, x, end, "black", dash="5 3")
    yield _text(x, TOP - 10, f"warning below {WARNING_DB:g} dB", anchor="middle")
    left = NAMES + RATIOS + GAP
    yield _line(left, TOP, left, end, "black")
    yield _text(left, TOP - 10, "share of the noise at the output")


def _row(found: Sensitivity, layer: LayerSensitivity, y: float, lowest: float) -> Iterable[str]:
    worst = layer is found.worst
    if worst:
        total = NAMES + RATIOS + GAP + SHARES + RIGHT
        yield f'<rect x="0" y="{y - ROW / 2:.1f}" width="{total}" height="{ROW}" fill="#eeeeee"/>'
    weight = "bold" if worst or layer.warned else "normal"
    name = layer.name if len(layer.name) <= 28 else f"...{layer.name[-25:]}"
    yield _text(NAMES - 10, y + 4, name + (" (!)" if layer.warned else ""), anchor="end", weight=weight)
    marks = (
        ("cross", layer.here.both),
        ("up", layer.alone.weights),
        ("down", layer.alone.activations),
        ("dot", layer.alone.both),
    )
    for shape, ratio in marks:
        if ratio is not None and ratio <= HIGHEST_DB:
            yield _mark(shape, _x(ratio, lowest), y)
    left = NAMES + RATIOS + GAP
    longest = found.worst.share or 1.0
    long = SHARES * layer.share / longest
    fill = "black" if worst else "#999999"
    yield f'<rect x="{left}" y="{y - 5:.1f}" width="{long:.1f}" height="10" fill="{fill}"/>'
    yield _text(
        left + long + 5, y + 4, f"{layer.share:.1%}" + (" loses most" if worst else ""), weight=weight
    )


def _mark(shape: str, x: float, y: float) -> str:
    """One of four shapes, 8 pixels wide."""
    if shape == "dot":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="black"/>'
    if shape == "cross":
        path = f"M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m0 -7l-7 7"
    else:
        rise = 7 if shape == "up" else -7
        path = f"M{x - 4:.1f} {y + rise / 2:.1f}h8l-4 {-rise}z"
    return f'<path d="{path}" fill="none" stroke="#444444"/>'


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"{dashed}/>'


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = 11, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
