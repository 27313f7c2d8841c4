"""Teacher caches: what a teacher answered about a list of pictures, in checked shards.

A cache is a folder:

    header.json        everything the answers depend on, the pictures in order and, once complete, the shards
    shard-00012.bin    the lessons of `pictures_per_shard` pictures in a row
    shard-00012.json   its SHA-256, counts and pictures left out; a shard without it does not count

A shard is the magic, the length of its index (uint32, little-endian), the index as JSON (per picture: key,
offset and bytes of its block from the end of the index, number of lessons), and one zlib block a picture:
the table of `_RECORD`, then the logits of all lessons in order, each row as the differences to its left
neighbour modulo 256, which zlib packs better. Everything is written beside its place and renamed, and the
bytes depend on nothing but the lessons, so an interrupted run ends in the same folder as an unbroken one.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.errors import InputError
from passes.files import write_beside

LOGIT_STEP = 0.125
"""Logits are stored as int8 in this step, saturated at +-15.875."""

SCHEMA = 1

_MAGIC = b"PICOSAM2-LESSONS\n"
_LENGTH = struct.Struct("<I")
_RECORD = np.dtype(
    [
        ("annotation_id", "<i8"),
        ("row", "<i4"),
        ("column", "<i4"),
        ("predicted_iou", "<f4"),
        ("stability", "<f4"),
        ("agreement", "<f4"),
        ("stride", "<f8"),
        ("top", "<i4"),
        ("left", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
    ]
)
_COMPRESSION = 6


@dataclass(frozen=True)
class Lesson:
    """One prompt and the teacher's answer to it.

    Attributes:
        picture: key of the picture (`PictureRecord.key`).
        annotation_id: of the instance prompted with box and point; -1 for an unlabelled point.
        row, column: the prompt point in picture pixels.
        predicted_iou: what the teacher expects of its mask.
        stability: IoU of the masks at logits above +1 and above -1.
        stride: picture pixels per cell along both axes.
        top, left: first cell of the patch; cell (i, j) of the teacher's grid covers picture rows
            [i * stride, (i + 1) * stride) and columns [j * stride, (j + 1) * stride).
        logits: int8 [h, w] in steps of `LOGIT_STEP`.
        agreement: IoU of the teacher's mask with the annotation at the picture's resolution; nan for an
            unlabelled point.
    """

    picture: str
    annotation_id: int
    row: int
    column: int
    predicted_iou: float
    stability: float
    stride: float
    top: int
    left: int
    logits: NDArray[np.int8]
    agreement: float = float("nan")


@dataclass(frozen=True)
class CacheHeader:
    """What a cache was made from.

    Attributes:
        teacher: name of the teacher.
        fingerprint: its fingerprint, hex SHA-256.
        versions: packages that computed the answers, as of the first run.
        settings: of `student.teach.TeachSettings`.
        sources: name, number of pictures and number of instances of each data set.
        contents: hex SHA-256 over keys, sizes and annotations of all pictures.
        pictures: keys in order.
        pictures_per_shard: pictures in each shard but the last.
        shards: hex SHA-256 of each shard; empty while the cache is not complete.
        annotated, unlabelled: number of lessons of either kind.
        broken: pictures that could not be decoded.
        broken_names: the first of them.
    """

    teacher: str
    fingerprint: str
    versions: Mapping[str, str]
    settings: Mapping[str, float]
    sources: tuple[Mapping[str, Any], ...]
    contents: str
    pictures: tuple[str, ...]
    pictures_per_shard: int
    shards: tuple[str, ...] = ()
    annotated: int = 0
    unlabelled: int = 0
    broken: int = 0
    broken_names: tuple[str, ...] = ()

    @property
    def number_of_shards(self) -> int:
        return -(-len(self.pictures) // self.pictures_per_shard)

    def shard_pictures(self, number: int) -> tuple[str, ...]:
        """Keys of the pictures of a shard."""
        first = number * self.pictures_per_shard
        return self.pictures[first : first + self.pictures_per_shard]


@dataclass(frozen=True)
class ShardSummary:
    """The sidecar of a shard: hex SHA-256, size in bytes, numbers of lessons, keys of broken pictures."""

    sha256: str
    size: int
    annotated: int
    unlabelled: int
    broken: tuple[str, ...]


class TeacherCache:
    """Reads a complete cache, in any order of pictures.

    A shard is read whole and checked when one of its pictures is first asked for (by several threads at once:
    perhaps more than once). Later calls read the picture's block alone and check nothing. The indices of
    shards stay in memory, lessons do not, and no file stays open: threads and processes may share a cache.

    Args:
        directory: the cache's folder.

    Raises:
        InputError: no cache, one of another schema, or one that is not complete.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        header = read_header(directory)
        if header is None:
            raise InputError(
                f"teacher cache {directory}", "has no header.json", "a cache", "make one with picosam2 teach"
            )
        if len(header.shards) != header.number_of_shards:
            raise InputError(
                f"teacher cache {directory}",
                "is not complete",
                "a finished run of picosam2 teach",
                "run the same picosam2 teach again: it goes on where it was",
            )
        self.header = header
        self._places = {key: i // header.pictures_per_shard for i, key in enumerate(header.pictures)}
        self._indices: dict[int, dict[str, tuple[int, int, int]]] = {}

    def __len__(self) -> int:
        """Number of lessons."""
        return self.header.annotated + self.header.unlabelled

    def __contains__(self, picture_key: str) -> bool:
        return picture_key in self._places

    def lessons(self, picture_key: str) -> tuple[Lesson, ...]:
        """Lessons of a picture: the instances by annotation id, then the unlabelled ones, best first.

        Raises:
            InputError: the cache does not know the picture, or its shard is missing or damaged.
        """
        block, count = self._block(picture_key)
        return _unpacked(picture_key, zlib.decompress(block), count)

    def unlabelled_count(self, picture_key: str) -> int:
        """How many of a picture's lessons are unlabelled.

        Looks at no logits, and at no shard where the whole cache has no unlabelled lesson; else raises as
        `lessons`.
        """
        if not self.header.unlabelled:
            return 0
        block, count = self._block(picture_key)
        table = zlib.decompressobj().decompress(block, max(1, count * _RECORD.itemsize))
        return int((np.frombuffer(table, _RECORD, count)["annotation_id"] < 0).sum())

    def _block(self, picture_key: str) -> tuple[bytes, int]:
        """A picture's zlib block and its number of lessons."""
        if picture_key not in self._places:
            raise InputError(
                f"teacher cache {self.directory}",
                f"does not know picture {picture_key}",
                f"one of its {len(self._places)} pictures",
                "run picosam2 teach on this data set, or train without the cache",
            )
        number = self._places[picture_key]
        if number not in self._indices:
            self._indices[number] = self._checked_index(number)
        place, size, count = self._indices[number][picture_key]
        try:
            with shard_path(self.directory, number).open("rb") as stream:
                stream.seek(place)
                block = stream.read(size)
        except OSError:
            block = b""
        if len(block) != size:
            raise self._damaged(number, "is missing or cannot be read")
        return block, count

    def _checked_index(self, number: int) -> dict[str, tuple[int, int, int]]:
        """Per picture of a shard: its block's place in the file, its size, its number of lessons."""
        try:
            data = shard_path(self.directory, number).read_bytes()
        except OSError:
            raise self._damaged(number, "is missing or cannot be read") from None
        if hashlib.sha256(data).hexdigest() != self.header.shards[number]:
            raise self._damaged(number, "is damaged")
        start = len(_MAGIC) + _LENGTH.size
        (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
        return {
            key: (start + length + offset, size, count)
            for key, offset, size, count in json.loads(data[start : start + length])
        }

    def _damaged(self, number: int, found: str) -> InputError:
        return InputError(
            str(shard_path(self.directory, number)),
            found,
            f"SHA-256 {self.header.shards[number][:16]}...",
            "delete it and run the same picosam2 teach again: it makes this shard anew",
        )


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.bin"


def quantized(logits: NDArray[np.float32]) -> NDArray[np.int8]:
    """Logits as int8 in steps of `LOGIT_STEP`, halves to even, saturated at +-127 steps."""
    return np.clip(np.round(logits / np.float32(LOGIT_STEP)), -127, 127).astype(np.int8)


def write_header(directory: Path, header: CacheHeader) -> None:
    """Writes header.json (beside, then renamed)."""
    text = json.dumps({"schema": SCHEMA, **vars(header)}, indent=1, sort_keys=True) + "\n"
    write_beside(directory / "header.json", text.encode())


def read_header(directory: Path) -> CacheHeader | None:
    """The header, complete or not; None where the folder has none.

    Raises:
        InputError: no folder, a header of another schema or none at all under that name, or one that cannot
            be read.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(
            f"teacher cache {directory}", "is a file", "a folder", "give the folder of picosam2 teach --out"
        )
    path = directory / "header.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        schema = fields.pop("schema")
        if schema == SCHEMA:
            for name in ("sources", "pictures", "shards", "broken_names"):
                fields[name] = tuple(fields[name])
            return CacheHeader(**fields)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            str(path), f"cannot be read ({error.strerror})", "a readable file", "correct its permissions"
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError):
        schema = None
    raise InputError(
        str(path),
        f"schema {schema}" if schema is not None else "is damaged",
        f"schema {SCHEMA}",
        "delete the folder and run picosam2 teach again, or give another folder",
    )


def write_shard(
    directory: Path, number: int, pictures: Sequence[tuple[str, Sequence[Lesson]]], broken: Sequence[str]
) -> ShardSummary:
    """Writes a shard and then its sidecar.

    Args:
        pictures: key and lessons of each picture, broken ones with none.
        broken: keys of pictures that could not be decoded.
    """
    index, blocks, offset = [], [], 0
    for key, lessons in pictures:
        block = zlib.compress(_packed(lessons), _COMPRESSION)
        index.append([key, offset, len(block), len(lessons)])
        blocks.append(block)
        offset += len(block)
    head = json.dumps(index, separators=(",", ":")).encode()
    data = b"".join([_MAGIC, _LENGTH.pack(len(head)), head, *blocks])
    lessons_of_all = [lesson for _, lessons in pictures for lesson in lessons]
    annotated = sum(lesson.annotation_id >= 0 for lesson in lessons_of_all)
    summary = ShardSummary(
        hashlib.sha256(data).hexdigest(),
        len(data),
        annotated,
        len(lessons_of_all) - annotated,
        tuple(broken),
    )
    path = shard_path(directory, number)
    write_beside(path, data)
    write_beside(path.with_suffix(".json"), (json.dumps(vars(summary), sort_keys=True) + "\n").encode())
    return summary


def finished_shard(directory: Path, number: int) -> ShardSummary | None:
    """The sidecar of a shard whose contents match it; None where the shard has to be made (again)."""
    path = shard_path(directory, number)
    try:
        fields = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        summary = ShardSummary(**{**fields, "broken": tuple(fields["broken"])})
        if hashlib.sha256(path.read_bytes()).hexdigest() == summary.sha256:
            return summary
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _packed(lessons: Sequence[Lesson]) -> bytes:
    table = np.zeros(len(lessons), _RECORD)
    planes = []
    for record, lesson in zip(table, lessons, strict=True):
        for name in _RECORD.names or ():
            if name not in ("height", "width"):
                record[name] = getattr(lesson, name)
        record["height"], record["width"] = lesson.logits.shape
        plane = lesson.logits.view(np.uint8)
        planes.append(np.diff(plane, axis=1, prepend=np.uint8(0)).tobytes())
    return b"".join([table.tobytes(), *planes])


def _unpacked(picture: str, data: bytes, count: int) -> tuple[Lesson, ...]:
    table = np.frombuffer(data, _RECORD, count)
    offset = table.nbytes
    lessons = []
    for r in table:
        height, width = int(r["height"]), int(r["width"])
        steps = np.frombuffer(data, np.uint8, height * width, offset).reshape(height, width)
        offset += height * width
        lessons.append(
            Lesson(
                picture,
                int(r["annotation_id"]),
                int(r["row"]),
                int(r["column"]),
                float(r["predicted_iou"]),
                float(r["stability"]),
                float(r["stride"]),
                int(r["top"]),
                int(r["left"]),
                np.cumsum(steps, axis=1, dtype=np.uint8).view(np.int8),
                float(r["agreement"]),
            )
        )
    return tuple(lessons)
