"""What `picosam2 diff` prints: pure functions of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from compiler.inspection.differences import Differences

BARS = "▁▂▃▄▅▆▇█"
REACH = 4
"""The histogram's columns: differences of -4 to +4 LSB; those beyond count with the ends."""


def table(found: Differences) -> Table:
    """The tensors that both sources give, in graph order; 80 columns wide."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=f"{found.model}: {found.second} against {found.first}, pictures: {found.pictures}",
        box=SIMPLE_HEAD,
        caption=f"histogram: {found.second} - {found.first} in LSB; the ends hold what lies beyond",
    )
    made.add_column("layer", overflow="fold")
    for heading in ("values", "different", "share", "largest\nLSB"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("LSB\n-4  0  +4", no_wrap=True)
    for tensor in found.tensors:
        differs = tensor.differing > 0
        mark = " (first)" if tensor is found.first_differing else ""
        made.add_row(
            Text(tensor.layer + mark),
            str(tensor.values),
            str(tensor.differing),
            f"{tensor.share:.2%}" if tensor.share >= 1e-4 or not differs else f"{tensor.share:.0e}",
            str(tensor.largest),
            bars(tensor.histogram) if differs else "",
            style="bold" if mark else "",
        )
    return made


def bars(histogram: Mapping[int, int]) -> str:
    """Nine columns for -4 to +4 LSB; the equal ones in the middle are drawn as a dot."""
    counts = [0] * (2 * REACH + 1)
    for step, count in histogram.items():
        if step:
            counts[max(-REACH, min(REACH, step)) + REACH] += count
    most = max(counts)
    columns = [BARS[(len(BARS) - 1) * count // most] if count else " " for count in counts]
    columns[REACH] = "·"
    return "".join(columns)


def verdict(found: Differences) -> list[str]:
    """The answer in words."""
    first = found.first_differing
    if first is None:
        values = sum(tensor.values for tensor in found.tensors)
        lines = [
            f"equal: {values} integers of {len(found.tensors)} tensors, {found.first} and {found.second}, "
            f"pictures: {found.pictures}"
        ]
    else:
        counts = sorted(enumerate(first.channels), key=lambda pair: -pair[1])[:3]
        most = ", ".join(f"{channel} ({count})" for channel, count in counts if count)
        lines = [
            f"first difference: layer {first.layer}, tensor {first.tensor}: {first.differing} of "
            f"{first.values} values, largest {first.largest} LSB; most in channels {most}"
        ]
    if found.absent:
        lines.append(f"not compared, because one of them lacks it: {len(found.absent)} tensors")
    return lines
