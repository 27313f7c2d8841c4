"""The pictures of report.html: a crop with the outlines of the float and of the int8 mask."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape

import numpy as np
from numpy.typing import NDArray

from compiler.reports.facts import Overlay


def overlay_picture(overlay: Overlay) -> str:
    """An SVG: the picture, what only one of the masks holds, the float outline solid, the int8 one dashed."""
    height, width = overlay.real.shape
    data = base64.b64encode(overlay.png).decode()
    told = (
        f"Picture {overlay.number}: the float mask covers {overlay.real.mean():.0%}, the int8 mask "
        f"{overlay.int8.mean():.0%} of it; their IoU is {overlay.agreement:.3f}."
    )
    real, int8 = outline(overlay.real), outline(overlay.int8)
    return (
        f'<svg class="crop" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(told)}">'
        f'<image href="data:image/png;base64,{data}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>'
        f'<path class="differ" d="{_area(overlay.real ^ overlay.int8)}"/>'
        f'<path class="halo" d="{real}"/><path class="float" d="{real}"/>'
        f'<path class="int8" d="{int8}"/></svg>'
    )


def outline(mask: NDArray[np.bool_]) -> str:
    """The border between mask and background as an SVG path in pixels; "" for none.

    Straight pieces between neighbouring pixels, as long as they go on; the picture's edge counts as
    background.
    """
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [H + 1, W]: above row y at column x
    down = (padded[1:-1, 1:] != padded[1:-1, :-1]).T  # [W + 1, H]: left of column x at row y
    pieces = [f"M{start} {row}h{end - start}" for row, start, end in _runs(across)]
    pieces += [f"M{column} {start}v{end - start}" for column, start, end in _runs(down)]
    return "".join(pieces)


def _area(mask: NDArray[np.bool_]) -> str:
    """The pixels of a mask as an SVG path, one rectangle for each run in a row."""
    return "".join(f"M{start} {row}h{end - start}v1h{start - end}z" for row, start, end in _runs(mask))


def _runs(lines: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Line, first and behind last place of every run of True."""
    edges = np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    for (line, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True):
        yield line, start, end
