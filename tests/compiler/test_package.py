"""A package is whole or absent, and an earlier one is never lost."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import zipfile
from pathlib import Path

import pytest

from compiler import package
from passes.errors import EnvironmentFault, InputError


def packer(date: str, content: bytes = b"weights") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("l2staticData.bin", content)
        archive.writestr("manifest.json", json.dumps({"Date Info": date, "Target": "IMX500"}))
    return buffer.getvalue()


FILES = {"model.onnx": b"graph", "report.json": b"{}", "packerOut.zip": packer("Monday")}


FOLDERS = FILES | {"device-check/check.json": b"{}", "device-check/on_the_pi/check.py": b"pass"}


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_written_whole_and_replaced_whole(tmp_path):
    out = tmp_path / "made" / "package"
    package.write_package(out, FILES, {"seed": 0})
    assert set(everything(out)) == {*FILES, "manifest.json"}
    package.write_package(out, {"model.onnx": b"other"}, {"seed": 1})
    assert set(everything(out)) == {"model.onnx", "manifest.json"}
    assert [p.name for p in out.parent.iterdir()] == ["package"]


def test_the_manifest_does_not_depend_on_times(tmp_path):
    first = package.manifest_text(FILES, {"seed": 0})
    later = FILES | {"report.json": b"{later}", "packerOut.zip": packer("Tuesday")}
    assert package.manifest_text(later, {"seed": 0}) == first
    changed = FILES | {"packerOut.zip": packer("Monday", b"other weights")}
    assert package.manifest_text(changed, {"seed": 0}) != first
    assert package.manifest_text(FILES | {"model.onnx": b"x"}, {"seed": 0}) != first


def test_a_failing_write_leaves_the_old_package(tmp_path, monkeypatch):
    out = tmp_path / "package"
    package.write_package(out, FILES, {})
    before = everything(out)
    real = os.rename

    def fails(source, target):
        if Path(target) == out and ".part" in str(source) and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(EnvironmentFault, match="No space left"):
        package.write_package(out, {"model.onnx": b"new"}, {})
    assert everything(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize("kind", ["file", "other", "link"])
def test_what_is_no_package_is_never_touched(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "other":
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    else:
        out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--out"):
        package.require_writable(out, tmp_path / "model.pt")


def test_free_names_empty_folders_and_packages_are_fine(tmp_path):
    package.require_writable(tmp_path / "a" / "b", tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    package.require_writable(tmp_path / "empty", tmp_path / "model.pt")
    package.write_package(tmp_path / "package", FILES, {})
    package.require_writable(tmp_path / "package", tmp_path / "model.pt")
    # asking leaves no trace: nothing was made, and the package is as it was
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "package"]
    assert set(everything(tmp_path / "package")) == {*FILES, "manifest.json"}


@pytest.mark.parametrize("out", ["/proc/x", "/proc/x/y"])
def test_a_file_system_that_takes_no_folder(tmp_path, out):
    """Root has every permission there, and makes nothing."""
    with pytest.raises(InputError, match=rf"--out {out}: /proc is not writable"):
        package.require_writable(Path(out), tmp_path / "model.pt")


def test_a_disk_without_room_is_told_at_the_start(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        package.require_writable(tmp_path / "out", tmp_path / "model.pt")


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not writable"):
        package.require_writable(tmp_path / "file" / "out", tmp_path / "model.pt")


def test_files_that_somebody_added_to_a_package_are_not_lost(tmp_path):
    out = tmp_path / "package"
    package.write_package(out, FILES, {})
    (out / "my-notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"my-notes\.txt"):
        package.require_writable(out, tmp_path / "model.pt")


def test_files_in_folders_are_written_listed_and_replaced(tmp_path):
    out = tmp_path / "package"
    package.write_package(out, FOLDERS, {})
    assert everything(out) == {**FOLDERS, "manifest.json": (out / "manifest.json").read_bytes()}
    assert set(json.loads((out / "manifest.json").read_text())["files"]) == set(FOLDERS)
    package.require_writable(out, tmp_path / "model.pt")
    package.write_package(out, FILES, {})
    assert set(everything(out)) == {*FILES, "manifest.json"}
    assert not (out / "device-check").exists()


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("device-check/found.npz", "device-check/found.npz"),
        ("device-check/on_the_pi/mine.py", "device-check/on_the_pi/mine.py"),
        ("device-check/masks/0000.png", "device-check/masks"),
        ("notes/device-check/check.json", "notes"),
        ("__pycache__/mine.pyc", "__pycache__"),
    ],
)
def test_files_that_somebody_added_to_a_folder_of_a_package_are_not_lost(tmp_path, added, named):
    out = tmp_path / "package"
    package.write_package(out, FOLDERS, {})
    (out / added).parent.mkdir(parents=True, exist_ok=True)
    (out / added).write_text("mine")
    with pytest.raises(InputError, match=rf"holds other files: {named} \("):
        package.require_writable(out, tmp_path / "model.pt")


def test_a_link_or_a_folder_in_the_place_of_our_own_is_somebodys(tmp_path):
    out = tmp_path / "package"
    package.write_package(out, FOLDERS, {})
    (out / "device-check").rename(tmp_path / "moved")
    (out / "device-check").symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=r"holds other files: device-check \("):
        package.require_writable(out, tmp_path / "model.pt")
    (out / "device-check").unlink()
    (out / "report.json").unlink()
    (out / "report.json").mkdir()
    with pytest.raises(InputError, match=r"holds other files: report\.json \("):
        package.require_writable(out, tmp_path / "model.pt")


def test_what_python_compiles_beside_the_scripts_is_not_somebodys(tmp_path):
    out = tmp_path / "package"
    package.write_package(out, FOLDERS, {})
    compiled = out / "device-check" / "on_the_pi" / "__pycache__"
    compiled.mkdir()
    (compiled / "check.cpython-311.pyc").write_bytes(b"")
    package.require_writable(out, tmp_path / "model.pt")


def test_a_model_inside_the_package_it_would_replace(tmp_path):
    out = tmp_path / "package"
    package.write_package(out, FILES, {})
    with pytest.raises(InputError, match="holds the model"):
        package.require_writable(out, out / "model.onnx")


def test_the_current_folder_cannot_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="current folder"):
        package.require_writable(Path(), tmp_path / "model.pt")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(InputError, match=r"has a name of 250 bytes .* Fix: choose a shorter name"):
        package.require_writable(tmp_path / ("a" * 250), tmp_path / "model.onnx")


def test_an_interrupt_between_the_renames_leaves_a_whole_package(tmp_path, monkeypatch):
    """Signals wait until both renames are done; an exception in between puts the old package back."""
    out = tmp_path / "package"
    package.write_package(out, FILES, {})
    before = everything(out)
    real = os.rename

    def interrupted(source, target):
        real(source, target)
        if str(target).endswith(".old"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        package.write_package(out, {"model.onnx": b"new"}, {})
    assert (out / "model.onnx").read_bytes() == b"new"

    def raises(source, target):
        if Path(target) == out and not str(source).endswith(".old"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", real)
    package.write_package(out, FILES, {})
    monkeypatch.setattr(os, "rename", raises)
    with pytest.raises(KeyboardInterrupt):
        package.write_package(out, {"model.onnx": b"new"}, {})
    assert everything(out) == before


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.ENOSPC, EnvironmentFault, "free it"),
        (errno.EDQUOT, EnvironmentFault, "free it"),
        (errno.EACCES, InputError, "correct the path or its permissions"),
        (errno.EROFS, InputError, "correct the path or its permissions"),
        (errno.ENAMETOOLONG, InputError, "correct the path or its permissions"),
    ],
)
def test_what_the_disk_refuses_is_told_by_its_reason(tmp_path, monkeypatch, number, kind, fix):
    def refuses(self, data):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuses)
    with pytest.raises(kind, match=fix) as raised:
        package.write_package(tmp_path / "package", FILES, {})
    assert raised.value.thing == f"--out {tmp_path / 'package'}"
    assert raised.value.found == os.strerror(number)
    assert list(tmp_path.iterdir()) == []
