"""Data sets as records: pictures and the objects annotated in them, checked before anything long begins.

    coco:DIR    DIR/annotations/instances_SPLIT.json with the pictures in DIR/SPLIT. SPLIT may carry a suffix
                after an underscore for another annotation file of the same pictures
                (`train2017_people`: annotations/instances_train2017_people.json, pictures in train2017)
    lvis:DIR    DIR/lvis_*.json or DIR/annotations/lvis_*.json (v0.5 or v1), whose pictures are COCO's: found
                by id in the folders val2017 and train2017 of DIR and of a COCO folder beside it

Every segmentation becomes a compressed run-length code once, here; every picture's header is read. What is
wrong is told in one message per kind, with the count and the first names. Damage inside a picture's data is
only found on decoding (`read_picture`).
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from passes.errors import InputError
from student.crops import Box, Mask, Pixels

COCO_PREFIX, LVIS_PREFIX = "coco:", "lvis:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Pictures of a plain folder, by the end of their name in any case."""

FARTHEST = 1e5
"""Largest coordinate of a polygon in pixels: pycocotools walks along every edge, five steps a pixel."""

BOX_SLACK = 1.0
"""Pixels by which an annotated box may leave the picture: boxes are rounded."""

HEADER_READERS = 8
"""Threads that read picture headers; the work is mostly waiting for the disk."""


@dataclass(frozen=True)
class Instance:
    """One annotated object, never a crowd, never empty.

    Attributes:
        annotation_id, category_id: as annotated.
        box: left, top, width and height in pixels as annotated; the mask's own where the record has none, or
            one that cannot be this mask's (`InstanceSet.boxes`).
        area: pixels as annotated, which COCO's size classes go by.
        rle: compressed COCO RLE: `size` [height, width] and `counts` bytes.
    """

    annotation_id: int
    category_id: int
    box: Box
    area: float
    rle: dict[str, Any]

    def mask(self) -> Mask:
        """bool [H, W] of the picture's size."""
        from pycocotools import mask as codes

        mask: Mask = np.ascontiguousarray(codes.decode(self.rle)).view(np.bool_)
        return mask


@dataclass(frozen=True)
class PictureRecord:
    """One picture and its instances, in order of annotation id; -1 is the id of a plain folder's picture.

    `root` is the data set's folder of pictures that `path` lies in, at any depth; None: the file's folder.
    """

    id: int
    path: Path
    height: int
    width: int
    instances: tuple[Instance, ...]
    root: Path | None = None

    @property
    def key(self) -> str:
        """Name of the root / path in it, with slashes: what teacher caches name pictures by."""
        root = self.root or self.path.parent
        return f"{root.name}/{self.path.relative_to(root).as_posix()}"


@dataclass(frozen=True)
class InstanceSet:
    """A data set.

    Attributes:
        name: what reports call it, for instance `coco val2017` or `lvis v0.5 val`.
        pictures: every picture of the annotation file in order of id, without instances too.
        categories: name of each category id.
        crowds: annotations left out because `iscrowd` is set.
        empty: annotations left out because their mask has no pixel.
        boxes: annotated boxes replaced by their masks' own: without extent, more than `BOX_SLACK` outside the
            picture, or beside the mask.
    """

    name: str
    pictures: tuple[PictureRecord, ...]
    categories: dict[int, str]
    crowds: int
    empty: int
    boxes: int = 0

    def __len__(self) -> int:
        """Number of instances."""
        return sum(len(picture.instances) for picture in self.pictures)


def load_instances(source: str, split: str | None = None) -> InstanceSet:
    """Reads and checks a data set.

    Args:
        source: `coco:DIR` or `lvis:DIR`.
        split: for COCO the name in instances_SPLIT.json (default val2017); for LVIS a part of the file's
            name between underscores, or all of it after `lvis_` (default: val, or the only file).

    Raises:
        InputError: an unknown source, no annotation file, a file that is none, annotations that cannot be
            used, pictures that are missing, broken or of another size than annotated.
    """
    if source.startswith(COCO_PREFIX):
        return _load_coco(Path(source.removeprefix(COCO_PREFIX)), split or "val2017")
    if source.startswith(LVIS_PREFIX):
        return _load_lvis(Path(source.removeprefix(LVIS_PREFIX)), split)
    raise InputError(
        f"data {source!r}", "names no data set", "coco:DIR or lvis:DIR", "for instance --data coco:/data/coco"
    )


def training_split(source: str) -> str:
    """The split to learn from where none was named: never what models are judged on."""
    return "train2017" if source.startswith(COCO_PREFIX) else "train"


def load_folder(folder: Path) -> InstanceSet:
    """The pictures in a folder (not in its sub-folders) in order of name, without annotations.

    Raises:
        InputError: no folder, no pictures in it, or pictures whose header cannot be read.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"pictures {folder}", found, "a folder of pictures", "correct the path")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(
            f"pictures {folder}",
            "none in it",
            f"files ending in {', '.join(SUFFIXES)}",
            "give another folder",
        )
    sizes = _sizes(paths)
    _refuse_pictures(folder, [path.name for path, size in zip(paths, sizes, strict=True) if size is None])
    pictures = tuple(
        PictureRecord(-1, path, size[0], size[1], ())
        for path, size in zip(paths, sizes, strict=True)
        if size is not None
    )
    return InstanceSet(f"folder {folder.resolve().name}", pictures, {}, 0, 0)


def read_picture(record: PictureRecord) -> Pixels | None:
    """RGB, uint8 [H, W, 3]; None where it is missing, broken or no longer of the recorded size."""
    try:
        with warnings.catch_warnings(), Image.open(record.path) as image:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises
        return None
    return pixels if pixels.shape[:2] == (record.height, record.width) else None


# Annotation files


def _load_coco(folder: Path, split: str) -> InstanceSet:
    file = folder / "annotations" / f"instances_{split}.json"
    if not file.is_file():
        raise InputError(
            str(file),
            "no such file",
            "a COCO folder holds annotations/instances_SPLIT.json and SPLIT/*.jpg",
            "give the folder that contains `annotations`, and a split that is there",
        )
    pictures = folder / split
    if not pictures.is_dir():
        pictures = folder / split.split("_")[0]
    names = _listed(pictures)

    def find(image: Mapping[str, Any]) -> Path | None:
        name = str(image["file_name"])
        return pictures / name if name in names or (pictures / name).is_file() else None

    return _load(f"coco {split}", file, find, pictures)


def _load_lvis(folder: Path, split: str | None) -> InstanceSet:
    file = _lvis_file(folder, split)
    homes = {
        home: _listed(home)
        for base in (folder, folder.parent / "coco")
        for home in (base / "val2017", base / "train2017")
    }

    def find(image: Mapping[str, Any]) -> Path | None:
        # The names of v0.5 are those of 2014, v1 has none: the id is what both share with COCO 2017.
        own = [str(image[key]).rsplit("/", 1)[-1] for key in ("coco_url", "file_name") if image.get(key)]
        for name in (f"{int(image['id']):012d}.jpg", *own):
            for home, names in homes.items():
                if name in names:
                    return home / name
        return None

    return _load(file.stem.replace("_", " "), file, find)


def _lvis_file(folder: Path, split: str | None) -> Path:
    found = {*folder.glob("lvis_*.json"), *folder.glob("annotations/lvis_*.json")}
    files = sorted(found, key=lambda file: (file.name, file))
    names = ", ".join(file.name for file in files) or "no lvis_*.json"
    fitting = [file for file in files if file.stem == f"lvis_{split}"]
    if not fitting:
        fitting = [file for file in files if (split or "val") in file.stem.split("_")]
    if not fitting and split is None:
        fitting = files
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"{LVIS_PREFIX}{folder}",
        f"{names} in it and in its annotations/",
        f"one file of split {split or 'val'}",
        "name the split as the file does: `v1_val` for lvis_v1_val.json"
        if files
        else "give the folder that holds lvis_v1_val.json or lvis_v0.5_val.json",
    )


def _listed(folder: Path) -> frozenset[str]:
    """Names in a folder, none where it does not exist: one look instead of one per picture."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _load(
    name: str, file: Path, find: Callable[[Mapping[str, Any]], Path | None], root: Path | None = None
) -> InstanceSet:
    """The records of an annotation file; `find` gives an image record's path, None where there is none."""
    images, annotations, categories = _read(file)
    try:
        found = [(image, find(image)) for image in images]
        wanted = [(int(image["height"]), int(image["width"])) for image in images]
        of_picture: dict[int, list[Instance]] = {int(image["id"]): [] for image in images}
        shapes = dict(zip(of_picture, wanted, strict=True))
        instances, crowds, empty, boxes = _instances(file, annotations, shapes)
        for picture_id, instance in instances:
            of_picture[picture_id].append(instance)
        named = {int(category["id"]): str(category["name"]) for category in categories}
        titles = [str(image.get("file_name") or f"{int(image['id']):012d}.jpg") for image in images]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_annotations(file, repr(error)) from error
    sizes = iter(_sizes([path for _, path in found if path is not None]))
    wrong, pictures = [], []
    for (_, path), size, title, (picture_id, own) in zip(
        found, wanted, titles, of_picture.items(), strict=True
    ):
        if path is None or next(sizes) != size:
            wrong.append(title)
        else:
            ordered = tuple(sorted(own, key=lambda instance: instance.annotation_id))
            within = root if root is not None and path.is_relative_to(root) else None
            pictures.append(PictureRecord(picture_id, path, *size, ordered, within))
    _refuse_pictures(file, wrong)
    return InstanceSet(name, tuple(pictures), named, crowds, empty, boxes)


def _read(file: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """The images in order of id, the annotations and the categories."""
    try:
        content = json.loads(file.read_bytes())
        images = sorted(content["images"], key=lambda image: int(image["id"]))
        parts = images, list(content["annotations"]), list(content["categories"])
        ids = [[int(record["id"]) for record in part] for part in parts]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _no_annotations(file, repr(error)[:200]) from error
    for what, numbers in zip(("images", "annotations", "categories"), ids, strict=True):
        if len(set(numbers)) != len(numbers):
            raise InputError(
                str(file),
                f"{len(numbers) - len(set(numbers))} {what} with the id of another",
                "every id once",
                "give each its own id",
            )
    return parts


def _no_annotations(file: Path, found: str) -> InputError:
    return InputError(
        str(file),
        f"unreadable ({found})",
        "a COCO or LVIS instances file: JSON with images, annotations and categories",
        "download it again",
    )


def _instances(
    file: Path, annotations: Iterable[Mapping[str, Any]], shapes: Mapping[int, tuple[int, int]]
) -> tuple[list[tuple[int, Instance]], int, int, int]:
    """Picture id and instance of every annotation; how many crowds and empty masks were left out and boxes
    replaced.

    Raises InputError naming every annotation that cannot be used.
    """
    from pycocotools import mask as codes

    instances: list[tuple[int, Instance]] = []
    crowds = empty = boxes = 0
    broken: list[str] = []
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            crowds += 1
            continue
        picture_id, number = int(annotation["image_id"]), int(annotation["id"])
        try:
            if picture_id not in shapes:
                raise ValueError(f"of picture {picture_id}, which is not among the images")
            rle = _run_lengths(annotation.get("segmentation"), *shapes[picture_id])
            pixels = 0 if rle is None else int(codes.area(rle))
            if rle is None or pixels == 0:
                empty += 1
                continue
            box, replaced = annotated_box(annotation.get("bbox"), codes.toBbox(rle), shapes[picture_id])
            area = float(annotation.get("area", pixels))
            if not math.isfinite(area):
                raise ValueError("an area that is no number")
        except Exception as error:  # pycocotools raises bare Exceptions on what it cannot read
            broken.append(f"{number} ({str(error)[:80]})")
            continue
        boxes += replaced
        instances.append((picture_id, Instance(number, int(annotation["category_id"]), box, area, rle)))
    if broken:
        raise InputError(
            str(file),
            f"{len(broken)} annotations cannot be used: {first_names(broken, 3)}",
            "polygons or RLE of the picture's size, as COCO writes them",
            "correct or remove these annotations",
        )
    return instances, crowds, empty, boxes


def annotated_box(box: Any, own: Iterable[float], size: tuple[int, int]) -> tuple[Box, bool]:
    """The box that an annotation gives, or its mask's `own` where it gives none; and whether the mask's own
    is taken because the annotated one cannot be this mask's.

    Args:
        box: left, top, width and height; None or empty where none is annotated.
        size: height and width of the picture.

    Raises ValueError or TypeError for what is no box.
    """
    left, top, width, height = (float(x) for x in own)
    mine = (left, top, width, height)
    if not box:
        return mine, False
    left, top, width, height = (float(x) for x in box)
    if not all(math.isfinite(x) for x in (left, top, width, height)):
        raise ValueError("a box that is no number")
    given = (left, top, width, height)
    return (given, False) if _fits(given, mine, size) else (mine, True)


def _fits(box: Box, own: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether an annotated box can be that of a mask whose own box is `own`, in a picture (height, width)."""
    left, top, width, height = box
    return (
        min(width, height) > 0
        and min(left, top) >= -BOX_SLACK
        and left + width <= size[1] + BOX_SLACK
        and top + height <= size[0] + BOX_SLACK
        and min(left + width, own[0] + own[2]) > max(left, own[0])
        and min(top + height, own[1] + own[3]) > max(top, own[1])
    )


def _run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """The compressed RLE of polygons or of an RLE, None where it is empty; raises where it is neither."""
    from pycocotools import mask as codes

    if isinstance(segmentation, list):
        # Fewer than three points have no inside; pycocotools would take four numbers for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return None
        for polygon in polygons:
            points = np.asarray(polygon, np.float64)
            if points.ndim != 1 or not (np.abs(points) <= FARTHEST).all():
                raise ValueError(f"polygon {str(polygon)[:40]} holds no pixel coordinates")
        parts = codes.frPyObjects(polygons, height, width)
        merged: dict[str, Any] = parts[0] if len(parts) == 1 else codes.merge(parts)
        return merged
    if not isinstance(segmentation, dict):
        raise ValueError(f"segmentation {str(segmentation)[:40]!r} is no polygon and no RLE")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"RLE of size {segmentation['size']} in a picture of {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise ValueError(f"RLE of {sum(counts)} pixels in a picture of {height * width}")
        plain: dict[str, Any] = codes.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return plain
    return checked_code(segmentation, height, width)


def checked_code(code: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """A compressed RLE whose runs fill the mask exactly; pycocotools decodes a truncated one to something.

    A run is written in groups of five bits, lowest first, from character 48 on: bit 5 says that another
    group follows, bit 4 of the last is the sign; from the fourth run on the difference from the run two
    before is written (cocoapi, maskApi.c, rleToString).

    Raises:
        ValueError: another size, or runs that are negative or do not sum up to height * width.
    """
    if list(code["size"]) != [height, width]:
        raise ValueError(f"RLE of size {code['size']} instead of {[height, width]}")
    text = code["counts"].encode("ascii") if isinstance(code["counts"], str) else bytes(code["counts"])
    runs: list[int] = []
    run = shift = 0
    for character in text:
        group = character - 48
        run |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            run -= 1 << shift
        runs.append(run + (runs[-2] if len(runs) > 2 else 0))
        run = shift = 0
    if shift or min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise ValueError(f"RLE {text[:20]!r} is damaged or not of {height * width} pixels")
    return {"size": [height, width], "counts": text}


# Pictures


def _sizes(paths: list[Path]) -> list[tuple[int, int] | None]:
    """Height and width in each picture's header; None where it is no picture."""
    Image.preinit()  # not safe to be done by several threads at a time
    with ThreadPoolExecutor(HEADER_READERS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(pool.map(_size, paths, chunksize=64))


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises
        return None


def _refuse_pictures(where: Path, names: list[str]) -> None:
    """Raises InputError where there are any: missing, broken or of another size than annotated."""
    if names:
        raise InputError(
            str(where),
            f"{len(names)} pictures missing, broken or of another size than annotated: {first_names(names)}",
            "every picture opens and has its annotated height and width",
            "download these pictures again, or take their records and annotations out",
        )


def first_names(names: Iterable[str], count: int = 5) -> str:
    """The first `count` of some names, for a message that cannot hold all of them."""
    listed = list(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")
