"""The prompt is at the centre of the crop, at the picture's borders too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from student.crops import (
    POINT_NATIVE_96,
    POINT_NATIVE_96_CLIP,
    PROTOCOLS,
    ROI_PAD10,
    Protocol,
    Window,
    crop,
    crop_mask,
    cut,
    mask_iou,
    prompt_point,
    shown,
    window,
)


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_prompt_is_the_centre_of_the_box() -> None:
    assert prompt_point(square(50, 60, 10, 20, 9)) == (14, 24)


def test_prompt_moves_to_the_nearest_mask_pixel() -> None:
    ring = square(50, 60, 10, 10, 21) & ~square(50, 60, 13, 11, 15)
    assert not ring[20, 20]
    row, column = prompt_point(ring)
    distances = [(r - 20) ** 2 + (c - 20) ** 2 for r, c in np.argwhere(ring)]
    assert ring[row, column]
    assert (row - 20) ** 2 + (column - 20) ** 2 == min(distances)


@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    points=st.lists(st.tuples(st.integers(0, 149), st.integers(0, 149)), min_size=1, max_size=6),
)
def test_point_native_keeps_the_prompt_at_the_centre(
    height: int, width: int, points: list[tuple[int, int]]
) -> None:
    mask = np.zeros((height, width), np.bool_)
    for row, column in points:
        mask[row % height, column % width] = True
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    row, column = prompt_point(mask)
    pixels, inside = crop(POINT_NATIVE_96, picture, mask)
    assert inside[48, 48]
    assert np.array_equal(pixels[48, 48], picture[row, column])


def test_outside_the_picture_is_padding() -> None:
    picture = np.full((40, 200, 3), 7, np.uint8)
    pixels, inside = crop(POINT_NATIVE_96, picture, square(40, 200, 0, 0, 10))
    seen = np.zeros((96, 96), np.bool_)
    seen[44:84, 44:] = True  # the prompt is pixel (4, 4), at (48, 48) of the crop
    assert (pixels[seen] == 7).all()
    assert (pixels[~seen] == POINT_NATIVE_96.pad_value).all()
    assert inside.sum() == 100


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_mask_alone_is_that_of_the_crop(protocol: Protocol) -> None:
    picture = np.zeros((120, 140, 3), np.uint8)
    for top, left, side in ((0, 0, 30), (40, 50, 61), (110, 125, 7)):
        mask = square(120, 140, top, left, side)
        box = (left - 0.4, top + 0.3, side + 0.7, side - 0.2)
        for own in (None, box):
            assert np.array_equal(crop_mask(protocol, mask, own), crop(protocol, picture, mask, own)[1])


def test_mask_iou() -> None:
    a = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    b = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=bool)
    assert [mask_iou(*pair) for pair in zip(a, b, strict=True)] == [1 / 3, 1.0, 0.0]


def test_roi_is_a_square_with_a_tenth_on_each_side() -> None:
    mask = square(400, 400, 100, 100, 1)
    assert window(ROI_PAD10, mask, (100.0, 150.0, 50.0, 20.0)) == Window(130, 95, 60)
    assert window(ROI_PAD10, square(400, 400, 30, 40, 20)) == Window(28, 38, 24)


def test_roi_rescales_the_object_to_the_same_share() -> None:
    picture = np.zeros((500, 500, 3), np.uint8)
    for side in (5, 40, 300):
        _, inside = crop(ROI_PAD10, picture, square(500, 500, 80, 90, side))
        assert inside.mean() == pytest.approx(1 / 1.2**2, rel=0.03)


def test_the_authors_crop_at_each_border() -> None:
    """Shifted at the upper left; at the lower right cut, and stretched back to 96 pixels."""
    picture = np.random.default_rng(2).integers(0, 256, (150, 180, 3), dtype=np.uint8)
    pixels, inside = crop(POINT_NATIVE_96_CLIP, picture, square(150, 180, 0, 3, 10))
    assert np.array_equal(pixels, picture[:96, :96])
    assert np.array_equal(inside, square(96, 96, 0, 3, 10))
    pixels, inside = crop(POINT_NATIVE_96_CLIP, picture, square(150, 180, 139, 169, 11))  # prompt (144, 174)
    kept = Image.fromarray(picture[96:, 126:]).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels, np.asarray(kept))
    assert inside.mean() == pytest.approx(11 * 11 / (54 * 54), rel=0.1)


def test_a_window_far_outside_is_all_padding() -> None:
    assert (cut(np.zeros((10, 10), np.uint8), Window(500, -700, 4), 9) == 9).all()


def test_what_a_crop_shows() -> None:
    corner = square(150, 180, 139, 169, 11)  # prompt (144, 174)
    assert shown(POINT_NATIVE_96, corner) == (96, 126, 96, 96)
    assert shown(POINT_NATIVE_96_CLIP, corner) == (96, 126, 54, 54)
    assert shown(POINT_NATIVE_96_CLIP, square(150, 180, 0, 3, 10)) == (0, 0, 96, 96)
    assert shown(ROI_PAD10, square(400, 400, 30, 40, 20)) == (28, 38, 24, 24)
