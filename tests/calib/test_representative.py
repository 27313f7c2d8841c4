"""Representative data: seeded, split into disjoint parts, and clear about what is wrong with a source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.representative import (
    CALIBRATION,
    HELD_OUT,
    HELD_OUT_PART,
    RepresentativeSet,
    delivered,
    load_representative,
)
from passes.contract import InputContract, centred, raw
from passes.errors import InputError

CONTRACT = centred(3, 40, 56)


def save(path: Path, seed: int, size: tuple[int, int] = (90, 70), mode: str = "RGB") -> None:
    """A picture whose red channel is its seed everywhere, so that a crop tells where it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    pixels[..., 0] = seed
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(8):
        save(tmp_path / "photos" / ("deep/er" if index % 2 else "") / f"{index}.png", index)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def reds(pictures: np.ndarray) -> set[int]:
    return {int(red) for red in np.unique(pictures[:, 0])}


def same(one: RepresentativeSet, other: RepresentativeSet) -> bool:
    return bool(np.array_equal(one.pictures, other.pictures) and np.array_equal(one.held_out, other.held_out))


def test_builtin_needs_no_files_and_is_seeded() -> None:
    one = load_representative("builtin", CONTRACT, 24, seed=3)
    assert one.pictures.shape == (24, 3, 40, 56)
    assert one.held_out.shape == (HELD_OUT, 3, 40, 56)
    assert one.pictures.dtype == one.held_out.dtype == np.uint8
    assert same(one, load_representative("builtin", CONTRACT, 24, seed=3))
    assert not same(one, load_representative("builtin", CONTRACT, 24, seed=4))
    assert "24 crops of 56x40" in one.how
    assert "seed 3" in one.how
    # Photographs, not flat areas: most crops have contrast.
    assert np.median(one.pictures.std(axis=(1, 2, 3))) > 20
    shown = {s.name for s in one.sources if s.part == CALIBRATION}
    hidden = {s.name for s in one.sources if s.part == HELD_OUT_PART}
    assert shown
    assert hidden
    assert not shown & hidden


def test_folder_is_read_recursively_and_split_by_picture(folder: Path) -> None:
    one = load_representative(str(folder), CONTRACT, 12, seed=0, deciding=2)
    assert len(one.sources) == 8
    assert {s.name for s in one.sources} >= {"0.png", "deep/er/1.png"}
    assert one.sources[0].sha256 == hashlib.sha256((folder / one.sources[0].name).read_bytes()).hexdigest()
    number = {s.name: int(Path(s.name).stem) for s in one.sources}
    assert reds(one.pictures) == {number[s.name] for s in one.sources if s.part == CALIBRATION}
    assert reds(one.held_out) == {number[s.name] for s in one.sources if s.part == HELD_OUT_PART}
    assert str(folder.parent) not in one.how


def test_other_formats_and_modes_are_read(tmp_path: Path) -> None:
    save(tmp_path / "a.JPG", 10)
    save(tmp_path / "b.bmp", 20)
    save(tmp_path / "c.webp", 30)
    save(tmp_path / "d.jpeg", 40, mode="L")
    save(tmp_path / "e.png", 50, mode="P")
    assert len(load_representative(str(tmp_path), CONTRACT, 10, deciding=1).sources) == 5


def test_a_small_picture_is_scaled_up(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 10, size=(7, 5))
    save(tmp_path / "b.png", 20, size=(200, 3))
    one = load_representative(str(tmp_path), CONTRACT, 4)
    assert one.pictures.shape == (4, 3, 40, 56)


def test_of_one_picture_disjoint_parts_are_used(tmp_path: Path) -> None:
    """Calibration and held-out crops share no column; each column has its own red."""
    pixels = np.zeros((60, 200, 3), np.uint8)
    pixels[..., 0] = np.arange(200)
    Image.fromarray(pixels).save(tmp_path / "only.png")
    one = load_representative(str(tmp_path), centred(3, 16, 16), 20)
    assert one.pictures[:, 0].max() < 150 <= one.held_out[:, 0].min()
    assert "another part of the only picture" in one.how


def test_crops_are_native_and_scaled_down(tmp_path: Path) -> None:
    """A checkerboard of single pixels survives a native crop and greys out in a scaled one."""
    board = ((np.indices((300, 300)).sum(0) % 2) * 255).astype(np.uint8)
    for index in range(4):
        pixels = np.stack([board] * 3, axis=-1)
        pixels[0, 0] = index  # no two are the same picture
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    contrast = load_representative(str(tmp_path), centred(3, 32, 32), 40).pictures.std(axis=(1, 2, 3))
    assert 8 < (contrast > 120).sum() < 32


def test_channels_follow_the_contract(folder: Path) -> None:
    def contract(order: str, channels: int) -> InputContract:
        ones, zeros = (1.0,) * channels, (0.0,) * channels
        return InputContract(channels, 40, 56, order, ones, zeros)

    rgb = load_representative(str(folder), contract("RGB", 3), 6)
    bgr = load_representative(str(folder), contract("BGR", 3), 6)
    np.testing.assert_array_equal(rgb.pictures[:, ::-1], bgr.pictures)
    grey = load_representative(str(folder), contract("GREY", 1), 6)
    expected = np.array([0.299, 0.587, 0.114]) @ rgb.pictures.reshape(6, 3, -1)
    np.testing.assert_allclose(grey.pictures.reshape(6, -1), expected, atol=1.0)
    assert "no picture" not in rgb.how + bgr.how + grey.how
    tensor = load_representative(str(folder), contract("ANY", 7), 6)
    assert tensor.pictures.shape == (6, 7, 40, 56)
    assert "no picture" in tensor.how


def test_delivered_integers() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    unsigned = delivered(pixels, raw(1, 16, 16))
    signed = delivered(pixels, raw(1, 16, 16, signed=True))
    assert unsigned.dtype == signed.dtype == np.float32
    assert (unsigned.min(), unsigned.max()) == (0, 255)
    assert (signed.min(), signed.max()) == (-128, 127)
    np.testing.assert_array_equal(signed, unsigned - 128)


def coco(folder: Path, split: str, images: int = 6) -> Path:
    """Pictures 60x50 with one square instance each, its centre at row 30, column 20; red = image id."""
    annotations = []
    for index in range(1, images + 1):
        save(folder / split / f"{index}.jpg.png", index, size=(60, 50))
        square = [10, 20, 31, 20, 31, 41, 10, 41]
        annotations.append({"id": index, "image_id": index, "iscrowd": 0, "segmentation": [square]})
    annotations.append(
        {"id": 99, "image_id": 1, "iscrowd": 1, "segmentation": {"counts": [], "size": [50, 60]}}
    )
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg.png", "height": 50, "width": 60} for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def test_coco_crops_are_centred_on_instances_at_native_resolution(tmp_path: Path) -> None:
    one = load_representative(f"coco:{coco(tmp_path, 'train2017')}", centred(3, 24, 32), 5)
    for crop in one.pictures:
        number = int(crop[0, 12, 16])
        picture = np.asarray(Image.open(tmp_path / "train2017" / f"{number}.jpg.png")).transpose(2, 0, 1)
        # Row 30 and column 20 of the picture are row 12 and column 16 of the crop.
        np.testing.assert_array_equal(crop, picture[:, 18:42, 4:36])
    assert not reds(one.pictures) & reds(one.held_out)
    assert "validation" not in one.how


def test_coco_crops_are_padded_grey_outside_the_picture(tmp_path: Path) -> None:
    one = load_representative(f"coco:{coco(tmp_path, 'train2017')}", centred(3, 64, 64), 5)
    # The window starts at row -2 and column -12.
    assert (one.pictures[:, :, :, :12] == 128).all()
    assert (one.pictures[:, :, :2] == 128).all()
    assert one.pictures[:, 1:, 2:50, 12:].std() > 50


def test_coco_takes_training_annotations_where_there_are_some(tmp_path: Path) -> None:
    coco(tmp_path, "val2017")
    only_validation = load_representative(f"coco:{tmp_path}", CONTRACT, 4)
    assert all(s.name.startswith("val2017/") for s in only_validation.sources)
    assert "of the validation set" in only_validation.how
    coco(tmp_path, "train2017")
    assert all(
        s.name.startswith("train2017/") for s in load_representative(f"coco:{tmp_path}", CONTRACT, 4).sources
    )


def test_coco_of_the_project(data_dir: Path) -> None:
    one = load_representative(f"coco:{data_dir / 'coco'}", centred(3, 96, 96), 8)
    assert one.pictures.shape == (8, 3, 96, 96)
    assert all(s.name.startswith("train2017/") for s in one.sources)


def wrong(src: str, count: int = 4) -> str:
    with pytest.raises(InputError) as caught:
        load_representative(src, CONTRACT, count)
    assert caught.value.fix
    return str(caught.value)


def test_broken_pictures_are_all_named(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"")
    (folder / "deep/er/1.png").write_bytes((folder / "2.png").read_bytes()[:200])
    message = wrong(str(folder), count=40)
    assert "2 pictures cannot be read" in message
    assert "0.png" in message
    assert "deep/er/1.png" in message


def test_what_is_no_source_is_refused(tmp_path: Path, folder: Path) -> None:
    assert "does not exist" in wrong(str(tmp_path / "absent"))
    assert "is a file" in wrong(str(folder / "0.png"))
    assert "at least 1" in wrong("builtin", count=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no pictures in it" in wrong(str(empty))
    assert "annotations" in wrong(f"coco:{empty}")
    coco(empty, "train2017", images=1)
    assert "1 pictures with instances" in wrong(f"coco:{empty}")
    (empty / "annotations" / "instances_train2017.json").write_text("[1, 2")
    assert "cannot be read" in wrong(f"coco:{empty}")
    coco(empty, "train2017")
    for picture in (empty / "train2017").iterdir():
        picture.unlink()
    assert "pictures cannot be read" in wrong(f"coco:{empty}")


@pytest.mark.parametrize(
    "broken", [[1, 2, 3], [[1, 2, 3]], {"counts": "no code", "size": [50, 60]}, {"size": [50, 60]}, "text"]
)
def test_a_broken_segmentation_names_its_picture(tmp_path: Path, broken: object) -> None:
    coco(tmp_path, "train2017")
    file = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = broken
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"\.jpg\.png: segmentation"):
        load_representative(f"coco:{tmp_path}", centred(3, 24, 32), 5)
