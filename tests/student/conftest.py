"""Where the real data set lies, and a small synthetic one in COCO's format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

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
    """A COCO folder: 6 pictures of 120 x 140 with two bright squares each, plus a crowd and an empty mask."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    for picture_id in range(1, 7):
        pixels = generator.integers(0, 60, (120, 140, 3), dtype=np.uint8)
        for _ in range(2):
            top, left, side = (
                int(generator.integers(low, high)) for low, high in ((0, 80), (0, 100), (20, 40))
            )
            pixels[top : top + side, left : left + side] = (220, 200, 40)
            mask = np.zeros((120, 140), np.uint8)
            mask[top : top + side, left : left + side] = 1
            annotations.append(_annotation(len(annotations) + 1, picture_id, mask))
        name = f"{picture_id:012d}.png"
        Image.fromarray(pixels).save(tmp_path / "train2017" / name)
        images.append({"id": picture_id, "file_name": name, "height": 120, "width": 140})
    annotations.append(_annotation(13, 1, np.ones((120, 140), np.uint8)) | {"iscrowd": 1})
    annotations.append(_annotation(14, 1, np.zeros((120, 140), np.uint8)))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return tmp_path


def _annotation(number: int, picture_id: int, mask: np.ndarray) -> dict[str, object]:
    encoded = rle.encode(np.asfortranarray(mask))
    return {
        "id": number,
        "image_id": picture_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": rle.toBbox(encoded).tolist(),
        "area": float(mask.sum()),
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
    }
