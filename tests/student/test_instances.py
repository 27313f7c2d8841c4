"""Annotation files become records; what is wrong is one message with a count and names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as codes

from passes.errors import InputError
from student import instances as module
from student.crops import ROI_PAD10, crop_mask
from student.instances import (
    InstanceSet,
    first_names,
    load_folder,
    load_instances,
    read_picture,
    training_split,
)

TRAIN = "annotations/instances_train2017.json"


def loaded(folder: Path) -> InstanceSet:
    return load_instances(f"coco:{folder}", "train2017")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / TRAIN).read_text())
    change(content)
    (folder / TRAIN).write_text(json.dumps(content))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        loaded(folder)
    assert caught.value.fix
    return str(caught.value)


def test_coco_records(synthetic_coco: Path) -> None:
    data = loaded(synthetic_coco)
    assert (data.name, len(data), data.crowds, data.empty) == ("coco train2017", 12, 1, 1)
    assert data.categories == {1: "square"}
    assert [picture.id for picture in data.pictures] == [1, 2, 3, 4, 5, 6]
    first = data.pictures[0]
    assert first.key == "train2017/000000000001.png"
    assert (first.height, first.width) == (120, 140)
    assert [one.annotation_id for one in first.instances] == [1, 2]
    annotation = json.loads((synthetic_coco / TRAIN).read_text())["annotations"][0]
    one = first.instances[0]
    assert list(one.box) == annotation["bbox"]
    assert one.area == annotation["area"] == one.mask().sum()
    left, top, width, height = (int(x) for x in one.box)
    assert one.mask()[top : top + height, left : left + width].all()
    assert (one.mask().dtype, one.mask().shape) == (np.bool_, (120, 140))


def test_order_is_by_id_not_by_file(synthetic_coco: Path) -> None:
    def reverse(content: dict[str, Any]) -> None:
        content["images"].reverse()
        content["annotations"].reverse()

    before = loaded(synthetic_coco)
    edit(synthetic_coco, reverse)
    assert loaded(synthetic_coco) == before


def test_pictures_without_instances_are_kept(synthetic_coco: Path) -> None:
    def strip(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 4]

    edit(synthetic_coco, strip)
    data = loaded(synthetic_coco)
    assert len(data.pictures) == 6
    assert data.pictures[3].instances == ()


def test_another_annotation_file_of_the_same_pictures(synthetic_coco: Path) -> None:
    (synthetic_coco / TRAIN).rename(synthetic_coco / "annotations" / "instances_train2017_some.json")
    data = load_instances(f"coco:{synthetic_coco}", "train2017_some")
    assert data.name == "coco train2017_some"
    assert data.pictures[0].key == "train2017/000000000001.png"


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[10, 20, 31, 20, 31, 41, 10, 41]], (slice(20, 41), slice(10, 31))),
        (
            {"size": [120, 140], "counts": [120 * 5 + 3, 4, 120 * 140 - 120 * 5 - 7]},
            (slice(3, 7), slice(5, 6)),
        ),
        (codes.encode(np.asfortranarray(np.eye(120, 140), np.uint8)), (range(120), range(120))),
    ],
    ids=["polygon", "run lengths", "compressed"],
)
def test_every_form_of_segmentation(synthetic_coco: Path, segmentation: Any, expected: Any) -> None:
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
        segmentation = {"size": segmentation["size"], "counts": segmentation["counts"].decode()}
    edit(synthetic_coco, lambda content: content["annotations"][0].update(segmentation=segmentation))
    mask = np.zeros((120, 140), np.bool_)
    mask[expected] = True
    assert np.array_equal(loaded(synthetic_coco).pictures[0].instances[0].mask(), mask)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-20, 160), st.integers(-20, 140)), min_size=3, max_size=8))
def test_polygons_are_drawn_as_pycocotools_draws_them(points: list[tuple[int, int]]) -> None:
    polygon = [float(x) for point in points for x in point]
    expected = codes.decode(codes.merge(codes.frPyObjects([polygon], 120, 140)))
    rle = module._run_lengths([polygon], 120, 140)
    assert rle is not None
    assert np.array_equal(codes.decode(rle), expected)


@given(st.binary(min_size=1, max_size=60), st.integers(1, 9))
def test_a_compressed_code_is_read_as_it_was_written(bits: bytes, height: int) -> None:
    mask = np.resize(np.unpackbits(np.frombuffer(bits, np.uint8)), (height, 8 * len(bits)))
    code = codes.encode(np.asfortranarray(mask, np.uint8))
    assert module.checked_code(code, *mask.shape) == code
    for damaged in (code["counts"][:-1], code["counts"] + b"1"):
        with pytest.raises(ValueError, match="damaged"):
            module.checked_code({"size": code["size"], "counts": damaged}, *mask.shape)


@pytest.mark.parametrize("nothing", [[], [[]], [[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]], [[9, 9, 9, 9, 9, 9]]])
def test_masks_without_a_pixel_are_counted(synthetic_coco: Path, nothing: Any) -> None:
    edit(synthetic_coco, lambda content: content["annotations"][0].update(segmentation=nothing))
    data = loaded(synthetic_coco)
    assert (len(data), data.empty) == (11, 2)


@pytest.mark.parametrize(
    "broken",
    [
        "text",
        None,
        7,
        {"size": [120, 140]},
        {"size": [5, 5], "counts": [25]},
        {"size": [120, 140], "counts": [1, 2]},
        {"size": [120, 140], "counts": [-5, 5, 16800]},
        {"size": [120, 140], "counts": "no code"},
        [["a", 1, 2, 3, 4, 5]],
        [[0, 0, float("nan"), 5, 5, 5]],
        [[0, 0, 1e9, 0, 5, 5]],
        [[[1, 2, 3, 4, 5, 6]] * 6],
    ],
)
def test_broken_segmentations_are_named_together(synthetic_coco: Path, broken: Any) -> None:
    def spoil(content: dict[str, Any]) -> None:
        for index in (1, 4, 6, 9):
            content["annotations"][index]["segmentation"] = broken

    edit(synthetic_coco, spoil)
    message = refused(synthetic_coco)
    assert "4 annotations cannot be used: 2 (" in message
    assert ", 5 (" in message
    assert ", ..." in message


def test_boxes_and_areas_that_are_no_numbers(synthetic_coco: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [1, 2, 3]
        content["annotations"][1]["area"] = float("nan")
        content["annotations"][2]["image_id"] = 99

    edit(synthetic_coco, spoil)
    message = refused(synthetic_coco)
    assert "3 annotations" in message
    assert "picture 99, which is not among the images" in message


def test_a_record_without_box_and_area_gets_those_of_its_mask(synthetic_coco: Path) -> None:
    before = loaded(synthetic_coco).pictures[0].instances[0]

    def strip(content: dict[str, Any]) -> None:
        del content["annotations"][0]["bbox"], content["annotations"][0]["area"]

    edit(synthetic_coco, strip)
    assert loaded(synthetic_coco).pictures[0].instances[0] == before


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 1e6, 1e6],
        [0, 0, 0, 0],
        [-500, -500, 10, 10],
        [10, 10, -5, -5],
        [100, 60, 41.5, 40],
        [0, 100, 20, 20],
    ],
)
def test_a_box_that_is_not_the_masks_is_replaced_and_counted(synthetic_coco: Path, box: list[float]) -> None:
    square = {"segmentation": [[10, 20, 31, 20, 31, 41, 10, 41]]}

    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0].update(square, bbox=box)
        content["annotations"][1].update(square, bbox=[9.3, 19.1, 22.4, 20.2])
        content["annotations"][2].update(square, bbox=[-1, -1, 142, 122])

    edit(synthetic_coco, spoil)
    data = loaded(synthetic_coco)
    assert data.boxes == 1
    assert [one.box for one in data.pictures[0].instances] == [(10, 20, 21, 21), (9.3, 19.1, 22.4, 20.2)]
    assert data.pictures[1].instances[0].box == (-1, -1, 142, 122)
    for one in data.pictures[0].instances:
        assert crop_mask(ROI_PAD10, one.mask(), one.box).any()


def test_nested_pictures_have_keys_of_their_own(synthetic_coco: Path) -> None:
    def nest(content: dict[str, Any]) -> None:
        for number, image in enumerate(content["images"]):
            image["file_name"] = f"seq{number}/img/0001.png"

    split = synthetic_coco / "train2017"
    for number, path in enumerate(sorted(split.iterdir())):
        (split / f"seq{number}" / "img").mkdir(parents=True)
        path.rename(split / f"seq{number}" / "img" / "0001.png")
    edit(synthetic_coco, nest)
    keys = [picture.key for picture in loaded(synthetic_coco).pictures]
    assert keys == [f"train2017/seq{number}/img/0001.png" for number in range(6)]
    outside = synthetic_coco / "elsewhere.png"
    (split / "seq0" / "img" / "0001.png").rename(outside)
    edit(synthetic_coco, lambda content: content["images"][0].update(file_name=str(outside)))
    assert loaded(synthetic_coco).pictures[0].key == f"{synthetic_coco.name}/elsewhere.png"


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_an_id_twice(synthetic_coco: Path, part: str) -> None:
    edit(synthetic_coco, lambda content: content[part].append(content[part][0]))
    assert f"1 {part} with the id of another" in refused(synthetic_coco)


def test_missing_broken_and_resized_pictures_are_one_message(synthetic_coco: Path) -> None:
    folder = synthetic_coco / "train2017"
    (folder / "000000000002.png").unlink()
    (folder / "000000000003.png").write_bytes(b"not a picture")
    Image.new("RGB", (120, 140)).save(folder / "000000000005.png")
    message = refused(synthetic_coco)
    assert "3 pictures missing, broken or of another size" in message
    for number in (2, 3, 5):
        assert f"{number:012d}.png" in message


def test_a_picture_too_large_to_be_decoded(synthetic_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = loaded(synthetic_coco)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_picture(data.pictures[0]) is None
    assert "6 pictures" in refused(synthetic_coco)


def test_read_picture(synthetic_coco: Path) -> None:
    record = loaded(synthetic_coco).pictures[0]
    pixels = read_picture(record)
    assert pixels is not None
    assert (pixels.shape, pixels.dtype) == ((120, 140, 3), np.uint8)
    Image.open(record.path).convert("L").save(record.path)
    grey = read_picture(record)
    assert grey is not None
    assert grey.shape == (120, 140, 3)
    whole = record.path.read_bytes()
    record.path.write_bytes(whole[: len(whole) // 2])
    assert read_picture(record) is None
    Image.new("RGB", (5, 5)).save(record.path)
    assert read_picture(record) is None
    record.path.unlink()
    assert read_picture(record) is None


def test_no_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_instances(f"coco:{tmp_path}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2",
        "[]",
        '{"images": []}',
        "[" * 100_000,
        '{"images": 3, "annotations": [], "categories": []}',
    ],
)
def test_broken_annotation_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / TRAIN).write_text(text)
    assert "unreadable" in refused(tmp_path)


@pytest.mark.parametrize("field", ["height", "file_name"])
def test_incomplete_image_records(synthetic_coco: Path, field: str) -> None:
    edit(synthetic_coco, lambda content: content["images"][2].pop(field))
    assert f"unreadable (KeyError('{field}'))" in refused(synthetic_coco)


def test_an_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="coco:DIR or lvis:DIR"):
        load_instances(str(tmp_path))


@pytest.mark.parametrize("split", ["v0.5_val", "v1_val"])
def test_both_versions_of_lvis(synthetic_lvis: Path, split: str) -> None:
    data = load_instances(f"lvis:{synthetic_lvis}", split)
    assert data.name == f"lvis {split.replace('_', ' ')}"
    assert [picture.key for picture in data.pictures] == [
        "val2017/000000000001.jpg",
        "val2017/000000000002.jpg",
        "train2017/000000000003.jpg",
        "train2017/000000000004.jpg",
    ]
    assert [one.annotation_id for picture in data.pictures for one in picture.instances] == [10, 20, 30, 40]
    assert (data.categories, data.crowds, data.empty) == ({7: "sail"}, 0, 0)


def test_lvis_splits(synthetic_lvis: Path) -> None:
    with pytest.raises(InputError, match=r"lvis_v0\.5_val\.json, lvis_v1_val\.json"):
        load_instances(f"lvis:{synthetic_lvis}")  # two of them
    (synthetic_lvis / "lvis_v0.5_val.json").rename(synthetic_lvis / "lvis_v1_train.json")
    assert load_instances(f"lvis:{synthetic_lvis}").name == "lvis v1 val"
    assert load_instances(f"lvis:{synthetic_lvis}", "train").name == "lvis v1 train"
    with pytest.raises(InputError, match="one file of split test"):
        load_instances(f"lvis:{synthetic_lvis}", "test")
    assert load_instances(f"lvis:{synthetic_lvis}", training_split("lvis:x")).name == "lvis v1 train"
    assert training_split("coco:x") == "train2017"


def test_first_names() -> None:
    assert first_names(["a", "b"]) == "a, b"
    assert first_names((str(i) for i in range(9)), 3) == "0, 1, 2, ..."


def test_no_lvis(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no lvis_\*\.json"):
        load_instances(f"lvis:{tmp_path}")


def test_missing_lvis_pictures(synthetic_lvis: Path) -> None:
    (synthetic_lvis / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(InputError, match=r"1 pictures missing.*: 000000000002\.jpg"):
        load_instances(f"lvis:{synthetic_lvis}", "v1_val")


def test_a_plain_folder(synthetic_coco: Path) -> None:
    folder = synthetic_coco / "train2017"
    (folder / "notes.txt").write_text("no picture")
    data = load_folder(folder)
    assert (data.name, len(data), len(data.pictures)) == ("folder train2017", 0, 6)
    assert {picture.id for picture in data.pictures} == {-1}
    assert data.pictures[5].key == "train2017/000000000006.png"
    assert (data.pictures[5].height, data.pictures[5].width) == (120, 140)
    (folder / "000000000002.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"1 pictures missing, broken.*: 000000000002\.png"):
        load_folder(folder)


def test_no_pictures_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none in it"):
        load_folder(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_folder(tmp_path / "absent")


@pytest.mark.parametrize(
    ("source", "split", "pictures", "count", "crowds", "boxes"),
    [
        ("coco:coco", None, 199, 1461, 15, 0),
        ("coco:coco", "train2017", 565, 6016, 85, 0),
        ("coco:coco", "extra2017_partial", 300, 571, 6, 0),
        ("lvis:lvis", None, 65, 683, 0, 10),
    ],
)
def test_the_data_sets_are_the_documented_ones(
    real_data: Path, source: str, split: str | None, pictures: int, count: int, crowds: int, boxes: int
) -> None:
    kind, folder = source.split(":")
    data = load_instances(f"{kind}:{real_data / folder}", split)
    assert (len(data.pictures), len(data), data.crowds, data.empty) == (pictures, count, crowds, 0)
    assert data.boxes == boxes
