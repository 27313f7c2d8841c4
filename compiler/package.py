"""The package directory: written beside, then renamed, so that it is either whole or absent.

An earlier package in the same place is replaced only by a complete new one. A folder that is no package of
ours is never touched.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.errors import EnvironmentFault, InputError
from passes.graph import sha256

MANIFEST = "manifest.json"
FORMAT = "picosam2-compile package"
UNHASHED = ("report.json", "report.md", "converter.log")
"""Files with times in them: they differ between runs, so the manifest names them without a checksum."""

DATED_MEMBER = "manifest.json"
"""Member of packerOut.zip in which the vendor writes the date ("Date Info")."""


def require_writable(out: Path) -> None:
    """Fail before anything slow where the package could not be written to `out` in the end.

    Raises InputError for a file, for a folder with other things in it, and for a parent one may not write.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(
            f"--out {out}", "is a file", "a folder, or a name that is free", "choose another name"
        )
    if out.is_dir() and any(out.iterdir()) and not is_package(out):
        raise InputError(
            f"--out {out}",
            "exists and holds other files",
            "an empty folder, a free name, or an earlier package (which is replaced)",
            "choose another name, or empty the folder",
        )
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {out}", f"{parent} is not writable", "a folder you may write to", "choose another place"
        )


def is_package(folder: Path) -> bool:
    """The folder was written by us."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def write_package(out: Path, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Write the files and the manifest to `out` as a whole.

    Args:
        out: the package directory.
        files: name -> content, manifest.json excluded.
        facts: further entries of the manifest (versions, seeds, contract, outputs); deterministic.

    Raises EnvironmentFault where the disk fails; then `out` is as it was.
    """
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.absolute().parent))
    except OSError as error:
        raise _disk(out, error) from error
    try:
        try:
            for name, content in files.items():
                (beside / name).write_bytes(content)
            (beside / MANIFEST).write_text(manifest_text(files, facts), encoding="utf-8")
            beside.chmod(0o755)
        except OSError as error:
            raise _disk(out, error) from error
        _swap(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out`; the old one is kept until the new one is there."""
    old = new.with_name(new.name + ".old")
    try:
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(new, out)
        except OSError:
            if old.exists():
                os.rename(old, out)
            raise
    except OSError as error:
        raise _disk(out, error) from error
    shutil.rmtree(old, ignore_errors=True)


def _disk(out: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"--out {out}",
        f"cannot be written ({error.strerror})",
        "a disk with room that you may write to",
        "free it",
    )


def manifest_text(files: Mapping[str, bytes], facts: Mapping[str, Any]) -> str:
    """manifest.json: the same inputs give the same text."""
    listed: dict[str, Any] = {}
    for name in sorted(files):
        if name in UNHASHED:
            listed[name] = {"bytes_differ_between_runs": True}
        elif name == "packerOut.zip":
            listed[name] = {"members_sha256": zip_members(files[name])}
        else:
            listed[name] = {"sha256": sha256(files[name])}
    document = {"format": FORMAT, "schema": 1, **facts, "files": listed}
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
