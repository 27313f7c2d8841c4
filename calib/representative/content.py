"""Which pictures are the same: by what they show, not by their file.

Two files hold the same picture where their decoded RGB pixels are equal. A picture saved again without
loss, renamed or stripped of its metadata keeps its content hash; one that was rescaled or compressed again
with loss does not.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from calib.representative.sources import (
    BUILTIN,
    COCO_PREFIX,
    PictureFile,
    builtin_pictures,
    folder_pictures,
)
from passes.errors import InputError

LVIS_PREFIX = "lvis:"

Progress = Callable[[str, float | None], None]
"""Called with the phase and the share of it that is done, None where that is not known."""


def silent(phase: str, share: float | None) -> None:
    """The Progress that tells nobody."""


def read_picture(path: Path) -> tuple[Image.Image, str] | None:
    """The decoded RGB picture and the SHA-256 of its file; None where the file is missing or broken."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB"), hashlib.sha256(data).hexdigest()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises
        return None


def content_hash(image: Image.Image) -> str:
    """SHA-256 of an RGB picture: its width and height as text, then its pixels row by row."""
    digest = hashlib.sha256(f"RGB {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def content_hashes(source: str, split: str | None = None, progress: Progress = silent) -> frozenset[str]:
    """Content hashes of every picture of a data set.

    Args:
        source: coco:DIR and lvis:DIR are what models are scored on (`student.instances.load_instances`, with
            its default split), builtin the photographs in the wheels, all else a folder of pictures.
        split: of coco:DIR and lvis:DIR.
        progress: told the share of the pictures read.

    Raises:
        InputError: a source without pictures, or pictures that cannot be read.
    """
    if source.startswith((COCO_PREFIX, LVIS_PREFIX)):
        from student.instances import load_instances

        records = load_instances(source, split).pictures
        files = [PictureFile(record.key, record.path) for record in records]
    elif source == BUILTIN:
        files = builtin_pictures()
    else:
        files = folder_pictures(Path(source), "pictures")
    found: set[str] = set()
    broken: list[str] = []
    for done, file in enumerate(files):
        progress("hashing pictures", done / len(files))
        read = read_picture(file.path)
        if read is None:
            broken.append(file.name)
        else:
            found.add(content_hash(read[0]))
    if broken:
        raise unreadable(f"pictures {source}", broken)
    return frozenset(found)


def unreadable(thing: str, names: Sequence[str]) -> InputError:
    """The error that names pictures that cannot be read."""
    named = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return InputError(
        thing,
        f"{len(names)} pictures cannot be read: {named}",
        "every picture opens",
        "remove them or replace them by working ones",
    )
