"""Whole operators against the plainest possible loops over Fractions, on random small graphs."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.simulator.simulator_graphs import Dialect, run

Numbers = dict[tuple[int, ...], Fraction]
"""A tensor as a dictionary from index to number."""

STEP_IN = Fraction(1, 8)
"""Step of the inputs: threshold 16, signed."""


def as_numbers(integers: Any, step: Fraction = Fraction(1)) -> Numbers:
    return {index: int(v) * step for index, v in np.ndenumerate(np.asarray(integers))}


def rounded(numbers: Numbers, threshold: float, bits: int = 8) -> dict[tuple[int, ...], int]:
    """A signed quantizer of the dialect: round(Fraction) rounds half to even."""
    step = Fraction(threshold) / (1 << (bits - 1))
    top = 1 << (bits - 1)
    return {i: min(max(round(v / step), -top), top - 1) for i, v in numbers.items()}


def integers_of(shape: tuple[int, ...], low: int = -128, high: int = 127) -> st.SearchStrategy[Any]:
    size = math.prod(shape)
    return st.lists(st.integers(low, high), min_size=size, max_size=size).map(
        lambda values: np.array(values).reshape(shape)
    )


def float32s(count: int, low: float, high: float) -> st.SearchStrategy[Any]:
    number = st.floats(low, high, width=32, allow_nan=False, allow_subnormal=False)
    return st.lists(number, min_size=count, max_size=count).map(lambda v: np.array(v, np.float32))


def result_of(graph: Dialect, value: str, threshold: float, **feeds: Any) -> dict[tuple[int, ...], int]:
    (result,) = run(graph.model(graph.quantize(value, threshold)), **feeds)
    return {index: int(v) for index, v in np.ndenumerate(result.values)}


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    cin, cout = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilations = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = spans[0] + draw(st.integers(0, 2)), spans[1] + draw(st.integers(0, 2))
    channels = groups * cout
    return {
        "x": draw(integers_of((draw(st.integers(1, 2)), groups * cin, *size))),
        "weights": draw(float32s(channels * cin * kernel[0] * kernel[1], -4, 4)).reshape(
            channels, cin, *kernel
        ),
        "thresholds": draw(float32s(channels, 0.125, 4)),
        "bias": draw(st.one_of(st.none(), float32s(channels, -8, 8))),
        "groups": groups,
        "strides": [draw(st.integers(1, 2)), draw(st.integers(1, 3))],
        "dilations": list(dilations),
        "pads": draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)),
    }


def weight_integers(case: dict[str, Any], axis: int) -> tuple[Numbers, list[Fraction]]:
    """round(w / s), half to even, saturated; and the scales s = threshold / 128."""
    scales = [Fraction(float(t)) / 128 for t in case["thresholds"]]
    integers = {
        index: Fraction(min(max(round(Fraction(float(w)) / scales[index[axis]]), -128), 127))
        for index, w in np.ndenumerate(case["weights"])
    }
    return integers, scales


def bias_of(case: dict[str, Any], channel: int) -> Fraction:
    return Fraction(0) if case["bias"] is None else Fraction(float(case["bias"][channel]))


def convolution_graph(
    case: dict[str, Any], op_type: str, axis: int, **attributes: Any
) -> tuple[Dialect, str]:
    graph = Dialect()
    x = graph.quantize(graph.input(case["x"].shape), 16.0)
    inputs = [x, graph.quantized_weights(case["weights"], case["thresholds"], axis=axis)]
    if case["bias"] is not None:
        inputs.append(graph.constant(case["bias"]))
    return graph, graph.node(op_type, *inputs, strides=case["strides"], pads=case["pads"], **attributes)


@given(convolutions(), st.sampled_from([4.0, 64.0]))
@settings(max_examples=60, deadline=None)
def test_conv(case: dict[str, Any], threshold: float) -> None:
    graph, value = convolution_graph(case, "Conv", 0, group=case["groups"], dilations=case["dilations"])
    x = as_numbers(case["x"], STEP_IN)
    weights, scales = weight_integers(case, 0)
    batch, _, height, width = case["x"].shape
    channels, per_group, kh, kw = case["weights"].shape
    (sy, sx), (dy, dx), (top, left, bottom, right) = case["strides"], case["dilations"], case["pads"]
    rows = (height + top + bottom - (kh - 1) * dy - 1) // sy + 1
    columns = (width + left + right - (kw - 1) * dx - 1) // sx + 1
    expected: Numbers = {}
    for n, o, row, column in itertools.product(range(batch), range(channels), range(rows), range(columns)):
        first = o // (channels // case["groups"]) * per_group
        total = Fraction(0)
        for i, ky, kx in itertools.product(range(per_group), range(kh), range(kw)):
            pixel = x.get((n, first + i, row * sy + ky * dy - top, column * sx + kx * dx - left), Fraction(0))
            total += weights[o, i, ky, kx] * pixel
        expected[n, o, row, column] = total * scales[o] + bias_of(case, o)
    assert result_of(graph, value, threshold, input=case["x"] * float(STEP_IN)) == rounded(
        expected, threshold
    )


@given(convolutions(), st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_conv_transpose(case: dict[str, Any], extra: int) -> None:
    case["weights"] = case["weights"].transpose(1, 0, 2, 3)  # [inputs, outputs, kh, kw]
    inputs, channels, kh, kw = case["weights"].shape
    case["x"] = case["x"][:, :inputs]
    case["pads"] = [p % 2 for p in case["pads"]]
    (sy, sx), (dy, dx), (top, left, bottom, right) = case["strides"], case["dilations"], case["pads"]
    batch, _, height, width = case["x"].shape
    rows = (height - 1) * sy + (kh - 1) * dy + 1 + extra - top - bottom
    columns = (width - 1) * sx + (kw - 1) * dx + 1 + extra - left - right
    if rows < 1 or columns < 1:
        return
    graph, value = convolution_graph(
        case, "ConvTranspose", 1, dilations=case["dilations"], output_padding=[extra, extra]
    )
    weights, scales = weight_integers(case, 1)
    outputs = itertools.product(range(batch), range(channels), range(rows), range(columns))
    expected = {index: bias_of(case, index[1]) for index in outputs}
    for (n, i, y, x), pixel in as_numbers(case["x"], STEP_IN).items():
        for o, ky, kx in itertools.product(range(channels), range(kh), range(kw)):
            target = n, o, y * sy + ky * dy - top, x * sx + kx * dx - left
            if target in expected:
                expected[target] += weights[i, o, ky, kx] * scales[o] * pixel
    assert result_of(graph, value, 64.0, input=case["x"] * float(STEP_IN)) == rounded(expected, 64.0)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    kernel = [draw(st.integers(1, 3)), draw(st.integers(1, 3))]
    pads = [draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4)]
    size = [kernel[0] + draw(st.integers(0, 3)), kernel[1] + draw(st.integers(0, 3))]
    return {
        "x": draw(integers_of((1, 2, *size))),
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)), draw(st.integers(1, 3))],
        "pads": pads,
    }


@given(windows(), st.sampled_from(["MaxPool", "AveragePool", "padded AveragePool"]))
@settings(max_examples=60, deadline=None)
def test_pooling(case: dict[str, Any], kind: str) -> None:
    x = case.pop("x")
    attributes = dict(case, count_include_pad=1) if kind == "padded AveragePool" else case
    graph = Dialect()
    value = graph.node(kind.split()[-1], graph.quantize(graph.input(x.shape), 128.0), **attributes)
    (kh, kw), (sy, sx), (top, left, bottom, right) = case["kernel_shape"], case["strides"], case["pads"]
    height, width = x.shape[2:]
    rows, columns = (height + top + bottom - kh) // sy + 1, (width + left + right - kw) // sx + 1
    expected: Numbers = {}
    for c, row, column in itertools.product(range(2), range(rows), range(columns)):
        inside = [
            Fraction(int(x[0, c, y, z]))
            for y in range(row * sy - top, row * sy - top + kh)
            for z in range(column * sx - left, column * sx - left + kw)
            if 0 <= y < height and 0 <= z < width
        ]
        if kind == "MaxPool":
            expected[0, c, row, column] = max(inside)
        else:
            count = kh * kw if kind == "padded AveragePool" else len(inside)
            expected[0, c, row, column] = sum(inside, Fraction(0)) / count
    assert result_of(graph, value, 32.0, input=x) == rounded(expected, 32.0)


@given(
    integers_of((1, 1, 3, 4)),
    st.integers(1, 7),
    st.integers(1, 9),
    st.sampled_from(["nearest", "linear"]),
)
@settings(max_examples=60, deadline=None)
def test_resize(x: Any, rows: int, columns: int, mode: str) -> None:
    transformation = "asymmetric" if mode == "nearest" else "half_pixel"
    graph = Dialect()
    value = graph.node(
        "Resize",
        graph.quantize(graph.input(x.shape), 128.0),
        "",
        "",
        graph.constant([1, 1, rows, columns]),
        mode=mode,
        coordinate_transformation_mode=transformation,
        nearest_mode="floor",
    )

    def neighbours(position: int, size: int, target: int) -> list[tuple[int, Fraction]]:
        """(index, weight) pairs of one output coordinate."""
        if mode == "nearest":
            return [(position * size // target, Fraction(1))]
        coordinate = (position + Fraction(1, 2)) * size / target - Fraction(1, 2)
        clamped = min(max(coordinate, Fraction(0)), Fraction(size - 1))
        first = math.floor(clamped)
        return [(first, 1 - (clamped - first)), (min(first + 1, size - 1), clamped - first)]

    expected: Numbers = {}
    for row, column in itertools.product(range(rows), range(columns)):
        pairs = itertools.product(neighbours(row, 3, rows), neighbours(column, 4, columns))
        expected[0, 0, row, column] = sum(
            (int(x[0, 0, y, z]) * a * b for (y, a), (z, b) in pairs), Fraction(0)
        )
    assert result_of(graph, value, 64.0, input=x) == rounded(expected, 64.0)


@given(
    integers_of((2, 3)),
    integers_of((2, 3)),
    st.sampled_from([1.0, 4.0, 128.0]),
    st.sampled_from([1.0, 32.0, 16384.0]),
    st.sampled_from(["Add", "Sub", "Mul", "Max", "Min"]),
)
@settings(max_examples=100, deadline=None)
def test_binary_operators(a: Any, b: Any, threshold: float, out: float, op_type: str) -> None:
    graph = Dialect()
    first = graph.quantize(graph.input(a.shape, "a"), threshold)
    second = graph.quantize(graph.input(b.shape, "b"), 16.0)
    value = graph.node(op_type, first, second)
    operation = {
        "Add": lambda x, y: x + y,
        "Sub": lambda x, y: x - y,
        "Mul": lambda x, y: x * y,
        "Max": max,
        "Min": min,
    }[op_type]
    xs, ys = as_numbers(a, Fraction(threshold) / 128), as_numbers(b, STEP_IN)
    expected = {index: operation(xs[index], ys[index]) for index in xs}
    feeds = {"a": a * (threshold / 128), "b": b * float(STEP_IN)}
    assert result_of(graph, value, out, **feeds) == rounded(expected, out)


@given(integers_of((2, 3)), integers_of((2, 3)))
@settings(max_examples=60, deadline=None)
def test_division(a: Any, b: Any) -> None:
    b = np.where(b == 0, 1, b)
    graph = Dialect()
    first = graph.quantize(graph.input(a.shape, "a"), 128.0)
    second = graph.quantize(graph.input(b.shape, "b"), 128.0)
    expected = {index: Fraction(int(a[index]), int(b[index])) for index in np.ndindex(2, 3)}
    value = graph.node("Div", first, second)
    assert result_of(graph, value, 64.0, a=a, b=b) == rounded(expected, 64.0)


@given(integers_of((2, 4)), float32s(4, -3, 3), float32s(3, 0.25, 2), st.booleans())
@settings(max_examples=60, deadline=None)
def test_gemm(x: Any, row: Any, thresholds: Any, transposed: bool) -> None:
    floats = np.stack([row, row[::-1], -row])  # [3 outputs, 4 inputs]
    graph = Dialect()
    a = graph.quantize(graph.input(x.shape), 128.0)
    if transposed:
        value = graph.node("Gemm", a, graph.quantized_weights(floats, thresholds), transB=1)
    else:
        value = graph.node("MatMul", a, graph.quantized_weights(floats.T, thresholds, axis=1))
    scales = [Fraction(float(t)) / 128 for t in thresholds]
    expected = {
        (n, o): sum(
            (
                min(max(round(Fraction(float(floats[o, i])) / scales[o]), -128), 127)
                * scales[o]
                * int(x[n, i])
                for i in range(4)
            ),
            Fraction(0),
        )
        for n, o in itertools.product(range(2), range(3))
    }
    assert result_of(graph, value, 256.0, input=x) == rounded(expected, 256.0)


@given(integers_of((2, 5), -64, 63))
@settings(max_examples=60, deadline=None)
def test_softmax_sums_to_one_and_orders_as_its_inputs(x: Any) -> None:
    graph = Dialect()
    value = graph.node("Softmax", graph.quantize(graph.input(x.shape), 8.0), axis=1)  # step 1/16
    (result,) = run(graph.model(graph.quantize(value, 1.0, bits=16)), input=x / 16)
    real = result.real()
    powers = np.exp(x / 16)
    np.testing.assert_allclose(real, powers / powers.sum(1, keepdims=True), atol=2.0**-16 + 1e-12)
    order = np.argsort(x, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(real, order, axis=1), axis=1) >= 0).all()
