"""16-bit activations where they are needed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calib.widths import with_weight_bits
from compiler.quantizing.wide_activations import widen_activations
from compiler.quantizing.yardstick import Yardstick
from passes.graph import is_activation_quantizer, to_bytes
from passes.imx500.limits import MEMORY_BUDGET
from passes.imx500.memory import forecast_memory
from tests.calib.qat.small_graphs import without_quantizers
from tests.compiler.quantizing.small import silent
from tests.compiler.simulator.simulator_graphs import Dialect
from tests.compiler.small_packages import segmenter


def cancelling() -> ir.Model:
    """Two tanh of the same large values, of which only the small difference is left."""
    random = np.random.default_rng(0)
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, 8, 8]), 128.0)
    weight = random.normal(size=(4, 3, 1, 1)).astype(np.float32) / 64
    branches = []
    for shift in (0.0, 0.02):
        kept = graph.quantized_weights(weight, np.abs(weight).max(axis=(1, 2, 3)))
        bias = graph.constant(np.full(4, shift, np.float32))
        mixed = graph.quantize(graph.node("Conv", pixels, kept, bias), 8.0)
        branches.append(graph.quantize(graph.node("Tanh", mixed), 1.0))
    return graph.model(graph.quantize(graph.node("Sub", *branches), 0.0625))


def bits(model: ir.Model) -> list[int]:
    return [node.attributes["num_bits"].as_int() for node in model.graph if is_activation_quantizer(node)]


def crops() -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (8, 3, 8, 8)).astype(np.float32)


def test_tensors_that_cancel_get_16_bits():
    quantized = cancelling()
    yardstick = Yardstick(without_quantizers(quantized), [crops()])
    wide = widen_activations(quantized, yardstick, MEMORY_BUDGET, True, silent)
    assert bits(quantized).count(16) == 0
    assert 1 <= bits(wide).count(16) <= 3
    assert bits(wide)[-1] == 8  # the output
    assert yardstick.distance(wide) < 0.9 * yardstick.distance(quantized)
    assert to_bytes(wide) == to_bytes(widen_activations(quantized, yardstick, MEMORY_BUDGET, True, silent))


def test_the_memory_limit_is_kept():
    quantized = cancelling()
    yardstick = Yardstick(without_quantizers(quantized), [crops()])
    limit = forecast_memory(quantized).total_bytes
    narrow = widen_activations(quantized, yardstick, limit, True, silent)
    assert forecast_memory(narrow).total_bytes <= limit
    wide = widen_activations(quantized, yardstick, MEMORY_BUDGET, True, silent)
    assert forecast_memory(wide).total_bytes > limit


def test_where_the_loss_is_the_weights_nothing_is_widened():
    coarse = with_weight_bits(segmenter(), 2)
    pictures = np.random.default_rng(1).integers(-128, 128, (4, 3, 32, 32)).astype(np.float32)
    yardstick = Yardstick(without_quantizers(segmenter()), [pictures])
    assert widen_activations(coarse, yardstick, MEMORY_BUDGET, True, silent) is coarse
