"""The picture of `picosam2 diff`: where the first differing tensor differs, channel by channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from compiler.inspection.differences import Differences
from student.crops import Pixels

TILE = 96
"""Pixels of a channel's longer side, where it is no larger itself; twice that where few are shown."""

FEW = 10

WIDTH = 1040
"""Pixels of the picture's width at most, where one tile is not wider."""

CHANNELS = 64
"""Channels shown at most: those with most differing values, in graph order."""

SAME, LOWER, HIGHER = (255, 255, 255), (20, 50, 140), (245, 150, 30)
"""White, dark blue, light orange: told apart in grey print and by the colour-blind."""

FRAME, TEXT = (150, 150, 150), (0, 0, 0)
GAP, LINE = 8, 16


def difference_map(found: Differences) -> Pixels | None:
    """uint8 [H, W, 3]; None where nothing differs."""
    first = found.first_differing
    if first is None or found.map is None:
        return None
    counts = (found.map != 0).sum(axis=(1, 2))
    differing = int((counts > 0).sum())
    shown = np.sort(np.argsort(-counts, kind="stable")[: min(CHANNELS, differing)])
    enlarge = max(1, (TILE if len(shown) > FEW else 2 * TILE) // max(found.map.shape[1:]))
    tiles = [_tile(found.map[channel], enlarge) for channel in shown]
    high, wide = tiles[0].shape[:2]
    cell = max(wide, 60)
    columns = max(1, min(len(tiles), (WIDTH - GAP) // (cell + GAP)))
    rows = -(-len(tiles) // columns)
    lines = [
        f"{found.second} against {found.first}, {found.model}, pictures: {found.pictures}",
        f"first difference: {first.layer} (tensor {first.tensor})",
        f"{first.differing} of {first.values} values, largest {first.largest} LSB; "
        f"{differing} of {len(counts)} channels, {len(shown)} shown",
        f"dark: {found.second} lower, light: higher, white: the same. Below: channel, places that differ",
    ]
    font = ImageFont.load_default(12)
    width = max(GAP + columns * (cell + GAP), 2 * GAP + max(int(font.getlength(line)) + 1 for line in lines))
    head = GAP + LINE * len(lines) + GAP
    canvas = Image.new("RGB", (width, head + rows * (high + LINE + GAP)), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + LINE * number), line, TEXT, font)
    for place, (channel, tile) in enumerate(zip(shown, tiles, strict=True)):
        x = GAP + place % columns * (cell + GAP)
        y = head + place // columns * (high + LINE + GAP)
        canvas.paste(Image.fromarray(tile), (x, y))
        draw.rectangle((x - 1, y - 1, x + wide, y + high), outline=FRAME)
        draw.text((x, y + high + 1), f"{channel}: {counts[channel]}", TEXT, font)
    return np.asarray(canvas)


def _tile(steps: NDArray[np.int64], enlarge: int) -> Pixels:
    colours = np.array([SAME, HIGHER, LOWER], np.uint8)
    tile: Pixels = colours[np.sign(steps)].repeat(enlarge, 0).repeat(enlarge, 1)
    return tile
