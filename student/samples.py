"""Training samples: views of pictures around annotated objects and around points a teacher was asked about.

Pictures are decoded once and stay in memory while their samples are dealt, in the order of the deck; with a
limit above the number of pictures each is decoded once in the whole run. Which sample is number k, and how it
is augmented, follows from (seed, k) alone, so a run can be continued anywhere and shared by processes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from passes.errors import InputError
from student.augment import Augmentation, View, draw_view, relight, show
from student.crops import Mask, Pixels, Protocol, Window, bounding_box, window
from student.evaluate import MEDIUM, SMALL
from student.features import STRIDE, read_embedding, shown_features
from student.instances import PictureRecord, read_picture
from student.losses import Targets
from student.teacher_cache import LOGIT_STEP, Lesson, TeacherCache

Indices = NDArray[np.int64]

NO_LOGIT = -16.0
"""The teacher's logit where it was not kept: far outside the object."""


@dataclass(frozen=True)
class Sample:
    """One object of one picture.

    Attributes:
        place: the protocol's window.
        mask: bool [h, w], the annotated object inside its bounding box; None for unlabelled samples.
        top, left: the picture pixel of mask[0, 0].
        lesson: what the teacher said about the object; None where it was not asked.
        weight: how much the sample counts.
    """

    place: Window
    mask: Mask | None
    top: int
    left: int
    lesson: Lesson | None
    weight: float = 1.0

    def on_object(self, row: int, column: int) -> bool:
        """Whether a picture pixel belongs to the object."""
        plane: NDArray[Any]
        if self.mask is not None:
            plane, row, column = self.mask, row - self.top, column - self.left
        else:
            assert self.lesson is not None
            plane = self.lesson.logits
            row = int((row + 0.5) // self.lesson.stride) - self.lesson.top
            column = int((column + 0.5) // self.lesson.stride) - self.lesson.left
        inside = 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
        return inside and bool(plane[row, column] > 0)


@dataclass(frozen=True)
class Material:
    """A decoded picture and its samples.

    `embedding` is the teacher's, float16 [C, g, g] (`features.read_embedding`), where hints are asked for.
    """

    pixels: Pixels
    annotated: tuple[Sample, ...]
    unlabelled: tuple[Sample, ...]
    embedding: NDArray[np.float16] | None


def material_of(
    record: PictureRecord,
    protocol: Protocol,
    cache: TeacherCache | None,
    embeddings: Path | None = None,
    size_weights: Sequence[float] = (1.0, 1.0, 1.0),
) -> Material | None:
    """Decodes a picture and its masks; None where the file is broken.

    Args:
        size_weights: of small, medium and large objects (function `size_weights`).
    """
    pixels = read_picture(record)
    if pixels is None:
        return None
    lessons = cache.lessons(record.key) if cache is not None and record.key in cache else ()
    taught = {lesson.annotation_id: lesson for lesson in lessons if lesson.annotation_id >= 0}
    annotated = []
    for instance in record.instances:
        mask = instance.mask()
        left, top, width, height = bounding_box(mask)
        annotated.append(
            Sample(
                window(protocol, mask, instance.box),
                mask[top : top + height, left : left + width].copy(),
                top,
                left,
                taught.get(instance.annotation_id),
                size_weights[_size_class(instance.area)],
            )
        )
    unlabelled = [
        _unlabelled_sample(lesson, protocol, (record.height, record.width))
        for lesson in lessons
        if lesson.annotation_id < 0
    ]
    embedding = None if embeddings is None else read_embedding(embeddings, record.path.read_bytes())
    return Material(pixels, tuple(annotated), tuple(unlabelled), embedding)


COCO_SHARES = (0.41, 0.34, 0.24)
"""Share of small, medium and large objects in COCO, as its detection evaluation page states them."""


def size_weights(records: Sequence[PictureRecord]) -> tuple[float, float, float]:
    """Weights of small, medium and large objects with which they count as in all of COCO; 1 on average.

    A part of COCO, chosen by picture or annotated in part, may hold another mixture.
    """
    classes = [_size_class(instance.area) for record in records for instance in record.instances]
    counts = np.bincount(classes, minlength=3)
    wanted = np.where(counts > 0, COCO_SHARES, 0.0)
    weights = wanted / max(wanted.sum(), 1e-9) * counts.sum() / np.maximum(counts, 1)
    return float(weights[0]), float(weights[1]), float(weights[2])


def _size_class(area: float) -> int:
    return sum(area >= limit for limit in (SMALL, MEDIUM))


def _unlabelled_sample(lesson: Lesson, protocol: Protocol, size: tuple[int, int]) -> Sample:
    """The protocol's window around what the teacher found; its box is known to a logit cell."""
    if protocol.box_margin is None:
        half = protocol.size // 2
        place = Window(lesson.row - half, lesson.column - half, protocol.size)
    else:
        left, top, width, height = bounding_box(lesson.logits > 0)
        box = tuple(edge * lesson.stride for edge in (lesson.left + left, lesson.top + top, width, height))
        place = window(protocol, np.zeros((0, 0), np.bool_), box)  # type: ignore[arg-type]
    return Sample(place, None, 0, 0, lesson)


class Shelf:
    """Decoded pictures, the `limit` last used; safe to read from several threads."""

    def __init__(
        self,
        records: Sequence[PictureRecord],
        protocol: Protocol,
        cache: TeacherCache | None,
        limit: int,
        embeddings: Path | None = None,
        size_weights: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.records, self.protocol, self.cache, self.limit = records, protocol, cache, limit
        self.embeddings, self.size_weights = embeddings, size_weights
        self.broken: dict[int, str] = {}
        self._kept: OrderedDict[int, Material] = OrderedDict()
        self._lock = threading.Lock()
        self._being_read: dict[int, threading.Lock] = {}

    def material(self, index: int) -> Material | None:
        """Picture number `index`; None, and noted in `broken`, where the file cannot be decoded."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            if index in self.broken:
                return None
            turn = self._being_read.setdefault(index, threading.Lock())
        with turn:  # one thread decodes, the others wait for it
            with self._lock:
                if index in self._kept:
                    return self._kept[index]
            found = material_of(
                self.records[index], self.protocol, self.cache, self.embeddings, self.size_weights
            )
            with self._lock:
                self._being_read.pop(index, None)
                if found is None:
                    self.broken[index] = self.records[index].key
                    return None
                self._kept[index] = found
                while len(self._kept) > self.limit:
                    self._kept.popitem(last=False)
        return found


@dataclass(frozen=True)
class Deck:
    """Deals N samples again and again, each epoch in another order.

    Pictures are shuffled and dealt `pictures_at_once` at a time; the samples of those are shuffled among
    themselves. So few pictures have to be in memory, and each is decoded once an epoch.

    Attributes:
        pictures: int64 [N], the picture of each sample, ascending.
        ordinals: int64 [N], which of its picture's samples it is.
    """

    pictures: Indices
    ordinals: Indices
    pictures_at_once: int
    seed: tuple[int, ...]

    @staticmethod
    def of(counts: Sequence[int], pictures_at_once: int, seed: tuple[int, ...]) -> Deck:
        """A deck of `counts[i]` samples of picture i."""
        pictures = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        ordinals = np.concatenate([np.arange(n, dtype=np.int64) for n in counts] or [np.zeros(0, np.int64)])
        return Deck(pictures, ordinals, pictures_at_once, seed)

    def __len__(self) -> int:
        return len(self.pictures)

    def order(self, epoch: int) -> Indices:
        """The samples in the order in which this epoch deals them: a permutation of 0..N-1."""
        generator = np.random.default_rng((*self.seed, epoch))
        used = np.unique(self.pictures)
        group = np.empty(int(used[-1]) + 1, np.int64)
        group[generator.permutation(used)] = np.arange(len(used)) // self.pictures_at_once
        return np.lexsort((generator.permutation(len(self)), group[self.pictures]))


class Dealer:
    """Deck positions to (picture, ordinal); remembers the order of the epoch it is in."""

    def __init__(self, deck: Deck) -> None:
        self.deck = deck
        self._epoch = -1
        self._order: Indices = np.zeros(0, np.int64)

    def at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.deck))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.deck.order(epoch)
        chosen = self._order[place]
        return int(self.deck.pictures[chosen]), int(self.deck.ordinals[chosen])


@dataclass(frozen=True)
class Batch:
    """N samples.

    Attributes:
        pixels: float32 [N, 3, S, S], RGB whole numbers 0..255.
        targets: what the student's logits should become.
        features, inside: what its features should become (`features.feature_loss`), where hints are
            asked for.
    """

    pixels: NDArray[np.float32]
    targets: Targets
    features: Tensor | None
    inside: Tensor | None


class SampleStream:
    """Batches by number.

    Args:
        records: the pictures; annotated ones and pictures only the teacher has seen.
        unlabelled: one number for each step: how many of its samples are unlabelled.
        batch: samples in a step.
        pictures_in_memory, embeddings: see `Shelf`.
        sizes: `coco` to weigh annotated samples by `size_weights`; `data` to count them all alike.
    """

    def __init__(
        self,
        records: Sequence[PictureRecord],
        protocol: Protocol,
        cache: TeacherCache | None,
        augmentation: Augmentation,
        unlabelled: NDArray[np.int64],
        batch: int,
        seed: int,
        pictures_in_memory: int,
        embeddings: Path | None = None,
        sizes: str = "data",
    ) -> None:
        self.protocol, self.augmentation, self.seed, self.batch = protocol, augmentation, seed, batch
        weights = size_weights(records) if sizes == "coco" else (1.0, 1.0, 1.0)
        self.shelf = Shelf(records, protocol, cache, pictures_in_memory, embeddings, weights)
        at_once = max(1, pictures_in_memory // 4)  # two decks, and the next group of each
        annotated = [len(record.instances) for record in records]
        points = [
            cache.unlabelled_count(record.key) if cache is not None and record.key in cache else 0
            for record in records
        ]
        self._annotated = Dealer(Deck.of(annotated, at_once, (seed, 0)))
        self._points = Dealer(Deck.of(points, at_once, (seed, 1)))
        self._unlabelled = unlabelled if sum(points) else np.zeros_like(unlabelled)
        if not sum(annotated) and not sum(points):
            raise InputError("training data", "no sample", "at least one annotated object", "give other data")
        if not sum(annotated):
            self._unlabelled = np.full_like(unlabelled, batch)
        self._dealt_points = np.concatenate([[0], np.cumsum(self._unlabelled)])

    @property
    def annotated(self) -> int:
        return len(self._annotated.deck)

    @property
    def unlabelled(self) -> int:
        return len(self._points.deck)

    def picks(self, step: int) -> list[tuple[bool, int, int]]:
        """(annotated, picture, ordinal) of each sample of a step: unlabelled ones spread among the others."""
        points = int(self._unlabelled[step])
        first_point = int(self._dealt_points[step])
        first_annotated = step * self.batch - first_point
        chosen = [(True, *self._annotated.at(first_annotated + i)) for i in range(self.batch - points)]
        chosen += [(False, *self._points.at(first_point + i)) for i in range(points)]
        spread = np.random.default_rng((self.seed, 2, step)).permutation(self.batch)
        return [chosen[i] for i in spread]

    def batch_at(self, step: int, rows: slice, pool: ThreadPoolExecutor | None = None) -> Batch:
        """The samples of a step in `rows` (a process of several takes its share)."""
        slots = range(self.batch)[rows]
        picks = self.picks(step)
        made = list((pool.map if pool else map)(lambda slot: self._make(step, slot, *picks[slot]), slots))
        pixels, masks, logits, facts = (np.stack(part) for part in zip(*(m[:4] for m in made), strict=True))
        hints = [np.stack(part) for part in zip(*(m[4:] for m in made), strict=True) if part[0] is not None]
        features, inside = (torch.from_numpy(hint) for hint in hints) if hints else (None, None)
        columns = (torch.from_numpy(column.copy()) for column in facts.T)
        return Batch(
            pixels,
            Targets(torch.from_numpy(masks), torch.from_numpy(logits), *columns),
            features,
            inside,
        )

    def _make(self, step: int, slot: int, annotated: bool, picture: int, ordinal: int) -> tuple[Any, ...]:
        generator = np.random.default_rng((self.seed, 3, step, slot))
        material = self.shelf.material(picture)
        tried = 0
        while material is None:  # a broken file: another picture's sample takes the place
            dealer = self._annotated if annotated else self._points
            tried += 1
            if tried > 100:
                raise InputError(
                    "training pictures",
                    f"{len(self.shelf.broken)} broken, among them {next(iter(self.shelf.broken.values()))}",
                    "a few are skipped, not a hundred in a row",
                    "download the pictures again",
                )
            other = int(generator.integers(len(dealer.deck)))
            picture, ordinal = int(dealer.deck.pictures[other]), int(dealer.deck.ordinals[other])
            material = self.shelf.material(picture)
        sample = (material.annotated if annotated else material.unlabelled)[ordinal]
        return render(self.protocol, self.augmentation, material, sample, generator)


def render(
    protocol: Protocol,
    augmentation: Augmentation,
    material: Material,
    sample: Sample,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32] | None, ...]:
    """One augmented sample.

    Returns:
        pixels [3, S, S], mask [1, S, S], teacher's logits [1, S, S], and (taught, labelled, predicted IoU,
        agreement, weight), all float32; see `losses.Targets`. Then the teacher's features [C, S / 8, S / 8]
        and where they are in the picture [S / 8, S / 8], or None twice.
    """
    size = (material.pixels.shape[0], material.pixels.shape[1])
    view = draw_view(augmentation, sample.place, size, sample.on_object, generator)
    crop = relight(augmentation, show(material.pixels, view, protocol.size, protocol.pad_value), generator)
    lesson = sample.lesson
    logits = np.zeros((protocol.size, protocol.size), np.float32)
    if lesson is not None:
        logits = _shown_logits(lesson, view, protocol.size)
    if sample.mask is not None:
        seen = _moved(view, sample.top, sample.left, 1.0)
        mask = show(sample.mask.astype(np.uint8) * 255, seen, protocol.size, 0) >= 128
    else:
        mask = logits > 0
    if lesson is None:
        facts = (0.0, 1.0, 0.0, 0.0, sample.weight)
    elif sample.mask is None:
        facts = (1.0, 0.0, lesson.predicted_iou, 1.0, sample.weight)
    else:
        facts = (1.0, 1.0, lesson.predicted_iou, lesson.agreement, sample.weight)
    hints: tuple[NDArray[np.float32] | None, ...] = (None, None)
    if material.embedding is not None:
        hints = shown_features(material.embedding, size, view, protocol.size // STRIDE)
    return (
        np.ascontiguousarray(crop.transpose(2, 0, 1)),
        mask[None].astype(np.float32),
        np.ascontiguousarray(logits[None]),
        np.array(facts, np.float32),
        *hints,
    )


def _moved(view: View, top: float, left: float, stride: float) -> View:
    """The view in the pixels of a plane whose first cell is (top, left), in cells of `stride` pixels."""
    return View(
        view.top / stride - top,
        view.left / stride - left,
        view.height / stride,
        view.width / stride,
        view.mirrored,
    )


def _shown_logits(lesson: Lesson, view: View, size: int) -> NDArray[np.float32]:
    plane = lesson.logits.astype(np.float32) * np.float32(LOGIT_STEP)
    return show(plane, _moved(view, lesson.top, lesson.left, lesson.stride), size, NO_LOGIT)
