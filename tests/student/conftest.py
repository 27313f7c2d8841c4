"""Where the real data set lies, and small synthetic ones in the formats of COCO and LVIS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from student.cropset import CropSet
from tests.pictures import write_coco

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with coco/ and picosam2_reference/; tests that ask for it skip where it is absent."""
    directory = Path(os.environ.get("PICOSAM2_DATA", ROOT / "../shared/data"))
    if not (directory / "coco" / "annotations").is_dir():
        pytest.skip(f"no COCO data at {directory} (set PICOSAM2_DATA)")
    return directory


@pytest.fixture
def synthetic_coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


@pytest.fixture
def synthetic_lvis(tmp_path: Path) -> Path:
    """A folder with both versions of LVIS over the same 4 pictures of 90 x 100 (JPEG, one triangle each).

    lvis_v0.5_val.json names pictures as COCO 2014 did; annotations/lvis_v1_val.json names none. Pictures 1
    and 2 are in val2017, 3 in train2017, 4 in train2017 of a COCO folder beside.
    """
    folder = tmp_path / "lvis"
    homes = {1: folder / "val2017", 2: folder / "val2017", 3: folder / "train2017"}
    homes[4] = tmp_path / "coco" / "train2017"
    images, annotations = [], []
    for number, home in homes.items():
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((90, 100, 3), 40 * number, np.uint8)).save(home / f"{number:012d}.jpg")
        images.append({"id": number, "height": 90, "width": 100})
        corners = [10.0, 10.0, 50.0, 10.0, 10.0, 40.0 + number]
        annotations.append(
            {
                "id": 10 * number,
                "image_id": number,
                "category_id": 7,
                "bbox": [10.0, 10.0, 40.0, 30.0 + number],
                "area": 20.0 * (30 + number),
                "segmentation": [corners],
            }
        )
    categories = [{"id": 7, "name": "sail"}]
    older = [image | {"file_name": f"COCO_val2014_{image['id']:012d}.jpg"} for image in images]
    newer = [
        image | {"coco_url": f"http://example.org/{homes[image['id']].name}/{image['id']:012d}.jpg"}
        for image in images
    ]
    (folder / "annotations").mkdir()
    for file, records in (("lvis_v0.5_val.json", older), ("annotations/lvis_v1_val.json", newer)):
        content = {"images": records, "annotations": annotations, "categories": categories}
        (folder / file).write_text(json.dumps(content))
    return folder


def crop_set(masks: np.ndarray, picture_ids: list[int]) -> CropSet:
    """Crops, bool [N, S, S], that are whole pictures showing their masks as 200 on 50."""
    count, size = masks.shape[:2]
    return CropSet(
        pictures=np.repeat(np.where(masks, 200, 50).astype(np.uint8)[..., None], 3, axis=3),
        masks=masks,
        picture_ids=np.array(picture_ids, np.int64),
        annotation_ids=np.arange(1, count + 1, dtype=np.int64),
        category_ids=np.ones(count, np.int64),
        areas=masks.sum(axis=(1, 2)).astype(np.float64),
        competing=np.zeros(count, np.int64),
        shown=np.tile(np.array([0, 0, size, size], np.int64), (count, 1)),
        sizes=np.full((count, 2), size, np.int64),
        crowds=0,
        empty=0,
    )
