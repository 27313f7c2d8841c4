"""The train step: what it keeps, what it says, and what the cache saves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calib.qat.widths import with_weight_bits
from calib.representative import RepresentativeSet
from compiler import cli, quantizing
from compiler.cache import Cache
from compiler.quantizing import BREVITAS_QAT, MCT_PTQ, exact_agreement, require_brevitas, trained
from compiler.simulator.engine import compile_program
from passes.contract import raw
from passes.errors import EnvironmentFault
from passes.graph import save, to_bytes
from tests.calib.qat.small_graphs import SHAPE, fixture, without_quantizers
from tests.graphs import model, node

VERSIONS = {"torch": "of the test"}


def silent(phase: str, share: float | None) -> None:
    """A progress nobody looks at."""


def crops(count: int) -> list[RepresentativeSet]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    return [RepresentativeSet(pixels, pixels[:1], raw(*SHAPE, signed=False), (), 0, "random")]


def test_a_better_training_is_kept_and_the_second_time_it_comes_from_the_cache(tmp_path):
    quantized = with_weight_bits(fixture("residual"), 2, lambda _: True)
    reference, cache = without_quantizers(quantized), Cache(tmp_path)
    arguments = (reference, quantized, 1.5, crops(64), 0, VERSIONS, cache, silent)
    kept, choice = trained(*arguments)
    before, after = choice.tried
    assert (before.quantizer, before.seconds, after.quantizer) == (MCT_PTQ, 1.5, BREVITAS_QAT)
    assert after.agreement > before.agreement
    assert choice.kept == BREVITAS_QAT
    assert choice.pictures == 8
    assert not list(tmp_path.glob("*.training"))
    again, repeated = trained(*arguments)
    assert to_bytes(again) == to_bytes(kept)
    assert repeated.tried[1].seconds is None
    assert repeated.tried[1].agreement == after.agreement


def test_a_worse_training_is_not_kept(tmp_path, monkeypatch):
    quantized, worse = fixture("residual"), with_weight_bits(fixture("residual"), 2, lambda _: True)
    monkeypatch.setattr("calib.qat.train.train", lambda *_, **__: worse)
    reference = without_quantizers(quantized)
    kept, choice = trained(reference, quantized, None, crops(64), 0, VERSIONS, Cache(tmp_path), silent)
    assert kept is quantized
    assert choice.kept == MCT_PTQ
    assert choice.tried[0].agreement > choice.tried[1].agreement


def test_what_the_simulator_cannot_execute_is_said_before_the_training(tmp_path, monkeypatch):
    def refuse(*_):
        raise EnvironmentFault("simulator", "no C compiler", "cc", "install one")

    started = []
    monkeypatch.setattr("compiler.simulator.engine.compile_program", refuse)
    monkeypatch.setattr("calib.qat.train.train", lambda *_, **__: started.append(1))
    quantized = fixture("residual")
    reference = without_quantizers(quantized)
    with pytest.raises(EnvironmentFault, match="no C compiler"):
        trained(reference, quantized, None, crops(64), 0, VERSIONS, Cache(tmp_path), silent)
    assert not started


def test_agreement_of_a_network_with_itself_is_1():
    quantized = fixture("residual")
    inputs = [crops(4)[0].pictures.astype(np.float32)]
    program = compile_program(quantized)
    outputs = program.run({program.inputs[0]: inputs[0]})
    own = {name: tensor.real().astype(np.float32) for name, tensor in outputs.items()}
    assert exact_agreement(quantized, own, inputs) == 1.0


def test_without_brevitas_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match=r"Brevitas is not installed.*pip install"):
        require_brevitas()


@pytest.mark.slow
def test_a_compile_says_what_was_tried_and_ships_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    weights = {
        "a": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b": random.normal(size=(1, 8, 3, 3)).astype(np.float32),
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
    out = tmp_path / "package"
    arguments = ["compile", str(tmp_path / "net.onnx"), "--out", str(out), "--no-convert", "--quiet"]
    assert cli.run([*arguments, "--quantizer", BREVITAS_QAT]) == 0
    document = json.loads((out / "report.json").read_text())
    assert document["quantizer"] == BREVITAS_QAT
    found = document["quantization"]
    before, after = (one["agreement"] for one in found["tried"])
    assert found["kept"] == (BREVITAS_QAT if after >= before else MCT_PTQ)
    assert found["pictures"] == 64
    assert next(step for step in document["steps"] if step["name"] == "train")["vendor"] is False
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quantizer"] == found["kept"]
    assert "brevitas" in manifest["versions"]
    shipped = (out / "model_quant.onnx").read_bytes()
    again = tmp_path / "again"
    arguments[3] = str(again)
    assert cli.run([*arguments, "--quantizer", BREVITAS_QAT]) == 0
    assert (again / "model_quant.onnx").read_bytes() == shipped
    repeated = json.loads((again / "report.json").read_text())
    assert [one["seconds"] for one in repeated["quantization"]["tried"]] == [None, None]
