"""Small data sets of pictures in COCO's format, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle


def write_coco(folder: Path, pictures: int = 6, squares: int = 2) -> Path:
    """Fills a folder with a train2017 of 120 x 140 pictures with bright squares, a crowd and an empty mask.

    Pictures and annotations are numbered from 1, the crowd and the empty mask are the last annotations.
    """
    generator = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for picture_id in range(1, pictures + 1):
        pixels = generator.integers(0, 60, (120, 140, 3), dtype=np.uint8)
        for _ in range(squares):
            top, left, side = (int(generator.integers(*ends)) for ends in ((0, 80), (0, 100), (20, 40)))
            pixels[top : top + side, left : left + side] = (220, 200, 40)
            mask = np.zeros((120, 140), np.uint8)
            mask[top : top + side, left : left + side] = 1
            annotations.append(_annotation(len(annotations) + 1, picture_id, mask))
        name = f"{picture_id:012d}.png"
        Image.fromarray(pixels).save(folder / "train2017" / name)
        images.append({"id": picture_id, "file_name": name, "height": 120, "width": 140})
    crowd, nothing = np.ones((120, 140), np.uint8), np.zeros((120, 140), np.uint8)
    annotations.append(_annotation(len(annotations) + 1, 1, crowd) | {"iscrowd": 1})
    annotations.append(_annotation(len(annotations) + 1, 1, nothing))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


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
