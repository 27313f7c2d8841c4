"""Draw a representative set from a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.representative.coco import (
    Objects,
    annotation_file,
    coco_records,
    object_crop,
    objects_of,
    protocol_for,
)
from calib.representative.content import Progress, content_hashes, read_picture, silent, unreadable
from calib.representative.crops import Cut, random_crop, remark
from calib.representative.object_sizes import SIZES, choose_objects, crop_random
from calib.representative.parts import CALIBRATION, DECIDING, HELD_OUT_PART, Parts, Picture, split
from calib.representative.representative_set import (
    HELD_OUT,
    PICTURES,
    RepresentativeSet,
    Source,
)
from calib.representative.sources import (
    BUILTIN,
    COCO_PREFIX,
    PictureFile,
    builtin_pictures,
    builtin_text,
    folder_pictures,
)
from passes.contract import InputContract
from passes.errors import InputError
from student.crops import Protocol


def load_representative(
    src: str,
    contract: InputContract,
    count: int = PICTURES,
    seed: int = 0,
    *,
    deciding: int = 0,
    exclude: str | Collection[str] = (),
    protocol: str | None = None,
    progress: Progress = silent,
) -> RepresentativeSet:
    """Draw `count` calibration crops, `deciding` crops to compare by and HELD_OUT held-out crops from `src`.

    The same arguments give the same pictures. Every part has its own pictures, whatever the counts
    (`parts.split`), and fewer crops of a part are the first of more.

    Args:
        src: builtin, coco:DIR or a folder.
        exclude: content hashes of pictures that are never drawn, or a source of them (`content_hashes`).
        protocol: how crops around the objects of a coco:DIR are cut (`student.crops.PROTOCOLS`): what the
            network was trained on. None and what is not in there: point-native.
        progress: told the share of the pictures read.

    Raises:
        InputError: `count` below 1, `deciding` below 0, no such folder, too few pictures in it that are not
            excluded, or pictures that cannot be read.
        EnvironmentFault: `builtin` without scikit-image or scikit-learn.
    """
    if count < 1:
        raise InputError("calibration", f"{count} pictures", "at least 1", "ask for more pictures")
    if deciding < 0:
        raise InputError(
            "calibration", f"{deciding} pictures to decide by", "at least 0", "ask for more pictures"
        )
    excluded = content_hashes(exclude, progress=progress) if isinstance(exclude, str) else frozenset(exclude)
    order = _Order(src, contract, count, deciding, seed, excluded, protocol, progress)
    if src.startswith(COCO_PREFIX):
        return _from_coco(order, Path(src.removeprefix(COCO_PREFIX)))
    if src == BUILTIN:
        return _from_pictures(order, builtin_pictures(), builtin_text())
    folder = Path(src)
    files = folder_pictures(folder, "calibration")
    return _from_pictures(order, files, f"the {len(files)} pictures in {folder.resolve().name}")


def require_source(src: str) -> None:
    """Raises what `load_representative` raises without reading a picture: no such folder, nothing in it."""
    if src.startswith(COCO_PREFIX):
        annotation_file(Path(src.removeprefix(COCO_PREFIX)))
    elif src == BUILTIN:
        builtin_pictures()
    else:
        folder_pictures(Path(src), "calibration")


@dataclass(frozen=True)
class _Order:
    """What was asked for."""

    src: str
    contract: InputContract
    count: int
    deciding: int
    seed: int
    exclude: frozenset[str]
    protocol: str | None
    progress: Progress

    def too_few(self, found: str, limit: str, parts: Parts) -> InputError:
        left_out = f" ({len(parts.left_out)} others are excluded)" if parts.left_out else ""
        fix = "calibrate on other pictures than those kept for scoring" if left_out else "give more pictures"
        return InputError(f"calibration {self.src}", found + left_out, limit, fix)


@dataclass(frozen=True)
class _Crop:
    """A crop to be cut; `size` is its object's class, "" where it has no object."""

    picture: Picture
    random: np.random.Generator
    cut: Cut
    size: str = ""


# Plain pictures


def _from_pictures(order: _Order, files: Sequence[PictureFile], text: str) -> RepresentativeSet:
    """Random crops of whole pictures, one of each picture in turn; of disjoint parts of too few pictures."""
    parts = split(
        order.src, files, lambda index: True, order.count, order.seed, order.exclude, order.progress
    )
    if not parts.calibration:
        raise order.too_few("no picture to draw from", "at least one picture", parts)
    first = parts.calibration[:1]
    whole, without_end, end = (0.0, 1.0), (0.0, 0.75), (0.75, 1.0)
    shown, choosing, hidden = parts.calibration, parts.deciding, parts.held_out
    ranges = {CALIBRATION: whole, DECIDING: whole, HELD_OUT_PART: whole}
    apart = f"from {len(hidden)} other pictures"
    if not hidden:  # one picture
        choosing = hidden = first
        ranges = {CALIBRATION: (0.0, 0.5), DECIDING: (0.5, 0.75), HELD_OUT_PART: end}
        apart = "from another part of the only picture"
    elif not choosing:  # two pictures
        choosing = first
        ranges |= {CALIBRATION: without_end, DECIDING: end}

    def crops(part: str, pictures: Sequence[Picture], number: int) -> list[_Crop]:
        cut = random_crop(order.contract, *ranges[part])
        turns = [(pictures[i % len(pictures)], i // len(pictures)) for i in range(number)]
        return [
            _Crop(picture, crop_random(order.seed, picture.content, turn), cut) for picture, turn in turns
        ]

    drawn = {
        CALIBRATION: crops(CALIBRATION, shown, order.count),
        DECIDING: crops(DECIDING, choosing, order.deciding),
        HELD_OUT_PART: crops(HELD_OUT_PART, hidden, HELD_OUT),
    }
    how = (
        f"from {_pictures(drawn[CALIBRATION])} of {text}, half at native resolution and half scaled down; "
        f"{HELD_OUT} held-out crops {apart}"
    )
    return _assembled(order, drawn, parts, how)


# COCO


def _from_coco(order: _Order, folder: Path) -> RepresentativeSet:
    """Crops centred on instances, one of each picture in turn, evenly over the sizes of objects."""
    name, records = coco_records(folder)
    protocol = protocol_for(order.contract, order.protocol)
    known: dict[int, Objects] = {}

    def objects(index: int) -> Objects:
        if index not in known:
            known[index] = objects_of(records[index])
        return known[index]

    parts = split(
        order.src,
        [record.file for record in records],
        lambda index: bool(objects(index).sizes),
        order.count,
        order.seed,
        order.exclude,
        order.progress,
    )
    usable = len(parts.calibration) + len(parts.deciding) + len(parts.held_out)
    if not parts.held_out or (order.deciding and not parts.deciding):
        limit = "three: one to calibrate on, one that decides" if order.deciding else "two, of which one"
        raise order.too_few(
            f"{usable} pictures with instances",
            f"at least {limit}{' and one that' if order.deciding else ''} is held out",
            parts,
        )

    def crops(pictures: Sequence[Picture], number: int) -> list[_Crop]:
        there = [objects(picture.index) for picture in pictures]
        chosen = choose_objects(
            [one.sizes for one in there], number, [(order.seed, picture.content) for picture in pictures]
        )
        return [
            _Crop(
                pictures[picture],
                random,
                object_crop(there[picture], one, order.contract, protocol),
                there[picture].sizes[one],
            )
            for picture, one, random in chosen
        ]

    drawn = {
        CALIBRATION: crops(parts.calibration, order.count),
        DECIDING: crops(parts.deciding, order.deciding),
        HELD_OUT_PART: crops(parts.held_out, HELD_OUT),
    }
    warning = "" if name.startswith("train") else " (no training annotations there, so of the validation set)"
    sizes = Counter(crop.size for crop in drawn[CALIBRATION])
    how = (
        f"around instances of {_pictures(drawn[CALIBRATION])} pictures of COCO {name}{warning}, "
        f"{_resolution(protocol)}, {', '.join(f'{sizes[size]} {size}' for size in SIZES)}; "
        f"{HELD_OUT} held-out crops from {len(parts.held_out)} other pictures of it"
    )
    return _assembled(order, drawn, parts, how)


def _resolution(protocol: Protocol) -> str:
    if protocol.box_margin is None:
        return "native resolution"
    return f"each one's box with {protocol.box_margin:.0%} on each side, scaled ({protocol.name})"


# Cutting


def _pictures(crops: Sequence[_Crop]) -> int:
    return len({crop.picture.index for crop in crops})


def _assembled(order: _Order, drawn: dict[str, list[_Crop]], parts: Parts, how: str) -> RepresentativeSet:
    """Cut all crops; every picture is decoded once for it, and held no longer than needed."""
    shape = (order.contract.channels, order.contract.height, order.contract.width)
    pixels = {part: np.empty((len(crops), *shape), np.uint8) for part, crops in drawn.items()}
    masks = np.zeros((order.deciding, *shape[1:]), np.bool_)
    of_picture: dict[int, list[tuple[str, int]]] = {}
    for part, crops in drawn.items():
        for place, crop in enumerate(crops):
            of_picture.setdefault(crop.picture.index, []).append((part, place))
    for done, places in enumerate(of_picture.values()):
        order.progress("cutting crops", done / len(of_picture))
        file = drawn[places[0][0]][places[0][1]].picture.file
        read = read_picture(file.path)
        if read is None:
            raise unreadable(f"calibration {order.src}", [file.name])
        for part, place in places:
            crop = drawn[part][place]
            pixels[part][place], mask = crop.cut(read[0], crop.random)
            if part == DECIDING and mask is not None:
                masks[place] = mask
    sources = _sources(drawn)
    where = {(source.name, source.part): index for index, source in enumerate(sources)}
    how = f"{order.count} crops of {order.contract.width}x{order.contract.height} {how}" + (
        f"; {order.deciding} deciding crops apart from both ({_pictures(drawn[DECIDING])} pictures)"
        if order.deciding
        else ""
    )
    return RepresentativeSet(
        pixels[CALIBRATION],
        pixels[HELD_OUT_PART],
        order.contract,
        sources,
        order.seed,
        f"{how}; seed {order.seed}{remark(order.contract)}",
        pixels[DECIDING],
        masks if order.src.startswith(COCO_PREFIX) else None,
        np.array([where[crop.picture.file.name, DECIDING] for crop in drawn[DECIDING]], np.int64),
        parts.left_out,
        order.protocol,
    )


def _sources(drawn: dict[str, list[_Crop]]) -> tuple[Source, ...]:
    """Every picture of every part, in order of name."""
    found = []
    for part, crops in drawn.items():
        of_picture: dict[int, list[_Crop]] = {}
        for crop in crops:
            of_picture.setdefault(crop.picture.index, []).append(crop)
        for own in of_picture.values():
            picture, sizes = own[0].picture, tuple(crop.size for crop in own if crop.size)
            found.append(Source(picture.file.name, picture.sha256, picture.content, part, len(own), sizes))
    return tuple(sorted(found, key=lambda source: (source.name, source.part)))
