"""The simulator against onnxruntime with mct_quantizers' own operators, on graphs that MCT exported.

Fed with the same exact integers, both must write the same ones, except where float32 explains the
difference: see onnxruntime_segments. The networks of the fixtures are in simulator_networks.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler.simulator import fixedpoint as fp
from compiler.simulator.node import Call, ScaledWeights, execute
from tests.compiler.simulator.onnxruntime_segments import U, compare
from tests.compiler.simulator.simulator_graphs import Dialect

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.onnx"))


def pixels(shape: tuple[int, ...], seed: int, lowest: int = 0) -> Any:
    return np.random.default_rng(seed).integers(lowest, lowest + 256, shape)


def test_there_are_fixtures() -> None:
    assert len(FIXTURES) == 12


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
@pytest.mark.parametrize("seed", [1, 2])
def test_exported_networks(path: Path, seed: int) -> None:
    comparison = compare(onnx.load(path), {"input": pixels((1, 3, 8, 8), seed)})
    assert comparison.compared > 500
    assert [d for d in comparison.differences if not d.explained] == []
    assert len(comparison.differences) <= comparison.compared // 200


def tie_graph() -> onnx.ModelProto:
    """A graph whose every number is exact in float32 and a third of whose roundings are ties."""
    generator = np.random.default_rng(3)
    graph = Dialect()
    x = graph.quantize(graph.input([1, 4, 16, 16]), 128.0)
    weights = graph.weights(generator.integers(-2, 3, (4, 4, 3, 3)), 0.5)
    convolution = graph.node("Conv", x, weights, graph.constant([0.5, 1.0, -0.5, 0.0]), pads=[1, 1, 1, 1])
    first = graph.quantize(convolution, 256.0)
    pooled = graph.quantize(graph.node("AveragePool", first, kernel_shape=[2, 2], strides=[2, 2]), 256.0)
    up = graph.node("Resize", pooled, "", graph.constant([1.0, 1.0, 2.0, 2.0]), mode="linear")
    return graph.proto(graph.quantize(graph.node("Add", graph.quantize(up, 256.0), x), 512.0))


def test_ties_that_float32_represents_are_rounded_alike() -> None:
    comparison = compare(tie_graph(), {"input": pixels((1, 4, 16, 16), 0, -128)})
    assert comparison.compared > 4000
    assert comparison.differences == []


def test_another_rounding_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding half up instead of half to even differs on the ties; rounding down is not explained at all."""
    feeds = {"input": pixels((1, 4, 16, 16), 0, -128)}
    monkeypatch.setattr(fp, "round_half_even", lambda n, d: (2 * n + d) // (2 * d))
    assert len(compare(tie_graph(), feeds).differences) > 100
    monkeypatch.setattr(fp, "round_half_even", lambda n, d: n // d)
    assert not all(d.explained for d in compare(tie_graph(), feeds).differences)


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_quantizer(bits: int) -> None:
    """float32 divides before it rounds: only quotients within its error of a tie may differ."""
    import mct_quantizers.pytorch.quantizers.weights_inferable_quantizers as quantizers

    generator = np.random.default_rng(0)
    floats = generator.normal(0, 0.4, (16, 8192)).astype(np.float32)
    thresholds = generator.uniform(0.3, 1.2, 16).astype(np.float32)
    module = quantizers.weights_symmetric_inferable_quantizer
    theirs = module.quantize_sym_weights_numpy(floats, bits, thresholds, 1, 0)
    scale = thresholds / np.float32(2 ** (bits - 1))
    theirs = np.round(theirs.astype(np.float64) / scale[:, None].astype(np.float64)).astype(int)

    graph = Dialect()
    graph.quantized_weights(floats, thresholds, bits=bits)
    (node,) = graph.model().graph
    (ours,) = execute(Call(node, [fp.from_floats(floats), fp.from_floats(thresholds)], 64))
    assert isinstance(ours, ScaledWeights)
    different = np.argwhere(ours.integers != theirs)
    assert len(different) <= 8
    for channel, index in different:
        quotient = Fraction(float(floats[channel, index])) / Fraction(float(scale[channel]))
        distance = abs(quotient - (quotient.numerator // quotient.denominator) - Fraction(1, 2))
        assert distance <= abs(quotient) * Fraction(U)


@pytest.mark.slow
@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_fixtures_are_what_mct_exports(path: Path, tmp_path: Path) -> None:
    from tests.compiler.simulator import simulator_networks

    fresh = tmp_path / path.name
    simulator_networks.export(simulator_networks.build(path.stem), simulator_networks.SHAPE, fresh)
    comparison = compare(onnx.load(fresh), {"input": pixels((1, 3, 8, 8), 5)})
    assert [d for d in comparison.differences if not d.explained] == []
    operators = [[node.op_type for node in onnx.load(p).graph.node] for p in (path, fresh)]
    assert operators[0] == operators[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PicoSAM2", "PicoSAM3"])
def test_the_students(name: str, tmp_path: Path) -> None:
    """Millions of integers; onnxruntime's float32 moves about two in a million."""
    import torch

    from student import networks
    from tests.compiler.simulator import simulator_networks

    torch.manual_seed(0)
    network = getattr(networks, name)()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        network.train()
        for _ in range(8):
            network(torch.randint(-128, 128, (2, 3, 96, 96)).float())
    path = tmp_path / "student.onnx"
    simulator_networks.export(network, (3, 96, 96), path, lowest=-128)
    comparison = compare(onnx.load(path), {"input": pixels((1, 3, 96, 96), 6, -128)})
    assert comparison.compared > 5_000_000
    assert [d for d in comparison.differences if not d.explained] == []
    assert len(comparison.differences) <= 60
    assert max((d.distance for d in comparison.differences), default=0) < 1e-3
