"""The layer that loses most is found, measured by the definition, and pointed to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest

from compiler.agreement import session
from compiler.cli import run
from compiler.dialect import to_standard
from compiler.inspection import partly_quantized as pieces
from compiler.inspection.layers import WARNING_DB, quantized_layers
from compiler.inspection.partly_quantized import KINDS, Part, PartlyQuantizedNetwork, partly_quantized
from compiler.inspection.sensitivity import Sensitivity, layers_alone, measure_sensitivity
from compiler.inspection.sensitivity_report import plot, table, verdict
from passes import graph as graphs
from passes.graph import const_array, set_constant
from tests.compiler.simulator.simulator_graphs import Dialect
from tests.compiler.small_packages import SIZE, float_twin, packaged, segmenter

NAMES = ["input", "stem", "body", "body (2)", "node13", "head"]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (3, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def healthy(pictures: np.ndarray) -> Sensitivity:
    return measured(segmenter(), pictures)


def measured(model: ir.Model, pictures: np.ndarray, float_model: ir.Model | None = None) -> Sensitivity:
    return measure_sensitivity(model, float_model, [pictures], name="small", source="noise")


def outputs(model: ir.Model, pictures: np.ndarray) -> np.ndarray:
    running = session(model)
    name = model.graph.outputs[0].name
    return np.concatenate([running.run([name], {"input": one[None]})[0] for one in pictures])


def broken(model: ir.Model, name: str, kind: str) -> ir.Model:
    """The layer's activation saturates at 1/256 of its threshold, or its weights at 1/32 of theirs."""
    (layer,) = [layer for layer in quantized_layers(model) if layer.name == name]
    if kind == "activations":
        assert layer.activation is not None
        attributes = layer.activation.attributes
        attributes["threshold"] = ir.AttrFloat32("threshold", attributes["threshold"].as_float() / 256)
    else:
        (quantizer,) = layer.weights
        thresholds = const_array(quantizer.inputs[1])
        assert thresholds is not None
        set_constant(model.graph, quantizer, 1, "broken", (thresholds / 32).astype(np.float32))
    return model


# Layers and partly quantized graphs


def test_layers_bear_the_modules_names() -> None:
    layers = quantized_layers(segmenter())
    assert [layer.name for layer in layers] == NAMES
    assert [layer.operators for layer in layers] == [
        (),
        ("Conv", "Relu"),
        ("Conv", "Relu"),
        ("Conv", "Relu"),
        ("Add",),
        ("Conv",),
    ]
    assert [len(layer.weights) for layer in layers] == [0, 1, 1, 1, 0, 1]
    assert all(layer.activation is not None for layer in layers)


def test_an_addition_before_a_relu_names_the_layer() -> None:
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    both = graph.node("Relu", graph.node("Add", pixels, pixels))
    model = graph.model(graph.quantize(both, 256.0, signed=False))
    assert [layer.name for layer in quantized_layers(model)] == ["input", "node1"]
    assert quantized_layers(model)[1].operators == ("Add", "Relu")


def test_an_output_without_a_quantizer_is_a_layer_without_one() -> None:
    model = segmenter()
    last = model.graph.outputs[0].producer()
    assert last is not None
    ir.convenience.replace_all_uses_with(last.outputs[0], last.inputs[0], replace_graph_outputs=True)
    model.graph.remove(last, safe=True)
    head = quantized_layers(model)[-1]
    assert (head.name, head.activation, len(head.weights)) == ("head", None, 1)


def test_no_quantizer_is_the_float_graph_and_all_are_the_int8_graph(pictures: np.ndarray) -> None:
    model = segmenter()
    twin = float_twin(model, shift=0.125)
    everything = {(index, kind) for index in range(len(NAMES)) for kind in KINDS["both"]}
    assert np.array_equal(outputs(partly_quantized(model, (), twin), pictures), outputs(twin, pictures))
    int8 = outputs(to_standard(model), pictures)
    assert np.array_equal(outputs(partly_quantized(model, everything, twin), pictures), int8)
    without = outputs(partly_quantized(model, (), None), pictures)
    assert not np.array_equal(without, outputs(twin, pictures))  # the corrected bias belongs to the weights


def test_a_bias_that_calibration_added_goes_with_the_weights(pictures: np.ndarray) -> None:
    model = segmenter()
    twin = float_twin(model)
    for node in twin.graph:
        if node.op_type == "Conv":
            node.resize_inputs(2)
    assert np.array_equal(outputs(partly_quantized(model, (), twin), pictures), outputs(twin, pictures))


# Running them


def odd_network() -> ir.Model:
    """One quantizer for the weights of two layers, an operator read by two quantizers, moved integers that
    are an output and go on, an output without a quantizer, and one of indices."""
    generator = np.random.default_rng(3)
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, SIZE, SIZE]), 128.0)
    stem = graph.quantized_weights(generator.normal(size=(6, 3, 3, 3)) / 200, [0.03] * 6)
    shared = graph.quantized_weights(generator.normal(size=(6, 6, 3, 3)) / 6, [0.4] * 6)
    head = graph.quantized_weights(generator.normal(size=(4, 6, 1, 1)) / 2, [1.0] * 4)
    bias = graph.constant(generator.normal(size=6))
    one = graph.quantize(graph.node("Conv", pixels, stem, bias, pads=[1, 1, 1, 1]), 4.0)
    two = graph.quantize(graph.node("Relu", graph.node("Conv", one, shared, pads=[1] * 4)), 4.0, signed=False)
    moved = graph.node("Transpose", two, perm=[0, 1, 3, 2])
    three = graph.node("Conv", moved, shared, bias, pads=[1, 1, 1, 1])
    coarse, fine = graph.quantize(three, 16.0, bits=4), graph.quantize(graph.node("Relu", three), 8.0)
    last = graph.node("Conv", graph.quantize(graph.node("Add", coarse, fine), 16.0), head)
    winner = graph.node("ArgMax", graph.quantize(last, 8.0), axis=1)
    model = graph.model(moved, graph.node("Conv", fine, head), winner)
    model.graph.outputs[2].dtype = ir.DataType.INT64
    return model


@pytest.mark.parametrize("stride", [1, 3, 6])
@pytest.mark.parametrize("build", [segmenter, odd_network])
def test_the_pieces_compute_what_the_whole_partly_quantized_graph_computes(
    build: Callable[[], ir.Model], stride: int, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "STRIDE", stride)
    model = build()
    twin = float_twin(model, shift=0.125)
    network, feed = PartlyQuantizedNetwork(model, twin), {"input": pictures[:1]}
    parts = sorted(network.every("both"))
    generator = np.random.default_rng(0)
    choices: list[set[Part]] = [
        set(),
        *(set(network.every(kind)) for kind in KINDS),
        *({part} for part in parts),
        *({part for part in parts if generator.integers(2)} for _ in range(8)),
    ]
    real = network.run(feed, network.results)
    names = [value.name or "" for value in model.graph.outputs]
    for choice in choices:
        whole = session(partly_quantized(model, choice, twin, network.results))
        expected = dict(zip(network.results, whole.run(network.results, feed), strict=True))
        for found in (network.run(feed, network.results, choice), network.outputs_of(feed, real, choice)):
            assert found.keys() >= set(names)
            for name, values in found.items():
                assert values.dtype == expected[name].dtype
                np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{choice}")
    assert all(found is real[name] for name, found in network.outputs_of(feed, real, ()).items())


def test_of_two_layers_with_one_weight_quantizer_the_first_owns_it(pictures: np.ndarray) -> None:
    model = odd_network()
    network, feed = PartlyQuantizedNetwork(model), {"input": pictures[:1]}
    first = next(index for index, layer in enumerate(network.layers) if layer.operators == ("Conv", "Relu"))
    real, found = (network.run(feed, network.results, parts) for parts in ((), {(first, "weights")}))
    behind = network.layers[first + 1]
    assert "Conv" in behind.operators
    assert not behind.weights
    assert not np.array_equal(found[behind.tensor], real[behind.tensor])


def test_a_layer_behind_the_last_output_changes_nothing(pictures: np.ndarray) -> None:
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, SIZE, SIZE]), 128.0)
    names = [pixels]
    for _ in range(8):
        names.append(graph.quantize(graph.node("Relu", names[-1]), 64.0, bits=4))
    network, feed = PartlyQuantizedNetwork(graph.model(names[2])), {"input": pictures[:1]}
    real = network.run(feed, network.results)
    for index, changes in ((1, True), (7, False)):
        (found,) = network.outputs_of(feed, real, {(index, "activations")}).values()
        assert np.array_equal(found, real[names[2]]) != changes


def test_several_choices_come_in_their_order(pictures: np.ndarray) -> None:
    network, feed = PartlyQuantizedNetwork(segmenter()), {"input": pictures[:1]}
    real = network.run(feed, network.results)
    choices = [{part} for part in sorted(network.every("both"))]
    for choice, found in zip(choices, network.each_outputs(feed, real, choices), strict=True):
        for name, values in network.outputs_of(feed, real, choice).items():
            assert np.array_equal(found[name], values)


def test_layers_alone_are_those_of_the_whole_measurement(pictures: np.ndarray) -> None:
    model, shares = segmenter(), list[float]()
    expected = {layer.name: layer.alone.both for layer in measured(model, pictures).layers}
    assert layers_alone(model, None, [pictures], progress=lambda _, share: shares.append(share)) == expected
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert layers_alone(model, None, [pictures], ["body"]) == {"body": expected["body"]}


# Measuring


def test_ratios_by_their_definition(healthy: Sensitivity, pictures: np.ndarray) -> None:
    model = segmenter()
    real, int8 = outputs(float_twin(model), pictures), outputs(to_standard(model), pictures)
    ratio = 10 * np.log10(
        np.square(real, dtype=np.float64).sum() / np.square(int8 - real, dtype=np.float64).sum()
    )
    assert healthy.output.both == pytest.approx(ratio, abs=1e-4)
    assert healthy.layers[-1].here == healthy.output  # the head's result is the output
    alone = outputs(partly_quantized(model, {(4, "activations")}), pictures)
    noise = np.square(alone - real, dtype=np.float64).sum() / np.square(real, dtype=np.float64).sum()
    add = healthy.layers[4]
    assert add.alone.both == add.alone.activations == pytest.approx(-10 * np.log10(noise), abs=1e-4)
    assert add.alone.weights is None


def test_a_healthy_network_has_no_warning(healthy: Sensitivity) -> None:
    assert [layer.name for layer in healthy.layers] == NAMES
    assert not any(layer.warned for layer in healthy.layers)
    assert sum(layer.share for layer in healthy.layers) == pytest.approx(1.0)
    assert healthy.layers[0].alone.both == math.inf  # whole pixels: the input's quantizer changes nothing
    assert healthy.agreement is not None
    assert 0.9 < healthy.agreement <= 1.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "activations") for name in NAMES[1:]]
    + [(name, "weights") for name in NAMES[1:] if name != "node13"],
)
def test_the_broken_layer_is_pointed_to(
    pictures: np.ndarray, healthy: Sensitivity, name: str, kind: str
) -> None:
    found = measured(broken(segmenter(), name, kind), pictures)
    assert found.worst.name == name
    assert [layer.name for layer in found.layers if layer.warned] == [name]
    assert found.worst.share > 0.8
    assert found.output.both < healthy.output.both - 10
    culprit = getattr(found.worst.alone, kind)
    others = [part for part in ("weights", "activations") if part != kind]
    assert all((getattr(found.worst.alone, part) or math.inf) > culprit + 10 for part in others)
    words = " ".join(verdict(found))
    assert f"Loses most: {name}" in words
    assert ("activation's threshold" in words) == (kind == "activations")
    assert "loses most" in plot(found)


def test_values_that_are_not_finite_name_the_tensor(pictures: np.ndarray) -> None:
    model = segmenter()
    node = next(node for node in model.graph if node.op_type == "Conv")
    bias = const_array(node.inputs[2])
    assert bias is not None
    set_constant(model.graph, node, 2, "endless", np.full_like(bias, np.inf))
    with pytest.raises(Exception, match=r"NaN or infinite on a picture"):
        measured(model, pictures)


def test_what_has_no_quantizer_or_no_real_output_is_refused(pictures: np.ndarray) -> None:
    with pytest.raises(Exception, match=r"a graph without quantizers"):
        measured(float_twin(segmenter()), pictures)
    model = segmenter()
    winner = ir.Node("", "ArgMax", [model.graph.outputs[0]], name="winner")
    winner.outputs[0].name, winner.outputs[0].dtype = "index", ir.DataType.INT64
    model.graph.append(winner)
    model.graph.outputs[:] = winner.outputs
    with pytest.raises(Exception, match=r"every output holds indices"):
        measured(model, pictures)


# Reports


def test_the_plot_is_drawn_without_colour_and_names_every_layer(healthy: Sensitivity) -> None:
    root = ElementTree.fromstring(plot(healthy))
    words = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(name in words for name in NAMES)
    assert sum("loses most" in text for text in words) == 1
    assert any(f"{WARNING_DB:g} dB" in text for text in words)
    used = {element.get(key) for element in root.iter() for key in ("fill", "stroke")} - {None, "none"}
    greys = {"white", "black"} | {f"#{digit * 6}" for digit in "0123456789abcdef"}
    assert used <= greys
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in root.iter():
        for key, limit in (("x", width), ("x1", width), ("cx", width), ("y", height), ("y1", height)):
            assert 0 <= float(element.get(key, 0)) <= limit


def test_the_table_fits_a_terminal_and_explains_the_threshold(healthy: Sensitivity) -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    console.print(table(healthy))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in text for name in NAMES)
    assert "exact" in text
    assert "docs/simulator.md" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = broken(segmenter(), "stem", "activations")
    package = packaged(tmp_path / "small", model, float_twin(model))
    command = ["sensitivity", str(package), "-q", "--format", "json"]
    assert run([*command, "--plot", str(tmp_path / "plot.svg")]) == 0
    said = capsys.readouterr().out
    found = json.loads(said)
    assert (found["worst"], found["warnings"], found["pictures"]) == ("stem", ["stem"], 16)
    assert found["layers"][0]["alone_at_output_db"]["weights"] is None
    assert "held-out" in found["source"]
    assert "stem" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert run(command) == 0
    assert capsys.readouterr().out == said
    assert run(["sensitivity", str(package), "-q"]) == 0
    assert "Loses most: stem" in capsys.readouterr().out


def test_a_plot_without_a_folder_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = packaged(tmp_path / "small", segmenter())
    assert run(["sensitivity", str(package), "--plot", str(tmp_path / "none" / "plot.svg")]) == 1
    assert capsys.readouterr().err.startswith("error: --plot: ")


def test_the_command_refuses_a_float_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "float.onnx"
    graphs.save(float_twin(segmenter()), path)
    assert run(["sensitivity", str(path)]) == 1
    assert "is a float ONNX" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("encoder_stage3.0", "activations"), ("up2.1.3", "weights")])
def test_the_broken_layer_of_the_shipped_student_is_pointed_to(
    shipped_package: Path, name: str, kind: str
) -> None:
    from compiler.inspection.held_out import held_out_pictures
    from compiler.inspection.opened_package import open_package

    opened = open_package(shipped_package)
    (pictures,), _ = held_out_pictures(opened, "builtin")
    model = broken(graphs.from_proto(graphs.to_proto(opened.model)), name, kind)
    found = measure_sensitivity(model, opened.float_model, [pictures[:2]], name="student", source="builtin")
    assert found.worst.name == name
    assert [layer.name for layer in found.layers if layer.warned] == [name]
