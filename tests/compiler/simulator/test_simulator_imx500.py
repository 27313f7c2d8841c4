"""The numerics `imx500` in the fast engine: the compiled file's rules, computed once more in NumPy."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.chip.additions import add_fused
from compiler.chip.constants import chip_layer_constants
from compiler.chip.layer import requantize
from compiler.simulator.engine import compile_program
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.native.build import Variant
from compiler.simulator.numerics import UNKNOWNS, Imx500
from compiler.simulator.requantization import Rounding
from passes.errors import InputError
from tests.compiler.simulator.simulator_graphs import Dialect


def accumulators(x: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.int64]:
    """3x3, padding 1, dense or depthwise: the sum over taps, one after the other."""
    depthwise = weights.shape[1] == 1 and x.shape[1] > 1
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = np.zeros((len(x), len(weights), *x.shape[2:]), dtype=np.int64)
    for ky in range(3):
        for kx in range(3):
            tap = padded[:, :, ky : ky + x.shape[2], kx : kx + x.shape[3]]
            kernel = weights[:, :, ky, kx].astype(np.int64)
            total += tap * kernel[:, 0, None, None] if depthwise else np.einsum("nchw,oc->nohw", tap, kernel)
    return total


class Layers:
    """An input, a depthwise and a dense convolution; then a fused addition with the first one's output."""

    def __init__(self, seed: int, *, fused: bool, relu: bool, bits: int = 8, wide: bool = False) -> None:
        numbers = np.random.default_rng(seed)
        graph = Dialect()
        self.channels = int(numbers.choice([3, 8, 20]))
        self.shape = (self.channels, 6, 5)
        signed = bool(numbers.integers(2))
        given = graph.quantize(graph.input([1, *self.shape]), 128.0 if signed else 256.0, signed=signed)

        def convolution(value: str, groups: int) -> str:
            shape = (self.channels, self.channels // groups, 3, 3)
            scales = np.exp2(numbers.uniform(-9, -6, self.channels)).astype(np.float32)
            half = 2 ** (bits - 1)
            weights = graph.weights(numbers.integers(-half, half, shape), scales * (128 // half), bits=bits)
            bias = graph.constant(numbers.normal(0, 9, self.channels))
            return graph.node("Conv", value, weights, bias, group=groups, pads=[1] * 4, kernel_shape=[3, 3])

        first = convolution(given, self.channels)
        if relu:
            first = graph.node("Relu", first)
        self.first = graph.quantize(first, 64.0, signed=not relu)
        threshold = float(2.0 ** numbers.integers(3, 8))
        self.second = graph.quantize(convolution(self.first, 1), threshold, bits=16 if wide else 8)
        self.sum = self.second
        if fused:
            self.sum = graph.quantize(graph.node("Add", self.second, self.first), 128.0)
        self.model: ir.Model = graph.model(self.sum)
        self.pictures = numbers.integers(-128 if signed else 0, 128 if signed else 256, (3, *self.shape))


@given(st.integers(0, 10**6), st.sampled_from(UNKNOWNS), st.booleans(), st.sampled_from([8, 8, 4, 2]))
@settings(max_examples=60, deadline=None)
def test_every_integer_follows_the_rules_of_the_compiled_file(
    seed: int, numerics: Imx500, relu: bool, bits: int
) -> None:
    layers = Layers(seed, fused=True, relu=relu, bits=bits)
    constants = chip_layer_constants(layers.model)
    assert constants.undecoded == ()
    one, two = constants.layers.values()
    rounding = numerics.rounding
    first = requantize(accumulators(layers.pictures, one.weights), one, rounding)
    sums = accumulators(first, two.weights)
    total = add_fused(
        sums, two, first, one.output_grid, Grid(0, 8, True), rounding,
        saturate=numerics.saturate,
    )  # fmt: skip
    for variant in get_args(Variant):
        program = compile_program(layers.model, numerics=numerics, variant=variant)
        found = program.run({"input": layers.pictures}, keep=[layers.first, layers.second])
        assert np.array_equal(found[layers.first].values, first)
        assert np.array_equal(found[layers.second].values, requantize(sums, two, rounding))
        assert np.array_equal(found[layers.sum].values, total)


@given(st.integers(0, 10**6), st.sampled_from(UNKNOWNS), st.booleans())
@settings(max_examples=20, deadline=None)
def test_16_bits_before_a_fused_addition_change_nothing_behind_it(
    seed: int, numerics: Imx500, relu: bool
) -> None:
    """The compiled file is byte for byte that of 8 bits (docs/memory.md)."""
    narrow, wide = (Layers(seed, fused=True, relu=relu, wide=wide) for wide in (False, True))
    first, second = (chip_layer_constants(layers.model).layers for layers in (narrow, wide))
    for one, other in zip(first.values(), second.values(), strict=True):
        assert np.array_equal(one.shift, other.shift)
        assert one.output_grid == other.output_grid
    results = [
        compile_program(layers.model, numerics=numerics).run({"input": layers.pictures}, keep=[layers.second])
        for layers in (narrow, wide)
    ]
    assert np.array_equal(results[0][narrow.sum].values, results[1][wide.sum].values)
    # The tensor itself is finer by 8 bits, and saturates at the same threshold.
    coarse, fine = results[0][narrow.second], results[1][wide.second]
    assert (coarse.bits, fine.bits, fine.step) == (8, 16, coarse.step / 256)
    assert np.abs(coarse.real() - fine.real()).max() <= coarse.step


def test_16_bits_that_are_not_fused_are_named() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    weights = graph.weights(np.ones((3, 3, 1, 1), dtype=int), [0.5] * 3)
    model = graph.model(graph.quantize(graph.node("Conv", x, weights), 8.0, bits=16))
    with pytest.raises(InputError, match=r"Conv.*numerics imx500: 8-bit input, 16-bit output"):
        compile_program(model, numerics=Imx500())


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("signed", [True, False])
def test_where_every_multiplier_is_exact_the_chip_computes_what_the_file_means(
    bits: int, signed: bool
) -> None:
    """Steps that are powers of two, biases that are multiples of them: only the rounding is left."""
    numbers = np.random.default_rng(bits)
    graph = Dialect()
    x = graph.quantize(graph.input([1, 5, 4, 4]), 128.0 if signed else 256.0, signed=signed)
    half = 2 ** (bits - 1)
    steps = 2.0 ** -numbers.integers(3, 9, 7)
    weights = graph.weights(numbers.integers(-half, half, (7, 5, 3, 3)), steps, bits=bits)
    bias = graph.constant(numbers.integers(-99, 99, 7) * steps)
    value = graph.node("Conv", x, weights, bias, pads=[1] * 4)
    model = graph.model(graph.quantize(value, 32.0))
    (layer,) = chip_layer_constants(model).layers.values()
    assert set(layer.multiplier) == {128}
    pictures = {"input": numbers.integers(-128 if signed else 0, 128 if signed else 256, (3, 5, 4, 4))}
    (chip,) = compile_program(model, numerics=Imx500(Rounding.HALF_EVEN)).run(pictures).values()
    (file,) = compile_program(model).run(pictures).values()
    assert len(np.unique(file.values)) > 20
    assert np.array_equal(chip.values, file.values)


def test_another_rounding_is_another_result() -> None:
    layers = Layers(7, fused=False, relu=True)
    results = [
        compile_program(layers.model, numerics=Imx500(rounding)).run({"input": layers.pictures})[layers.sum]
        for rounding in Rounding
    ]
    assert not np.array_equal(results[0].values, results[2].values)
    # Floor is never above rounding to nearest.
    assert (results[2].values.astype(int) <= results[0].values).mean() > 0.9


@pytest.mark.parametrize("rounding", Rounding)
def test_a_sum_that_stands_alone_is_shifted(rounding: Rounding) -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 2, 4, 4]), 128.0)
    pooled = graph.node("MaxPool", x, kernel_shape=[1, 1])
    half = graph.quantize(x, 64.0)
    model = graph.model(graph.quantize(graph.node("Add", pooled, half), 512.0))
    pictures = np.random.default_rng(0).integers(-128, 128, (2, 2, 4, 4))
    (result,) = compile_program(model, numerics=Imx500(rounding)).run({"input": pictures}).values()
    exact = (2 * pictures + np.clip(2 * pictures, -128, 127)) / 8.0
    whole = {
        Rounding.HALF_EVEN: np.rint(exact),
        Rounding.HALF_UP: np.floor(exact + 0.5),
        Rounding.FLOOR: np.floor(exact),
    }[rounding]
    assert np.array_equal(result.values, whole)


def test_a_tensor_is_added_to_itself() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 2, 4, 4]), 128.0)
    model = graph.model(graph.quantize(graph.node("Add", x, x), 128.0))
    pictures = np.random.default_rng(0).integers(-128, 128, (2, 2, 4, 4))
    (result,) = compile_program(model, numerics=Imx500(Rounding.HALF_UP)).run({"input": pictures}).values()
    assert np.array_equal(result.values, np.clip(2 * pictures, -128, 127))


@pytest.mark.parametrize(("before", "behind"), [(2.0**30, 2.0**-30), (2.0**-30, 2.0**30)])
def test_steps_that_are_far_apart_saturate_or_vanish(before: float, behind: float) -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 1, 1, 256]), before)
    model = graph.model(graph.quantize(x, behind))
    levels = np.arange(-128, 128).reshape(1, 1, 1, 256)
    program = compile_program(model, numerics=Imx500(Rounding.HALF_EVEN))
    (result,) = program.run({"input": levels * (before / 128)}).values()
    exact = np.clip(np.rint(levels * (before / behind)), -128, 127)
    assert np.array_equal(result.values, exact)


@pytest.mark.parametrize("op_type", ["Sigmoid", "GlobalAveragePool"])
def test_what_was_not_decoded_is_named(op_type: str) -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    model = graph.model(graph.quantize(graph.node(op_type, x), 8.0))
    compile_program(model)
    with pytest.raises(InputError, match=rf"{op_type}.*numerics imx500.*dialect"):
        compile_program(model, numerics=Imx500())


def test_a_transposed_convolution_is_named() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    weights = graph.weights(np.ones((3, 2, 2, 2), dtype=int), [0.5, 0.5], axis=1)
    model = graph.model(graph.quantize(graph.node("ConvTranspose", x, weights, strides=[2, 2]), 8.0))
    with pytest.raises(InputError, match=r"ConvTranspose.*numerics imx500"):
        compile_program(model, numerics=Imx500())
