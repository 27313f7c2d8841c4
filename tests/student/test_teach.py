"""Teaching: prompts, what is kept, what is cut, and that an interrupted run ends like an unbroken one."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from passes.errors import InputError
from passes.files import locked
from student.crops import prompt_point
from student.instances import InstanceSet, load_folder, load_instances, read_picture
from student.teach import TeachSettings, teach, unlabelled_points
from student.teacher_cache import LOGIT_STEP, Lesson, TeacherCache, shard_path
from student.teachers import Answer, Embedding, Prompt, picture_mask, stability
from tests.student.teaching import SETTINGS, ColourTeacher

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures without annotations: blobs of one colour on noise."""
    place = tmp_path / "pool"
    place.mkdir()
    generator = np.random.default_rng(7)
    for i in range(4):
        pixels = generator.integers(0, 40, (90 + i, 133, 3), dtype=np.uint8)
        pixels[20:50, 10 * i : 10 * i + 40] = (200, 40, 40)
        pixels[60:80, 50:120] = (40, 200, 200)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return place


@pytest.fixture
def sources(synthetic_coco: Path, folder: Path) -> list[InstanceSet]:
    return [load_instances(f"coco:{synthetic_coco}", "train2017"), load_folder(folder)]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def whole(lesson: Lesson, height: int, width: int) -> np.ndarray:
    """The patch put back into the teacher's grid, float32, -99 outside it."""
    rows, columns = math.ceil(height / lesson.stride), math.ceil(width / lesson.stride)
    plane = np.full((rows, columns), -99, np.float32)
    part = lesson.logits.astype(np.float32) * LOGIT_STEP
    plane[lesson.top : lesson.top + part.shape[0], lesson.left : lesson.left + part.shape[1]] = part
    return plane


def test_every_instance_is_taught_with_box_and_point(tmp_path: Path, sources: list[InstanceSet]) -> None:
    header = teach(sources, ColourTeacher(), tmp_path / "out", SETTINGS)
    cache = TeacherCache(tmp_path / "out")
    assert cache.header == header
    assert header.annotated == len(sources[0]) == 12
    teacher = ColourTeacher()
    for record in sources[0].pictures:
        lessons = cache.lessons(record.key)
        assert [lesson.annotation_id for lesson in lessons[:2]] == [i.annotation_id for i in record.instances]
        for lesson, instance in zip(lessons, record.instances, strict=False):
            mask = instance.mask()
            assert (lesson.row, lesson.column) == prompt_point(mask)
            found = picture_mask(whole(lesson, *mask.shape), lesson.stride, *mask.shape)
            assert lesson.agreement == pytest.approx((mask & found).sum() / (mask | found).sum(), abs=0.03)
            assert lesson.agreement > 0.8
            assert lesson.stability == 1.0
            assert lesson.stride == teacher.stride(*mask.shape)


def test_unlabelled_answers_are_distinct_good_and_prompted_at_their_own_point(
    tmp_path: Path, sources: list[InstanceSet]
) -> None:
    chosen = replace(SETTINGS, points=40)
    header = teach(sources, ColourTeacher(), tmp_path / "out", chosen)
    cache = TeacherCache(tmp_path / "out")
    assert header.unlabelled > 10
    for record in (record for source in sources for record in source.pictures):
        lessons = cache.lessons(record.key)
        masks = [
            picture_mask(
                whole(lesson, record.height, record.width), lesson.stride, record.height, record.width
            )
            for lesson in lessons
        ]
        for i, (lesson, mask) in enumerate(zip(lessons, masks, strict=True)):
            if lesson.annotation_id >= 0:
                continue
            assert math.isnan(lesson.agreement)
            assert mask[lesson.row, lesson.column]
            assert lesson.predicted_iou >= chosen.minimum_predicted_iou
            assert lesson.stability >= chosen.minimum_stability
            assert mask.sum() >= chosen.minimum_area
            for before, other in zip(lessons[:i], masks, strict=False):
                assert (mask & other).sum() / (mask | other).sum() <= chosen.maximum_overlap + 0.05
                assert before.annotation_id >= 0 or before.predicted_iou >= lesson.predicted_iou


def test_stricter_thresholds_keep_fewer(tmp_path: Path, sources: list[InstanceSet]) -> None:
    counts = []
    for i, chosen in enumerate(
        (
            replace(SETTINGS, points=40),
            replace(SETTINGS, points=40, minimum_area=1500),
            replace(SETTINGS, points=40, minimum_stability=1.0),
            replace(SETTINGS, points=40, maximum_overlap=0.0),
            replace(SETTINGS, points=40, minimum_predicted_iou=1.0),
        )
    ):
        header = teach(sources, ColourTeacher(), tmp_path / str(i), chosen)
        assert header.annotated == 12
        counts.append(header.unlabelled)
    assert all(count < counts[0] for count in counts[1:])
    assert counts[-1] == 0


def test_a_patch_covers_mask_box_and_window_and_half_as_much_around(
    tmp_path: Path, sources: list[InstanceSet]
) -> None:
    teach(sources[:1], ColourTeacher(), tmp_path / "out")
    cache = TeacherCache(tmp_path / "out")
    teacher = ColourTeacher()
    for record in sources[0].pictures:
        picture = read_picture(record)
        assert picture is not None
        for lesson in cache.lessons(record.key):
            # the window of 96 pixels is the largest part here: 96 more pixels, as far as the picture goes
            assert lesson.top == max(0, (lesson.row - 96) // 2)
            assert lesson.left == max(0, (lesson.column - 96) // 2)
            bottom = (lesson.top + lesson.logits.shape[0]) * teacher.cell
            right = (lesson.left + lesson.logits.shape[1]) * teacher.cell
            assert min(lesson.row + 96, record.height) <= bottom <= record.height + 1
            assert min(lesson.column + 96, record.width) <= right <= record.width + 1
            assert stability(lesson.logits.astype(np.float32) * LOGIT_STEP) == lesson.stability


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 700), st.integers(1, 700), st.integers(0, 100), st.integers(0, 2**31), st.text(max_size=9)
)
def test_points_lie_in_the_picture_and_depend_on_seed_and_key(
    height: int, width: int, count: int, seed: int, key: str
) -> None:
    points = unlabelled_points(height, width, count, seed, key)
    assert len(points) == count
    assert all(0 <= row < height and 0 <= column < width for row, column in points)
    assert points == unlabelled_points(height, width, count, seed, key)


def test_points_are_spread_and_differ_by_seed_and_picture() -> None:
    points = unlabelled_points(480, 640, 64, 0, "a")
    assert points != unlabelled_points(480, 640, 64, 1, "a")
    assert points != unlabelled_points(480, 640, 64, 0, "b")
    quarters = [(row // 240, column // 320) for row, column in points]
    assert all(12 <= quarters.count((i, j)) <= 20 for i in (0, 1) for j in (0, 1))


def test_kept_embeddings_change_nothing_and_save_the_work(tmp_path: Path, sources: list[InstanceSet]) -> None:
    teach(sources, ColourTeacher(), tmp_path / "plain", SETTINGS)
    first, second = ColourTeacher(), ColourTeacher()
    teach(sources, first, tmp_path / "first", SETTINGS, tmp_path / "kept")
    kept = sorted((tmp_path / "kept" / first.fingerprint[:16]).iterdir())
    assert first.embedded == len(kept) == 10
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    teach(sources, second, tmp_path / "second", SETTINGS, tmp_path / "kept")
    assert second.embedded == 1
    assert files(tmp_path / "plain") == files(tmp_path / "first") == files(tmp_path / "second")


def test_broken_pictures_are_left_out_and_counted(
    tmp_path: Path, synthetic_coco: Path, sources: list[InstanceSet]
) -> None:
    for name in ("000000000002.png", "000000000005.png"):
        path = synthetic_coco / "train2017" / name
        path.write_bytes(path.read_bytes()[:3000])
    header = teach(sources, ColourTeacher(), tmp_path / "out", SETTINGS)
    assert header.broken == 2
    assert header.broken_names == ("train2017/000000000002.png", "train2017/000000000005.png")
    cache = TeacherCache(tmp_path / "out")
    assert cache.lessons("train2017/000000000002.png") == ()
    assert len(cache.lessons("train2017/000000000003.png")) >= 2


def test_another_call_on_the_same_folder_is_refused(
    tmp_path: Path, synthetic_coco: Path, sources: list[InstanceSet]
) -> None:
    out = tmp_path / "out"
    teach(sources, ColourTeacher(), out, SETTINGS)
    before = files(out)
    with pytest.raises(InputError, match="was made with points 6, asked for is 7"):
        teach(sources, ColourTeacher(), out, replace(SETTINGS, points=7))
    with pytest.raises(InputError, match="was made with teacher"):
        teach(sources, ColourTeacher(sharpness=0.4), out, SETTINGS)
    with pytest.raises(InputError, match="was made with sources"):
        teach(sources[:1], ColourTeacher(), out, SETTINGS)
    with pytest.raises(InputError, match="was made with pictures per shard 32, asked for is 4"):
        teach(sources, ColourTeacher(), out, SETTINGS, pictures_per_shard=4)
    annotations = synthetic_coco / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] += 1
    annotations.write_text(json.dumps(content))
    changed = [load_instances(f"coco:{synthetic_coco}", "train2017"), sources[1]]
    with pytest.raises(InputError, match="was made with pictures and annotations"):
        teach(changed, ColourTeacher(), out, SETTINGS)
    assert files(out) == before


def test_foreign_folders_and_wrong_settings_are_refused(tmp_path: Path, sources: list[InstanceSet]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis\.txt\)"):
        teach(sources, ColourTeacher(), tmp_path / "mine", SETTINGS)
    with pytest.raises(InputError, match="is a file"):
        teach(sources, ColourTeacher(), tmp_path / "mine" / "thesis.txt", SETTINGS)
    with pytest.raises(InputError, match="is given twice"):
        teach([*sources, sources[0]], ColourTeacher(), tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match="no pictures"):
        teach([], ColourTeacher(), tmp_path / "out", SETTINGS)
    with pytest.raises(InputError, match=r"minimum_stability: 1\.5"):
        teach(sources, ColourTeacher(), tmp_path / "out", TeachSettings(minimum_stability=1.5))
    assert not (tmp_path / "out").exists()


def test_two_at_a_time_are_refused_and_parts_of_others_are_kept(
    tmp_path: Path, sources: list[InstanceSet]
) -> None:
    out = tmp_path / "out"
    with locked(out), pytest.raises(InputError, match="another picosam2 is writing there"):
        teach(sources, ColourTeacher(), out, SETTINGS)
    ended = subprocess.Popen(["true"])
    ended.wait()
    running, abandoned = (out / f".other.{pid}.part" for pid in (os.getpid(), ended.pid))
    running.write_bytes(b"x")
    abandoned.write_bytes(b"x")
    teach(sources, ColourTeacher(), out, SETTINGS)
    assert running.exists()
    assert not abandoned.exists()


def test_answers_that_vanish_in_the_stored_steps_are_dropped(
    tmp_path: Path, sources: list[InstanceSet]
) -> None:
    class Faint(ColourTeacher):
        """Sure of what has a box, and next to nothing sure of the rest."""

        def prompt(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
            answers = super().prompt(embedding, prompts)
            return [
                answer if prompt.box else replace(answer, logits=answer.logits * np.float32(0.004))
                for prompt, answer in zip(prompts, answers, strict=True)
            ]

    chosen = replace(SETTINGS, points=40, minimum_predicted_iou=0.0, minimum_stability=0.0)
    assert teach(sources, ColourTeacher(), tmp_path / "sure", chosen).unlabelled > 10
    header = teach(sources, Faint(), tmp_path / "faint", chosen)
    assert (header.annotated, header.unlabelled) == (12, 0)


def test_a_damaged_shard_is_made_again(tmp_path: Path, sources: list[InstanceSet]) -> None:
    out = tmp_path / "out"
    teach(sources, ColourTeacher(), out, SETTINGS, pictures_per_shard=2)
    before = files(out)
    shard_path(out, 1).write_bytes(b"damaged")
    shard_path(out, 3).with_suffix(".json").unlink()
    teacher = ColourTeacher()
    told: list[tuple[int, int, str]] = []
    teach(
        sources,
        teacher,
        out,
        SETTINGS,
        pictures_per_shard=2,
        on_progress=lambda *state: told.append(state),
    )
    assert teacher.embedded == 4
    assert files(out) == before
    assert told[-1][:2] == (10, 10)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


@pytest.mark.slow
def test_killed_three_times_it_ends_in_the_same_bytes(
    tmp_path: Path, synthetic_coco: Path, folder: Path
) -> None:
    """Real processes, SIGKILL at random moments while shards are being made, kept embeddings included."""

    def start(out: Path, kept: Path | str, delay: float) -> subprocess.Popen[bytes]:
        arguments = [str(a) for a in (synthetic_coco, folder, out, kept, delay)]
        return subprocess.Popen([sys.executable, "-m", "tests.student.teaching", *arguments], cwd=ROOT)

    assert start(tmp_path / "unbroken", "", 0).wait() == 0
    out, moments, finished = tmp_path / "out", random.Random(5), []
    for _ in range(3):
        process = start(out, tmp_path / "kept", 0.5)
        shards = len(list(out.glob("shard-*.json"))) if out.exists() else 0
        deadline = time.monotonic() + 60
        while not out.exists() or len(list(out.glob("shard-*.json"))) == shards:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        finished.append(len(list(out.glob("shard-*.json"))))
    assert finished[0] < finished[1] < finished[2] <= 4
    assert json.loads((out / "header.json").read_text())["shards"] == []
    assert start(out, tmp_path / "kept", 0).wait() == 0
    assert files(out) == files(tmp_path / "unbroken")
