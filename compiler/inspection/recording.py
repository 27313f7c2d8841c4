"""Recordings: integer tensors by name in an .npz file, as a device or a simulator put them out.

Every member is an integer array [N, ...] under the name of the graph's tensor. Under the name of a graph
input it is what was delivered (pixels p, or p - 128 where the input is signed); under any other the integers
that the tensor's quantizer wrote. Which tensors are there is the recorder's choice.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.errors import InputError, first_line
from passes.files import write_beside

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every member: the same tensors give the same bytes."""


def write_recording(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes integer arrays by tensor name, compressed; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(tensors):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(tensors[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    write_beside(path, buffer.getvalue())


def read_recording(path: Path) -> dict[str, NDArray[Any]]:
    """Integer arrays by tensor name.

    Raises:
        InputError: no such file, none of this kind, an array that is not of integers, or arrays of different
            numbers of pictures.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            tensors = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"recording {path}",
            f"cannot be read ({first_line(error)})",
            "an .npz of integer arrays by tensor name",
            "write it with numpy.savez, or with `picosam2 diff --record`",
        ) from error
    wrong = [f"{name}: {array.dtype}" for name, array in tensors.items() if array.dtype.kind not in "iu"]
    if wrong or not tensors:
        raise InputError(
            f"recording {path}",
            wrong[0] if wrong else "no array",
            "integer arrays by tensor name",
            "record the integers, before they are multiplied with the step",
        )
    counts = {name: len(array) if array.ndim else 0 for name, array in tensors.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise InputError(
            f"recording {path}",
            "arrays of "
            + ", ".join(f"{count} ({name})" for name, count in list(counts.items())[:3])
            + " pictures",
            "the same number of pictures first in every shape, [N, ...]",
            "record every tensor for every picture",
        )
    return tensors
