"""What a run learns from and what it is judged by: split by picture, nothing in both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from passes.errors import InputError
from student.crops import PROTOCOLS
from student.cropset import CropSet, load_crops
from student.instances import InstanceSet, PictureRecord, read_picture
from student.recipe import Recipe
from student.teacher_cache import TeacherCache

HELD_OUT_MOST = 200
"""Pictures held out at most: all of them are scored at every point of the curve."""


@dataclass(frozen=True)
class TrainingData:
    """Pictures to learn from and pictures to judge by, no picture in both.

    Attributes:
        records: annotated pictures and, after them, pictures only a teacher has seen.
        held_out: crops of annotated pictures that are never trained on.
        cache: the teacher's answers; None to train without.
        name: the data sets' names, for the card.
        crowds, empty: annotations left out.
        left_out: keys of pictures that would be in both parts or twice in one, and of broken held-out ones.
        digest: hex SHA-256 over everything above.
    """

    records: tuple[PictureRecord, ...]
    held_out: CropSet
    cache: TeacherCache | None
    name: str
    crowds: int
    empty: int
    left_out: tuple[str, ...]
    digest: str


def training_data(
    recipe: Recipe,
    annotated: InstanceSet,
    folders: Sequence[InstanceSet] = (),
    cache: TeacherCache | None = None,
) -> TrainingData:
    """Holds out every `recipe.held_out`-th annotated picture (HELD_OUT_MOST at most) from training.

    Pictures of `folders` that are annotated ones as well, or copies of held-out ones, are left out.

    Raises:
        InputError: nothing left to train on, a distilling recipe without a cache, or a cache that knows none
            of the pictures of a data set.
    """
    if recipe.loss != "labels" and cache is None:
        raise InputError(
            f"loss {recipe.loss}",
            "no teacher cache",
            "one made by `picosam2 teach`",
            "give --teacher-cache, or --loss labels to train without a teacher",
        )
    with_objects = [record for record in annotated.pictures if record.instances]
    every = max(recipe.held_out, math.ceil(len(with_objects) / HELD_OUT_MOST))
    held = {record.key for record in with_objects[::every]}
    rest = tuple(record for record in annotated.pictures if record.key not in held)
    if not any(record.instances for record in rest):
        raise InputError(
            annotated.name,
            f"{len(with_objects)} picture with objects",
            "two or more: one is held out",
            "give more pictures",
        )
    for source in (annotated, *folders):
        if cache is not None and not any(record.key in cache for record in source.pictures):
            raise InputError(
                "teacher cache",
                f"none of the pictures of {source.name} is in it",
                "the cache of these pictures (named by folder and file)",
                "run `picosam2 teach` with the same --data, --split and --unlabelled",
            )
    judged = [record for record in with_objects if record.key in held]
    broken = {record.key for record in judged if read_picture(record) is None}
    judged = [record for record in judged if record.key not in broken]
    extra, left_out = _without_known(folders, annotated.pictures, judged)
    crops = load_crops(
        InstanceSet(annotated.name, tuple(judged), annotated.categories, 0, 0), PROTOCOLS[recipe.protocol]
    )
    name = " + ".join([annotated.name, *(folder.name for folder in folders)])
    records = rest + extra
    said = "" if cache is None else cache.header.fingerprint + "".join(cache.header.shards)
    parts = [
        (record.key, [(i.annotation_id, i.rle["counts"]) for i in record.instances]) for record in records
    ]
    digest = hashlib.sha256(repr((parts, [r.key for r in judged], said)).encode()).hexdigest()
    return TrainingData(
        records, crops, cache, name, annotated.crowds, annotated.empty, (*sorted(broken), *left_out), digest
    )


def _without_known(
    folders: Sequence[InstanceSet], known: Sequence[PictureRecord], held: Sequence[PictureRecord]
) -> tuple[tuple[PictureRecord, ...], tuple[str, ...]]:
    """The folders' pictures neither among `known` nor copies of `held`, and the keys of the others."""
    names = {record.key for record in known} | {str(record.path.resolve()) for record in known}
    sizes = {record.path.stat().st_size for record in held}
    contents = {hashlib.sha256(record.path.read_bytes()).digest() for record in held}
    kept: list[PictureRecord] = []
    left_out: list[PictureRecord] = []
    for record in (record for folder in folders for record in folder.pictures):
        is_known = record.key in names or str(record.path.resolve()) in names
        if not is_known and record.path.stat().st_size in sizes:
            is_known = hashlib.sha256(record.path.read_bytes()).digest() in contents
        (left_out if is_known else kept).append(record)
    return tuple(kept), tuple(record.key for record in left_out)
