"""A compile that makes no package leaves whole, valid reports beside its place, whatever ended it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from compiler import cli, driver
from compiler.driver import PIPELINE, CompileOptions, Step, compile_model
from compiler.package import FORMAT, MANIFEST
from compiler.progress import Progress
from compiler.reports.failed_run import failed_place
from passes import contract as contracts
from passes.errors import EnvironmentFault, InputError, TargetViolation
from passes.graph import save
from tests.compiler.reports.results import ten_violations, validate_sarif
from tests.compiler.reports.test_formats import SCHEMA, Page
from tests.graphs import model, node

FILES = {"report.html", "report.json", "report.md", "report.sarif", MANIFEST}
BEFORE_CHECK = tuple(step for step in PIPELINE if step.name in ("load", "check"))


@pytest.fixture
def legal(tmp_path) -> Path:
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["y"], name="stem", pads=[1, 1, 1, 1])]
    built = model(nodes, {"x": [1, 3, 16, 16]}, ["y"], {"w": weight}, contracts.raw(3, 16, 16))
    save(built, tmp_path / "legal.onnx")
    return tmp_path / "legal.onnx"


@pytest.fixture
def ends_with(monkeypatch):
    """Makes the pipeline end, after the check, in a step that raises."""

    def set_end(error: BaseException) -> None:
        def fail(state):
            raise error

        monkeypatch.setattr(driver, "PIPELINE", (*BEFORE_CHECK, Step("last", "the last step", fail)))

    return set_end


def compiled(path: Path, out: Path) -> None:
    compile_model(CompileOptions(path, out, convert=False), lambda steps: Progress(steps, quiet=True))


def document(out: Path) -> dict:
    """report.json of the failed run, after all four reports were found whole."""
    folder = failed_place(out)
    assert {path.name for path in folder.iterdir()} == FILES
    found = json.loads((folder / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    sarif = json.loads((folder / "report.sarif").read_text())
    validate_sarif(sarif)
    assert sarif["runs"][0]["invocations"][0]["exitCode"] == found["failure"]["exit_code"]
    page = "".join(Page((folder / "report.html").read_text()).text)
    assert found["failure"]["fix"].replace("`", "") in page
    assert found["failure"]["step"] in (folder / "report.md").read_text()
    assert not [path for path in out.parent.iterdir() if path.name.endswith((".part", ".old"))]
    return found


def test_a_refused_model_leaves_every_finding_and_the_earlier_package(tmp_path, capsys):
    out = tmp_path / "package"
    out.mkdir()
    manifest = json.dumps({"format": FORMAT, "files": {}})
    (out / MANIFEST).write_text(manifest)
    save(ten_violations(), tmp_path / "ten.onnx")
    assert cli.run(["compile", str(tmp_path / "ten.onnx"), "--out", str(out), "--no-convert", "-q"]) == 2
    found = document(out)
    assert found["failure"]["step"] == "check"
    assert found["failure"]["kind"] == "target"
    assert len([one for one in found["check"]["diagnostics"] if one["severity"] == "error"]) >= 10
    assert found["check"]["memory"] is not None
    assert (out / MANIFEST).read_text() == manifest
    assert str(failed_place(out) / "report.html") in capsys.readouterr().err


def test_a_mistake_in_the_command_leaves_nothing(legal, tmp_path):
    out = tmp_path / "package"
    assert cli.run(["compile", str(tmp_path / "no.onnx"), "--out", str(out), "--no-convert", "-q"]) == 1
    nowhere = ["--calib", str(tmp_path / "nowhere")]
    assert cli.run(["compile", str(legal), *nowhere, "--out", str(out), "--no-convert", "-q"]) == 1
    assert not failed_place(out).exists()


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (EnvironmentFault("the vendor's converter", "killed", "to its end", "again"), "environment", 4),
        (KeyboardInterrupt(), "interrupted", 130),
        (OSError(errno.ENOSPC, "No space left on device", "/disk/file"), "environment", 4),
        (ZeroDivisionError("a defect"), "defect", 4),
        (ModuleNotFoundError("No module named 'nowhere'", name="nowhere"), "environment", 4),
        (MemoryError(), "defect", 4),
    ],
)
def test_whatever_ends_a_run_is_told_and_raised(legal, tmp_path, ends_with, error, kind, code):
    ends_with(error)
    with pytest.raises(type(error)) as raised:
        compiled(legal, tmp_path / "package")
    assert raised.value is error
    found = document(tmp_path / "package")
    assert (found["failure"]["step"], found["failure"]["kind"]) == ("last", kind)
    assert found["failure"]["exit_code"] == code
    assert found["check"]["ok"]


def test_ctrl_c_names_the_report_and_ends_with_130(legal, tmp_path, ends_with, capsys):
    ends_with(KeyboardInterrupt())
    assert cli.run(["compile", str(legal), "--out", str(tmp_path / "package"), "--no-convert", "-q"]) == 130
    said = capsys.readouterr().err
    assert str(failed_place(tmp_path / "package") / "report.html") in said
    assert said.rstrip().endswith("interrupted")


def test_a_defect_and_a_full_disk_name_the_report_too(legal, tmp_path, ends_with, capsys):
    for error in (ZeroDivisionError("a defect"), OSError(errno.ENOSPC, "No space left on device", "/disk")):
        ends_with(error)
        out = tmp_path / type(error).__name__
        assert cli.run(["compile", str(legal), "--out", str(out), "--no-convert", "-q"]) == 4
        assert str(failed_place(out) / "report.html") in capsys.readouterr().err


def test_an_input_error_leaves_a_report_once_the_graph_is_quantized(legal, tmp_path, ends_with, monkeypatch):
    error = InputError("output y", "is no number", "numbers", "look for a division")
    ends_with(error)
    with pytest.raises(InputError):
        compiled(legal, tmp_path / "early")
    assert not failed_place(tmp_path / "early").exists()
    quantized = Step("given", "a quantized graph", lambda state: replace(state, quantized=state.float_model))
    monkeypatch.setattr(driver, "PIPELINE", (*BEFORE_CHECK, quantized, driver.PIPELINE[-1]))
    with pytest.raises(InputError):
        compiled(legal, tmp_path / "late")
    assert document(tmp_path / "late")["failure"]["kind"] == "input"


def test_findings_of_the_converter_are_in_the_reports(legal, tmp_path, monkeypatch):
    from tests.compiler.reports.results import converter_refused

    findings = converter_refused().vendor_diagnostics

    def refuse(state):
        raise TargetViolation("model", "refused", "limit", "fix", findings)

    monkeypatch.setattr(driver, "PIPELINE", (*BEFORE_CHECK, Step("convert", "the converter", refuse)))
    with pytest.raises(TargetViolation):
        compiled(legal, tmp_path / "package")
    assert document(tmp_path / "package")["converter"]["diagnostics"][0]["rule"] == "converter/cbe"


def test_on_a_full_disk_what_has_room_is_written(legal, tmp_path, ends_with, monkeypatch):
    error = EnvironmentFault("converter", "killed", "to its end", "again")
    ends_with(error)
    write = Path.write_bytes

    def full(self, data):
        if self.name == "report.html":
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentFault) as raised:
        compiled(legal, tmp_path / "package")
    assert raised.value is error
    kept = {path.name for path in failed_place(tmp_path / "package").iterdir()}
    assert kept == FILES - {"report.html"}
    assert any(note.endswith("report.md") for note in error.__notes__), "what is named is there"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_where_nothing_can_be_written_the_error_is_still_the_one_told(
    legal, tmp_path, ends_with, monkeypatch, number
):
    def full(self, data):
        raise OSError(number, os.strerror(number), str(self))

    error = EnvironmentFault("converter", "killed", "to its end", "again")
    ends_with(error)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentFault) as raised:
        compiled(legal, tmp_path / "package")
    assert raised.value is error
    assert any("no report" in note for note in error.__notes__)
    assert [path.name for path in tmp_path.iterdir()] == ["legal.onnx"]


def test_a_defect_in_the_reports_masks_nothing(legal, tmp_path, ends_with, monkeypatch):
    def breaks(*_):
        raise RuntimeError("the report is broken")

    error = EnvironmentFault("converter", "killed", "to its end", "again")
    ends_with(error)
    monkeypatch.setattr(driver, "write_failed", breaks)
    with pytest.raises(EnvironmentFault) as raised:
        compiled(legal, tmp_path / "package")
    assert raised.value is error
    assert any("the report is broken" in note for note in error.__notes__)


def test_a_folder_that_is_not_ours_is_left_alone(legal, tmp_path, ends_with):
    place = failed_place(tmp_path / "package")
    place.mkdir()
    (place / "diary.txt").write_text("mine")
    error = EnvironmentFault("converter", "killed", "to its end", "again")
    ends_with(error)
    with pytest.raises(EnvironmentFault):
        compiled(legal, tmp_path / "package")
    assert [path.name for path in place.iterdir()] == ["diary.txt"]
    assert any("no report" in note for note in error.__notes__)


def test_a_compile_that_succeeds_takes_the_old_failure_away(legal, tmp_path, ends_with, monkeypatch):
    ends_with(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compiled(legal, tmp_path / "package")
    assert failed_place(tmp_path / "package").is_dir()
    monkeypatch.setattr(driver, "PIPELINE", BEFORE_CHECK)
    compiled(legal, tmp_path / "package")
    assert not failed_place(tmp_path / "package").exists()
