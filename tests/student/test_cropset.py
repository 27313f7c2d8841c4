"""Instances become crops, with everything that is needed to put a mask back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as codes

from passes.errors import InputError
from student import cropset as module
from student.crops import POINT_NATIVE_96, POINT_NATIVE_96_CLIP, PROTOCOLS, Protocol, crop
from student.cropset import load_crops, load_masks
from student.evaluate import iou, listed_instances, matched_rows, stored_predictions
from student.instances import Instance, InstanceSet, PictureRecord, load_instances, read_picture


@pytest.fixture
def squares(synthetic_coco: Path) -> InstanceSet:
    return load_instances(f"coco:{synthetic_coco}", "train2017")


def test_crops_of_every_instance(squares: InstanceSet) -> None:
    crops = load_crops(squares, POINT_NATIVE_96)
    assert (len(crops), crops.crowds, crops.empty) == (12, 1, 1)
    assert crops.pictures.shape == (12, 96, 96, 3)
    assert crops.annotation_ids.tolist() == list(range(1, 13))
    assert crops.picture_ids.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert crops.category_ids.tolist() == [1] * 12
    assert crops.sizes.tolist() == [[120, 140]] * 12
    assert crops.masks[:, 48, 48].all()
    assert (crops.pictures[crops.masks].mean(axis=0) > (200, 180, 30)).all()
    assert crops.areas.tolist() == [one.area for picture in squares.pictures for one in picture.instances]


def test_crops_are_in_order_of_annotation_whatever_the_pictures_are(squares: InstanceSet) -> None:
    def renumbered(picture: PictureRecord) -> PictureRecord:
        changed = [replace(one, annotation_id=100 - one.annotation_id) for one in picture.instances]
        return replace(picture, instances=tuple(reversed(changed)))

    plain = load_crops(squares, POINT_NATIVE_96)
    turned = load_crops(
        replace(squares, pictures=tuple(renumbered(one) for one in squares.pictures)), POINT_NATIVE_96
    )
    assert turned.annotation_ids.tolist() == list(range(88, 100))
    for name in ("pictures", "masks", "picture_ids", "areas", "competing", "shown"):
        assert np.array_equal(getattr(turned, name), getattr(plain, name)[::-1])


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_crop_is_the_protocols(squares: InstanceSet, protocol: Protocol) -> None:
    crops = load_crops(squares, protocol)
    record = squares.pictures[2]
    pixels = read_picture(record)
    assert pixels is not None
    for one in record.instances:
        expected, mask = crop(protocol, pixels, one.mask(), one.box)
        assert np.array_equal(crops.pictures[one.annotation_id - 1], expected)
        assert np.array_equal(crops.masks[one.annotation_id - 1], mask)


def rectangles(height: int, width: int) -> st.SearchStrategy[tuple[int, int, int, int]]:
    return st.tuples(
        st.integers(0, height - 1), st.integers(0, width - 1), st.integers(1, 20), st.integers(1, 20)
    )


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(rectangles(40, 50), min_size=1, max_size=6),
    windows=st.lists(
        st.tuples(st.integers(-15, 39), st.integers(-15, 49), st.integers(16, 40)), min_size=6, max_size=6
    ),
)
def test_competing_counts_others_with_a_pixel_in_the_window(
    drawn: list[tuple[int, int, int, int]], windows: list[tuple[int, int, int]]
) -> None:
    masks = np.zeros((len(drawn), 40, 50), np.bool_)
    for mask, (top, left, height, width) in zip(masks, drawn, strict=True):
        mask[top : top + height, left : left + width] = True
    instances = tuple(
        Instance(i, 1, (0.0, 0.0, 1.0, 1.0), 1.0, codes.encode(np.asfortranarray(mask, np.uint8)))
        for i, mask in enumerate(masks)
    )
    record = PictureRecord(1, Path("x.png"), 40, 50, instances)
    shown = np.array([(top, left, side, side) for top, left, side in windows[: len(drawn)]], np.int64)
    found = module._competing(record, shown)
    for index, (top, left, side, _) in enumerate(shown.tolist()):
        seen = masks[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)].any(axis=(1, 2))
        assert found[index] == seen.sum() - int(seen[index])


def test_truncated_pictures_are_one_message(synthetic_coco: Path, squares: InstanceSet) -> None:
    for number in (2, 4):
        path = synthetic_coco / "train2017" / f"{number:012d}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])  # its header stays readable
    data = load_instances(f"coco:{synthetic_coco}", "train2017")
    with pytest.raises(InputError, match=r"2 pictures are broken: 000000000002\.png, 000000000004\.png"):
        load_crops(data, POINT_NATIVE_96)


def test_masks_without_their_pictures(synthetic_coco: Path, squares: InstanceSet) -> None:
    crops = load_crops(squares, POINT_NATIVE_96)
    for record in squares.pictures:
        record.path.unlink()
    assert np.array_equal(load_masks(squares, POINT_NATIVE_96, 12), crops.masks)
    told: list[tuple[int, int]] = []
    some = load_masks(squares, POINT_NATIVE_96, 5, seed=3, on_progress=lambda *state: told.append(state))
    assert told == [(done, 5) for done in range(1, 6)]
    assert {mask.tobytes() for mask in some} < {mask.tobytes() for mask in crops.masks}
    assert np.array_equal(load_masks(squares, POINT_NATIVE_96, 5, seed=3), some)
    assert not np.array_equal(load_masks(squares, POINT_NATIVE_96, 5, seed=4), some)


def test_nothing_to_crop(squares: InstanceSet) -> None:
    bare = replace(squares, pictures=tuple(replace(one, instances=()) for one in squares.pictures), crowds=14)
    with pytest.raises(InputError, match="14 crowds"):
        load_crops(bare, POINT_NATIVE_96)
    with pytest.raises(InputError, match="14 crowds"):
        load_masks(bare, POINT_NATIVE_96, 5)


def test_progress_and_selection(squares: InstanceSet) -> None:
    told = []
    crops = load_crops(squares, POINT_NATIVE_96, lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]
    chosen = crops.select(np.isin(crops.annotation_ids, [3, 11]))
    assert chosen.annotation_ids.tolist() == [3, 11]
    assert chosen.shown.shape == (2, 4)
    assert np.array_equal(chosen.masks, crops.masks[[2, 10]])
    assert chosen.crowds == 1


def test_the_data_set_is_the_documented_one(real_data: Path) -> None:
    """Counts and the all-ones baselines as the data's README gives them."""
    crops = load_crops(load_instances(f"coco:{real_data / 'coco'}"), POINT_NATIVE_96)
    reference = np.isin(
        crops.annotation_ids, listed_instances(real_data / "picosam2_reference" / "matched.json")
    )
    assert (len(crops), len(np.unique(crops.picture_ids)), reference.sum()) == (1461, 199, 441)
    assert crops.masks.mean() == pytest.approx(0.327, abs=5e-4)
    assert crops.masks[reference].mean() == pytest.approx(0.279, abs=5e-4)


@pytest.mark.parametrize(
    ("model", "published"), [("Trained", 0.3607), ("Distilled", 0.3955), ("Quantized", 0.3952)]
)
def test_the_clipped_protocol_is_the_authors(real_data: Path, model: str, published: float) -> None:
    """Their stored masks against our clipped crops give their IoU: the mean, and instance by instance."""
    folder = real_data / "picosam2_reference"
    matched = folder / "matched.json"
    crops = load_crops(load_instances(f"coco:{real_data / 'coco'}"), POINT_NATIVE_96_CLIP)
    crops = crops.select(np.isin(crops.annotation_ids, list(matched_rows(matched))))
    stored = stored_predictions(folder / f"PicoSAM2_{model}_pred.json", matched, 96).of(crops)
    found = iou(stored.masks, crops.masks)
    rows = {row["ann_id"]: row[f"iou_{model.lower()}"] for row in json.loads(matched.read_text())["rows"]}
    assert len(found) == 441
    assert found.mean() == pytest.approx(published, abs=5e-4)
    np.testing.assert_allclose(found, [rows[int(i)] for i in crops.annotation_ids], atol=1e-4)
