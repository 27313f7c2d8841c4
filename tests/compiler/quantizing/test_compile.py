"""Compiles with the options of quantization, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compiler import cli
from compiler.quantizing import options
from compiler.quantizing.options import BREVITAS_QAT, MCT_PTQ, require_brevitas
from passes.contract import raw
from passes.errors import EnvironmentFault
from passes.graph import load, save
from tests.compiler.small_packages import segmenter
from tests.graphs import model, node


def network(tmp_path: Path) -> Path:
    """A net of two convolutions, as a file."""
    random = np.random.default_rng(0)
    weights = {
        "a": random.normal(size=(40, 3, 3, 3)).astype(np.float32),
        "b": random.normal(size=(1, 40, 3, 3)).astype(np.float32),
    }
    graph = model(
        [
            node("Conv", ["x", "a"], ["h"], name="first", pads=[1, 1, 1, 1]),
            node("Relu", ["h"], ["r"], name="relu"),
            node("Conv", ["r", "b"], ["y"], name="second", pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 16, 16]},
        ["y"],
        weights,
        raw(3, 16, 16, signed=True),
    )
    save(graph, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_without_brevitas_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match=r"--max-drop: Brevitas is not installed.*pip install"):
        require_brevitas("--max-drop")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weight-bits", "3"], "--weight-bits: '3' (one of 8, 4, mixed)"),
        (["--quantizer", "magic"], "--quantizer: 'magic' (one of mct-ptq, mct-gptq, brevitas-qat)"),
        (["--memory-target", "100"], "--memory-target: with --weight-bits 8"),
        (["--weight-bits", "mixed", "--memory-target", "0"], "--memory-target: 0 (bytes above 0)"),
        (
            ["--quantizer", "mct-gptq", "--weight-bits", "mixed"],
            "--quantizer mct-gptq: with --weight-bits mixed",
        ),
        (["--max-drop", "-1"], "--max-drop: -1.0 (points from 0 to 100)"),
        (["--max-drop", "nan"], "--max-drop: nan (points from 0 to 100)"),
    ],
)
def test_values_that_mean_nothing_are_told_before_anything_runs(tmp_path, capfd, arguments, message):
    out = tmp_path / "package"
    assert cli.run(["compile", str(tmp_path / "absent.onnx"), "--out", str(out), *arguments]) == 1
    said = capfd.readouterr().err
    assert message in said
    assert said.count("error:") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments", [["--quantizer", "brevitas-qat"], ["--weight-bits", "4"], ["--max-drop", "1"]]
)
def test_a_graph_that_came_quantized_takes_no_such_option(tmp_path, capfd, arguments):
    save(segmenter(), tmp_path / "int8.onnx")
    out = tmp_path / "package"
    assert (
        cli.run(["compile", str(tmp_path / "int8.onnx"), "--no-convert", "--out", str(out), *arguments]) == 1
    )
    assert f"{arguments[0]}: int8.onnx is quantized already" in capfd.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent", "calibration absent: does not exist"),
        ("coco:absent", "no annotations/instances_train*"),
    ],
)
def test_pictures_that_are_not_there_are_told_as_soon_as_it_is_known_that_they_are_needed(
    tmp_path, capfd, source, message
):
    asked = ["compile", str(network(tmp_path)), "--no-convert", "--out", str(tmp_path / "package")]
    assert cli.run([*asked, "--calib", source]) == 1
    told = capfd.readouterr().err
    assert message in told
    assert "raise-opset" not in told


def test_too_few_pictures_for_a_drop_are_told_before_anything_is_quantized(tmp_path, capfd):
    out = tmp_path / "package"
    arguments = ["compile", str(network(tmp_path)), "--no-convert", "--out", str(out), "--max-drop", "1"]
    assert cli.run(arguments) == 1
    assert (
        "--max-drop: 2 pictures of builtin are kept aside to measure it (at least 8" in capfd.readouterr().err
    )
    assert not out.exists()


@pytest.mark.slow
def test_a_compile_says_what_was_tried_and_ships_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    out, again = tmp_path / "package", tmp_path / "again"
    arguments = ["compile", str(network(tmp_path)), "--no-convert", "--quiet", "--quantizer", BREVITAS_QAT]
    assert cli.run([*arguments, "--out", str(out)]) == 0
    document = json.loads((out / "report.json").read_text())
    assert document["quantizer"] == BREVITAS_QAT
    found = document["quantization"]
    before, after = (one["agreement"] for one in found["tried"])
    assert found["kept"] == (BREVITAS_QAT if after >= before else MCT_PTQ)
    assert (found["crops"], found["pictures"], found["met"]) == (512, 2, None)
    assert all(one["drop"]["kind"] == "bound" for one in found["tried"])
    parts = document["calibration"]["parts"]
    assert (parts["calibration"]["crops"], parts["training"]["crops"]) == (32, 512)
    assert next(step for step in document["steps"] if step["name"] == "search")["vendor"] is False
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quantizer"] == found["kept"]
    assert "brevitas" in manifest["versions"]
    assert cli.run([*arguments, "--out", str(again)]) == 0
    assert (again / "model_quant.onnx").read_bytes() == (out / "model_quant.onnx").read_bytes()
    repeated = json.loads((again / "report.json").read_text())
    assert [one["seconds"] for one in repeated["quantization"]["tried"]] == [None, None]


@pytest.mark.slow
def test_narrow_weights_under_a_target_and_a_drop_that_cannot_be_met(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("compiler.quantizing.ways.LONGER_TIMES", 1)
    path, out = network(tmp_path), tmp_path / "plain"
    arguments = ["compile", str(path), "--no-convert", "--quiet", "--out"]
    assert cli.run([*arguments, str(out)]) == 0
    total = json.loads((out / "report.json").read_text())["check"]["memory"]["total_bytes"]
    out = tmp_path / "narrow"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    narrow = ["--weight-bits", "mixed", "--memory-target", str(total - 1), "--calib", str(pictures)]
    assert cli.run([*arguments, str(out), *narrow, "--max-drop", "0"]) == 3
    assert "error: --max-drop:" in capfd.readouterr().err
    document = json.loads((out / "report.json").read_text())
    assert document["check"]["memory"]["total_bytes"] < total
    assert document["weights"]["memory_target"] == total - 1
    assert set(document["weights"]["bits"].values()) != {8}
    assert document["quantization"]["met"] is False
    assert document["quantization"]["tried"][0]["quantizer"] == MCT_PTQ
    assert len(document["quantization"]["tried"]) >= 6
    bits = {
        n.attributes["num_bits"].as_int()
        for n in load(out / "model_quant.onnx").graph
        if "Weights" in n.op_type
    }
    assert bits != {8}
