"""Decks, the picture shelf, and samples whose mask, teacher's logits and pixels show the same place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import InputError
from student.augment import NONE, POINT, ROI
from student.crops import POINT_NATIVE_96, ROI_PAD10, crop, prompt_point
from student.instances import InstanceSet, load_instances, read_picture
from student.samples import (
    NO_LOGIT,
    EpochOrder,
    PictureStore,
    SampleSettings,
    SampleStream,
    decode,
    size_weights,
)
from student.teacher_cache import Lesson


@dataclass(frozen=True)
class Lessons:
    """Answers in memory, in the shape of a TeacherCache."""

    known: dict[str, tuple[Lesson, ...]] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def lessons(self, key: str) -> tuple[Lesson, ...]:
        return self.known[key]

    def unlabelled_count(self, key: str) -> int:
        return sum(lesson.annotation_id < 0 for lesson in self.known[key])


def lesson_of(mask: np.ndarray, key: str, annotation_id: int) -> Lesson:
    """A teacher who is sure of `mask`, on a grid of two pixels a cell: its logits follow a cell's share."""
    cells = mask.reshape(mask.shape[0] // 2, 2, mask.shape[1] // 2, 2).mean((1, 3))
    logits = np.rint((2.0 * cells - 1.0) * 64.0).astype(np.int8)
    row, column = prompt_point(mask)
    agreement = 1.0 if annotation_id >= 0 else float("nan")
    return Lesson(key, annotation_id, row, column, 0.75, 0.9, 2.0, 5, 3, logits[5:, 3:], agreement)


@pytest.fixture
def data(synthetic_coco: Path) -> InstanceSet:
    return load_instances(f"coco:{synthetic_coco}", "train2017")


@pytest.fixture
def taught(data: InstanceSet) -> Lessons:
    """Each instance, and the same object as an unlabelled point, for all pictures but the first."""
    known = {}
    for record in data.pictures[1:]:
        own = [lesson_of(i.mask(), record.key, i.annotation_id) for i in record.instances]
        known[record.key] = (*own, *(replace(lesson, annotation_id=-1) for lesson in own))
    return Lessons(known)


def stream_of(data: InstanceSet, cache: Lessons | None = None, **changed: object) -> SampleStream:
    settings = {
        "augmentation": NONE,
        "unlabelled": np.zeros(20, np.int64),
        "batch": 4,
        "seed": 0,
        "group": 100,
    } | changed
    protocol = settings.pop("protocol", POINT_NATIVE_96)
    weights = settings.pop("size_weights", (1.0, 1.0, 1.0))
    how = SampleSettings(protocol, cache, None, weights)  # type: ignore[arg-type]
    return SampleStream(data.pictures, how, **settings)  # type: ignore[arg-type]


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=30).filter(any),
    at_once=st.integers(1, 8),
    epoch=st.integers(0, 3),
)
def test_an_epoch_deals_every_sample_once_few_pictures_at_a_time(
    counts: list[int], at_once: int, epoch: int
) -> None:
    samples = EpochOrder(counts, at_once, (0, 1))
    order = samples.order(epoch)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    assert np.array_equal(order, samples.order(epoch))
    first = epoch * len(samples)
    pictures = [samples.at(first + place)[0] for place in range(len(samples))]
    assert pictures == samples.pictures[order].tolist()
    seen_last = {p: i for i, p in enumerate(pictures)}
    seen_first = {p: i for i, p in reversed(list(enumerate(pictures)))}
    for place in range(len(pictures)):
        open_now = sum(seen_first[p] <= place <= seen_last[p] for p in seen_first)
        assert open_now <= at_once


def test_without_augmentation_samples_are_the_protocols_crops(data: InstanceSet) -> None:
    expected = {}
    for record in data.pictures:
        for instance in record.instances:
            pixels, mask = crop(POINT_NATIVE_96, read_picture(record), instance.mask(), instance.box)  # type: ignore[arg-type]
            expected[pixels.transpose(2, 0, 1).tobytes()] = mask
    stream = stream_of(data)
    assert (len(stream.annotated), len(stream.unlabelled)) == (12, 0)
    for step in range(3):  # an epoch
        batch = stream.batch_at(step)
        for pixels, mask in zip(batch.pixels, batch.targets.masks.numpy(), strict=True):
            assert np.array_equal(expected.pop(pixels.astype(np.uint8).tobytes()), mask[0] > 0)
    assert not expected


@pytest.mark.parametrize("protocol", [POINT_NATIVE_96, ROI_PAD10], ids=lambda p: p.name)
def test_mask_and_teacher_show_the_same_place(data: InstanceSet, taught: Lessons, protocol: object) -> None:
    augmentation = POINT if protocol is POINT_NATIVE_96 else ROI
    stream = stream_of(
        data, taught, protocol=protocol, augmentation=augmentation, unlabelled=np.full(20, 2, np.int64)
    )
    overlaps = []
    for step in range(20):
        targets = stream.batch_at(step).targets
        for i in np.flatnonzero((targets.taught * targets.labelled).numpy()):
            student, teacher = targets.masks[i, 0].numpy() > 0, targets.teacher_logits[i, 0].numpy() > 0
            overlaps.append((student & teacher).sum() / (student | teacher).sum())
            assert targets.teacher_logits[i].min() >= NO_LOGIT
    assert len(overlaps) > 25
    assert min(overlaps) > 0.85  # the teacher's cells are two pixels wide
    assert np.mean(overlaps) > 0.95


def test_facts_of_each_kind_of_sample(data: InstanceSet, taught: Lessons) -> None:
    stream = stream_of(data, taught, unlabelled=np.full(20, 1, np.int64))
    for step in range(10):
        targets = stream.batch_at(step).targets
        assert targets.labelled.sum() == 3
        for i in range(4):
            facts = tuple(float(t[i]) for t in (targets.taught, targets.predicted_iou, targets.agreement))
            assert facts in ((1.0, 0.75, 1.0), (0.0, 0.0, 0.0))
            assert targets.labelled[i] == 1 or facts[0] == 1.0


def test_sizes_count_as_in_coco(data: InstanceSet) -> None:
    """Of 12 objects three become large and none is medium: small and large share 41 : 24."""
    objects = 0
    records = []
    for record in data.pictures:
        changed = []
        for instance in record.instances:
            changed.append(replace(instance, area=100.0 if objects >= 3 else 96.0**2))
            objects += 1
        records.append(replace(record, instances=tuple(changed)))
    small, medium, large = size_weights(records)
    assert (9 * small + 3 * large) / 12 == pytest.approx(1.0)
    assert (3 * large) / (9 * small) == pytest.approx(0.24 / 0.41)
    assert medium == 0.0
    stream = stream_of(replace(data, pictures=tuple(records)), size_weights=(small, medium, large))
    weights = np.concatenate([stream.batch_at(step).targets.weight for step in range(3)])
    assert sorted(weights.tolist()) == pytest.approx([small] * 9 + [large] * 3)
    alike = stream_of(replace(data, pictures=tuple(records)))
    assert alike.batch_at(0).targets.weight.tolist() == [1.0] * 4


def test_a_step_is_the_same_whoever_makes_it(data: InstanceSet, taught: Lessons) -> None:
    """Alone, with threads, or after a restart in the middle of an epoch."""
    share = {"augmentation": POINT, "unlabelled": np.full(20, 1, np.int64)}
    first = stream_of(data, taught, **share)
    for step in range(7):
        first.batch_at(step)
    made = [first.batch_at(7), stream_of(data, taught, **share).batch_at(7)]
    with ThreadPoolExecutor(3) as pool:
        made.append(stream_of(data, taught, **share).batch_at(7, pool))
    for other in made[1:]:
        assert np.array_equal(made[0].pixels, other.pixels)
        for name, tensor in vars(made[0].targets).items():
            assert np.array_equal(tensor, getattr(other.targets, name)), name


def test_processes_augment_differently(data: InstanceSet) -> None:
    one, other = (stream_of(data, augmentation=POINT, process=p).batch_at(0).pixels for p in (0, 1))
    assert not np.array_equal(one, other)


def test_a_cache_of_other_objects_is_refused(data: InstanceSet, taught: Lessons) -> None:
    """The same ids, but each picture's two objects have changed places."""
    record = data.pictures[1]
    one, other, *_ = taught.known[record.key]
    swapped = (
        replace(one, annotation_id=other.annotation_id),
        replace(other, annotation_id=one.annotation_id),
    )
    with pytest.raises(InputError, match="the cache is of another one"):
        decode(record, SampleSettings(POINT_NATIVE_96, Lessons({record.key: swapped})))  # type: ignore[arg-type]


def test_pictures_are_decoded_once_an_epoch(data: InstanceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counted(record: object, *rest: object) -> object:
        decoded.append(record.id)  # type: ignore[attr-defined]
        return decode(record, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("student.samples.decode", counted)
    stream = stream_of(data, group=1)
    stream.store.limit = 2
    for step in range(3):
        stream.batch_at(step)
    assert sorted(decoded) == [1, 2, 3, 4, 5, 6]


def test_broken_pictures_are_replaced_and_counted(data: InstanceSet) -> None:
    data.pictures[2].path.write_bytes(data.pictures[2].path.read_bytes()[:400])
    stream = stream_of(data)
    for step in range(6):
        assert stream.batch_at(step).pixels.shape == (4, 3, 96, 96)
    assert stream.store.broken == {data.pictures[2].key}


def test_nothing_but_broken_pictures_ends_the_run(data: InstanceSet) -> None:
    for record in data.pictures:
        record.path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="6 broken"):
        stream_of(data).batch_at(0)


def test_the_store_keeps_the_last_used(data: InstanceSet) -> None:
    store = PictureStore(data.pictures, SampleSettings(POINT_NATIVE_96), 2)
    first = store.picture(0)
    store.picture(1)
    assert store.picture(0) is first
    store.picture(2)  # 1 goes
    assert store.picture(0) is first
    assert len(store._kept) == 2


def test_no_sample_at_all(data: InstanceSet) -> None:
    bare = replace(data, pictures=tuple(replace(record, instances=()) for record in data.pictures))
    with pytest.raises(InputError, match="without an annotated object"):
        stream_of(bare)
