"""A sheet of crops with the truth and the prediction drawn on them, for people to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from passes.files import write_beside
from student.crops import Mask, Pixels
from student.cropset import CropSet

TRUTH, PREDICTED = (40, 200, 80), (235, 60, 150)
"""Colours of the annotated and of the predicted outline, RGB."""


def outline(mask: Mask) -> Mask:
    """Pixels of a mask [H, W] with a neighbour (of four) outside it or beyond the edge."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Mask = mask & ~inner
    return edge


def drawn(picture: Pixels, truth: Mask, predicted: Mask, enlarge: int = 2) -> Pixels:
    """The crop, enlarged, with both outlines: uint8 [enlarge * S, enlarge * S, 3]."""
    canvas = picture.repeat(enlarge, 0).repeat(enlarge, 1).copy()
    for mask, colour in ((truth, TRUTH), (predicted, PREDICTED)):
        canvas[outline(mask.repeat(enlarge, 0).repeat(enlarge, 1))] = colour
    return canvas


def prediction_grid(predict: Any, crops: CropSet, count: int = 24, columns: int = 8) -> Pixels:
    """`count` crops, evenly chosen, as one sheet: uint8 [H, W, 3]."""
    chosen = np.unique(np.linspace(0, len(crops) - 1, min(count, len(crops))).astype(int))
    pictures, masks = crops.pictures[chosen], crops.masks[chosen]
    logits = predict(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    tiles = [drawn(*parts) for parts in zip(pictures, masks, logits[:, 0] > 0, strict=True)]
    gap = np.full_like(tiles[0], 255)
    tiles += [gap] * (-len(tiles) % columns)
    return np.concatenate(
        [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    )


def save_png(path: Path, pixels: Pixels) -> None:
    """Writes a picture beside and renames it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_beside(path, buffer.getvalue())
