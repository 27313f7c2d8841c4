"""Instances become crops; crowds, empty masks and unreadable pictures are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle

from passes.errors import InputError
from student.coco import load_crops
from student.crops import POINT_NATIVE_96, POINT_NATIVE_96_CLIP
from student.evaluate import iou


def test_crops_of_every_instance(synthetic_coco: Path) -> None:
    crops = load_crops(synthetic_coco, "train2017", POINT_NATIVE_96, margin=8)
    assert (len(crops), crops.crowds, crops.empty) == (12, 1, 1)
    assert crops.pictures.shape == (12, 112, 112, 3)
    assert crops.annotation_ids.tolist() == list(range(1, 13))
    assert crops.picture_ids.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert crops.masks[:, 56, 56].all()
    assert (crops.pictures[crops.masks].mean(axis=0) > (200, 180, 30)).all()


def test_missing_and_broken_pictures_are_one_message(synthetic_coco: Path) -> None:
    folder = synthetic_coco / "train2017"
    (folder / "000000000002.png").unlink()
    (folder / "000000000003.png").write_bytes(b"not a picture")
    whole = (folder / "000000000004.png").read_bytes()
    (folder / "000000000004.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="3 pictures") as caught:
        load_crops(synthetic_coco, "train2017", POINT_NATIVE_96)
    for number in (2, 3, 4):
        assert f"{number:012d}.png" in str(caught.value)


def test_no_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_crops(tmp_path, "train2017", POINT_NATIVE_96)


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", '{"images": []}'])
def test_broken_annotation_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(InputError, match="unreadable"):
        load_crops(tmp_path, "train2017", POINT_NATIVE_96)


def test_only_crowds(synthetic_coco: Path) -> None:
    path = synthetic_coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="14 crowds"):
        load_crops(synthetic_coco, "train2017", POINT_NATIVE_96)


def test_the_data_set_is_the_documented_one(real_data: Path) -> None:
    """Counts and the all-ones baselines as the data's README gives them."""
    crops = load_crops(real_data / "coco", "val2017", POINT_NATIVE_96)
    rows = json.loads((real_data / "picosam2_reference" / "matched.json").read_text())["rows"]
    reference = np.isin(crops.annotation_ids, [row["ann_id"] for row in rows])
    assert (len(crops), len(np.unique(crops.picture_ids)), reference.sum()) == (1461, 199, 441)
    assert crops.masks.mean() == pytest.approx(0.327, abs=5e-4)
    assert crops.masks[reference].mean() == pytest.approx(0.279, abs=5e-4)


@pytest.mark.parametrize("model", ["Trained", "Distilled", "Quantized"])
def test_the_clipped_protocol_is_the_authors(real_data: Path, model: str) -> None:
    """Their stored masks against our clipped crops give their IoU, instance by instance."""
    folder = real_data / "picosam2_reference"
    stored = json.loads((folder / f"PicoSAM2_{model}_pred.json").read_text())
    rows = {row["ann_id"]: row for row in json.loads((folder / "matched.json").read_text())["rows"]}
    crops = load_crops(real_data / "coco", "val2017", POINT_NATIVE_96_CLIP)
    crops = crops.select(np.isin(crops.annotation_ids, list(rows)))
    matched = [rows[int(number)] for number in crops.annotation_ids]
    predicted = np.stack([rle.decode(stored[row["pred_index"]]["segmentation"]) for row in matched]) > 0
    stated = np.array([row[f"iou_{model.lower()}"] for row in matched])
    found = iou(predicted, crops.masks)
    assert len(found) == 441
    np.testing.assert_allclose(found, stated, atol=1e-4)
