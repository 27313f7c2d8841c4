"""Results of slow steps by the hash of everything they depend on.

One file an entry: the SHA-256 of the rest, then an uncompressed zip of the entry's members. A file whose sum
does not match counts as absent and is replaced. Entries are written beside and renamed, so a reader sees
whole entries only, and the newest ones are kept. The cache can be deleted at any time: what cannot be read
or written there is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

KEPT_ENTRIES = 32
"""An entry of the student is 1.3 MB (converter) or 5 MB (quantization)."""

ABANDONED_S = 3600.0
"""A half-written file this old belongs to a process that was killed."""

ABANDONED_TRAINING_S = 7 * 86400.0
"""A training's state (compiler.quantizing; 20 MB for the student) that nobody went on with for this long."""

_DIGEST_BYTES = 32


class Cache:
    """Entries in `folder` (None: the user's cache folder); each maps member names to bytes."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    @staticmethod
    def key(kind: str, *parts: bytes) -> str:
        """Hex SHA-256 of the kind and the parts; each counts with its length, so no two lists collide."""
        digest = hashlib.sha256()
        for part in (kind.encode(), *parts):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.hexdigest()

    def get(self, key: str) -> dict[str, bytes] | None:
        """The entry, None where it is absent or damaged."""
        path = self.folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, packed = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used entries are the last to go
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def put(self, key: str, entry: Mapping[str, bytes]) -> None:
        """Store the entry; where the folder cannot be written, nothing happens."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, data in entry.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        packed = buffer.getvalue()
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, beside = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(packed).digest() + packed)
                os.replace(beside, self.folder / key)
            except BaseException:
                os.unlink(beside)
                raise
            self._prune()

    def _prune(self) -> None:
        """Delete all but the newest entries, and what killed writers and trainings left."""
        aged = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                aged.append((path.stat().st_mtime, path))
        entries = sorted((pair for pair in aged if len(pair[1].name) == 64), reverse=True)
        lasts = {".part": ABANDONED_S, ".training": ABANDONED_TRAINING_S}
        now = time.time()
        abandoned = [pair for pair in aged if pair[0] < now - lasts.get(pair[1].suffix, math.inf)]
        for _, path in [*entries[KEPT_ENTRIES:], *abandoned]:
            path.unlink(missing_ok=True)


def default_folder() -> Path:
    """$PICOSAM2_CACHE, else `picosam2-compile` in $XDG_CACHE_HOME or ~/.cache.

    Without a home it is in the temporary directory.
    """
    if named := os.environ.get("PICOSAM2_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification has relative ones ignored
        home = os.path.expanduser("~")
        base = os.path.join(home if os.path.isabs(home) else tempfile.gettempdir(), ".cache")
    return Path(base) / "picosam2-compile"
