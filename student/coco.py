"""COCO instances as crops: every picture is read once, every crop is kept in memory as bytes."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.errors import InputError
from student.crops import Mask, Pixels, Protocol, crop


@dataclass(frozen=True)
class CropSet:
    """N crops with their masks.

    Attributes:
        pictures: uint8 [N, S, S, 3], RGB.
        masks: bool [N, S, S], the object the prompt points at.
        picture_ids: int64 [N], the COCO image each crop comes from.
        annotation_ids: int64 [N].
        crowds: annotations left out because `iscrowd` is set.
        empty: annotations left out because their mask has no pixel.
    """

    pictures: Pixels
    masks: Mask
    picture_ids: NDArray[np.int64]
    annotation_ids: NDArray[np.int64]
    crowds: int
    empty: int

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, chosen: NDArray[np.bool_]) -> CropSet:
        """The crops where `chosen`, bool [N], is true."""
        return CropSet(
            self.pictures[chosen],
            self.masks[chosen],
            self.picture_ids[chosen],
            self.annotation_ids[chosen],
            self.crowds,
            self.empty,
        )


def load_crops(directory: Path, split: str, protocol: Protocol, margin: int = 0) -> CropSet:
    """Crops of every instance of `directory`/annotations/instances_`split`.json, in order of annotation id.

    Args:
        directory: a COCO folder; its pictures are in `directory`/`split`.
        split: for instance `train2017`.
        margin: see `crops.crop`.

    Raises:
        InputError: no annotation file, pictures missing or broken (all of them counted, the first named),
            or no instance left.
    """
    coco = _annotations(directory / "annotations" / f"instances_{split}.json")
    pictures: list[Pixels] = []
    masks: list[Mask] = []
    picture_ids: list[int] = []
    annotation_ids: list[int] = []
    unreadable: list[str] = []
    crowds = empty = 0
    for picture_id in sorted(coco.getImgIds()):
        annotations = [coco.anns[i] for i in sorted(coco.getAnnIds(imgIds=[picture_id]))]
        if not annotations:
            continue
        record = coco.imgs[picture_id]
        path = directory / split / record["file_name"]
        picture = _read_picture(path)
        if picture is None or picture.shape[:2] != (record["height"], record["width"]):
            unreadable.append(path.name)
            continue
        for annotation in annotations:
            if annotation.get("iscrowd", 0):
                crowds += 1
                continue
            mask = _mask(coco, annotation, str(record["file_name"]))
            if not mask.any():
                empty += 1
                continue
            pixels, inside = crop(protocol, picture, mask, annotation["bbox"], margin)
            pictures.append(pixels)
            masks.append(inside)
            picture_ids.append(picture_id)
            annotation_ids.append(int(annotation["id"]))
    if unreadable:
        named = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        raise InputError(
            str(directory / split),
            f"{len(unreadable)} pictures missing, broken or of another size than annotated: {named}",
            "every annotated picture opens and has the annotated height and width",
            "download these pictures again, or take their records out of the annotation file",
        )
    if not pictures:
        raise InputError(
            str(directory / split),
            f"no usable instance ({crowds} crowds and {empty} empty masks left out)",
            "at least one",
            "give an annotation file with instance masks",
        )
    order = np.argsort(annotation_ids, kind="stable")
    return CropSet(
        np.stack(pictures)[order],
        np.stack(masks)[order],
        np.array(picture_ids, np.int64)[order],
        np.array(annotation_ids, np.int64)[order],
        crowds,
        empty,
    )


def _annotations(path: Path) -> Any:
    """The pycocotools COCO object of an instances file."""
    from pycocotools.coco import COCO

    if not path.is_file():
        raise InputError(
            str(path),
            "no such file",
            "a COCO folder holds annotations/instances_SPLIT.json and SPLIT/*.jpg",
            "give the folder that contains `annotations`",
        )
    try:
        content = json.loads(path.read_text())
        coco = COCO()
        coco.dataset = {key: content[key] for key in ("images", "annotations", "categories")}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco.createIndex()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path),
            f"unreadable ({error!r})",
            "a COCO instances file: JSON with images, annotations and categories",
            "download it again",
        ) from error
    return coco


def _mask(coco: Any, annotation: dict[str, Any], name: str) -> Mask:
    """bool [H, W]; raises InputError naming the annotation where pycocotools cannot read it."""
    try:
        mask: Mask = coco.annToMask(annotation).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise InputError(
            f"annotation {annotation.get('id')} of {name}",
            f"segmentation {str(annotation.get('segmentation'))[:60]!r} is no polygon and no run-length code",
            "COCO's polygons or RLE",
            "correct or remove the annotation",
        ) from error
    return mask


def _read_picture(path: Path) -> Pixels | None:
    """RGB, uint8 [H, W, 3]; None where the file is missing or no picture."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for broken files
        return None
