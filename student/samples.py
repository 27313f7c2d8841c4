"""Training samples: views of pictures around annotated objects and around points a teacher was asked about.

Pictures are shuffled and used in groups that fit in memory: annotated objects and unlabelled points each
decode a picture once an epoch, and only once in the whole run where all pictures fit. Which sample is number
k, and how it is augmented, follows from (seed, k) alone, so a run can be continued anywhere. Of several
processes each has its own share of the pictures.
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
from student.crops import Mask, Pixels, Protocol, Window, bounding_box, prompt_point, window
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
class DecodedPicture:
    """A picture in memory and its samples.

    Attributes:
        pixels: RGB, uint8 [H, W, 3].
        annotated, unlabelled: its samples of either kind.
        embedding: the teacher's, float16 [C, g, g] (`features.read_embedding`), where hints are asked for.
    """

    pixels: Pixels
    annotated: tuple[Sample, ...]
    unlabelled: tuple[Sample, ...]
    embedding: NDArray[np.float16] | None


@dataclass(frozen=True)
class SampleSettings:
    """How a picture becomes samples.

    Attributes:
        protocol: which window an object is shown in.
        cache: the teacher's answers; None for none.
        embeddings: the teacher's embeddings, `EMBEDDINGS/<fingerprint>`; None for no feature hints.
        size_weights: of small, medium and large annotated objects (`size_weights`).
    """

    protocol: Protocol
    cache: TeacherCache | None = None
    embeddings: Path | None = None
    size_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)


def decode(record: PictureRecord, settings: SampleSettings) -> DecodedPicture | None:
    """Reads a picture, its masks and what the teacher said; None where the file is broken.

    Raises:
        InputError: the cache's answers are about other objects than the annotations.
    """
    pixels = read_picture(record)
    if pixels is None:
        return None
    cache = settings.cache
    lessons = cache.lessons(record.key) if cache is not None and record.key in cache else ()
    taught = {lesson.annotation_id: lesson for lesson in lessons if lesson.annotation_id >= 0}
    annotated = []
    for instance in record.instances:
        mask = instance.mask()
        lesson = taught.get(instance.annotation_id)
        if lesson is not None and (lesson.row, lesson.column) != prompt_point(mask):
            raise InputError(
                f"teacher cache, annotation {instance.annotation_id} of {record.key}",
                f"was asked about at row {lesson.row}, column {lesson.column}",
                f"this data set's prompt, row and column {prompt_point(mask)}",
                "run `picosam2 teach` on this data set; the cache is of another one",
            )
        left, top, width, height = bounding_box(mask)
        annotated.append(
            Sample(
                window(settings.protocol, mask, instance.box),
                mask[top : top + height, left : left + width].copy(),
                top,
                left,
                lesson,
                settings.size_weights[_size_class(instance.area)],
            )
        )
    unlabelled = [
        _unlabelled_sample(lesson, settings.protocol) for lesson in lessons if lesson.annotation_id < 0
    ]
    embedding = None
    if settings.embeddings is not None:
        embedding = read_embedding(settings.embeddings, record.path.read_bytes())
    return DecodedPicture(pixels, tuple(annotated), tuple(unlabelled), embedding)


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


def _unlabelled_sample(lesson: Lesson, protocol: Protocol) -> Sample:
    """The protocol's window around what the teacher found; its box is known to a logit cell."""
    if protocol.box_margin is None:
        half = protocol.size // 2
        place = Window(lesson.row - half, lesson.column - half, protocol.size)
    else:
        left, top, width, height = bounding_box(lesson.logits > 0)
        box = tuple(edge * lesson.stride for edge in (lesson.left + left, lesson.top + top, width, height))
        place = window(protocol, np.zeros((0, 0), np.bool_), box)  # type: ignore[arg-type]
    return Sample(place, None, 0, 0, lesson)


class PictureStore:
    """Decoded pictures, the `limit` last used; safe to read from several threads.

    Attributes:
        broken: keys of the pictures that could not be decoded.
    """

    def __init__(self, records: Sequence[PictureRecord], settings: SampleSettings, limit: int) -> None:
        self.records, self.settings, self.limit = records, settings, limit
        self.broken: set[str] = set()
        self._kept: OrderedDict[int, DecodedPicture] = OrderedDict()
        self._lock = threading.Lock()
        self._being_read: dict[int, threading.Lock] = {}

    def picture(self, index: int) -> DecodedPicture | None:
        """Picture number `index`; None, and noted in `broken`, where the file cannot be decoded."""
        key = self.records[index].key
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            if key in self.broken:
                return None
            turn = self._being_read.setdefault(index, threading.Lock())
        with turn:  # one thread decodes, the others wait for it
            with self._lock:
                if index in self._kept:
                    return self._kept[index]
            found = decode(self.records[index], self.settings)
            with self._lock:
                self._being_read.pop(index, None)
                if found is None:
                    self.broken.add(key)
                    return None
                self._kept[index] = found
                while len(self._kept) > self.limit:
                    self._kept.popitem(last=False)
        return found


class EpochOrder:
    """N samples again and again, each epoch in another order.

    Pictures are shuffled and used `group` at a time; the samples of those are shuffled among themselves. So
    few pictures have to be in memory, and each is decoded once an epoch.

    Args:
        counts: number of samples of each picture.
        seed: of the orders.
    """

    def __init__(self, counts: Sequence[int], group: int, seed: tuple[int, ...]) -> None:
        self.pictures: Indices = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self.ordinals: Indices = np.concatenate(
            [np.arange(n, dtype=np.int64) for n in counts] or [np.zeros(0, np.int64)]
        )
        self.group, self.seed = group, seed
        self._epoch = -1
        self._order: Indices = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.pictures)

    def order(self, epoch: int) -> Indices:
        """An epoch's order: a permutation of 0..N-1."""
        generator = np.random.default_rng((*self.seed, epoch))
        used = np.unique(self.pictures)
        group = np.empty(int(used[-1]) + 1, np.int64)
        group[generator.permutation(used)] = np.arange(len(used)) // self.group
        return np.lexsort((generator.permutation(len(self)), group[self.pictures]))

    def at(self, position: int) -> tuple[int, int]:
        """Picture and ordinal of a position, counted from the start of the run."""
        epoch, place = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        return self.sample(int(self._order[place]))

    def sample(self, number: int) -> tuple[int, int]:
        return int(self.pictures[number]), int(self.ordinals[number])


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
        unlabelled: int64 [steps], how many samples of each step are unlabelled.
        batch: samples in a step.
        group: pictures used together (`EpochOrder`); about twice as many stay in memory.
        process: of several processes, which one this is; its augmentation differs from the others'.

    Raises:
        InputError: no annotated object.
    """

    def __init__(
        self,
        records: Sequence[PictureRecord],
        settings: SampleSettings,
        augmentation: Augmentation,
        unlabelled: NDArray[np.int64],
        batch: int,
        seed: int,
        group: int,
        process: int = 0,
    ) -> None:
        self.settings, self.augmentation, self.batch = settings, augmentation, batch
        self.seed, self.process = seed, process
        # One group for annotated and one for unlabelled samples, and room for a step between two groups.
        self.store = PictureStore(records, settings, 2 * group + 2 * batch)
        annotated = [len(record.instances) for record in records]
        if not sum(annotated):
            raise InputError(
                f"training pictures of process {process}",
                f"{len(records)} pictures without an annotated object",
                "at least one object for each process",
                "give more pictures, or use fewer processes",
            )
        cache = settings.cache
        points = [
            cache.unlabelled_count(record.key) if cache is not None and record.key in cache else 0
            for record in records
        ]
        self.annotated = EpochOrder(annotated, group, (seed, 0))
        self.unlabelled = EpochOrder(points, group, (seed, 1))
        self._unlabelled_per_step = unlabelled if sum(points) else np.zeros_like(unlabelled)
        self._unlabelled_before = np.concatenate([[0], np.cumsum(self._unlabelled_per_step)])

    def picks(self, step: int) -> list[tuple[bool, int, int]]:
        """(annotated, picture, ordinal) of each sample of a step: unlabelled ones spread among the others."""
        points = int(self._unlabelled_per_step[step])
        first_point = int(self._unlabelled_before[step])
        first_annotated = step * self.batch - first_point
        chosen = [(True, *self.annotated.at(first_annotated + i)) for i in range(self.batch - points)]
        chosen += [(False, *self.unlabelled.at(first_point + i)) for i in range(points)]
        spread = np.random.default_rng((self.seed, 2, step)).permutation(self.batch)
        return [chosen[i] for i in spread]

    def batch_at(self, step: int, pool: ThreadPoolExecutor | None = None) -> Batch:
        """The samples of a step.

        Raises:
            InputError: a hundred broken pictures in a row; fewer are replaced by other samples.
        """
        picks = self.picks(step)
        made = list(
            (pool.map if pool else map)(lambda slot: self._make(step, slot, *picks[slot]), range(self.batch))
        )
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
        generator = np.random.default_rng((self.seed, 3, step, self.process * self.batch + slot))
        found = self.store.picture(picture)
        tried = 0
        while found is None:  # a broken file: another picture's sample takes the place
            order = self.annotated if annotated else self.unlabelled
            tried += 1
            if tried > 100:
                raise InputError(
                    "training pictures",
                    f"{len(self.store.broken)} broken, among them {min(self.store.broken)}",
                    "a few are skipped, not a hundred in a row",
                    "download the pictures again",
                )
            picture, ordinal = order.sample(int(generator.integers(len(order))))
            found = self.store.picture(picture)
        sample = (found.annotated if annotated else found.unlabelled)[ordinal]
        return render(self.settings.protocol, self.augmentation, found, sample, generator)


def render(
    protocol: Protocol,
    augmentation: Augmentation,
    picture: DecodedPicture,
    sample: Sample,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32] | None, ...]:
    """One augmented sample.

    Returns:
        pixels [3, S, S], mask [1, S, S], teacher's logits [1, S, S], and (taught, labelled, predicted IoU,
        agreement, weight), all float32; see `losses.Targets`. Then the teacher's features [C, S / 8, S / 8]
        and where they are in the picture [S / 8, S / 8], or None twice.
    """
    size = (picture.pixels.shape[0], picture.pixels.shape[1])
    view = draw_view(augmentation, sample.place, protocol.size, size, sample.on_object, generator)
    crop = relight(augmentation, show(picture.pixels, view, protocol.size, protocol.pad_value), generator)
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
    if picture.embedding is not None:
        hints = shown_features(picture.embedding, size, view, protocol.size // STRIDE)
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
