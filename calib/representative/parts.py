"""The three parts of a source, apart by picture.

The pictures are taken in an order that the seed shuffles. The first are held out, the next decide, all others
calibrate; how many the first two parts have depends on the size of the source alone. So a picture's part
depends on the source, the seed and what is excluded, never on how many crops are drawn. A picture that shows
what an earlier one showed is passed over, so that no content lies in two parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calib.representative.content import Progress, content_hash, read_picture, unreadable
from calib.representative.sources import PictureFile

CALIBRATION, DECIDING, HELD_OUT_PART = "calibration", "deciding", "held out"

HELD_OUT_SHARE, HELD_OUT_PICTURES = 0.25, 16
"""Share of the pictures that is held out, and how many at most."""

DECIDING_SHARE, DECIDING_PICTURES = 0.25, 256
"""Share of the pictures that decides, and how many at most: these are read at every drawing."""


@dataclass(frozen=True)
class Picture:
    """A readable picture, the first of its content; `index` counts the files of the source."""

    index: int
    file: PictureFile
    sha256: str
    content: str


@dataclass(frozen=True)
class Parts:
    """The pictures of each part.

    Attributes:
        calibration: as many as were wanted, or all there are.
        deciding, held_out: all of them. With two pictures in the source none decides, with one all are empty
            but `calibration`.
        left_out: content hashes of the excluded pictures met.
    """

    calibration: tuple[Picture, ...]
    deciding: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    left_out: tuple[str, ...]


def split(
    where: str,
    files: Sequence[PictureFile],
    usable: Callable[[int], bool],
    wanted: int,
    seed: int,
    exclude: Collection[str],
    progress: Progress,
) -> Parts:
    """Reads pictures until the first two parts are full and `wanted` pictures calibrate.

    Args:
        where: the source, for messages.
        usable: whether crops can be cut from the file of an index.
        exclude: content hashes of pictures that belong to no part.

    Raises:
        InputError: naming all pictures met that cannot be read.
    """
    left_out: list[str] = []
    broken: list[str] = []
    first, second = part_sizes(len(files))
    expected = min(first + second + wanted, len(files))
    found: list[Picture] = []
    for picture in _walk(files, usable, seed, exclude, left_out, broken):
        found.append(picture)
        progress("reading pictures", min(1.0, len(found) / expected))
        if len(found) == first + second + wanted:
            break
    if broken:
        raise unreadable(f"calibration {where}", broken)
    if len(found) <= first + second:  # all were read; many of them alike, unusable or excluded
        first, second = part_sizes(len(found))
    pictures = tuple(found)
    return Parts(
        pictures[first + second :], pictures[first : first + second], pictures[:first], tuple(left_out)
    )


def part_sizes(pictures: int) -> tuple[int, int]:
    """How many of so many pictures are held out, and how many decide; at least one calibrates."""
    if pictures < 2:
        return 0, 0
    held_out = max(1, min(HELD_OUT_PICTURES, round(pictures * HELD_OUT_SHARE)))
    deciding = max(1, min(DECIDING_PICTURES, round(pictures * DECIDING_SHARE))) if pictures > 2 else 0
    return held_out, deciding


def _walk(
    files: Sequence[PictureFile],
    usable: Callable[[int], bool],
    seed: int,
    exclude: Collection[str],
    left_out: list[str],
    broken: list[str],
) -> Iterator[Picture]:
    """Pictures in the seed's order, each content once."""
    seen: set[str] = set()
    for number in np.random.default_rng(seed).permutation(len(files)):
        index = int(number)
        if not usable(index):
            continue
        read = read_picture(files[index].path)
        if read is None:
            broken.append(files[index].name)
            continue
        image, sha256 = read
        content = content_hash(image)
        if content in seen:
            continue
        seen.add(content)
        if content in exclude:
            left_out.append(content)
        else:
            yield Picture(index, files[index], sha256, content)
