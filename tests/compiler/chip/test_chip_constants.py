"""What is predicted, and what is named as not decoded."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.chip import ChipConstants, ChipLayer, chip_layer_constants
from compiler.chip.constants import multiplier_and_exponent
from compiler.chip.layouts import kernel_places, numbers_of, pack, unpack
from tests.compiler.simulator.simulator_graphs import Dialect

SHAPE = (1, 4, 5, 5)


def constants(build: Callable[[Dialect, str], str], *, signed: bool = True) -> ChipConstants:
    """Of quantize(build(graph, x))."""
    graph = Dialect()
    value = graph.quantize(graph.input(SHAPE), 128, signed=signed)
    return chip_layer_constants(graph.model(graph.quantize(build(graph, value), 16)))


def conv(graph: Dialect, value: str, shape: tuple[int, ...] = (4, 4, 1, 1), **attributes: int) -> str:
    weights = graph.weights(np.arange(np.prod(shape)).reshape(shape) % 100, 0.01)
    return graph.node("Conv", value, weights, kernel_shape=list(shape[2:]), **attributes)


def test_a_convolution_without_bias() -> None:
    (layer,) = constants(conv).layers.values()
    assert layer.bias.tolist() == [0, 0, 0, 0]
    assert layer.weights.shape == (4, 4, 1, 1)
    assert layer.output_grid.signed


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda g, x: conv(g, x, (4, 2, 1, 1), group=2), "2 groups"),
        (lambda g, x: g.node("LeakyRelu", conv(g, x)), "LeakyRelu"),
        (lambda g, x: g.node("Sigmoid", conv(g, x)), "Sigmoid"),
        (lambda g, x: g.node("Relu", conv(g, x)), "signed quantizer"),
        (lambda g, x: g.node("Conv", x, g.constant(np.ones((4, 4, 1, 1)))), "no quantizer"),
        (
            lambda g, x: g.node("Conv", x, g.quantized_weights(np.ones((4, 4, 1, 1)), np.ones(4), bits=3)),
            "3 bits",
        ),
        (lambda g, x: (lambda y: g.node("Add", y, g.node("Relu", y)))(conv(g, x)), "one node alone"),
        (
            lambda g, x: g.node(
                "ConvTranspose", x, g.weights(np.ones((4, 4, 2, 2)), 0.01, axis=1), kernel_shape=[2, 2]
            ),
            "ConvTranspose",
        ),
        (
            lambda g, x: g.node(
                "Conv", x, g.weights(np.ones((4, 4, 1, 1)), 0.01), g.constant([1e9, 0.0, 0.0, 0.0])
            ),
            "beyond int32",
        ),
        (lambda g, x: g.node("Conv", x, g.weights(np.ones((4, 4, 1, 1)), 2.0**40)), "shift of"),
        (lambda g, x: conv(g, x, (4, 4, 5, 5)), "covers the whole input"),
    ],
)
def test_what_was_not_decoded_is_named(build: Callable[[Dialect, str], str], why: str) -> None:
    found = constants(build)
    assert found.layers == {}
    (unknown,) = found.undecoded
    assert why in unknown.why
    assert unknown.name.startswith("node")
    assert unknown.operator in ("Conv", "ConvTranspose")


@given(st.floats(2.0**-30, 2.0**30, width=32))
def test_multipliers(scale: float) -> None:
    multiplier, exponent = multiplier_and_exponent(np.array([scale]))
    exact = Fraction(scale) / Fraction(2) ** int(exponent[0])
    assert 1 <= exact < 2
    assert int(multiplier[0]) == min(255, (exact * 128 + Fraction(1, 2)).__floor__())


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3),
    st.booleans(), st.sampled_from([8, 4, 2]),
)  # fmt: skip
def test_a_kernel_survives_packing(
    out: int, inner: int, rows: int, columns: int, stride: int, depthwise: bool, bits: int
) -> None:
    shape = (out, 1 if depthwise else inner, rows, columns)
    half = 2 ** (bits - 1)
    weights = np.random.default_rng(0).integers(-half, half, shape) * (128 // half)
    for places in kernel_places(shape, (stride, stride), depthwise=depthwise, bits=bits):
        assert len(places) % 32 == 0
        assert sorted(places[places >= 0]) == list(range(weights.size))
        record = pack(weights.astype(np.int8), places, bits)
        assert len(record) * 8 == len(places) * bits
        np.testing.assert_array_equal(unpack(numbers_of(record, bits), places, shape), weights)


def test_the_first_number_stands_in_the_lowest_bits() -> None:
    assert pack(np.array([16, -128], dtype=np.int8), np.array([0, 1]), 4).tolist() == [0x81]
    assert pack(np.array([64, -128, -64, 0], dtype=np.int8), np.arange(4), 2).tolist() == [0b00_11_10_01]
    assert numbers_of(np.array([0x81], dtype=np.uint8), 4).tolist() == [16, -128]


@pytest.mark.parametrize("bits", [4, 2])
def test_narrow_weights_are_8_bit_weights_with_zeros_below(bits: int) -> None:
    """The same threshold: the same multipliers and shifts, and the numbers of the upper bits."""
    half = 2 ** (bits - 1)
    integers = np.random.default_rng(1).integers(-half, half, (6, 4, 3, 3))

    def layer(given: int, integers: np.ndarray) -> ChipLayer:
        def build(graph: Dialect, x: str) -> str:
            weights = graph.weights(integers, 0.37 * 2.0 ** (8 - given), bits=given)
            return graph.node("Conv", x, weights, graph.constant(np.arange(6.0)), pads=[1] * 4)

        (only,) = constants(build).layers.values()
        return only

    narrow, wide = layer(bits, integers), layer(8, integers * (128 // half))
    assert (narrow.weight_bits, wide.weight_bits) == (bits, 8)
    for field in ("weights", "multiplier", "shift", "bias"):
        np.testing.assert_array_equal(getattr(narrow, field), getattr(wide, field))
