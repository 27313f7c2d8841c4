"""Files that are whole or not there, and folders that one process writes at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.errors import InputError

PACKAGE_MANIFEST = "manifest.json"
"""The file that every package has (`compiler.package`)."""

LOCK = ".lock"
"""The file in a folder that `locked` locks; it stays there, empty."""


def write_beside(path: Path, data: bytes) -> None:
    """Writes a file beside its place and renames it, so that a reader sees all of it or the old one.

    The part's name, .NAME.PID.part, holds the process's id: two writers never write into the same part.

    Raises:
        OSError: naming `path`, where it cannot be written; nothing is left of the part.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def remove_abandoned_parts(directory: Path) -> None:
    """Removes from a folder the parts that killed processes of this machine left in it."""
    for part in directory.glob(".*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdecimal() and not _running(int(pid)):
            part.unlink(missing_ok=True)


def require_own(folder: Path, thing: str, own: Collection[str], limit: str) -> None:
    """Raises InputError where `folder` holds other entries than `own`, our lock and parts; writes nothing."""
    if not folder.is_dir():
        return
    found = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in found if name not in (LOCK, *own) and not name.endswith(".part")]
    if foreign:
        more = ", ..." if len(foreign) > 3 else ""
        raise InputError(
            f"{thing} {folder}",
            f"holds other files ({', '.join(foreign[:3])}{more})",
            limit,
            "give another --out",
        )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other processes that ask for it out of a folder, which is made where it does not exist.

    The lock ends with the process, however it ends. A file system that knows no locks locks nobody out.

    Raises:
        InputError: another process holds the folder, or it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stream = (directory / LOCK).open("wb")
    except OSError as error:
        raise InputError(
            str(directory), f"cannot be written ({error.strerror})", "a writable folder", "give another --out"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                str(directory),
                "another picosam2 is writing there",
                "one at a time",
                "wait for it to end, stop it, or give another --out",
            ) from None
        except OSError:  # no locks on this file system
            pass
        yield


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or no id at all
        return True
    return True
