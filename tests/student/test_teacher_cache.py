"""The cache gives back what was written, byte for byte the same each time, and notices damage."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.errors import InputError
from student.teacher_cache import (
    LOGIT_STEP,
    CacheHeader,
    Lesson,
    TeacherCache,
    finished_shard,
    quantized,
    read_header,
    shard_path,
    write_header,
    write_shard,
)

KEYS = tuple(f"train2017/{i:03d}.jpg" for i in range(23))


def lessons_of(key: str) -> tuple[Lesson, ...]:
    """A few lessons that differ by picture; every fourth picture has none."""
    generator = np.random.default_rng(KEYS.index(key))
    return tuple(
        Lesson(
            key,
            annotation_id=-1 if i == 2 else 2**40 + i,
            row=int(generator.integers(1000)),
            column=int(generator.integers(1000)),
            predicted_iou=float(np.float32(generator.random())),
            stability=float(np.float32(generator.random())),
            stride=640 / 256,
            top=i,
            left=2 * i,
            logits=generator.integers(-127, 128, (5 + i, 7), dtype=np.int8),
            agreement=math.nan if i == 2 else 0.5,
        )
        for i in range(KEYS.index(key) % 4)
    )


def write_cache(folder: Path) -> CacheHeader:
    folder.mkdir()
    header = CacheHeader("t", "f" * 64, {}, {}, (), "c" * 64, KEYS, pictures_per_shard=3)
    summaries = [
        write_shard(folder, i, [(key, lessons_of(key)) for key in header.shard_pictures(i)], ())
        for i in range(header.number_of_shards)
    ]
    header = CacheHeader(
        **{
            **vars(header),
            "shards": tuple(s.sha256 for s in summaries),
            "annotated": sum(s.annotated for s in summaries),
            "unlabelled": sum(s.unlabelled for s in summaries),
        }
    )
    write_header(folder, header)
    return header


def test_what_was_written_is_read(tmp_path: Path) -> None:
    header = write_cache(tmp_path / "cache")
    assert read_header(tmp_path / "cache") == header
    cache = TeacherCache(tmp_path / "cache")
    # backwards and twice, so that shards leave the memory and come back
    for key in (*reversed(KEYS), *KEYS):
        found, written = cache.lessons(key), lessons_of(key)
        assert len(found) == len(written)
        for one, other in zip(found, written, strict=True):
            for name, value in vars(other).items():
                np.testing.assert_array_equal(getattr(one, name), value)
            assert one.logits.dtype == np.int8
    assert len(cache) == sum(len(lessons_of(key)) for key in KEYS)
    assert cache.header.unlabelled == sum(lesson.annotation_id < 0 for k in KEYS for lesson in lessons_of(k))
    assert "train2017/003.jpg" in cache
    assert "val2017/003.jpg" not in cache


def test_the_same_lessons_give_the_same_bytes(tmp_path: Path) -> None:
    write_cache(tmp_path / "one")
    write_cache(tmp_path / "other")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=20))
def test_quantized_is_within_half_a_step_or_saturated(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    back = quantized(logits).astype(np.float32) * LOGIT_STEP
    np.testing.assert_allclose(
        back, np.clip(logits, -127 * LOGIT_STEP, 127 * LOGIT_STEP), atol=LOGIT_STEP / 2
    )


def test_halves_are_rounded_to_even() -> None:
    steps = np.array([0.5, 1.5, -0.5, -2.5], np.float32)
    np.testing.assert_array_equal(quantized(steps * np.float32(LOGIT_STEP)), [0, 2, 0, -2])


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache")
    path = shard_path(tmp_path / "cache", 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert finished_shard(tmp_path / "cache", 1) is None
    assert finished_shard(tmp_path / "cache", 0) is not None
    cache = TeacherCache(tmp_path / "cache")
    assert len(cache.lessons(KEYS[1])) == 1
    with pytest.raises(InputError, match=r"shard-00001\.bin: is damaged .* picosam2 teach again"):
        cache.lessons(KEYS[3])
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001\.bin: is missing"):
        TeacherCache(tmp_path / "cache").lessons(KEYS[3])


def test_a_picture_that_was_not_taught_is_named(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache")
    with pytest.raises(InputError, match=r"does not know picture val2017/1\.jpg"):
        TeacherCache(tmp_path / "cache").lessons("val2017/1.jpg")


def test_a_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cache.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"cache\.bin: is a file \(a folder\)"):
        TeacherCache(tmp_path / "cache.bin")


def test_unlabelled_lessons_are_counted(tmp_path: Path) -> None:
    header = write_cache(tmp_path / "cache")
    cache = TeacherCache(tmp_path / "cache")
    counts = [cache.unlabelled_count(key) for key in KEYS]
    assert counts == [sum(one.annotation_id < 0 for one in lessons_of(key)) for key in KEYS]
    assert sum(counts) == header.unlabelled > 0
    write_header(tmp_path / "cache", replace(header, unlabelled=0))
    for path in (tmp_path / "cache").glob("*.bin"):
        path.unlink()  # where the header says there are none, no shard is looked at
    assert TeacherCache(tmp_path / "cache").unlabelled_count(KEYS[2]) == 0


def test_no_cache_and_half_a_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no header\.json"):
        TeacherCache(tmp_path)
    header = write_cache(tmp_path / "cache")
    write_header(tmp_path / "cache", CacheHeader(**{**vars(header), "shards": ()}))
    with pytest.raises(InputError, match="not complete"):
        TeacherCache(tmp_path / "cache")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "pictures": 3}']
)
def test_a_foreign_header_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "header.json").write_text(text)
    with pytest.raises(InputError, match=r"header\.json: (schema 99|is damaged) \(schema 1\)"):
        TeacherCache(tmp_path)


def test_a_sidecar_without_its_fields_does_not_count(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache")
    sidecar = shard_path(tmp_path / "cache", 2).with_suffix(".json")
    sidecar.write_text(json.dumps({"sha256": json.loads(sidecar.read_text())["sha256"]}))
    assert finished_shard(tmp_path / "cache", 2) is None
