"""Views: the protocol's crop where nothing is augmented, and within their limits where something is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import InputError
from student.augment import NONE, POINT, ROI, View, default_augmentation, draw_view, relight, show
from student.crops import POINT_NATIVE_96, ROI_PAD10, Protocol, Window, crop, window

PICTURE = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
EVERYWHERE = lambda row, column: True  # noqa: E731


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(PICTURE.shape[:2], np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize("protocol", [POINT_NATIVE_96, ROI_PAD10], ids=lambda p: p.name)
@pytest.mark.parametrize(
    "mask", [rectangle(40, 60, 30, 50), rectangle(0, 0, 11, 7), rectangle(90, 20, 60, 170)]
)
def test_without_augmentation_a_view_is_the_protocols_crop(protocol: Protocol, mask: np.ndarray) -> None:
    place = window(protocol, mask)
    view = draw_view(NONE, place, 96, (150, 200), EVERYWHERE, np.random.default_rng(0))
    pixels, inside = crop(protocol, PICTURE, mask)
    assert np.array_equal(show(PICTURE, view, 96, protocol.pad_value), pixels)
    assert np.array_equal(show(mask.astype(np.uint8) * 255, view, 96, 0) >= 128, inside)
    light = relight(NONE, pixels, np.random.default_rng(0))
    assert np.array_equal(light, pixels)


@given(seed=st.integers(0, 10_000), top=st.integers(-60, 140), left=st.integers(-60, 190))
def test_views_stay_within_their_limits(seed: int, top: int, left: int) -> None:
    augmentation = dataclasses.replace(POINT, clip=0.0)
    place = Window(top, left, 96)
    view = draw_view(augmentation, place, 96, (150, 200), EVERYWHERE, np.random.default_rng(seed))
    assert abs(np.log(view.height * view.width) / 2 - np.log(96)) <= augmentation.scale + 1e-9
    assert abs(np.log(view.height / view.width)) <= augmentation.aspect + 1e-9
    reach = round(augmentation.move * 96) + 1e-9
    assert abs(view.top + view.height / 2 - top - 48) <= reach
    mirrored = view.width / 96 if view.mirrored else 0.0
    assert abs(view.left + view.width / 2 - left - 48 - mirrored) <= reach


@given(seed=st.integers(0, 10_000))
def test_the_prompt_stays_on_the_object(seed: int) -> None:
    mask = rectangle(70, 90, 5, 9)
    place = window(POINT_NATIVE_96, mask)

    def on_object(row: int, column: int) -> bool:
        return bool(mask[row, column])

    still = dataclasses.replace(POINT, scale=0.0, aspect=0.0, clip=0.0)
    view = draw_view(still, place, 96, (150, 200), on_object, np.random.default_rng(seed))
    assert show(mask.astype(np.uint8), view, 96, 0)[48, 48] == 1  # in the mirror as well


@given(seed=st.integers(0, 10_000), top=st.integers(-60, 140), left=st.integers(-60, 190))
def test_clipped_views_stay_in_the_picture(seed: int, top: int, left: int) -> None:
    always = dataclasses.replace(POINT, clip=1.0)
    place = Window(min(top, 100), min(left, 150), 96)
    view = draw_view(always, place, 96, (150, 200), EVERYWHERE, np.random.default_rng(seed))
    assert view.top >= 0
    assert view.left >= 0
    assert view.top + view.height <= 150 + 1e-9
    assert view.left + view.width <= 200 + 1e-9


def test_a_mirrored_view_is_the_mirror_image() -> None:
    view = View(10.25, 20.5, 70.0, 80.0)
    mirrored = dataclasses.replace(view, mirrored=True)
    assert np.array_equal(show(PICTURE, mirrored, 96, 128), show(PICTURE, view, 96, 128)[:, ::-1])


def test_outside_the_picture_is_the_fill() -> None:
    shown = show(PICTURE, View(-500.0, -500.0, 96.0, 96.0), 96, 77)
    assert (shown == 77).all()


def test_float_planes_are_resampled_between_their_cells() -> None:
    plane = np.arange(4, dtype=np.float32)[None].repeat(4, 0)
    shown = show(plane, View(0.0, 0.0, 4.0, 4.0), 8, 0.0)
    assert shown.dtype == np.float32
    assert shown[3, 2:6].tolist() == [0.75, 1.25, 1.75, 2.25]  # half-pixel centres


def test_light_stays_in_range_and_grey_has_no_colour() -> None:
    grey = dataclasses.replace(NONE, grey=1.0)
    light = relight(grey, PICTURE[:96, :96], np.random.default_rng(0))
    assert (light == light[..., :1]).all()
    strong = dataclasses.replace(POINT, contrast=0.9, brightness=100.0)
    for seed in range(10):
        light = relight(strong, PICTURE[:96, :96], np.random.default_rng(seed))
        assert 0 <= light.min() <= light.max() <= 255
        assert np.array_equal(light, np.rint(light))


def test_each_protocol_has_its_augmentation() -> None:
    assert default_augmentation(POINT_NATIVE_96) is POINT
    assert default_augmentation(ROI_PAD10) is ROI


@pytest.mark.parametrize(("name", "value"), [("scale", 50.0), ("move", float("nan")), ("mirror", -0.1)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"augmentation\.{name}"):
        dataclasses.replace(POINT, **{name: value})
