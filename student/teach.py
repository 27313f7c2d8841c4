"""Teaching: every picture is embedded once and prompted many times, and the answers go into a teacher cache.

Each annotated instance is prompted with its box and its prompt point. On request, points on a jittered grid
over the picture are prompted as well; an answer is kept where the teacher expects a good mask, the mask is
stable, large enough and not a near-duplicate of a better one, and its prompt becomes the point the protocol
would show for that mask.

The shards of a cache are made one after the other. What interrupts a run costs one shard at most: the same
call goes on at the first unfinished one and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from passes.errors import InputError
from passes.files import locked, remove_abandoned_parts, require_own, write_beside
from student.crops import POINT_NATIVE_96, Box, Mask, bounding_box, mask_iou, prompt_point
from student.instances import InstanceSet, PictureRecord, read_picture
from student.teacher_cache import (
    CacheHeader,
    Lesson,
    ShardSummary,
    finished_shard,
    quantized,
    read_header,
    write_header,
    write_shard,
)
from student.teachers import Answer, Embedding, Prompt, Teacher, picture_mask, stability

Progress = Callable[[int, int, str], None]
"""Called with pictures done, pictures in all, and what is being done."""

MARGIN = 0.5
"""Share of its size by which a patch is grown on each side: augmentation looks around."""

NAMES_TOLD = 5
"""Broken pictures named in the header."""


@dataclass(frozen=True)
class TeachSettings:
    """What is asked of the teacher.

    Attributes:
        points: unlabelled points prompted per picture; 0 for none.
        seed: of their places.
        minimum_predicted_iou: an unlabelled answer is kept from this predicted IoU on.
        minimum_stability: and from this stability score on.
        minimum_area: and from this many picture pixels of mask on.
        maximum_overlap: and unless its IoU with a better kept mask of the picture is above this.
    """

    points: int = 0
    seed: int = 0
    minimum_predicted_iou: float = 0.80
    minimum_stability: float = 0.85
    minimum_area: int = 64
    maximum_overlap: float = 0.85


def teach(
    sources: Sequence[InstanceSet],
    teacher: Teacher,
    out: Path,
    settings: TeachSettings | None = None,
    embeddings: Path | None = None,
    pictures_per_shard: int = 32,
    on_progress: Progress | None = None,
) -> CacheHeader:
    """Makes a teacher cache, or goes on with an interrupted one.

    Args:
        sources: data sets and plain folders; their pictures are taken in this order.
        teacher: who is asked.
        out: the cache's folder, made where it does not exist.
        settings: by default no unlabelled points.
        embeddings: folder where embeddings are kept between runs, by fingerprint and SHA-256 of the picture.
        pictures_per_shard: pictures per file; what an interruption costs at most.
        on_progress: see `Progress`.

    Returns:
        The header of the complete cache. Pictures that cannot be decoded teach nothing and are counted there.

    Raises:
        InputError: no pictures, two pictures of the same key, settings out of range, `out` holds something
            else than this cache, or another process is making it.
    """
    settings = settings or TeachSettings()
    report = on_progress or (lambda done, total, message: None)
    records = [record for source in sources for record in source.pictures]
    plan = _plan(sources, records, teacher, settings, pictures_per_shard)
    _refuse_foreign(out)
    with locked(out):
        return _taught(_begun(out, plan), records, teacher, out, settings, embeddings, report)


def _taught(
    plan: CacheHeader,
    records: Sequence[PictureRecord],
    teacher: Teacher,
    out: Path,
    settings: TeachSettings,
    embeddings: Path | None,
    report: Progress,
) -> CacheHeader:
    """Makes the shards that are not there yet, and the complete header."""
    remove_abandoned_parts(out)
    summaries: list[ShardSummary] = []
    for number in range(plan.number_of_shards):
        first = number * plan.pictures_per_shard
        batch = records[first : first + plan.pictures_per_shard]
        summary = finished_shard(out, number)
        if summary is None:
            pictures, broken = [], []
            for i, record in enumerate(batch):
                report(first + i, len(records), record.key)
                lessons = _picture_lessons(record, teacher, settings, embeddings)
                if lessons is None:
                    broken.append(record.key)
                pictures.append((record.key, lessons or ()))
            summary = write_shard(out, number, pictures, broken)
        summaries.append(summary)
        report(first + len(batch), len(records), f"shard {number + 1} of {plan.number_of_shards}")
    broken_keys = [key for summary in summaries for key in summary.broken]
    header = replace(
        plan,
        shards=tuple(summary.sha256 for summary in summaries),
        annotated=sum(summary.annotated for summary in summaries),
        unlabelled=sum(summary.unlabelled for summary in summaries),
        broken=len(broken_keys),
        broken_names=tuple(broken_keys[:NAMES_TOLD]),
    )
    write_header(out, header)
    return header


def unlabelled_points(height: int, width: int, count: int, seed: int, key: str) -> list[tuple[int, int]]:
    """`count` points (row, column), one at a random place of each cell of a grid over the picture.

    The grid's cells are about square; where it has more than `count` of them, a random choice is used. The
    places depend on the seed and the picture's key only.
    """
    if count == 0:
        return []
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    rows = max(1, round(math.sqrt(count * height / width)))
    columns = -(-count // rows)
    cells = np.sort(generator.permutation(rows * columns)[:count])
    jitter = generator.random((count, 2))
    return [
        (
            min(int((cell // columns + dy) * height / rows), height - 1),
            min(int((cell % columns + dx) * width / columns), width - 1),
        )
        for cell, (dy, dx) in zip(cells.tolist(), jitter.tolist(), strict=True)
    ]


def _plan(
    sources: Sequence[InstanceSet],
    records: Sequence[PictureRecord],
    teacher: Teacher,
    settings: TeachSettings,
    pictures_per_shard: int,
) -> CacheHeader:
    keys = tuple(record.key for record in records)
    if not keys:
        raise InputError("teach", "no pictures", "at least 1", "give a data set or a folder of pictures")
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(
            f"picture {twice}",
            "is given twice",
            "each picture (folder of the data set, path in it) once",
            "give each data set once, and folders of different names",
        )
    for name, value in asdict(settings).items():
        if value < 0 or (name not in ("points", "seed", "minimum_area") and value > 1):
            raise InputError(
                f"teach: {name}", str(value), "0 or more; shares at most 1", "correct the option"
            )
    if pictures_per_shard < 1:
        raise InputError(
            "teach: pictures_per_shard", str(pictures_per_shard), "1 or more", "correct the option"
        )
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.key}\n{record.height} {record.width} {len(record.instances)}\n".encode())
        for instance in record.instances:
            digest.update(f"{instance.annotation_id} {instance.box}\n".encode())
            digest.update(hashlib.sha256(instance.rle["counts"]).digest())
    return CacheHeader(
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        versions={"numpy": np.__version__, "zlib": zlib.ZLIB_RUNTIME_VERSION, **teacher.versions},
        settings=asdict(settings),
        sources=tuple(
            {"name": source.name, "pictures": len(source.pictures), "instances": len(source)}
            for source in sources
        ),
        contents=digest.hexdigest(),
        pictures=keys,
        pictures_per_shard=pictures_per_shard,
    )


def _refuse_foreign(out: Path) -> None:
    """Raises InputError where `out` is a file, or a folder with other things and no cache; writes nothing."""
    if read_header(out) is None:
        require_own(out, "teacher cache", (), "an empty folder, or a cache made by the same call")


def _begun(out: Path, plan: CacheHeader) -> CacheHeader:
    """The plan as the first run wrote it; written now where this is the first run."""
    before = read_header(out)
    if before is None:
        write_header(out, plan)
        return plan
    asked = {
        "teacher": (before.fingerprint[:16], plan.fingerprint[:16]),
        "sources": (_sources(before), _sources(plan)),
        "pictures and annotations": (before.contents[:16], plan.contents[:16]),
        "pictures per shard": (before.pictures_per_shard, plan.pictures_per_shard),
        **{name: (before.settings.get(name), value) for name, value in plan.settings.items()},
    }
    for name, (found, wanted) in asked.items():
        if found != wanted:
            raise InputError(
                f"teacher cache {out}",
                f"was made with {name} {found}, asked for is {wanted}",
                "a cache goes on with what it began with",
                "give another --out, or delete the folder to begin again",
            )
    return replace(before, shards=(), annotated=0, unlabelled=0, broken=0, broken_names=())


def _sources(header: CacheHeader) -> str:
    return ", ".join(f"{s['name']} ({s['pictures']} pictures)" for s in header.sources)


def _picture_lessons(
    record: PictureRecord, teacher: Teacher, settings: TeachSettings, embeddings: Path | None
) -> list[Lesson] | None:
    """Lessons of a picture, None where it cannot be decoded."""
    points = unlabelled_points(record.height, record.width, settings.points, settings.seed, record.key)
    if not points and not record.instances:
        return []
    embedding = _embedded(record, teacher, embeddings)
    if embedding is None:
        return None
    masks = [instance.mask() for instance in record.instances]
    prompts = [
        Prompt(*prompt_point(mask), instance.box)
        for mask, instance in zip(masks, record.instances, strict=True)
    ]
    answers = teacher.prompt(embedding, [*prompts, *(Prompt(row, column) for row, column in points)])
    stride = teacher.stride(record.height, record.width)
    lessons, kept = [], []
    for instance, mask, prompt, answer in zip(record.instances, masks, prompts, answers, strict=False):
        found = picture_mask(answer.logits, stride, record.height, record.width)
        agreement = mask_iou(mask, found)
        lessons.append(_lesson(record.key, instance.annotation_id, prompt, answer, stride, found, agreement))
        kept.append(found)
    if points:
        lessons += _unlabelled(record, answers[len(prompts) :], stride, kept, settings)
    return lessons


def _unlabelled(
    record: PictureRecord,
    answers: Sequence[Answer],
    stride: float,
    taken: Sequence[Mask],
    settings: TeachSettings,
) -> list[Lesson]:
    """Lessons of the answers worth keeping, best predicted IoU first; `taken` are masks already taught."""
    kept = list(taken)
    lessons = []
    for answer in sorted(answers, key=lambda answer: -answer.predicted_iou):
        if (
            answer.predicted_iou < settings.minimum_predicted_iou
            or stability(answer.logits) < settings.minimum_stability
        ):
            continue
        mask = picture_mask(answer.logits, stride, record.height, record.width)
        area = int(np.count_nonzero(mask))
        if area < max(settings.minimum_area, 1):
            continue
        if any(mask_iou(mask, other) > settings.maximum_overlap for other in kept):
            continue
        prompt = Prompt(*prompt_point(mask))
        lesson = _lesson(record.key, -1, prompt, answer, stride, mask, math.nan)
        if not (lesson.logits > 0).any():  # all of it so uncertain that the stored steps say outside
            continue
        kept.append(mask)
        lessons.append(lesson)
    return lessons


def _lesson(
    key: str,
    annotation_id: int,
    prompt: Prompt,
    answer: Answer,
    stride: float,
    mask: Mask,
    agreement: float,
) -> Lesson:
    """The lesson of an answer, its logits cut to what the student can look at."""
    half = POINT_NATIVE_96.size // 2
    parts: list[Box] = [(prompt.column - half, prompt.row - half, 2 * half, 2 * half)]
    if mask.any():
        parts.append(bounding_box(mask))
    if prompt.box is not None:
        parts.append(prompt.box)
    left, top = min(part[0] for part in parts), min(part[1] for part in parts)
    right, bottom = max(part[0] + part[2] for part in parts), max(part[1] + part[3] for part in parts)
    wider, higher = MARGIN * (right - left), MARGIN * (bottom - top)
    rows, columns = answer.logits.shape
    first_row = max(0, math.floor((top - higher) / stride))
    first_column = max(0, math.floor((left - wider) / stride))
    last_row = min(rows, math.ceil((bottom + higher) / stride))
    last_column = min(columns, math.ceil((right + wider) / stride))
    return Lesson(
        picture=key,
        annotation_id=annotation_id,
        row=prompt.row,
        column=prompt.column,
        predicted_iou=answer.predicted_iou,
        stability=stability(answer.logits),
        stride=stride,
        top=first_row,
        left=first_column,
        logits=quantized(answer.logits[first_row:last_row, first_column:last_column]),
        agreement=agreement,
    )


def _embedded(record: PictureRecord, teacher: Teacher, folder: Path | None) -> Embedding | None:
    """The picture's embedding, kept or made now; None where the picture cannot be decoded."""
    if folder is None:
        picture = read_picture(record)
        return None if picture is None else teacher.embed(picture)
    try:
        path = embedding_path(embeddings_folder(folder, teacher.fingerprint), record.path.read_bytes())
    except OSError:
        return None
    try:
        return Embedding(np.load(path, allow_pickle=False), record.height, record.width)
    except (OSError, ValueError, EOFError):  # absent or damaged: made now
        pass
    picture = read_picture(record)
    if picture is None:
        return None
    embedding = teacher.embed(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, _npy(embedding.features))
    return embedding


def _npy(array: NDArray[np.float16]) -> bytes:
    """The array as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def embeddings_folder(folder: Path, fingerprint: str) -> Path:
    """Where the embeddings of one teacher lie in a folder of several."""
    return folder / fingerprint[:16]


def embedding_path(folder: Path, picture: bytes) -> Path:
    """The file of a picture's embedding in one teacher's folder; `picture` is the picture's file, whole."""
    return folder / f"{hashlib.sha256(picture).hexdigest()}.npy"
