"""equalised == original, bit for bit; which channels are scalable, by operator; how large the scales are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.frontend import load_model
from passes.equalise import LIMIT, TOLERANCE, Equalisation, equalise, scalable_tensors
from passes.graph import const_array, to_bytes
from passes.pipeline import apply_all
from tests.graphs import model, node, run
from tests.networks import FOREIGN, export, foreign

SIZE = 6


class Net:
    """A float network under construction: tensor after tensor, [1, channels, SIZE, SIZE] unless told."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        made = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(node(op, inputs, made, name=f"node_{name}", **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        return name

    def conv(self, x: str, given: int, made: int, group: int = 1, bias: bool = True, k: int = 3) -> str:
        """Weights whose output channels differ by up to 2^8."""
        weight = self.random.normal(size=(made, given // group, k, k))
        weight *= np.exp2(self.random.uniform(-4, 4, (made, 1, 1, 1)))
        constants = [weight, self.random.normal(size=made)] if bias else [weight]
        names = [self.constant(array.astype(np.float32)) for array in constants]
        return self.add("Conv", [x, *names], group=group, pads=[k // 2] * 4)

    def transposed(self, x: str, given: int, made: int, group: int) -> str:
        weight = self.random.normal(size=(given, made // group, 2, 2)).astype(np.float32)
        bias = self.constant(self.random.normal(size=made).astype(np.float32))
        return self.add("ConvTranspose", [x, self.constant(weight), bias], group=group, strides=[2, 2])

    def gemm(self, x: str, given: int, made: int, trans_b: int = 1) -> str:
        shape = (made, given) if trans_b else (given, made)
        weight = self.constant(self.random.normal(size=shape).astype(np.float32))
        bias = self.constant(self.random.normal(size=made).astype(np.float32))
        return self.add("Gemm", [x, weight, bias], transB=trans_b, alpha=0.5, beta=2.0)

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def built(self, *outputs: str) -> ir.Model:
        return model(self.nodes, {"x": [1, 3, SIZE, SIZE]}, list(outputs), self.constants)


def pictures(random: np.random.Generator, count: int = 2) -> list[np.ndarray]:
    return [random.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(count)]


def ranges_of(built: ir.Model, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Largest magnitude of each channel of the scalable tensors."""
    names = scalable_tensors(built)
    if not names:
        return {}
    with_outputs = ir.from_proto(ir.to_proto(built))
    values = {value.name: value for one in with_outputs.graph for value in one.outputs}
    with_outputs.graph.outputs[:] = [values[name] for name in names]
    arrays = [run(with_outputs, x) for x in inputs]
    return {
        name: np.max([np.abs(one[i]).max(axis=(0, *range(2, one[i].ndim))) for one in arrays], axis=0)
        for i, name in enumerate(names)
    }


def assert_same_function(
    built: ir.Model, inputs: list[np.ndarray], ranges: Mapping[str, np.ndarray] | None = None
) -> tuple[ir.Model, Equalisation]:
    before = to_bytes(built)
    after, facts = equalise(built, ranges_of(built, inputs) if ranges is None else ranges)
    assert to_bytes(built) == before
    assert [value.name for value in after.graph.outputs] == [value.name for value in built.graph.outputs]
    for x in inputs:
        for reference, output in zip(run(built, x), run(after, x), strict=True):
            np.testing.assert_array_equal(output, reference)
    return after, facts


# Operators that pass a scale on: what is between two dense layers of 4 channels


def pad(net: Net, x: str) -> str:
    return net.add("Pad", [x, net.ints(0, 0, 1, 1, 0, 0, 1, 1)])


def resize(net: Net, x: str, mode: str, coordinates: str) -> str:
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    return net.add("Resize", [x, "", scales], mode=mode, coordinate_transformation_mode=coordinates)


PASSED = {
    "nothing": lambda net, x: x,
    "Relu": lambda net, x: net.add("Relu", [x]),
    "LeakyRelu": lambda net, x: net.add("LeakyRelu", [x], alpha=0.1),
    "Identity": lambda net, x: net.add("Identity", [x]),
    "MaxPool": lambda net, x: net.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool": lambda net, x: net.add("AveragePool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": lambda net, x: net.add("GlobalAveragePool", [x]),
    "GlobalMaxPool": lambda net, x: net.add("GlobalMaxPool", [x]),
    "ReduceMean": lambda net, x: net.add("ReduceMean", [x], axes=[2, -1], keepdims=1),
    "Resize nearest": lambda net, x: resize(net, x, "nearest", "asymmetric"),
    "Resize linear": lambda net, x: resize(net, x, "linear", "half_pixel"),
    "Pad": pad,
    "Mul": lambda net, x: net.add("Mul", [net.constant(np.float32([[[2]], [[3]], [[-1]], [[5]]])), x]),
    "Div": lambda net, x: net.add("Div", [x, net.constant(np.float32([3.0]))]),
    "gate": lambda net, x: net.add("Mul", [x, net.add("Sigmoid", [net.conv("x", 3, 4)])]),
    "Add": lambda net, x: net.add("Add", [x, net.conv("x", 3, 4)]),
    "Sub": lambda net, x: net.add("Sub", [net.conv("x", 3, 4), x]),
    "Max": lambda net, x: net.add("Max", [x, net.conv("x", 3, 4)]),
    "Concat and Split": lambda net, x: net.add(
        "Split",
        [net.add("Concat", [x, net.conv("x", 3, 4)], axis=1), net.ints(4, 4)],
        outputs=2,
        axis=-3,
    ),
}


@pytest.mark.parametrize("operator", PASSED)
def test_passes_scales_on(operator: str) -> None:
    random = np.random.default_rng(3)
    net = Net(random)
    first = net.conv("x", 3, 4)
    built = net.built(net.conv(PASSED[operator](net, first), 4, 2))
    assert operator in ("Relu", "LeakyRelu") or first in scalable_tensors(built)
    ranges = ranges_of(built, pictures(random))
    uneven = {name: np.exp2(8.0 * np.arange(len(one))) for name, one in ranges.items()}
    _, facts = assert_same_function(built, pictures(random), uneven)
    assert facts.scaled >= 2


# Operators that do not


def clip(net: Net, x: str) -> str:
    return net.add("Clip", [x, net.constant(np.float32(0)), net.constant(np.float32(6))])


STOPPED = {
    "Clip": clip,
    "HardSwish": lambda net, x: net.add("HardSwish", [x]),
    "Sigmoid": lambda net, x: net.add("Sigmoid", [x]),
    "Tanh": lambda net, x: net.add("Tanh", [x]),
    "Softmax": lambda net, x: net.add("Softmax", [x], axis=1),
    "square": lambda net, x: net.add("Mul", [x, x]),
    "SiLU": lambda net, x: net.add("Mul", [x, net.add("Sigmoid", [x])]),
    "constant Add": lambda net, x: net.add("Add", [x, net.constant(np.ones((4, 1, 1), np.float32))]),
    "constant by": lambda net, x: net.add("Div", [net.constant(np.float32(1)), net.add("Abs", [x])]),
    "Pad of ones": lambda net, x: net.add(
        "Pad", [x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), net.constant(np.float32(1))]
    ),
    "Pad of channels": lambda net, x: net.add("Pad", [x, net.ints(0, 1, 0, 0, 0, -1, 0, 0)]),
    "Reduction over channels": lambda net, x: net.add(
        "Mul", [x, net.add("ReduceMean", [x], axes=[1], keepdims=1)]
    ),
    "Transpose": lambda net, x: net.add("Transpose", [x], perm=[0, 1, 3, 2]),
}


@pytest.mark.parametrize("operator", STOPPED)
def test_stops_scales(operator: str) -> None:
    random = np.random.default_rng(3)
    net = Net(random)
    first = net.conv("x", 3, 4)
    built = net.built(net.conv(STOPPED[operator](net, first), 4, 2))
    assert first not in scalable_tensors(built)
    assert_same_function(built, pictures(random))


def test_a_sum_with_the_input_is_fixed() -> None:
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.conv("x", 3, 3)
    built = net.built(net.conv(net.add("Add", [first, "x"]), 3, 2))
    assert scalable_tensors(built) == []
    _, facts = assert_same_function(built, pictures(random), {first: np.array([1.0, 10.0, 100.0])})
    assert facts == Equalisation(())


def test_an_output_is_never_scaled() -> None:
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.conv("x", 3, 4)
    relu = net.add("Relu", [first])
    assert scalable_tensors(net.built(net.conv(relu, 4, 2))) == [relu]
    net = Net(random)
    first = net.conv("x", 3, 4)
    relu = net.add("Relu", [first])
    built = net.built(net.conv(relu, 4, 2), relu)
    assert scalable_tensors(built) == []
    assert_same_function(built, pictures(random))


def test_shared_weights_stay() -> None:
    """A copy for each layer would cost the chip memory."""
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.conv("x", 3, 3)
    weight = net.nodes[0].input[1]
    built = net.built(net.add("Conv", [net.add("Relu", [first]), weight], pads=[1] * 4))
    assert scalable_tensors(built) == []


def test_a_shared_bias_is_copied() -> None:
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.conv("x", 3, 4)
    relu = net.add("Relu", [first])
    second = net.conv(relu, 4, 4)
    net.nodes[-1].input[2] = net.nodes[0].input[2]
    built = net.built(second)
    _, facts = assert_same_function(built, pictures(random), {relu: np.array([1.0, 1.0, 1.0, 1e4])})
    assert facts.scaled == 1


def test_a_concatenation_is_scalable_by_parts() -> None:
    """The channels that come from the input keep their values, and the others come to their magnitude."""
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.conv("x", 3, 2, k=1)
    both = net.add("Concat", ["x", first], axis=1)
    built = net.built(net.conv(both, 5, 4, group=1))
    after, facts = assert_same_function(
        built, pictures(random), {both: np.array([1.0, 1, 1, 64, 1 / 64]), first: np.array([64, 1 / 64])}
    )
    assert [one.scaled for one in facts.tensors] == [2, 2]
    before, now = (one.graph.node("node_Conv2").inputs[1] for one in (built, after))
    old, new = const_array(before), const_array(now)
    assert old is not None
    assert new is not None
    np.testing.assert_array_equal(old[:, :3], new[:, :3])
    assert (np.abs(new[:, 3]) > np.abs(old[:, 3])).all()
    assert (np.abs(new[:, 4]) < np.abs(old[:, 4])).all()


# How large the scales are


def test_depthwise_readers_take_the_whole_range() -> None:
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.add("Relu", [net.conv("x", 3, 4)])
    built = net.built(net.conv(net.conv(first, 4, 4, group=4), 4, 2))
    after, facts = equalise(built, {first: np.array([1.0, 1.0, 1 / 32, 64.0])})
    (entry,) = facts.tensors
    assert (entry.lost_before, entry.lost_after, entry.scaled) == (6.0, 0.0, 2)
    old, new = (const_array(one.graph.node("node_Conv0").inputs[2]) for one in (built, after))
    np.testing.assert_array_equal(new, np.float32([1, 1, 32, 1 / 64]) * old)


def test_inflated_channels_come_back() -> None:
    """Channels times f and their reader's weights divided by it are undone, for any f between powers of 2."""
    random = np.random.default_rng(0)
    factors = np.array([1.0, 60.0, 1.0, 10.0, 100.0, 1.0, 1.0, 1.0])
    net = Net(random)
    relu = net.add("Relu", [net.conv("x", 3, 8)])
    built = net.built(net.conv(relu, 8, 5))
    first, second = (built.graph.node(name).inputs[1] for name in ("node_Conv0", "node_Conv2"))
    even = np.ones((8, 3, 3, 3)), np.ones((5, 8, 3, 3))
    for value, array in (
        (first, even[0] * factors[:, None, None, None]),
        (second, even[1] / factors[:, None, None]),
    ):
        value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
    after, _ = equalise(built, {relu: factors})
    for name in ("node_Conv0", "node_Conv2"):
        weight = const_array(after.graph.node(name).inputs[1])
        assert weight is not None
        assert weight.max() / weight.min() <= 2


def test_similar_channels_stay() -> None:
    """Within a factor of 2^TOLERANCE of the median there is little to win, and the graph keeps its bytes."""
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.add("Relu", [net.conv("x", 3, 5)])
    built = net.built(net.conv(net.conv(first, 5, 5, group=5), 5, 2))
    edge = 2.0**TOLERANCE
    after, facts = equalise(built, {first: np.array([1.0, 1.0, 1 / edge, 1.0, edge])})
    assert to_bytes(after) == to_bytes(built)
    assert facts.scaled == 0
    assert equalise(built, {first: np.array([1.0, 1.0, 0.9 / edge, 1.0, 1.1 * edge])})[1].scaled == 2


def test_a_channel_that_is_always_0_stays() -> None:
    random = np.random.default_rng(0)
    net = Net(random)
    relu = net.add("Relu", [net.conv("x", 3, 4)])
    built = net.built(net.conv(relu, 4, 2))
    after, _ = equalise(built, {relu: np.array([0.0, 4.0, 0.0, 64.0])})
    old, new = (const_array(one.graph.node("node_Conv0").inputs[1]) for one in (built, after))
    assert old is not None
    assert new is not None
    np.testing.assert_array_equal(old[[0, 2]], new[[0, 2]])
    assert equalise(built, {})[1] == Equalisation(())
    assert to_bytes(equalise(built, {relu: np.zeros(4)})[0]) == to_bytes(built)


def test_scales_are_limited() -> None:
    random = np.random.default_rng(0)
    net = Net(random)
    first = net.add("Relu", [net.conv("x", 3, 3)])
    built = net.built(net.conv(net.conv(first, 3, 3, group=3), 3, 2))
    after, _ = equalise(built, {first: np.array([1.0, 1.0, 1e-30])})
    old, new = (const_array(one.graph.node("node_Conv0").inputs[2]) for one in (built, after))
    np.testing.assert_array_equal(new, np.float32([1, 1, 2**LIMIT]) * old)


@pytest.mark.parametrize(
    ("ranges", "strength", "words"),
    [
        ({"Relu1": np.ones(3)}, 0.5, "4 finite magnitudes"),
        ({"Relu1": np.array([1, 2, 3, np.inf])}, 0.5, "4 finite magnitudes"),
        ({"Relu1": np.array([1, 2, 3, -4.0])}, 0.5, "4 finite magnitudes"),
        ({}, -0.1, "strength"),
        ({}, 1.5, "strength"),
    ],
)
def test_what_does_not_fit_is_refused(ranges: dict[str, np.ndarray], strength: float, words: str) -> None:
    net = Net(np.random.default_rng(0))
    built = net.built(net.conv(net.add("Relu", [net.conv("x", 3, 4)]), 4, 2))
    with pytest.raises(ValueError, match=words):
        equalise(built, ranges, strength)


# Random networks


@st.composite
def random_networks(draw: st.DrawFn) -> tuple[ir.Model, np.random.Generator]:
    """Chains and branches of layers and operators, a linear layer at the end of some."""
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    net = Net(random)
    x, channels = net.conv("x", 3, 4), 4
    kept = []
    for _ in range(draw(st.integers(1, 5))):
        step = draw(
            st.sampled_from(["dense", "depthwise", "grouped", "relu", "add", "concat", "pass", "stop"])
        )
        if step == "dense":
            x = net.conv(x, channels, 4, bias=draw(st.booleans()))
            channels = 4
        elif step == "depthwise":
            x = net.conv(x, channels, channels, group=channels)
        elif step == "grouped":
            x = net.conv(x, channels, 2 * channels, group=2)
            channels *= 2
        elif step == "relu":
            x = net.add("Relu", [x])
        elif step == "add":
            x = net.add("Add", [net.conv(x, channels, channels), x])
        elif step == "concat":
            x = net.add("Concat", [x, net.conv(x, channels, 2)], axis=1)
            channels += 2
        elif step == "pass" and channels == 4:
            same = ["LeakyRelu", "AveragePool", "gate", "Sub", "Max", "Mul"]
            x = PASSED[draw(st.sampled_from(same))](net, x)
        elif step == "stop" and channels == 4:
            x = STOPPED[draw(st.sampled_from(["Clip", "HardSwish", "SiLU", "constant Add"]))](net, x)
        if draw(st.booleans()) and len(kept) < 2:
            kept.append(net.conv(x, channels, 2))
    end = draw(st.sampled_from(["dense", "transposed", "flatten", "pooled", "output"]))
    if end == "transposed":
        x = net.conv(net.transposed(x, channels, 6, group=2), 6, 2)
    elif end == "flatten":
        x = net.gemm(net.add("Flatten", [net.add("Relu", [x])]), channels * SIZE * SIZE, 5)
    elif end == "pooled":
        flat = net.add("Reshape", [net.add("GlobalAveragePool", [x]), net.ints(1, -1)])
        linear = net.add("Relu", [net.gemm(flat, channels, 5, trans_b=draw(st.sampled_from([0, 1])))])
        matrix = net.constant(random.normal(size=(5, 3)).astype(np.float32))
        x = net.add("MatMul", [linear, matrix])
    elif end == "dense":
        x = net.conv(x, channels, 1)
    return net.built(x, *kept), random


@settings(max_examples=50)
@given(network=random_networks())
def test_random_networks_compute_the_same(network: tuple[ir.Model, np.random.Generator]) -> None:
    """Bit for bit, with measured ranges and with ones that have nothing to do with the network."""
    built, random = network
    inputs = pictures(random)
    ranges = ranges_of(built, inputs)
    after, _ = assert_same_function(built, inputs, ranges)
    assert to_bytes(equalise(built, ranges)[0]) == to_bytes(after)
    wild = {name: np.exp2(random.uniform(-8, 8, one.shape)) for name, one in ranges.items()}
    assert_same_function(built, inputs, wild)


@settings(max_examples=50)
@given(network=random_networks())
def test_the_scaled_tensors_are_those_named(network: tuple[ir.Model, np.random.Generator]) -> None:
    """Ranges after equalisation are those before, divided by powers of two, as the facts say."""
    built, random = network
    inputs = pictures(random)
    ranges = ranges_of(built, inputs)
    after, facts = equalise(built, ranges)
    now = ranges_of(after, inputs)
    assert list(now) == list(ranges) == [one.name for one in facts.tensors]
    for one in facts.tensors:
        alive = ranges[one.name] > 0
        ratio = ranges[one.name][alive] / now[one.name][alive]
        assert (np.log2(ratio) % 1 == 0).all()
        assert np.count_nonzero(ratio != 1) <= one.scaled <= one.channels


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_foreign_networks_compute_the_same(name: str, tmp_path: Path) -> None:
    """Bit for bit with random ranges; how many tensors are scalable is told by the network's activations."""
    built = load_model(export(foreign(name), tmp_path / "network.onnx"), declared="raw").model
    built = apply_all(built)
    random = np.random.default_rng(0)
    values = {value.name: value for one in built.graph for value in one.outputs}
    names = scalable_tensors(built)
    assert names
    ranges = {one: np.exp2(random.uniform(-6, 6, values[one].shape[1])) for one in names}
    picture = random.integers(0, 256, (1, 3, 96, 96)).astype(np.float32)
    _, facts = assert_same_function(built, [picture], ranges)
    assert facts.scaled > len(names)
