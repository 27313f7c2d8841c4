"""How the reports write numbers and commands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from passes.imx500.latency import LatencyEstimate

SHORTEST = 0.01
"""Milliseconds below which an estimate is not printed as a number: it is far finer than the estimate is."""

FLOAT32_DB = 120.0
"""Ratios above this are the rounding of float32 itself: nothing was lost."""


OPTION = r"(?<![\w`-])--[a-z][a-z-]{1,30}(?![\w`-])"
"""An option of a command in a text; the length keeps a name of a user's file from passing for one."""

_CODE = re.compile(
    r"(?<![^\s(])(?P<fence>`+)(?=[^\s`])"
    r"(?P<code>(?:(?!(?<!`)(?P=fence)(?!`)).)+)"
    r"(?<![\s`])(?P=fence)(?!`)"
    rf"|(?P<option>{OPTION})"
)
"""What `code` writes, and an option outside of it. Backticks within words or beside blanks mark nothing."""


def megabytes(number: int) -> str:
    """Bytes as MB of 2^20, the unit of the vendor's 8 MB."""
    return f"{number / 2**20:.2f} MB"


def milliseconds(estimate: LatencyEstimate) -> str:
    """`11.6 to 14.3 ms`."""
    if estimate.high_ms < SHORTEST:
        return f"< {SHORTEST:g} ms"
    low = f"< {SHORTEST:g}" if estimate.low_ms < SHORTEST else _rounded(estimate.low_ms)
    return f"{low} to {_rounded(estimate.high_ms)} ms"


def _rounded(number: float) -> str:
    """Three digits, never in powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def millions(number: int) -> str:
    """`323.1 M`."""
    return f"{number / 1e6:.1f} M"


def decibels(ratio: float) -> str:
    """`41.3 dB`; `exact` where nothing is lost."""
    return "exact" if ratio > FLOAT32_DB else f"{ratio:.1f} dB"


def counted(number: int, noun: str) -> str:
    """`1 violation`, `2 violations`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def shape_text(shape: Sequence[int | None]) -> str:
    """`1x8x16x16`; a length that is not known is a question mark."""
    return "x".join("?" if side is None else str(side) for side in shape)


def finite(value: float) -> float | None:
    """The number, None for what JSON has no word for."""
    return value if math.isfinite(value) else None


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest entry, numbers to the right, the last one as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(f"{text:>{width}}" for text, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def code(command: str) -> str:
    """A command within a text: between more backticks than follow one another in it."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence}{command}{fence}"


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether it is code: what stands between backticks, and options."""
    end = 0
    for found in _CODE.finditer(text):
        yield text[end : found.start()], False
        yield found["code"] or found["option"], True
        end = found.end()
    yield text[end:], False
