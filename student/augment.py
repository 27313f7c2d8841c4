"""Augmentation for centred crops: which part of a picture a training sample shows, and in what light.

A protocol shows one window of the picture (`student.crops.window`). A training sample shows a *view*: that
window moved, scaled and stretched a little, perhaps mirrored, cut from the whole picture, so that nothing is
invented at its edges. Without augmentation the view is the protocol's crop, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.errors import InputError
from student.crops import Protocol, Window, cut_rectangle

_MOST = {
    "mirror": 1.0,
    "scale": 2.0,
    "aspect": 2.0,
    "move": 0.5,
    "clip": 1.0,
    "contrast": 1.0,
    "brightness": 255.0,
    "saturation": 1.0,
    "tint": 1.0,
    "grey": 1.0,
}
"""The largest value of each setting; the least is 0."""


@dataclass(frozen=True)
class Augmentation:
    """How far training samples stray from the protocol's crop.

    Attributes:
        mirror: probability of a horizontal mirror image.
        scale: a view is up to exp(scale) times larger or smaller than the protocol's window (log-uniform).
        aspect: its height over width lies within exp(±aspect).
        move: its centre moves by up to this share of the window's side in each direction.
        keep_prompt: the centre only moves to where the object is (the prompt points at it).
        clip: probability that a view which leaves the picture is shifted and stretched as the PicoSAM2
            authors do (`border="clip"`) instead of padded, so that the network knows both.
        contrast, brightness, saturation, tint: pixels become, per picture,
            128 + (1 ± contrast) * (p - 128) ± brightness; the difference of each channel from grey is
            multiplied by 1 ± saturation, and each channel by 1 ± tint.
        grey: probability of a picture without colour.
    """

    mirror: float = 0.5
    scale: float = 0.25
    aspect: float = 0.15
    move: float = 0.08
    keep_prompt: bool = True
    clip: float = 0.4
    contrast: float = 0.3
    brightness: float = 25.0
    saturation: float = 0.4
    tint: float = 0.08
    grey: float = 0.03

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(
                    f"recipe, augmentation.{name}", f"{value:g}", f"0 to {most:g}", "correct the value"
                )


NONE = Augmentation(0.0, 0.0, 0.0, 0.0, True, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Every sample is the protocol's crop."""

POINT = Augmentation()
"""For protocols at native resolution: objects come in all sizes, so scale may vary widely."""

ROI = Augmentation(scale=0.12, aspect=0.15, move=0.06, keep_prompt=False, clip=0.0)
"""For protocols that rescale the object's box: the view varies as boxes drawn by people vary."""


@dataclass(frozen=True)
class View:
    """A rectangle in picture pixels (fractions allowed; it may leave the picture), perhaps mirrored."""

    top: float
    left: float
    height: float
    width: float
    mirrored: bool = False


def draw_view(
    augmentation: Augmentation,
    place: Window,
    size: int,
    picture_size: tuple[int, int],
    on_object: Any,
    generator: np.random.Generator,
) -> View:
    """A random view around the protocol's window `place`.

    Args:
        size: side of the crop in pixels.
        picture_size: height and width.
        on_object: function (row, column) -> bool: whether that picture pixel belongs to the object.
        generator: always drawn from the same number of times, so that one sample's luck does not
            change the next one's.
    """
    luck = generator.random(4 + 2 * _TRIES)
    centre_row, centre_column = place.top + place.side // 2, place.left + place.side // 2
    down = right = 0
    reach = round(augmentation.move * place.side)
    for move in luck[4:].reshape(_TRIES, 2):
        tried_down, tried_right = (int(x) for x in np.rint((2.0 * move - 1.0) * reach))
        if not augmentation.keep_prompt or on_object(centre_row + tried_down, centre_column + tried_right):
            down, right = tried_down, tried_right
            break
    larger = math.exp((2.0 * luck[0] - 1.0) * augmentation.scale)
    taller = math.exp((2.0 * luck[1] - 1.0) * augmentation.aspect / 2.0)
    height, width = place.side * larger * taller, place.side * larger / taller
    top = place.top + down + (place.side - height) / 2.0
    left = place.left + right + (place.side - width) / 2.0
    mirrored = bool(luck[3] < augmentation.mirror)
    if mirrored and size % 2 == 0:  # the prompt lies right of the middle, and should do so in the mirror
        left += width / size
    if luck[2] < augmentation.clip:
        top, left = max(top, 0.0), max(left, 0.0)
        height = max(1.0, min(height, picture_size[0] - top))
        width = max(1.0, min(width, picture_size[1] - left))
    return View(top, left, height, width, mirrored)


_TRIES = 6
"""Attempts to move the prompt within the object before it stays where it is."""


def show(plane: NDArray[Any], view: View, size: int, fill: float) -> NDArray[Any]:
    """What the view shows of a plane, resampled (bilinear, antialiased) to size x size.

    Args:
        plane: uint8 [H, W, 3], uint8 [H, W] or float32 [H, W]; `view` is in its pixels.
        fill: the value outside the plane.

    Returns:
        The plane's dtype, [size, size] or [size, size, 3].
    """
    top, left = math.floor(view.top), math.floor(view.left)
    bottom, right = math.ceil(view.top + view.height), math.ceil(view.left + view.width)
    patch = cut_rectangle(plane, top, left, bottom - top, right - left, fill)
    if patch.shape[:2] != (size, size) or (view.height, view.width) != (size, size):
        box = (
            view.left - left,
            view.top - top,
            min(view.left - left + view.width, patch.shape[1]),
            min(view.top - top + view.height, patch.shape[0]),
        )
        image = Image.fromarray(patch)
        patch = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return patch[:, ::-1] if view.mirrored else patch


def relight(
    augmentation: Augmentation, pixels: NDArray[np.uint8], generator: np.random.Generator
) -> NDArray[np.float32]:
    """The crop, uint8 [S, S, 3], in another light: float32 of the same shape, whole numbers in 0..255."""
    luck = 2.0 * generator.random(7) - 1.0
    light = pixels.astype(np.float32)
    colourless = augmentation.grey > (luck[6] + 1.0) / 2.0
    if augmentation.saturation or colourless:
        grey = light.mean(axis=2, keepdims=True)
        keep = np.float32(0.0 if colourless else 1.0 + augmentation.saturation * luck[0])
        light = grey + (light - grey) * keep
    gain = (1.0 + augmentation.contrast * luck[1]) * (1.0 + augmentation.tint * luck[2:5])
    shift = 128.0 + augmentation.brightness * luck[5]
    light = (light - np.float32(128.0)) * gain.astype(np.float32) + np.float32(shift)
    whole: NDArray[np.float32] = np.clip(np.rint(light), 0.0, 255.0, dtype=np.float32)
    return whole


def default_augmentation(protocol: Protocol) -> Augmentation:
    """POINT for protocols at native resolution, ROI for those that rescale the object's box."""
    return POINT if protocol.box_margin is None else ROI
