"""Prompt protocols: which part of a picture the network sees when a person points at an object.

The sensor takes pixels and nothing else, so the prompt is the centre of the crop.

- `point-native-96`: a 96 x 96 window at native resolution, centred on the prompt point, which is the centre
  of the mask's bounding box, or the mask pixel nearest to that centre where the centre is not in the mask.
- `roi-pad10`: the object's box plus 10 % of its size on each side, made square around the same centre and
  rescaled to 96 x 96.

Where a window leaves the picture it is padded, so the prompt stays at the centre everywhere. The PicoSAM2
authors clip and stretch it instead, which moves the prompt off the centre; `point-native-96-clip` does the
same, for comparing with their numbers (with it their stored predictions give their stored IoUs exactly).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.errors import InputError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""left, top, width, height in pixels, as COCO writes it."""


@dataclass(frozen=True)
class Protocol:
    """A rule from (picture, mask) to a square crop.

    Attributes:
        name: the name reports use.
        size: side of the crop in pixels.
        border: `pad`, or `clip` for the authors' handling (native resolution only).
        pad_value: the pixel outside the picture, in every channel; 128 is zero after the shipped
            student's normalisation. The mask is empty there.
        box_margin: share of the box's width and height added on each side before rescaling; None leaves
            the picture at its native resolution.
    """

    name: str
    size: int = 96
    border: str = "pad"
    pad_value: int = 128
    box_margin: float | None = None


POINT_NATIVE_96 = Protocol("point-native-96")
POINT_NATIVE_96_CLIP = Protocol("point-native-96-clip", border="clip")
ROI_PAD10 = Protocol("roi-pad10", box_margin=0.10)
PROTOCOLS: dict[str, Protocol] = {p.name: p for p in (POINT_NATIVE_96, POINT_NATIVE_96_CLIP, ROI_PAD10)}


def named_protocol(name: str) -> Protocol:
    """The protocol that `--protocol` names; InputError for none of PROTOCOLS."""
    if name not in PROTOCOLS:
        raise InputError("--protocol", repr(name), f"one of {', '.join(PROTOCOLS)}", "correct the name")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Window:
    """A square of `side` pixels whose first pixel is (top, left); it may leave the picture."""

    top: int
    left: int
    side: int


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """left, top, width and height of the smallest box around a mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def prompt_point(mask: Mask) -> tuple[int, int]:
    """Row and column of the prompt; the mask, bool [H, W], has at least one pixel. Always inside the mask."""
    left, top, width, height = bounding_box(mask)
    row, column = top + (height - 1) // 2, left + (width - 1) // 2
    if not mask[row, column]:
        rows, columns = np.nonzero(mask)
        nearest = int(np.argmin((rows - row) ** 2 + (columns - column) ** 2))
        row, column = int(rows[nearest]), int(columns[nearest])
    return row, column


def window(protocol: Protocol, mask: Mask, box: Box | None = None) -> Window:
    """The part of the picture that the protocol shows.

    Args:
        mask: bool [H, W] with at least one pixel.
        box: the object's box, for protocols that rescale it; by default the mask's bounding box.
    """
    if protocol.box_margin is None:
        row, column = prompt_point(mask)
        return Window(row - protocol.size // 2, column - protocol.size // 2, protocol.size)
    left, top, width, height = box or bounding_box(mask)
    side = max(1, round(max(height, width) * (1.0 + 2.0 * protocol.box_margin)))
    return Window(round(top + (height - side) / 2), round(left + (width - side) / 2), side)


def shown(protocol: Protocol, mask: Mask, box: Box | None = None) -> tuple[int, int, int, int]:
    """Top, left, height and width of the picture's rectangle that fills the crop.

    It is the window, which may leave the picture, or with `clip` the part of the picture that is stretched
    over the whole crop. Arguments as for `window`.
    """
    place = window(protocol, mask, box)
    if protocol.border != "clip":
        return place.top, place.left, place.side, place.side
    top, left = max(place.top, 0), max(place.left, 0)
    return top, left, min(place.side, mask.shape[0] - top), min(place.side, mask.shape[1] - left)


def cut(plane: Pixels, place: Window, pad_value: int) -> Pixels:
    """The window's pixels, uint8 [side, side] or [side, side, C], `pad_value` where it leaves the picture."""
    pixels: Pixels = cut_rectangle(plane, place.top, place.left, place.side, place.side, pad_value)
    return pixels


def cut_rectangle(
    plane: NDArray[Any], top: int, left: int, height: int, width: int, fill: float
) -> NDArray[Any]:
    """A rectangle of a plane [H, W] or [H, W, C] of any dtype; `fill` where it leaves the plane."""
    out = np.full((height, width, *plane.shape[2:]), fill, plane.dtype)
    first_row, first_column = max(top, 0), max(left, 0)
    last_row, last_column = min(top + height, plane.shape[0]), min(left + width, plane.shape[1])
    if last_row > first_row and last_column > first_column:
        out[first_row - top : last_row - top, first_column - left : last_column - left] = plane[
            first_row:last_row, first_column:last_column
        ]
    return out


def crop(protocol: Protocol, picture: Pixels, mask: Mask, box: Box | None = None) -> tuple[Pixels, Mask]:
    """The crop a network sees and the object's mask in it.

    Args:
        picture: RGB, uint8 [H, W, 3].
        mask: bool [H, W] with at least one pixel.
        box: see `window`.

    Returns:
        uint8 [S, S, 3] and bool [S, S] with S = protocol.size.
    """
    rectangle = shown(protocol, mask, box)
    pixels: Pixels = cut_rectangle(picture, *rectangle, protocol.pad_value)
    return _resized(pixels, protocol.size, Image.Resampling.BILINEAR), _mask_in(protocol, mask, rectangle)


def crop_mask(protocol: Protocol, mask: Mask, box: Box | None = None) -> Mask:
    """The mask of `crop` alone, for which no picture is needed."""
    return _mask_in(protocol, mask, shown(protocol, mask, box))


def mask_iou(one: Mask, other: Mask) -> float:
    """Intersection over union of two masks of one shape; two empty masks agree (1.0)."""
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0


def _mask_in(protocol: Protocol, mask: Mask, rectangle: tuple[int, int, int, int]) -> Mask:
    inside = cut_rectangle(mask, *rectangle, False).astype(np.uint8) * 255
    # the authors resize masks to the nearest pixel
    method = Image.Resampling.NEAREST if protocol.border == "clip" else Image.Resampling.BILINEAR
    seen: Mask = _resized(inside, protocol.size, method) >= 128
    return seen


def _resized(plane: Pixels, size: int, method: Image.Resampling) -> Pixels:
    if plane.shape[:2] == (size, size):
        return plane
    return np.asarray(Image.fromarray(plane).resize((size, size), method))
