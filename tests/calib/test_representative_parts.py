"""The three parts of a source: apart by picture and content, whatever is drawn; and what is never drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from calib.representative import (
    CALIBRATION,
    DECIDING,
    HELD_OUT,
    HELD_OUT_PART,
    RepresentativeSet,
    card,
    content_hashes,
    load_representative,
    overlap,
)
from calib.representative.parts import part_sizes
from passes.contract import centred
from passes.errors import InputError

CONTRACT = centred(3, 40, 56)
PARTS = (CALIBRATION, DECIDING, HELD_OUT_PART)


def pixels_of(number: int) -> np.ndarray:
    """A picture whose red channel is its number everywhere, so that a crop tells where it comes from."""
    pixels = np.random.default_rng(number).integers(0, 256, (70, 90, 3), np.uint8)
    pixels[..., 0] = number
    return pixels


def folder_of(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(pixels_of(number)).save(folder / f"{number:03}.png")
    return folder


def reds(pictures: np.ndarray) -> set[int]:
    return {int(red) for red in np.unique(pictures[:, 0])}


def numbers_of(one: RepresentativeSet) -> dict[str, set[int]]:
    return {CALIBRATION: reds(one.pictures), DECIDING: reds(one.deciding), HELD_OUT_PART: reds(one.held_out)}


@given(st.integers(0, 200_000))
def test_every_part_of_three_pictures_or_more_has_one(pictures: int) -> None:
    held_out, deciding = part_sizes(pictures)
    if pictures >= 3:
        assert min(held_out, deciding, pictures - held_out - deciding) >= 1
        assert max(held_out, deciding) <= max(1, round(pictures * 0.25))
    else:
        assert deciding == 0
        assert held_out == (pictures == 2)


def test_fewer_crops_are_the_first_of_more(tmp_path: Path) -> None:
    """Within one round of the pictures and over several, in every part, whatever the other counts."""
    folder = folder_of(tmp_path / "photos", range(12))
    most = load_representative(str(folder), CONTRACT, 40, 5, deciding=20)
    for count, deciding in ((1, 0), (5, 3), (6, 20), (17, 7), (40, 0)):
        one = load_representative(str(folder), CONTRACT, count, 5, deciding=deciding)
        np.testing.assert_array_equal(one.pictures, most.pictures[:count])
        np.testing.assert_array_equal(one.deciding, most.deciding[:deciding])
        np.testing.assert_array_equal(one.held_out, most.held_out)


def test_the_crops_of_one_picture_differ(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", range(12))
    crops = load_representative(str(folder), CONTRACT, 40, 5).pictures
    assert len({crop.tobytes() for crop in crops}) == 40


@pytest.mark.parametrize("seed", range(4))
def test_parts_share_no_picture(tmp_path: Path, seed: int) -> None:
    folder = folder_of(tmp_path / "photos", range(12))
    one = load_representative(str(folder), CONTRACT, 12, seed, deciding=9)
    assert one.deciding.shape == (9, 3, 40, 56)
    assert one.deciding_masks is None
    numbers = numbers_of(one)
    assert [len(numbers[part]) for part in PARTS] == [6, 3, 3]
    assert set.union(*numbers.values()) == set(range(12))
    names = [one.sources[index].name for index in one.deciding_pictures]
    assert [int(crop[0, 0, 0]) for crop in one.deciding] == [int(Path(name).stem) for name in names]
    assert all(one.sources[index].part == DECIDING for index in one.deciding_pictures)


@pytest.mark.parametrize("seed", range(8))
def test_a_picture_under_two_names_lands_in_one_part(tmp_path: Path, seed: int) -> None:
    folder = folder_of(tmp_path / "photos", range(6))
    for number in range(6):
        (folder / "again").mkdir(exist_ok=True)
        Image.fromarray(pixels_of(number)).save(folder / "again" / f"{number}.bmp")
    one = load_representative(str(folder), CONTRACT, 12, seed, deciding=9)
    numbers = numbers_of(one)
    assert sum(len(numbers[part]) for part in PARTS) == len(set.union(*numbers.values())) == 6
    assert all(numbers.values())
    assert len({source.content for source in one.sources}) == len(one.sources)


def test_mostly_the_same_picture_still_fills_every_part(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", range(3))
    for copy in range(20):
        shutil.copy(folder / "000.png", folder / f"copy{copy}.png")
    numbers = numbers_of(load_representative(str(folder), CONTRACT, 8, deciding=4))
    assert sorted(len(own) for own in numbers.values()) == [1, 1, 1]
    assert set.union(*numbers.values()) == {0, 1, 2}


@pytest.mark.parametrize("pictures", [1, 2])
def test_too_few_pictures_are_cut_in_parts(tmp_path: Path, pictures: int) -> None:
    """Each column has its own red, and each picture its own green: parts share no column of a picture."""
    for number in range(pictures):
        pixels = np.zeros((60, 200, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = np.arange(200), number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    one = load_representative(str(tmp_path), centred(3, 16, 16), 30, deciding=30)

    def columns(crops: np.ndarray) -> set[tuple[int, int]]:
        return {(int(crop[1, 0, 0]), int(red)) for crop in crops for red in np.unique(crop[0])}

    shown, choosing, hidden = columns(one.pictures), columns(one.deciding), columns(one.held_out)
    assert not shown & choosing
    assert not shown & hidden
    assert not choosing & hidden
    assert min(len(shown), len(choosing), len(hidden)) >= 40


# What is never drawn


def test_excluded_pictures_are_in_no_part(tmp_path: Path) -> None:
    """They are known by their pixels: by other names, saved again with other bytes and metadata."""
    folder = folder_of(tmp_path / "photos", range(12))
    (tmp_path / "scored").mkdir()
    remark = PngInfo()
    remark.add_text("Comment", "the same picture")
    for number in (2, 3, 7):
        again = tmp_path / "scored" / f"other{number}.png"
        Image.fromarray(pixels_of(number)).save(again, compress_level=0, pnginfo=remark)
        assert again.read_bytes() != (folder / f"{number:03}.png").read_bytes()
    by_source = load_representative(str(folder), CONTRACT, 20, deciding=6, exclude=str(tmp_path / "scored"))
    hashes = content_hashes(str(tmp_path / "scored"))
    by_hash = load_representative(str(folder), CONTRACT, 20, deciding=6, exclude=sorted(hashes))
    for one in (by_source, by_hash):
        assert set.union(*numbers_of(one).values()) == set(range(12)) - {2, 3, 7}
        assert set(one.left_out) == hashes
    np.testing.assert_array_equal(by_source.pictures, by_hash.pictures)
    left_out = card(by_source)["left_out"]
    assert left_out == {"pictures": 3, "contents": list(by_source.left_out)}
    # The card's own list draws the same again: how a package's held-out pictures are found.
    replayed = load_representative(str(folder), CONTRACT, 20, exclude=left_out["contents"])
    np.testing.assert_array_equal(replayed.held_out, by_source.held_out)


def test_the_pictures_scored_by_evaluate_are_excluded(data_dir: Path) -> None:
    """LVIS' pictures are COCO's; those of COCO's own validation split are not in its training split."""
    coco, lvis = f"coco:{data_dir / 'coco'}", content_hashes(f"lvis:{data_dir / 'lvis'}")
    assert len(lvis) == 65
    assert len(content_hashes(coco)) == 199
    one = load_representative(coco, centred(3, 96, 96), 32, exclude=lvis)
    assert not overlap(card(one)["sources"], lvis)


def test_progress_is_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", range(6))
    told: list[tuple[str, float | None]] = []
    load_representative(
        str(folder), CONTRACT, 4, exclude=["0" * 64], progress=lambda *said: told.append(said)
    )
    content_hashes(str(folder), progress=lambda *said: told.append(said))
    assert {phase for phase, _ in told} == {"reading pictures", "cutting crops", "hashing pictures"}
    assert all(share is not None and 0 <= share <= 1 for _, share in told)


def refused(src: str, **asked: object) -> str:
    with pytest.raises(InputError) as caught:
        load_representative(src, CONTRACT, **asked)  # type: ignore[arg-type]
    assert caught.value.fix
    return str(caught.value)


def test_errors(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", range(4))
    assert "no picture to draw from (4 others are excluded)" in refused(str(folder), exclude=str(folder))
    assert "does not exist" in refused(str(folder), exclude=str(tmp_path / "absent"))
    assert "at least 0" in refused(str(folder), deciding=-1)
    (folder / "000.png").write_bytes(b"none")
    assert "1 pictures cannot be read: 000.png" in refused(str(folder), count=9, deciding=1)
    assert "000.png" in refused("builtin", exclude=str(folder))


# The card


def test_the_card_lists_everything(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", range(12))
    few = load_representative(str(folder), CONTRACT, 4, 1, deciding=5, exclude=["0" * 64])
    more = load_representative(str(folder), CONTRACT, 20, 1, deciding=5)
    facts = card(few, more)
    assert facts["parts"] == {
        "calibration": {"crops": 4, "pictures": 4},
        "training": {"crops": 20, "pictures": 6},
        "deciding": {"crops": 5, "pictures": 3},
        "held out": {"crops": HELD_OUT, "pictures": 3},
    }
    assert (facts["pictures"], facts["held_out"], facts["seed"]) == (4, HELD_OUT, 1)
    assert {source["name"] for source in facts["sources"]} == {path.name for path in folder.iterdir()}
    assert sum(source["crops"] for source in facts["sources"]) == 20 + 5 + HELD_OUT
    assert "4 crops of 56x40" in facts["how"]
    assert "trained on 20 crops" in facts["how"]
    assert facts == card(few, load_representative(str(folder), CONTRACT, 20, 1, deciding=5))
    hashes = {facts["sha256"], card(few)["sha256"], card(more)["sha256"]}
    hashes.add(card(few, load_representative(str(folder), CONTRACT, 21, 1, deciding=5))["sha256"])
    assert len(hashes) == 4


def test_overlap_names_the_pictures_of_a_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", range(6))
    scored = folder_of(tmp_path / "scored", range(4, 9))
    facts = card(load_representative(str(folder), CONTRACT, 6, deciding=2))
    found = overlap(facts["sources"], content_hashes(str(scored)))
    assert [source["name"] for source in found] == ["004.png", "005.png"]
    old = [{"name": "004.png", "sha256": "0", "held_out": False}]  # a card of before contents were hashed
    assert overlap(old, content_hashes(str(scored))) == ()
