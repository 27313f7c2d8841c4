"""Which objects of a COCO folder are cropped: one of each picture in turn, evenly over their sizes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calib.representative import DECIDING, card, load_representative, protocol_for
from calib.representative.object_sizes import LARGE, MEDIUM, SIZES, SMALL, choose_objects, size_class
from passes.contract import centred, raw
from passes.errors import InputError
from student.crops import PROTOCOLS, ROI_PAD10, crop
from student.instances import load_instances

objects = st.lists(st.lists(st.sampled_from(SIZES), min_size=1, max_size=6), min_size=1, max_size=12)


def chosen(sizes: list[list[str]], number: int) -> list[tuple[int, int]]:
    found = choose_objects(sizes, number, [(0, f"{index:x}") for index in range(len(sizes))])
    return [(picture, one) for picture, one, _ in found]


def test_coco_size_classes() -> None:
    assert [size_class(area) for area in (1, 1023, 1024, 9215, 9216)] == [SMALL, SMALL, MEDIUM, MEDIUM, LARGE]


@given(objects, st.integers(0, 80), st.integers(0, 80))
def test_the_first_objects_do_not_depend_on_how_many(sizes: list[list[str]], few: int, more: int) -> None:
    assert chosen(sizes, few + more)[:few] == chosen(sizes, few)


@given(objects, st.integers(1, 3))
def test_no_object_again_before_all_were_taken(sizes: list[list[str]], times: int) -> None:
    """And one of every picture before a second of any."""
    total = sum(len(own) for own in sizes)
    counted = Counter(chosen(sizes, times * total))
    assert set(counted.values()) == {times}
    assert len(counted) == total
    assert [picture for picture, _ in chosen(sizes, len(sizes))] == list(range(len(sizes)))


@given(st.integers(3, 60))
def test_sizes_are_even_where_every_picture_has_all(pictures: int) -> None:
    """Twelve small ones for each large one, as many of each are drawn; two apart at most."""
    sizes = [[SMALL] * 12 + [MEDIUM] * 3 + [LARGE]] * pictures
    counted = Counter(sizes[picture][one] for picture, one in chosen(sizes, pictures))
    assert max(counted.values()) - min(counted[size] for size in SIZES) <= 1


def test_the_rare_size_is_taken_where_it_is() -> None:
    sizes = [[SMALL], [SMALL], [SMALL, LARGE], [SMALL, LARGE], [SMALL, MEDIUM]]
    counted = Counter(sizes[picture][one] for picture, one in chosen(sizes, 5))
    assert counted == {SMALL: 2, LARGE: 2, MEDIUM: 1}


def coco(folder: Path, pictures: int) -> Path:
    """Pictures of 300 x 300 with a small, a medium and a large square; red = image id."""
    squares = ((20, 20), (60, 50), (120, 150))  # first pixel and side
    images, annotations = [], []
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for index in range(1, pictures + 1):
        pixels = np.random.default_rng(index).integers(0, 256, (300, 300, 3), np.uint8)
        pixels[..., 0] = index
        Image.fromarray(pixels).save(folder / "train2017" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 300, "width": 300})
        for first, side in squares:
            last = first + side
            polygon = [first, first, last, first, last, last, first, last]
            annotations.append({"id": len(annotations), "image_id": index, "segmentation": [polygon]})
    content = {"images": images, "annotations": annotations, "categories": []}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


def test_coco_sizes_parts_and_card(tmp_path: Path) -> None:
    source = f"coco:{coco(tmp_path / 'coco', 12)}"
    few = load_representative(source, centred(3, 24, 32), 6, deciding=9)
    parts = card(few)["parts"]
    assert sorted(parts.pop("held out")["sizes"].values()) == [5, 5, 6]
    assert parts == {
        "calibration": {"crops": 6, "pictures": 6, "sizes": {"small": 2, "medium": 2, "large": 2}},
        "deciding": {"crops": 9, "pictures": 3, "sizes": {"small": 3, "medium": 3, "large": 3}},
    }
    more = load_representative(source, centred(3, 24, 32), 18, deciding=2)
    np.testing.assert_array_equal(more.pictures[:6], few.pictures)
    np.testing.assert_array_equal(few.deciding[:2], more.deciding)
    assert len({one.tobytes() for one in more.pictures}) == 18  # every instance of the six pictures once
    again = load_representative(source, centred(3, 24, 32), 6, deciding=9)
    assert card(again) == card(few)
    np.testing.assert_array_equal(again.deciding_masks, few.deciding_masks)


def test_planes_of_an_input_that_is_no_picture(tmp_path: Path) -> None:
    source = f"coco:{coco(tmp_path / 'coco', 4)}"
    one = load_representative(source, raw(7, 24, 32, signed=True), 6, deciding=2)
    assert one.pictures.shape == (6, 7, 24, 32)
    assert one.deciding_masks is not None
    assert one.deciding_masks.shape == (2, 24, 32)


def test_the_parts_of_a_small_coco_folder(tmp_path: Path) -> None:
    source = f"coco:{coco(tmp_path / 'coco', 2)}"
    assert load_representative(source, centred(3, 24, 32), 6).pictures.shape[0] == 6
    with pytest.raises(InputError, match=r"2 pictures with instances.*at least three"):
        load_representative(source, centred(3, 24, 32), 6, deciding=1)
    with pytest.raises(InputError, match=r"0 pictures with instances .2 others are excluded"):
        load_representative(source, centred(3, 24, 32), 6, exclude=str(tmp_path / "coco" / "train2017"))


@pytest.mark.parametrize("protocol", [None, *PROTOCOLS])
def test_deciding_crops_and_masks_are_those_of_the_protocol(data_dir: Path, protocol: str | None) -> None:
    source = f"coco:{data_dir / 'coco'}"
    one = load_representative(source, centred(3, 96, 96), 4, deciding=24, protocol=protocol)
    rule = PROTOCOLS[protocol or "point-native-96"]
    assert one.deciding_masks is not None
    assert len(set(one.deciding_pictures.tolist())) == 24
    train = {record.key: record for record in load_instances(source, "train2017").pictures}
    for pixels, mask, index in zip(one.deciding, one.deciding_masks, one.deciding_pictures, strict=True):
        assert one.sources[index].part == DECIDING
        record = train[one.sources[index].name]
        picture = np.asarray(Image.open(record.path).convert("RGB"))
        expected = [crop(rule, picture, instance.mask(), instance.box) for instance in record.instances]
        assert any(
            np.array_equal(pixels.transpose(1, 2, 0), other) and np.array_equal(mask, truth)
            for other, truth in expected
        )


def test_the_protocol_chooses_the_cut_and_nothing_else(tmp_path: Path) -> None:
    source, contract = f"coco:{coco(tmp_path / 'coco', 8)}", centred(3, 24, 24)
    point, boxes = (
        load_representative(source, contract, 6, deciding=3, protocol=name) for name in (None, "roi-pad10")
    )
    assert boxes.sources == point.sources
    assert "native resolution" in point.how
    assert "each one's box with 10% on each side, scaled (roi-pad10)" in boxes.how
    assert boxes.deciding_masks is not None
    # A square with a tenth of its side around it fills (1 / 1.2) squared of the crop, but for rounded sides.
    np.testing.assert_allclose(boxes.deciding_masks.mean((1, 2)), 1 / 1.44, atol=0.08)
    assert not np.array_equal(boxes.pictures, point.pictures)


def test_inputs_that_are_no_square_are_cut_at_native_resolution(tmp_path: Path) -> None:
    source, wide = f"coco:{coco(tmp_path / 'coco', 8)}", centred(3, 24, 32)
    assert protocol_for(wide, "roi-pad10").name == protocol_for(wide, "unheard of").name == "point-native-96"
    assert protocol_for(centred(3, 64, 64), "roi-pad10") == dataclasses.replace(ROI_PAD10, size=64)
    point, boxes = (load_representative(source, wide, 6, protocol=name) for name in (None, "roi-pad10"))
    np.testing.assert_array_equal(boxes.pictures, point.pictures)


def test_sizes_of_the_project_are_even(data_dir: Path) -> None:
    facts = card(load_representative(f"coco:{data_dir / 'coco'}", centred(3, 96, 96), 64, deciding=200))
    for part, crops in (("calibration", 64), ("deciding", 200), ("held out", 16)):
        sizes = facts["parts"][part]["sizes"].values()
        assert sum(sizes) == crops
        assert max(sizes) - min(sizes) <= 2
