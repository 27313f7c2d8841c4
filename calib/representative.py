"""Representative data: pictures that calibration sees, and others that it never sees.

Quantization thresholds are fitted to what the network's layers put out on these pictures, so they should look
like what the sensor will see. They are declared by a string:

    builtin     seeded crops of the photographs that scikit-image and scikit-learn ship in their wheels
    coco:DIR    crops around the instances of a COCO folder, at native resolution
    FOLDER      seeded crops of the png, jpg, jpeg, bmp and webp pictures in a folder and its sub-folders

Every source splits its pictures in two: calibration crops come from one part, and `held_out`, on which the
agreement of the float and the int8 network is measured, from the other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.contract import InputContract
from passes.errors import EnvironmentFault, InputError

Pixels = NDArray[np.uint8]

BUILTIN = "builtin"
COCO_PREFIX = "coco:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

PICTURES = 32
"""Default number of calibration crops. For the shipped student 16, 32, 64 and 128 crops with four seeds each
give the same agreement with the float network (mean IoU 0.974 to 0.977, or 0.967 to 0.968 where the output's
threshold falls on the other side of a tie, at 32 as at 64), in 8, 11, 17 and 30 s of MCT's time."""

HELD_OUT = 16
"""Number of held-out crops."""

HELD_OUT_SHARE = 0.25
"""Share of the source pictures that are kept for the held-out crops (at least one)."""

OUTSIDE = 128
"""Pixel value where an instance-centred crop leaves its picture: mid-grey, as in the training crops."""

_PHOTOGRAPHS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "skimage",
        "data",
        (
            "astronaut.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "hubble_deep_field.jpg",
            "motorcycle_left.png",
            "rocket.jpg",
        ),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)
"""Package, folder in it, files. Photographs only: no drawings, textures or microscope slides; of the stereo
pair only the left picture, because both show the same scene."""

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Source:
    """A picture file: its name (relative to the folder or wheel), SHA-256 of its bytes, and its part."""

    name: str
    sha256: str
    held_out: bool


@dataclass(frozen=True)
class RepresentativeSet:
    """Pictures as the sensor sees them.

    Attributes:
        pictures: uint8 [N, C, H, W], for calibration, channels in the contract's order.
        held_out: uint8 [M, C, H, W], from parts of the source that `pictures` do not show.
        contract: the input the pictures were made for.
        sources: every picture file used, in order of name.
        seed: seed of the choice of pictures and crops.
        how: one sentence for the calibration card.
    """

    pictures: Pixels
    held_out: Pixels
    contract: InputContract
    sources: tuple[Source, ...]
    seed: int
    how: str


def delivered(pictures: Pixels, contract: InputContract) -> NDArray[np.float32]:
    """The integers the sensor delivers for pixels 0..255: p, or p - 128 where the input is signed.

    uint8 [N, C, H, W] -> float32 [N, C, H, W], whole numbers.
    """
    return pictures.astype(np.float32) + np.float32(contract.lowest)


def load_representative(
    src: str, contract: InputContract, count: int = PICTURES, seed: int = 0
) -> RepresentativeSet:
    """Draw `count` calibration crops and HELD_OUT held-out crops from the source `src`.

    The same source, contract, count and seed give the same pictures.

    Raises:
        InputError: `count` below 1, no such folder, no pictures in it, or pictures that cannot be read.
        EnvironmentFault: `builtin` without scikit-image or scikit-learn.
    """
    if count < 1:
        raise InputError("calibration", f"{count} pictures", "at least 1", "ask for more pictures")
    if src == BUILTIN:
        return _from_pictures(src, _builtin_pictures(), _builtin_text(), contract, count, seed)
    if src.startswith(COCO_PREFIX):
        return _from_coco(Path(src.removeprefix(COCO_PREFIX)), contract, count, seed)
    folder = Path(src)
    files = _folder_pictures(folder)
    text = f"the {len(files)} pictures in {folder.resolve().name}"
    return _from_pictures(src, files, text, contract, count, seed)


# Where pictures come from


@dataclass(frozen=True)
class _File:
    name: str
    path: Path


def _builtin_pictures() -> list[_File]:
    files = []
    for package, folder, names in _PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)  # finds the folder without importing the package
        if spec is None or not spec.submodule_search_locations:
            distribution = _DISTRIBUTIONS[package]
            raise EnvironmentFault(
                f"calibration {BUILTIN}",
                f"{distribution} is not installed",
                "scikit-image and scikit-learn, whose photographs it crops",
                f"pip install {distribution}, or give a folder of pictures",
            )
        root = Path(spec.submodule_search_locations[0])
        files += [_File(f"{package}/{folder}/{name}", root / folder / name) for name in names]
    return files


def _builtin_text() -> str:
    versions = " and ".join(f"{name} {metadata.version(name)}" for name in _DISTRIBUTIONS.values())
    return f"the photographs shipped with {versions}"


def _folder_pictures(folder: Path) -> list[_File]:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(
            f"calibration {folder}", found, "a folder of pictures, coco:DIR or builtin", "correct the path"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(
            f"calibration {folder}",
            "no pictures in it",
            f"files ending in {', '.join(SUFFIXES)}",
            "give a folder with pictures, or builtin",
        )
    return [_File(path.relative_to(folder).as_posix(), path) for path in paths]


# Drawing crops

_Crop = Callable[[Image.Image, np.random.Generator], Pixels]
"""From an RGB picture to one crop, uint8 [C, H, W]."""


@dataclass(frozen=True)
class _Spot:
    """A picture file and the way crops are cut from it."""

    file: _File
    crop: _Crop


def _assemble(
    where: str,
    shown: Sequence[_Spot],
    hidden: Sequence[_Spot],
    contract: InputContract,
    count: int,
    seed: int,
    random: np.random.Generator,
    how: str,
) -> RepresentativeSet:
    """Cut the crops of both parts; raises InputError naming every picture that cannot be read."""
    hashes: dict[str, str] = {}
    broken: list[str] = []
    parts = [
        _cut_all(spots, number, random, hashes, broken)
        for spots, number in ((shown, count), (hidden, HELD_OUT))
    ]
    if broken:
        named = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        raise InputError(
            f"calibration {where}",
            f"{len(broken)} pictures cannot be read: {named}",
            "every picture opens",
            "remove them or replace them by working ones",
        )
    calibrated = {spot.file.name for spot in shown}
    sources = tuple(Source(name, hashes[name], name not in calibrated) for name in sorted(hashes))
    text = f"{count} crops of {contract.width}x{contract.height} {how}; seed {seed}{_remark(contract)}"
    return RepresentativeSet(parts[0], parts[1], contract, sources, seed, text)


def _cut_all(
    spots: Sequence[_Spot],
    number: int,
    random: np.random.Generator,
    hashes: dict[str, str],
    broken: list[str],
) -> Pixels:
    """`number` crops spread evenly over the spots; each file is read once and held no longer than needed."""
    crops: list[Pixels] = []
    for index, spot in enumerate(spots):
        share = number // len(spots) + (index < number % len(spots))
        if share == 0:
            break
        read = _read(spot.file.path)
        if read is None:
            broken.append(spot.file.name)
            continue
        image, hashes[spot.file.name] = read
        if not broken:
            crops += [spot.crop(image, random) for _ in range(share)]
    return np.stack(crops) if crops else np.empty((0, 0, 0, 0), np.uint8)


def _read(path: Path) -> tuple[Image.Image, str] | None:
    """The decoded RGB picture and the SHA-256 of its file; None where the file is missing or broken."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB"), hashlib.sha256(data).hexdigest()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises
        return None


def _split(number: int, count: int, random: np.random.Generator) -> tuple[list[int], list[int]]:
    """Shuffled indices of pictures: at most `count` to calibrate on, and those held out (none of one)."""
    order = [int(i) for i in random.permutation(number)]
    kept = min(HELD_OUT, max(1, round(number * HELD_OUT_SHARE))) if number > 1 else 0
    return order[kept:][:count], order[:kept]


def _from_pictures(
    where: str, files: Sequence[_File], text: str, contract: InputContract, count: int, seed: int
) -> RepresentativeSet:
    """Random crops of whole pictures; where there is one picture only, of disjoint parts of it."""
    random = np.random.default_rng(seed)
    shown, hidden = _split(len(files), count, random)
    if hidden:
        calibrate = [_Spot(files[i], _random_crop(contract)) for i in shown]
        keep = [_Spot(files[i], _random_crop(contract)) for i in hidden]
        apart = f"from {len(hidden)} other pictures"
    else:
        calibrate = [_Spot(files[0], _random_crop(contract, 0.0, 1.0 - HELD_OUT_SHARE))]
        keep = [_Spot(files[0], _random_crop(contract, 1.0 - HELD_OUT_SHARE, 1.0))]
        apart = "from another part of the only picture"
    how = (
        f"from {len(shown) or 1} of {text}, half at native resolution and half scaled down; "
        f"{HELD_OUT} held-out crops {apart}"
    )
    return _assemble(where, calibrate, keep, contract, count, seed, random, how)


def _random_crop(contract: InputContract, start: float = 0.0, stop: float = 1.0) -> _Crop:
    """A crop at a random place: one in two at native resolution, else scaled down by up to the whole picture.

    Only the part of the picture between the shares `start` and `stop` of its longer side is used. A part
    smaller than the crop is scaled up.
    """

    def tile(image: Image.Image, random: np.random.Generator) -> Pixels:
        width, height = image.size
        left, top, right, bottom = 0, 0, width, height
        if width >= height:
            left, right = round(width * start), max(round(width * stop), round(width * start) + 1)
        else:
            top, bottom = round(height * start), max(round(height * stop), round(height * start) + 1)
        largest = min((right - left) / contract.width, (bottom - top) / contract.height)
        scale = min(1.0, largest)
        if random.random() < 0.5 and largest > 1.0:
            scale = largest ** random.random()
        wide, high = max(1, int(contract.width * scale)), max(1, int(contract.height * scale))
        x = left + int(random.integers(0, right - left - wide + 1))
        y = top + int(random.integers(0, bottom - top - high + 1))
        crop = image.crop((x, y, x + wide, y + high))
        return _resized(crop, contract)

    return lambda image, random: _channels(lambda: tile(image, random), contract)


def _resized(crop: Image.Image, contract: InputContract) -> Pixels:
    """uint8 [H, W, 3] of the contract's size."""
    size = (contract.width, contract.height)
    return np.asarray(crop if crop.size == size else crop.resize(size, Image.Resampling.BILINEAR))


def _channels(tile: Callable[[], Pixels], contract: InputContract) -> Pixels:
    """uint8 [C, H, W] in the contract's colour order, from one crop, or several where C is no picture's."""
    if contract.colour_order == "GREY" and contract.channels == 1:
        return np.asarray(Image.fromarray(tile()).convert("L"))[None]
    if contract.channels == 3:
        pixels = tile().transpose(2, 0, 1)
        return pixels[::-1] if contract.colour_order == "BGR" else pixels
    tiles = [tile().transpose(2, 0, 1) for _ in range(math.ceil(contract.channels / 3))]
    return np.concatenate(tiles)[: contract.channels]


def _remark(contract: InputContract) -> str:
    pictures = contract.channels == 3 or (contract.colour_order == "GREY" and contract.channels == 1)
    return (
        ""
        if pictures and contract.colour_order != "ANY"
        else f"; the input is no picture: its {contract.channels} channels are colour planes of such crops"
    )


# COCO


@dataclass(frozen=True)
class _Record:
    """A COCO picture and its instances' masks."""

    file: _File
    height: int
    width: int
    segmentations: tuple[Any, ...]


def _from_coco(folder: Path, contract: InputContract, count: int, seed: int) -> RepresentativeSet:
    """Crops centred on instances, at native resolution, one instance per picture while the pictures last."""
    split, records = _coco_records(folder)
    random = np.random.default_rng(seed)
    shown, hidden = _split(len(records), count, random)
    if not hidden:
        raise InputError(
            f"calibration {COCO_PREFIX}{folder}",
            f"{len(records)} pictures with instances",
            "at least two, of which one is held out",
            "give a larger COCO folder",
        )
    spots = [_Spot(record.file, _instance_crop(record, contract)) for record in records]
    warning = (
        "" if split.startswith("train") else " (no training annotations there, so of the validation set)"
    )
    how = (
        f"around instances of {len(shown)} pictures of COCO {split}{warning}, native resolution; "
        f"{HELD_OUT} held-out crops from {len(hidden)} other pictures of it"
    )
    where = f"{COCO_PREFIX}{folder}"
    return _assemble(
        where, [spots[i] for i in shown], [spots[i] for i in hidden], contract, count, seed, random, how
    )


def _coco_records(folder: Path) -> tuple[str, list[_Record]]:
    """The split taken, and its pictures that have an instance; a training split before a validation split."""
    where = f"calibration {COCO_PREFIX}{folder}"
    files = [
        path
        for kind in ("train", "val")
        for path in sorted(folder.glob(f"annotations/instances_{kind}*.json"))
    ]
    if not files:
        raise InputError(
            where,
            "no annotations/instances_train*.json and no annotations/instances_val*.json",
            "a COCO folder: annotations/instances_SPLIT.json and SPLIT/*.jpg",
            "give the folder that contains `annotations`",
        )
    split = files[0].stem.removeprefix("instances_")
    try:
        content = json.loads(files[0].read_text())
        instances: dict[int, list[Any]] = {}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd", 0) and annotation.get("segmentation"):
                instances.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
        records = [
            _Record(
                _File(f"{split}/{image['file_name']}", folder / split / image["file_name"]),
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
            f"{files[0].name} cannot be read ({error!r})",
            "a COCO instances file: JSON with images and annotations",
            "download it again",
        ) from error
    return split, records


def _instance_crop(record: _Record, contract: InputContract) -> _Crop:
    """A window of the contract's size, centred on the prompt point of one of the picture's instances."""
    from student.crops import Window, cut, prompt_point

    def tile(image: Image.Image, random: np.random.Generator) -> Pixels:
        pixels = np.asarray(image)
        mask = _mask(record, int(random.integers(len(record.segmentations))))
        inside = mask[: pixels.shape[0], : pixels.shape[1]]
        row, column = prompt_point(inside) if inside.any() else (pixels.shape[0] // 2, pixels.shape[1] // 2)
        side = max(contract.height, contract.width)
        square = cut(pixels, Window(row - side // 2, column - side // 2, side), OUTSIDE)
        top, left = (side - contract.height) // 2, (side - contract.width) // 2
        return square[top : top + contract.height, left : left + contract.width]

    return lambda image, random: _channels(lambda: tile(image, random), contract)


def _mask(record: _Record, index: int) -> NDArray[np.bool_]:
    """bool [H, W] of an instance, given as polygons or as a run-length code."""
    from pycocotools import mask as codes

    segmentation = record.segmentations[index]
    try:
        if isinstance(segmentation, list):
            code = codes.merge(codes.frPyObjects(segmentation, record.height, record.width))
        elif isinstance(segmentation["counts"], list):
            code = codes.frPyObjects(segmentation, record.height, record.width)
        else:
            code = segmentation
        return np.asarray(codes.decode(code)).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions on what it cannot read
        raise InputError(
            f"annotation of {record.file.name}",
            f"segmentation {str(segmentation)[:60]!r} is no polygon and no run-length code",
            "COCO's polygons or RLE",
            "correct or remove the annotation",
        ) from error
