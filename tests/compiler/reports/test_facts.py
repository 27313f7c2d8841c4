"""The facts of a report agree with what `picosam2 sensitivity` measures, whichever engine runs the net."""

from __future__ import annotations

import numpy as np
import pytest

from calib.representative import RepresentativeSet, delivered
from compiler.inspection import engines
from compiler.inspection.sensitivity import layers_alone, measure_sensitivity
from compiler.reports.facts import EXACT_SIMULATOR, LAYER_PICTURES, ONNXRUNTIME, measure_facts
from passes import contract as contracts
from passes.errors import EnvironmentFault
from tests.compiler.small_packages import SIZE, float_twin, segmenter


@pytest.fixture(scope="module")
def crops() -> RepresentativeSet:
    pixels = np.random.default_rng(4).integers(0, 256, (6, 3, SIZE, SIZE), np.uint8)
    contract = contracts.raw(3, SIZE, SIZE, signed=True)
    return RepresentativeSet(pixels[:2], pixels, contract, (), 0, "random")


def test_the_layers_numbers_are_those_of_sensitivity(crops: RepresentativeSet) -> None:
    graph = segmenter()
    real = float_twin(graph, shift=0.125)
    facts = measure_facts(real, graph, [crops])
    pictures = [delivered(crops.held_out[:LAYER_PICTURES], crops.contract)]
    found = measure_sensitivity(graph, real, pictures, name="small", source="noise")
    assert (facts.engine, facts.pictures) == (EXACT_SIMULATOR, LAYER_PICTURES)
    assert {layer.name: layer.alone_db for layer in facts.layers} == layers_alone(graph, real, pictures)
    for layer, one in zip(facts.layers, found.layers, strict=True):
        assert layer.alone_db == one.alone.both
        assert layer.here_db == pytest.approx(one.here.both, abs=0.01)
        assert facts.share_of_noise(layer) == pytest.approx(one.share)


def test_without_the_simulator_onnxruntime_gives_the_same_facts(
    crops: RepresentativeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = segmenter()
    real = float_twin(graph)
    exact = measure_facts(real, graph, [crops])

    def refused(model: object) -> None:
        raise EnvironmentFault("the simulator", "no C compiler", "a C compiler", "install one")

    monkeypatch.setattr(engines, "fast_engine", refused)
    facts = measure_facts(real, graph, [crops])
    assert facts.engine == ONNXRUNTIME
    assert facts.agreements == pytest.approx(exact.agreements, abs=0.01)
    for layer, one in zip(facts.layers, exact.layers, strict=True):
        assert layer.here_db == pytest.approx(one.here_db, abs=0.01)
        assert (layer.lowest, layer.highest, layer.alone_db) == (one.lowest, one.highest, one.alone_db)


def test_progress_names_each_layer_once_a_picture(crops: RepresentativeSet) -> None:
    graph = segmenter()
    told = list[tuple[str, float | None]]()
    facts = measure_facts(float_twin(graph), graph, [crops], lambda text, share: told.append((text, share)))
    expected = [f"what {layer.name} costs alone" for layer in facts.layers] * LAYER_PICTURES
    assert [text for text, _ in told] == expected
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
