"""Files appear whole; a folder has one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from passes.errors import InputError
from passes.files import LOCK, locked, remove_abandoned_parts, write_beside

ROOT = Path(__file__).parents[2]


def test_a_file_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_beside(path, b"old")
    write_beside(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_beside(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_beside(path, b"new")
    assert caught.value.filename == str(path)
    assert caught.value.errno == 28
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_parts_are_removed_only_where_their_process_has_ended(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f".x.{ended.pid}.part", f".x.{os.getpid()}.part", ".x.1.part", ".x.some.part", "x.part", ".part"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_abandoned_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_folder_has_one_writer_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    program = (
        "import sys, time; from pathlib import Path; from passes.files import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(out)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another picosam2 is writing there"), locked(out):
            pass
        process.send_signal(signal.SIGKILL)
    for _ in range(2):
        with locked(out):
            assert [path.name for path in out.iterdir()] == [LOCK]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "file"):
        pass
