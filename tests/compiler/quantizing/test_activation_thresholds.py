"""The search of activation thresholds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.quantizing.activation_thresholds import search_thresholds
from compiler.quantizing.yardstick import Yardstick
from passes.graph import is_activation_quantizer, to_bytes
from tests.calib.qat.small_graphs import fixture, without_quantizers
from tests.compiler.quantizing.small import crops, silent
from tests.compiler.simulator.simulator_graphs import Dialect


def test_a_threshold_that_is_wrong_by_a_factor_is_found_again():
    quantized = fixture("residual")
    yardstick = Yardstick(without_quantizers(quantized), [crops(16).pictures.astype(np.float32)])
    right = search_thresholds(quantized, yardstick, silent)
    assert yardstick.distance(right) <= yardstick.distance(quantized)
    inner = [node for node in right.graph if is_activation_quantizer(node)][-1]
    threshold = inner.attributes["threshold"].as_float()
    inner.attributes["threshold"] = ir.AttrFloat32("threshold", threshold / 2)
    broken = yardstick.distance(right)
    found = search_thresholds(right, yardstick, silent)
    assert yardstick.distance(found) < broken
    again = next(node for node in found.graph if node.name == inner.name)
    assert again.attributes["threshold"].as_float() == threshold
    assert to_bytes(found) == to_bytes(search_thresholds(right, yardstick, silent))


def test_the_inputs_step_stays():
    quantized = fixture("residual")
    yardstick = Yardstick(without_quantizers(quantized), [crops(4).pictures.astype(np.float32)])
    for before, after in zip(
        quantized.graph, search_thresholds(quantized, yardstick, silent).graph, strict=True
    ):
        if is_activation_quantizer(before) and before.inputs[0] in quantized.graph.inputs:
            assert before.attributes["threshold"].as_float() == after.attributes["threshold"].as_float()


def test_a_frame_of_constants_keeps_the_sensors_step():
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, 8, 8]), 128.0)
    frame = graph.constant(np.full((1, 3, 1, 8), 7, np.float32))
    framed = graph.quantize(graph.node("Concat", frame, pixels, axis=2), 128.0)
    weight = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32) / 64
    kept = graph.quantized_weights(weight, np.abs(weight).max(axis=(1, 2, 3)))
    model = graph.model(graph.quantize(graph.node("Conv", framed, kept), 64.0))
    crops = np.random.default_rng(1).integers(-60, 60, (4, 3, 8, 8)).astype(np.float32)
    found = search_thresholds(model, Yardstick(without_quantizers(model), [crops]), silent)
    thresholds = [n.attributes["threshold"].as_float() for n in found.graph if is_activation_quantizer(n)]
    assert thresholds[:2] == [128.0, 128.0]
    assert thresholds[2] < 64.0
