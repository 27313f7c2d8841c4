"""The pictures and instances of a COCO folder, and crops around an instance.

A crop is what a prompt protocol (`student.crops`) shows of an instance, at the contract's size: for
point-native-96 a window of that size at native resolution, centred on the prompt point.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calib.representative.crops import Cut, channels
from calib.representative.object_sizes import size_class
from calib.representative.representative_set import Mask, Pixels
from calib.representative.sources import COCO_PREFIX, PictureFile
from passes.contract import InputContract
from passes.errors import InputError, first_line
from student.crops import POINT_NATIVE_96, PROTOCOLS, Box, Protocol, crop, cut_rectangle, prompt_point

OUTSIDE = 128
"""Pixel value where a crop leaves its picture: mid-grey, as in the training crops."""


@dataclass(frozen=True)
class Record:
    """A COCO picture and its instances' annotations, crowds left out."""

    file: PictureFile
    height: int
    width: int
    annotations: tuple[Mapping[str, Any], ...]


def annotation_file(folder: Path) -> Path:
    """The annotations taken: a training split before a validation split. InputError where there are none."""
    files = [
        path
        for kind in ("train", "val")
        for path in sorted(folder.glob(f"annotations/instances_{kind}*.json"))
    ]
    if not files:
        raise InputError(
            f"calibration {COCO_PREFIX}{folder}",
            "no annotations/instances_train*.json and no annotations/instances_val*.json",
            "a COCO folder: annotations/instances_SPLIT.json and SPLIT/*.jpg",
            "give the folder that contains `annotations`",
        )
    return files[0]


def coco_records(folder: Path) -> tuple[str, list[Record]]:
    """The split taken, and its pictures that have an instance.

    Raises:
        InputError: no annotations, or a file that holds none.
    """
    where, file = f"calibration {COCO_PREFIX}{folder}", annotation_file(folder)
    split = file.stem.removeprefix("instances_")
    try:
        content = json.loads(file.read_text())
        instances: dict[int, list[Any]] = {}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd", 0) and annotation.get("segmentation"):
                instances.setdefault(annotation["image_id"], []).append(annotation)
        records = [
            Record(
                PictureFile(f"{split}/{image['file_name']}", folder / split / image["file_name"]),
                int(image["height"]),
                int(image["width"]),
                tuple(instances[image["id"]]),
            )
            for image in sorted(content["images"], key=lambda image: int(image["id"]))
            if image["id"] in instances
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            where,
            f"{file.name} cannot be read ({error!r})",
            "a COCO instances file: JSON with images and annotations",
            "download it again",
        ) from error
    return split, records


@dataclass(frozen=True)
class Objects:
    """The instances of a picture that have a pixel: compressed run-length code, box, size class of each."""

    codes: tuple[dict[str, Any], ...]
    boxes: tuple[Box, ...]
    sizes: tuple[str, ...]


def objects_of(record: Record) -> Objects:
    """Raises InputError for what is no polygon and no run-length code of the picture."""
    from pycocotools import mask

    from student.instances import annotated_box

    found = []
    size = (record.height, record.width)
    for annotation in record.annotations:
        segmentation = annotation["segmentation"]
        try:
            code = _run_lengths(segmentation, record.height, record.width)
            area = int(mask.area(code))
            box, _ = annotated_box(annotation.get("bbox"), mask.toBbox(code), size)
        except Exception as error:  # pycocotools raises bare Exceptions on what it cannot read
            raise InputError(
                f"annotation of {record.file.name}",
                f"segmentation {str(segmentation)[:60]!r} and box {str(annotation.get('bbox'))[:40]} are no "
                f"object's ({first_line(error)[:80]})",
                "COCO's polygons or RLE, and a box of four numbers",
                "correct or remove the annotation",
            ) from error
        if area:
            found.append((code, box, size_class(area)))
    codes, boxes, sizes = zip(*found, strict=True) if found else ((), (), ())
    return Objects(codes, boxes, sizes)


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask

    from student.instances import checked_code

    if isinstance(segmentation, list):
        merged: dict[str, Any] = mask.merge(mask.frPyObjects(segmentation, height, width))
        return merged
    if isinstance(segmentation["counts"], list):
        segmentation = mask.frPyObjects(segmentation, height, width)
    return checked_code(segmentation, height, width)


def protocol_for(contract: InputContract, name: str | None) -> Protocol:
    """The protocol called `name` at the contract's size; point-native where it is None, unknown, or takes a
    square that the input is not."""
    protocol = PROTOCOLS.get(name or "", POINT_NATIVE_96)
    if contract.height != contract.width and protocol != POINT_NATIVE_96:
        protocol = POINT_NATIVE_96
    return dataclasses.replace(protocol, size=max(contract.height, contract.width))


def object_crop(there: Objects, chosen: int, contract: InputContract, protocol: Protocol) -> Cut:
    """What the protocol shows of the instance `chosen`, and its mask there.

    The further planes of an input that is no picture are of crops around instances drawn at random.
    """

    def cut(image: Image.Image, random: np.random.Generator) -> tuple[Pixels, Mask]:
        picture = np.asarray(image)
        first = _cut(picture, there, chosen, contract, protocol)
        tiles = [first[0]]

        def tile() -> Pixels:
            if tiles:
                return tiles.pop()
            return _cut(picture, there, int(random.integers(len(there.codes))), contract, protocol)[0]

        return channels(tile, contract), first[1]

    return cut


def _cut(
    picture: Pixels, there: Objects, chosen: int, contract: InputContract, protocol: Protocol
) -> tuple[Pixels, Mask]:
    """uint8 [H, W, 3] and the instance's mask in it; centred on the picture where no mask pixel is in it."""
    from pycocotools import mask

    rows, columns = picture.shape[:2]
    inside = np.asarray(mask.decode(there.codes[chosen])).astype(bool)[:rows, :columns]
    if protocol.name != POINT_NATIVE_96.name and inside.any():
        return crop(protocol, picture, inside, there.boxes[chosen])
    row, column = prompt_point(inside) if inside.any() else (rows // 2, columns // 2)
    side = max(contract.height, contract.width)
    top = row - side // 2 + (side - contract.height) // 2
    left = column - side // 2 + (side - contract.width) // 2
    place = (top, left, contract.height, contract.width)
    pixels: Pixels = cut_rectangle(picture, *place, OUTSIDE)
    seen: Mask = cut_rectangle(inside, *place, False)
    return pixels, seen
