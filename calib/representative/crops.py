"""Crops of whole pictures, and how crops become a network's input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from calib.representative.representative_set import Mask, Pixels
from passes.contract import InputContract

Cut = Callable[[Image.Image, np.random.Generator], tuple[Pixels, Mask | None]]
"""From an RGB picture to one crop, uint8 [C, H, W], and its object's mask, bool [H, W], if it has one."""


def random_crop(contract: InputContract, start: float = 0.0, stop: float = 1.0) -> Cut:
    """A crop at a random place: one in two at native resolution, else scaled down by up to the whole picture.

    Only the part of the picture between the shares `start` and `stop` of its longer side is used. A part
    smaller than the crop is scaled up.
    """

    def tile(image: Image.Image, random: np.random.Generator) -> Pixels:
        width, height = image.size
        left, top, right, bottom = 0, 0, width, height
        if width >= height:
            left, right = round(width * start), max(round(width * stop), round(width * start) + 1)
        else:
            top, bottom = round(height * start), max(round(height * stop), round(height * start) + 1)
        largest = min((right - left) / contract.width, (bottom - top) / contract.height)
        scale = min(1.0, largest)
        if random.random() < 0.5 and largest > 1.0:
            scale = largest ** random.random()
        wide, high = max(1, int(contract.width * scale)), max(1, int(contract.height * scale))
        x = left + int(random.integers(0, right - left - wide + 1))
        y = top + int(random.integers(0, bottom - top - high + 1))
        return _resized(image.crop((x, y, x + wide, y + high)), contract)

    return lambda image, random: (channels(lambda: tile(image, random), contract), None)


def _resized(crop: Image.Image, contract: InputContract) -> Pixels:
    """uint8 [H, W, 3] of the contract's size."""
    size = (contract.width, contract.height)
    return np.asarray(crop if crop.size == size else crop.resize(size, Image.Resampling.BILINEAR))


def channels(tile: Callable[[], Pixels], contract: InputContract) -> Pixels:
    """uint8 [C, H, W] in the contract's colour order, from one crop, or several where C is no picture's."""
    if contract.colour_order == "GREY" and contract.channels == 1:
        return np.asarray(Image.fromarray(tile()).convert("L"))[None]
    if contract.channels == 3:
        pixels = tile().transpose(2, 0, 1)
        return pixels[::-1] if contract.colour_order == "BGR" else pixels
    tiles = [tile().transpose(2, 0, 1) for _ in range(math.ceil(contract.channels / 3))]
    return np.concatenate(tiles)[: contract.channels]


def remark(contract: InputContract) -> str:
    """What the card says of an input that is no picture; nothing of others."""
    pictures = contract.channels == 3 or (contract.colour_order == "GREY" and contract.channels == 1)
    return (
        ""
        if pictures and contract.colour_order != "ANY"
        else f"; the input is no picture: its {contract.channels} channels are colour planes of such crops"
    )
