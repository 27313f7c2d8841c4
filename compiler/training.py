"""`picosam2 train`: from options to a run of student.train, and what is said at its end."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.errors import InputError
from student.recipe import Recipe, make_recipe

if TYPE_CHECKING:
    from student.training_data import TrainingData


@dataclass(frozen=True)
class TrainOptions:
    """What the command line asked for; None leaves a setting at the recipe's default."""

    data: str
    split: str
    out: Path
    unlabelled: tuple[Path, ...] = ()
    teacher_cache: Path | None = None
    embeddings: Path | None = None
    start_from: Path | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    threads: int | None = None
    workers: int = 1
    cpu: bool = False
    quiet: bool = False


def recipe_of(options: TrainOptions) -> Recipe:
    """The recipe; without a teacher cache the default loss is `labels`."""
    chosen = dict(options.recipe)
    asked = chosen.get("loss") is not None or any(o.startswith("loss=") for o in options.overrides)
    if options.teacher_cache is None and not asked:
        chosen["loss"] = "labels"
    return make_recipe(chosen, options.overrides)


def run_training(options: TrainOptions) -> None:
    """Trains and prints where the checkpoint lies.

    Raises:
        InputError: see student.train, student.instances and student.teacher_cache.
    """
    recipe = recipe_of(options)
    import torch

    from compiler.progress import Counting
    from student.instances import first_names, load_folder, load_instances
    from student.teach import embeddings_folder
    from student.teacher_cache import TeacherCache
    from student.train import CHECKPOINT, require_run_folder, train
    from student.training_data import training_data

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.unlabelled and options.teacher_cache is None:
        raise InputError(
            "--unlabelled",
            "pictures without annotations and no teacher",
            "a teacher's answers about them",
            "give --teacher-cache, made by `picosam2 teach` with the same --unlabelled",
        )
    if options.embeddings is not None and options.teacher_cache is None:
        raise InputError(
            "--embeddings",
            "embeddings and no teacher cache",
            "the cache that names their teacher",
            "give --teacher-cache, made by `picosam2 teach` with the same --embeddings",
        )
    require_run_folder(options.out)
    cache = None if options.teacher_cache is None else TeacherCache(options.teacher_cache)
    annotated = load_instances(options.data, options.split)
    folders = [load_folder(folder) for folder in options.unlabelled]
    data = training_data(recipe, annotated, folders, cache)
    with Counting("train", quiet=options.quiet or _follower()) as count:
        outcome = train(
            recipe,
            data,
            options.out,
            start_from=options.start_from,
            embeddings=(
                embeddings_folder(options.embeddings, cache.header.fingerprint)
                if cache is not None and options.embeddings is not None
                else None
            ),
            cpu=options.cpu,
            workers=options.workers,
            on_progress=count,
        )
    if _follower():
        return
    for keys, what in (
        (outcome.broken, "are broken and were skipped"),
        (data.left_out, "were left out: broken, given twice, or copies of held-out ones"),
        (untaught(data), "are unknown to the teacher cache"),
    ):
        if keys:
            print(f"warning: {len(keys)} pictures {what}: {first_names(keys)}", file=sys.stderr)
    print(
        f"held-out mIoU {outcome.chosen.held_out_miou:.3f} at step {outcome.chosen.step}; "
        f"{options.out / CHECKPOINT} and its card are written. "
        f"Next: picosam2 evaluate {options.out / CHECKPOINT} --data coco:DIR",
        file=sys.stderr,
    )


def untaught(data: TrainingData) -> tuple[str, ...]:
    """Keys of the pictures a given teacher cache does not know."""
    if data.cache is None:
        return ()
    return tuple(record.key for record in data.records if record.key not in data.cache)


def _follower() -> bool:
    """Whether this is one of several processes, and not the first, which alone speaks."""
    import os

    return int(os.environ.get("RANK", "0")) > 0
