"""The package directory: written beside, then renamed, so that it is either whole or absent.

An earlier package in the same place is replaced only by a complete new one. A folder that is no package of
ours is never touched.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import tempfile
import threading
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from passes.errors import EnvironmentFault, InputError, system_error
from passes.files import PACKAGE_MANIFEST
from passes.graph import sha256

MANIFEST = PACKAGE_MANIFEST
FORMAT = "picosam2-compile package"
FAILED_RUN = "picosam2-compile failed run"
"""The format of OUT.failed/ (`compiler.reports.failed_run`)."""

UNHASHED = ("report.html", "report.json", "report.md", "report.sarif", "converter.log")
"""Files with times or paths of the machine in them: they differ between runs, so the manifest names them
without a checksum."""

BYTECODE = "__pycache__"
"""Beside the scripts of a package Python keeps them compiled once they have run: nothing to be lost."""

DATED_MEMBER = "manifest.json"
"""Member of packerOut.zip in which the vendor writes the date ("Date Info")."""


def require_writable(out: Path, model: Path) -> None:
    """Fail before anything slow where the package could not be written to `out` in the end.

    Raises InputError for a file, a link, a folder with other things in it, an earlier package that somebody
    added files to or that holds the model itself, a folder that cannot be renamed, and a parent one may not
    write.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        kind = "a link" if out.is_symlink() else "a file"
        raise InputError(
            f"--out {out}", f"is {kind}", "a folder, or a name that is free", "choose another name"
        )
    if out.is_dir():
        if os.path.ismount(out) or out.resolve() == Path.cwd():
            raise InputError(
                f"--out {out}",
                "is a mount point or the current folder, which cannot be replaced as a whole",
                "a folder that can be renamed",
                f"--out {out / 'package'}",
            )
        if extra := added_files(out):
            raise InputError(
                f"--out {out}",
                f"holds other files: {', '.join(extra[:3])}",
                "an empty folder, a free name, or an earlier package (which is replaced as a whole)",
                "choose another name, or move them away",
            )
        if model.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"--out {out}",
                f"holds the model {model.name} itself",
                "another folder",
                "choose another name",
            )
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:  # permissions alone do not tell: a virtual or read-only file system refuses even root
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=parent):
            pass
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"--out {out}",
                f"has a name of {len(os.fsencode(out.name))} bytes",
                "some 200 bytes: what is written beside it first has a longer one",
                "choose a shorter name",
            ) from error
        fault = system_error(error, f"--out {out}")
        if isinstance(fault, EnvironmentFault):
            raise fault from error
        raise InputError(
            f"--out {out}",
            f"{parent} is not writable ({fault.found})",
            "a folder you may write to",
            "choose another place",
        ) from error


def _other_files(folder: Path, own: Collection[str], within: str = "") -> Iterator[str]:
    """What is in a folder beside our own files; a folder that holds none of ours is named, not entered.

    Args:
        own: paths in the package, with "/" between their parts.
        within: path of `folder` in the package, empty or ending in "/".
    """
    for path in folder.iterdir():
        name = within + path.name
        if any(one.startswith(f"{name}/") for one in own) and path.is_dir() and not path.is_symlink():
            yield from _other_files(path, own, f"{name}/")
        elif (name not in own or path.is_dir()) and not (within and path.name == BYTECODE):
            yield name


def added_files(folder: Path, form: str = FORMAT) -> list[str]:
    """Paths in the folder that we did not write; all of them where it is no folder of ours of that format."""
    own: set[str] = set()
    if is_package(folder, form):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        own = {MANIFEST, *manifest.get("files", {})}
    return sorted(_other_files(folder, own))


def is_package(folder: Path, form: str = FORMAT) -> bool:
    """The folder was written by us, in that format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == form


def require_package(folder: Path) -> None:
    """Raises InputError for a folder that is no package: of something else, or of a compile that failed."""
    if is_package(folder, FAILED_RUN):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        raise InputError(
            f"package {folder}",
            f"is the report of a compile that failed in step {manifest.get('step') or 'unknown'}",
            "a package, which only a compile that succeeds writes",
            f"mend what {folder / 'report.md'} says, compile again, and name the package",
        )
    if not is_package(folder):
        raise InputError(
            f"package {folder}",
            f"has no {MANIFEST} of ours",
            "a directory that `picosam2 compile` wrote",
            "name that directory",
        )


def read_manifest(package: Path) -> dict[str, Any]:
    """manifest.json of a package; raises InputError for a folder that is none."""
    require_package(package)
    manifest: dict[str, Any] = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def calibration_sources(manifest: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Pictures on the calibration card of a package (`calib.representative.card`); none without a card."""
    sources = (manifest.get("calibration") or {}).get("sources", [])
    return tuple(source for source in sources if isinstance(source, dict))


def write_package(
    out: Path, files: Mapping[str, bytes], facts: Mapping[str, Any], form: str = FORMAT
) -> None:
    """Write the files and the manifest to `out` as a whole.

    Args:
        out: the package directory.
        files: path in the package -> content, manifest.json excluded; folders are made as needed.
        facts: further entries of the manifest (versions, seeds, contract, outputs); deterministic.
        form: what the manifest says the folder is.

    Raises `passes.errors.system_error` where it cannot be written: EnvironmentFault without room, else
    InputError. Then `out` is as it was.
    """
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.absolute().parent))
    except OSError as error:
        raise system_error(error, f"--out {out}") from error
    try:
        try:
            for name, content in files.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                (beside / name).write_bytes(content)
            (beside / MANIFEST).write_text(manifest_text(files, facts, form), encoding="utf-8")
            beside.chmod(0o755)
        except OSError as error:
            raise system_error(error, f"--out {out}") from error
        _swap(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out`; the old one is kept until the new one is there.

    Interrupts wait until both renames are done.
    """
    old = new.with_name(new.name + ".old")
    try:
        with _uninterrupted():
            if out.exists():
                os.rename(out, old)
            try:
                os.rename(new, out)
            except BaseException:
                if old.exists():
                    os.rename(old, out)
                raise
    except OSError as error:
        raise system_error(error, f"--out {out}") from error
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals that end the program take effect after the block.

    By handlers, not by a mask: a mask holds for one thread, and the libraries have threads of their own.
    Python runs handlers in the main thread only, so in another thread there is nothing to wait for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for arrived in caught:
            signal.raise_signal(arrived)


def manifest_text(files: Mapping[str, bytes], facts: Mapping[str, Any], form: str = FORMAT) -> str:
    """manifest.json: the same inputs give the same text."""
    listed: dict[str, Any] = {}
    for name in sorted(files):
        if name in UNHASHED:
            listed[name] = {"bytes_differ_between_runs": True}
        elif name == "packerOut.zip":
            listed[name] = {"members_sha256": zip_members(files[name])}
        else:
            listed[name] = {"sha256": sha256(files[name])}
    document = {"format": form, "schema": 1, **facts, "files": listed}
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def zip_members(archive: bytes) -> dict[str, str]:
    """sha256 of every member; of the dated one without its "Date Info", which changes with every run."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        members = {name: opened.read(name) for name in sorted(opened.namelist())}
    hashes = {}
    for name, content in members.items():
        if name == DATED_MEMBER:
            content = _without_date(content)
        hashes[name] = sha256(content)
    return hashes


def _without_date(content: bytes) -> bytes:
    try:
        document = json.loads(content)
    except ValueError:
        return content
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key != "Date Info"}
    return json.dumps(document, sort_keys=True).encode()
