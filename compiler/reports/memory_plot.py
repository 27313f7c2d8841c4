"""The plot of report.html: bytes of the chip's memory at every step of the schedule, against the budget."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from compiler.reports.figures import megabytes
from passes.imx500.limits import MEMORY_RESERVED
from passes.imx500.memory import MemoryForecast, TensorRow

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 300, 64, 24, 44
"""Pixels of the drawing, and of its margins."""

MARGIN = 1.06
"""Room above the highest of budget and need."""


@dataclass(frozen=True)
class Level:
    """Bytes at one step, from the bottom of the stack to its top."""

    fixed: int
    persistent: int
    live: int


def levels(memory: MemoryForecast) -> tuple[Level, ...]:
    """For each step: weights and reserve, the persistent input, and the tensors alive (estimated)."""
    fixed = memory.model_bytes + MEMORY_RESERVED
    return tuple(
        Level(fixed, memory.input_persistency_bytes, sum(row.bytes for row in alive(memory, step)))
        for step in range(len(memory.steps))
    )


def alive(memory: MemoryForecast, step: int) -> tuple[TensorRow, ...]:
    """The tensors in memory at a step, the largest first."""
    rows = [row for row in memory.tensors if row.first_step <= step <= row.last_step]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.name)))


def memory_plot(memory: MemoryForecast) -> str:
    """An SVG with a title and a description; the colours come from the page's style sheet.

    Without colour the parts are told apart by their order in the stack, which the key names, and the peak by
    its mark and label.
    """
    stack = levels(memory)
    if not stack:
        return ""
    top = max(memory.budget_bytes, memory.total_bytes) * MARGIN
    wide, high = (WIDTH - LEFT - 8) / len(stack), HEIGHT - TOP - BOTTOM

    def y(number: float) -> float:
        return TOP + high * (1 - number / top)

    def x(step: int) -> float:
        return LEFT + step * wide

    peak = memory.steps[memory.peak_step]
    told = (
        f"{len(stack)} steps. Weights and reserve take {megabytes(stack[0].fixed)} at every step. The peak, "
        f"{megabytes(memory.total_bytes)} in all, is at step {memory.peak_step}, {peak}. "
        f"The budget is {megabytes(memory.budget_bytes)}."
    )
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="mem-t mem-d">',
        '<title id="mem-t">Memory over the schedule</title>',
        f'<desc id="mem-d">{escape(told)}</desc>',
    ]
    for number in range(0, int(top / 2**20) + 1, _tick(top)):
        at = y(number * 2**20)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number} MB</text>'
        )
    shown = max(wide - (1 if wide > 3 else 0), 0.5)
    for step, level in enumerate(stack):
        bottom = 0
        for name, part in (("fixed", level.fixed), ("kept", level.persistent), ("live", level.live)):
            if part:
                above = y(bottom + part)
                mark = " peak" if name == "live" and step == memory.peak_step else ""
                parts.append(
                    f'<rect class="{name}{mark}" x="{x(step):.2f}" y="{above:.2f}" '
                    f'width="{shown:.2f}" height="{y(bottom) - above:.2f}"/>'
                )
            bottom += part
    budget, middle = y(memory.budget_bytes), x(memory.peak_step) + wide / 2
    reached = y(memory.total_bytes)
    anchor = "end" if memory.peak_step > len(stack) / 2 else "start"
    shift = -8 if anchor == "end" else 8
    parts += [
        f'<line class="budget" x1="{LEFT}" x2="{WIDTH - 8}" y1="{budget:.1f}" y2="{budget:.1f}"/>',
        f'<text class="label" x="{LEFT + 4}" y="{budget - 5:.1f}">'
        f"budget {megabytes(memory.budget_bytes)}</text>",
        f'<path class="mark" d="M{middle:.1f} {reached - 14:.1f}V{reached:.1f}"/>',
        f'<text class="label" x="{middle + shift:.1f}" y="{max(reached - 6, TOP + 14):.1f}" '
        f'text-anchor="{anchor}">peak {megabytes(memory.total_bytes)}</text>',
        f'<text class="tick" x="{LEFT}" y="{HEIGHT - 24}">step 0</text>',
        f'<text class="tick" x="{WIDTH - 8}" y="{HEIGHT - 24}" text-anchor="end">'
        f"step {len(stack) - 1}</text>",
        f'<text class="tick" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        "steps of the schedule, in the order they run</text>",
        "</svg>",
    ]
    return "\n".join(parts)


def _tick(top: float) -> int:
    """Whole MB between two lines of the grid: at most about ten lines."""
    return max(1, round(top / 2**20 / 8))
