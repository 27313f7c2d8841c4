"""Every operator against results worked out by hand. Steps are 1 unless a case says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.simulator.node import OPERATORS
from compiler.simulator.reference import quantized_values, run_reference
from passes.errors import InputError
from tests.compiler.simulator.simulator_graphs import Dialect, apply, run

NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def picture(*rows: list[int]) -> list[Any]:
    """[1, 1, H, W]"""
    return [[list(rows)]]


# Quantizers


def test_activation_quantizer_rounds_ties_to_even_and_saturates() -> None:
    graph = Dialect()
    x = graph.input([8])
    model = graph.model(graph.quantize(x, 128.0), graph.quantize(x, 256.0, signed=False))
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 255.5, -128.5])
    signed, unsigned = run(model, input=values)
    # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0, -1.5 -> -2, 127.5 -> 128 -> 127, -128.5 -> -128
    assert signed.values.tolist() == [0, 2, 2, 0, -2, 127, 127, -128]
    # 127.5 -> 128, 255.5 -> 256 -> 255, negative numbers -> 0
    assert unsigned.values.tolist() == [0, 2, 2, 0, 0, 128, 255, 0]
    assert (signed.values.dtype, unsigned.values.dtype) == (np.int8, np.uint8)


@pytest.mark.parametrize(
    ("threshold", "signed", "bits", "exponent", "lowest", "highest"),
    [
        (4.0, True, 8, -5, -128, 127),  # step 4/128
        (4.0, False, 8, -6, 0, 255),  # step 4/256
        (0.25, True, 8, -9, -128, 127),
        (1.0, True, 16, -15, -32768, 32767),
        (2.0, True, 4, -2, -8, 7),
    ],
)
def test_activation_grid(
    threshold: float, signed: bool, bits: int, exponent: int, lowest: int, highest: int
) -> None:
    graph = Dialect()
    model = graph.model(graph.quantize(graph.input([3]), threshold, signed=signed, bits=bits))
    step = 2.0**exponent
    (result,) = run(model, input=np.array([-1e6, 3 * step, 1e6]))
    assert result.values.tolist() == [lowest, 3, highest]
    assert (result.exponent, result.step, result.bits, result.signed) == (exponent, step, bits, signed)
    assert result.real().tolist() == [lowest * step, 3 * step, highest * step]


def test_weights_quantizer_rounds_ties_to_even_per_channel() -> None:
    # channel 0: step 1/64 (threshold 2), channel 1: step 3/128 (threshold 3, no power of two)
    floats = [[[[0.5 / 64]], [[1.5 / 64]], [[9.0]]], [[[2.5 * 3 / 128]], [[-9.0]], [[3 / 128]]]]

    def build(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.quantized_weights(floats, [2.0, 3.0]))

    # The three input channels are 64 in turn: each weight is read alone, 64 * q * step.
    for channel, expected in enumerate([[0, 2], [2, -128], [127, 1]]):
        x = np.zeros((1, 3, 1, 1), int)
        x[0, channel] = 64
        result = apply(build, x, threshold=2048.0, in_threshold=128.0)  # step 16
        exact = [64 * expected[0] / 64, 64 * expected[1] * 3 / 128]
        assert result.reshape(-1).tolist() == [round(e / 16) for e in exact]


def test_four_bit_weights() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.quantized_weights([[[[9.0]]], [[[-3.4]]]], [8.0, 8.0], bits=4))

    # step 8/8 = 1, range -8..7: 9 -> 7, -3.4 -> -3
    assert apply(build, [[[[1]]]]).reshape(-1).tolist() == [7, -3]


# Convolutions and matrix products


def test_conv_with_scales_and_bias() -> None:
    def build(graph: Dialect, x: str) -> str:
        weights = graph.weights([[[[1, 2], [3, 4]]], [[[-1, 0], [0, 1]]]], [0.5, 3.0])
        return graph.node("Conv", x, weights, graph.constant([0.5, -1.0]))

    # channel 0: (1*1 + 2*2 + 3*3 + 4*5)/2 + 0.5 = 17.5 -> 18 (even); channel 1: (5-1)*3 - 1 = 11
    assert apply(build, picture([1, 2], [3, 5])).reshape(-1).tolist() == [18, 11]


def test_conv_pads_with_zeros_and_strides() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.weights([[[[1, 1, 1]] * 3]]), pads=[1, 1, 1, 1], strides=[2, 2])

    # 3x3 ones around (0,0), (0,2), (2,0), (2,2) of 1..9
    result = apply(build, picture([1, 2, 3], [4, 5, 6], [7, 8, 9]))
    assert result.reshape(-1).tolist() == [1 + 2 + 4 + 5, 2 + 3 + 5 + 6, 4 + 5 + 7 + 8, 5 + 6 + 8 + 9]


def test_conv_asymmetric_padding_and_dilation() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.weights([[[[1, 10]]]]), pads=[0, 2, 0, 0], dilations=[1, 2])

    # out[x] = in[x - 2] + 10 in[x]
    assert apply(build, picture([1, 2, 3])).reshape(-1).tolist() == [10, 20, 31]


def test_conv_depthwise_and_grouped() -> None:
    def depthwise(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.weights([[[[2]]], [[[3]]]]), group=2)

    assert apply(depthwise, [[[[5]], [[7]]]]).reshape(-1).tolist() == [10, 21]

    def grouped(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.weights([[[[1]], [[1]]], [[[1]], [[-1]]]]), group=2)

    # out 0 sees channels 0 and 1, out 1 sees channels 2 and 3
    assert apply(grouped, [[[[1]], [[2]], [[30]], [[4]]]]).reshape(-1).tolist() == [3, 26]


def test_conv_without_weight_quantizer_takes_the_floats_as_they_are() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node("Conv", x, graph.constant(np.array([[[[0.75]]]])))

    assert apply(build, [[[[2, 6, 3]]]]).reshape(-1).tolist() == [2, 4, 2]  # 1.5 -> 2, 4.5 -> 4, 2.25


def test_weights_with_one_scale_serve_any_axis() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node("ConvTranspose", x, graph.quantized_weights([[[[1.5]], [[-3.0]]]], 64.0))

    # per tensor: step 64/128 = 1/2, integers 3 and -6
    assert apply(build, [[[[10]]]]).reshape(-1).tolist() == [15, -30]


def test_conv_transpose() -> None:
    def build(graph: Dialect, x: str) -> str:
        weights = graph.weights([[[[1, 2]]]], axis=1)
        return graph.node("ConvTranspose", x, weights, strides=[1, 2], output_padding=[0, 1])

    # each pixel writes (v, 2v) at 2*x; the padded column stays 0
    assert apply(build, picture([3, 5])).reshape(-1).tolist() == [3, 6, 5, 10, 0]

    def overlapping(graph: Dialect, x: str) -> str:
        weights = graph.weights([[[[1, 1, 1]]]], 0.5, axis=1)
        return graph.node("ConvTranspose", x, weights, graph.constant([1.0]), pads=[0, 1, 0, 1])

    # (v, v, v)/2 at x, cropped by one on both sides: (3+5)/2 + 1, (3+5)/2 + 1
    assert apply(overlapping, picture([3, 5])).reshape(-1).tolist() == [5, 5]


def test_gemm_and_matmul() -> None:
    def gemm(graph: Dialect, x: str) -> str:
        weights = graph.weights([[1, 2], [3, 4], [5, 6]], [1.0, 0.5, 0.25])
        return graph.node("Gemm", x, weights, graph.constant([0.0, 1.0, 0.0]), transB=1)

    # 10+40, (30+80)/2 + 1, (50+120)/4 = 42.5 -> 42
    assert apply(gemm, [[10, 20]]).tolist() == [[50, 56, 42]]

    def scaled(graph: Dialect, x: str) -> str:
        weights = graph.weights([[1], [2]], [1.0], axis=1)
        return graph.node("Gemm", x, weights, graph.constant([8.0]), alpha=0.5, beta=2.0)

    assert apply(scaled, [[10, 20]]).tolist() == [[25 + 16]]

    def linear(graph: Dialect, x: str) -> str:
        transposed = graph.node("Transpose", graph.weights([[1, 2], [3, 4]], [1.0, 0.5]), perm=[1, 0])
        return graph.node("MatMul", x, transposed)

    assert apply(linear, [[[1, 10]]]).tolist() == [[[21, 22]]]  # (3 + 40)/2 = 21.5 -> 22

    def product(graph: Dialect, a: str, b: str) -> str:
        return graph.node("MatMul", a, b)

    assert apply(product, [[1, 2], [3, 4]], [[5], [6]]).tolist() == [[17], [39]]


# Elementwise


@pytest.mark.parametrize(
    ("op_type", "a", "b", "expected"),
    [
        ("Add", [100, -3, 5], [100, 1, -5], [127, -2, 0]),
        ("Sub", [100, -3, -100], [1, 1, 100], [99, -4, -128]),
        ("Mul", [3, -4, 20], [5, 6, 20], [15, -24, 127]),
        ("Max", [3, -4, 20], [5, -6, 20], [5, -4, 20]),
        ("Min", [3, -4, 20], [5, -6, 20], [3, -6, 20]),
        ("Div", [7, -7, 9], [2, 2, 6], [4, -4, 2]),  # 3.5, -3.5, 1.5: ties to even
        ("Div", [5, 1, -1], [2, 3, 3], [2, 0, 0]),  # 2.5 -> 2, 0.33, -0.33
    ],
)
def test_binary(op_type: str, a: list[int], b: list[int], expected: list[int]) -> None:
    assert apply(lambda g, x, y: g.node(op_type, x, y), a, b).tolist() == expected


def test_addition_of_different_steps() -> None:
    graph = Dialect()
    a = graph.quantize(graph.input([3], "a"), 128.0)  # step 1
    b = graph.quantize(graph.input([3], "b"), 4.0)  # step 1/32
    model = graph.model(graph.quantize(graph.node("Add", a, b), 64.0))  # step 1/2
    (result,) = run(model, a=np.array([1, 2, -1]), b=np.array([0.25, 0.75, 0.28125]))
    # 1.25/0.5 = 2.5 -> 2, 2.75/0.5 = 5.5 -> 6, -0.71875/0.5 = -1.4375 -> -1
    assert result.values.tolist() == [2, 6, -1]


def test_constants_broadcast_and_stay_float32() -> None:
    tenth = np.float32(0.1)  # slightly more than 1/10, so 5 * tenth is slightly more than the tie 1/2

    def build(graph: Dialect, x: str) -> str:
        return graph.node("Mul", x, graph.constant(np.array([[tenth], [0.5]])))

    assert apply(build, [[5, 15]]).tolist() == [[1, 2], [2, 8]]  # 0.5+, 1.5+, 2.5, 7.5


@pytest.mark.parametrize(
    ("op_type", "attributes", "x", "expected"),
    [
        ("Relu", {}, [-5, 0, 5], [0, 0, 5]),
        ("Neg", {}, [-128, 0, 5], [127, 0, -5]),
        ("Abs", {}, [-128, 0, 5], [127, 0, 5]),
        ("LeakyRelu", {"alpha": 0.25}, [-10, -6, 3], [-2, -2, 3]),  # -2.5 -> -2, -1.5 -> -2
        ("Identity", {}, [1, 2, 3], [1, 2, 3]),
        ("HardSwish", {}, [-4, -3, -1, 0, 1, 3, 9], [0, 0, 0, 0, 1, 3, 9]),  # -1/3, 2/3
        ("Sqrt", {}, [0, 1, 2, 4, 6, 7, 100], [0, 1, 1, 2, 2, 3, 10]),  # 1.41, 2.45, 2.65
        ("Exp", {}, [-3, 0, 1, 2, 4, 5], [0, 1, 3, 7, 55, 127]),  # 2.718, 7.389, 54.6, 148.4
    ],
)
def test_unary(op_type: str, attributes: dict[str, Any], x: list[int], expected: list[int]) -> None:
    assert apply(lambda g, v: g.node(op_type, v, **attributes), x).tolist() == expected


@pytest.mark.parametrize(
    ("op_type", "attributes", "x", "expected"),
    [
        # f(x)/step, step 1/64: sigmoid(1) = 0.73106 -> 46.79, sigmoid(-2) = 0.11920 -> 7.63
        ("Sigmoid", {}, [0, 1, -2, 100, -100], [32, 47, 8, 64, 0]),
        ("Tanh", {}, [0, 1, -2, 100, -100], [0, 49, -62, 64, -64]),  # 0.76159 -> 48.74, 0.96403 -> 61.70
        ("Gelu", {}, [0, 1, -1, -100], [0, 54, -10, 0]),  # 0.84134 -> 53.85, -0.15866 -> -10.15
        ("Gelu", {"approximate": "tanh"}, [0, 1, -1, -100], [0, 54, -10, 0]),  # 0.84119 -> 53.84, -10.16
        ("Sin", {}, [0, 1, 2, -100], [0, 54, 58, 32]),  # 0.84147, 0.90930 -> 58.2, 0.50637 -> 32.41
        ("HardSigmoid", {"alpha": 0.25}, [0, 1, -2, 3], [32, 48, 0, 64]),
    ],
)
def test_functions(op_type: str, attributes: dict[str, Any], x: list[int], expected: list[int]) -> None:
    assert apply(lambda g, v: g.node(op_type, v, **attributes), x, threshold=2.0).tolist() == expected


def test_silu_multiplies_by_an_unrounded_sigmoid() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node("Mul", x, graph.node("Sigmoid", x))

    # 3 * 0.952574 = 2.85772 -> /(1/32) = 91.45 -> 91; a sigmoid rounded to 1/256 first would give 91.5 -> 92
    assert apply(build, [3, -1, 0], threshold=4.0).tolist() == [91, -9, 0]


def test_clip_with_one_or_two_bounds() -> None:
    low, high = np.float32(-1.5), np.float32(2.5)
    both = lambda g, x: g.node("Clip", x, g.constant(low), g.constant(high))  # noqa: E731
    assert apply(both, [-5, -1, 2, 5]).tolist() == [-2, -1, 2, 2]
    assert apply(lambda g, x: g.node("Clip", x, "", g.constant(high)), [-5, 5]).tolist() == [-5, 2]
    assert apply(lambda g, x: g.node("Clip", x, g.constant(low)), [-5, 5]).tolist() == [-2, 5]


@pytest.mark.parametrize(
    ("exponent", "x", "expected"),
    [
        (2.0, [-3, 0, 11, 12], [9, 0, 121, 127]),
        (3.0, [-3, 0, 5], [-27, 0, 125]),
        (0.5, [9, 2], [3, 1]),
        (1.0, [7], [7]),
    ],
)
def test_pow(exponent: float, x: list[int], expected: list[int]) -> None:
    assert apply(lambda g, v: g.node("Pow", v, g.constant(exponent)), x).tolist() == expected


def test_softmax() -> None:
    build = lambda g, x: g.node("Softmax", x, axis=1)  # noqa: E731
    # two equal elements: 1/2 each; a difference of 1: 0.731 and 0.269; step 1/128
    assert apply(build, [[5, 5], [1, 0], [100, -100]], threshold=1.0).tolist() == [
        [64, 64],
        [94, 34],
        [127, 0],
    ]
    # 1/16 is an exact tie on a grid of step 1/8: half to even gives 0
    sixteen = np.zeros((1, 16), int)
    assert apply(build, sixteen, threshold=16.0).tolist() == [[0] * 16]


def test_softmax_of_equal_elements_is_an_exact_tie() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 256]), 128.0)
    softmax = graph.node("Softmax", x, axis=-1)
    model = graph.model(
        graph.quantize(softmax, 1.0), graph.quantize(graph.node("Add", softmax, softmax), 1.0)
    )
    once, doubled = run(model, input=np.zeros((1, 256), int))
    # 1/256 over a step of 1/128 is the tie 1/2 -> 0; doubled it is exactly 1
    assert set(once.values.reshape(-1).tolist()) == {0}
    assert set(doubled.values.reshape(-1).tolist()) == {1}


# Normalisation


def test_layer_normalization() -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node(
            "LayerNormalization", x, graph.constant([1.0, 1.0, 2.0]), graph.constant([0.0, 1.0, 0.0]), axis=-1
        )

    # mean 3, variance (4 + 0 + 4)/3: (-2, 0, 2)/1.63299 = (-1.2247, 0, 1.2247); step 1/32
    # -39.19 -> -39, exactly 1 -> 32, 2.4495 -> 78.38
    assert apply(build, [[1, 3, 5]], threshold=4.0).tolist() == [[-39, 32, 78]]


def test_batch_normalization() -> None:
    def build(graph: Dialect, x: str) -> str:
        parameters = [graph.constant(np.array(v)) for v in ([2.0, 1.0], [0.5, 0.0], [1.0, 2.0], [3.0, 15.0])]
        return graph.node("BatchNormalization", x, *parameters, epsilon=1.0)

    # (x - 1) * 2/2 + 0.5 and (x - 2)/4: 4.5 -> 4, 5.5 -> 6; 1.5 -> 2, 2.5 -> 2
    assert apply(build, [[[[5, 6]], [[8, 12]]]]).reshape(-1).tolist() == [4, 6, 2, 2]


def test_l2_normalisation_as_torch_exports_it() -> None:
    def build(graph: Dialect, x: str) -> str:
        norm = graph.node("ReduceL2", x, graph.constant([1]), keepdims=1)
        bounded = graph.node("Clip", norm, graph.constant(np.float32(1e-12)))
        return graph.node("Div", x, graph.node("Expand", bounded, graph.node("Shape", x)))

    # (3, 4)/5 over 1/128: 76.8, 102.4; zeros stay zero
    assert apply(build, [[3, 4], [0, 0]], threshold=1.0).tolist() == [[77, 102], [0, 0]]


# Pooling, reductions, resizing


def test_max_pool_ignores_padding() -> None:
    build = lambda g, x: g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1])  # noqa: E731
    assert apply(build, picture([-5, -6], [-7, -8])).reshape(-1).tolist() == [-5, -6, -7, -8]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        # windows hold {1}, {2, 3}, {4, 7}, {5, 6, 8, 9} of 1..9 and padding zeros
        ({"count_include_pad": 1}, [0, 1, 3, 7]),  # 1/4, 5/4, 11/4, 28/4
        ({"count_include_pad": 0}, [1, 2, 6, 7]),  # 1/1, 5/2, 11/2, 28/4: 2.5 -> 2, 5.5 -> 6
    ],
)
def test_average_pool(attributes: dict[str, int], expected: list[int]) -> None:
    def build(graph: Dialect, x: str) -> str:
        return graph.node(
            "AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 0], **attributes
        )

    assert apply(build, picture([1, 2, 3], [4, 5, 6], [7, 8, 9])).reshape(-1).tolist() == expected


def test_average_over_three_is_an_exact_fraction() -> None:
    build = lambda g, x: g.node("GlobalAveragePool", x)  # noqa: E731
    # 9/6 = 3/2 is a tie although 1/6 is no dyadic number; 10/6 = 1.67
    assert apply(build, [[[[1, 1, 1], [2, 2, 2]], [[1, 1, 2], [2, 2, 2]]]]).reshape(-1).tolist() == [2, 2]
    assert apply(build, [[[[0, 0, 0], [1, 1, 1]]]]).reshape(-1).tolist() == [0]  # 3/6 -> 0


@pytest.mark.parametrize(
    ("op_type", "expected"),
    [("ReduceMean", [2, 5]), ("ReduceSum", [6, 15]), ("ReduceMax", [3, 6]), ("ReduceL2", [4, 9])],
)
def test_reductions(op_type: str, expected: list[int]) -> None:
    x = [[1, 2, 3], [4, 5, 6]]  # norms 3.74, 8.77
    assert apply(lambda g, v: g.node(op_type, v, g.constant([1]), keepdims=0), x).tolist() == expected
    assert apply(lambda g, v: g.node(op_type, v, g.constant([-1])), x).tolist() == [[e] for e in expected]


def test_reduction_with_axes_as_an_attribute() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3]), 128.0)
    mean = graph.node("ReduceMean", x, axes=[1], keepdims=0)
    (result,) = run(graph.model(graph.quantize(mean, 128.0), opset=13), input=np.array([[1, 2, 6]]))
    assert result.values.tolist() == [3]


@pytest.mark.parametrize(
    ("scale", "x", "expected"),
    [
        (2.0, [1, 2, 3], [1, 1, 2, 2, 3, 3]),
        (1.5, [1, 2], [1, 1, 2]),  # floor(0, 0.67, 1.33)
        (0.5, [1, 2, 3, 4], [1, 3]),
        (1 / 3, [1, 2, 3, 4, 5, 6], [1, 4]),  # float32(1/3) means 1/3: floor(0, 3)
    ],
)
def test_nearest_resize(scale: float, x: list[int], expected: list[int]) -> None:
    def build(graph: Dialect, v: str) -> str:
        return graph.node("Resize", v, "", graph.constant([1.0, 1.0, 1.0, scale]), **NEAREST)

    assert apply(build, picture(x)).reshape(-1).tolist() == expected


def test_nearest_resize_to_a_size() -> None:
    def build(graph: Dialect, v: str) -> str:
        return graph.node("Resize", v, "", "", graph.constant([1, 1, 1, 2]), **NEAREST)

    # floor(1 * 14/2) = 7, where float32 coordinates give 6.9999995
    assert apply(build, picture(list(range(14)))).reshape(-1).tolist() == [0, 7]


def test_linear_resize() -> None:
    def build(graph: Dialect, v: str) -> str:
        return graph.node("Resize", v, "", "", graph.constant([1, 1, 1, 4]), **LINEAR)

    # coordinates -0.25 -> 0, 0.25, 0.75, 1.25 -> 1: 0, 2.5, 7.5, 10
    assert apply(build, picture([0, 10])).reshape(-1).tolist() == [0, 2, 8, 10]

    def both_axes(graph: Dialect, v: str) -> str:
        return graph.node("Resize", v, "", "", graph.constant([1, 1, 1, 3]), **LINEAR)

    # height 2 -> 1 at 0.5; width 2 -> 3 at -1/6 -> 0, 1/2, 7/6 -> 1: 2, 2.5, 3 with rows (0, 2), (4, 4)
    assert apply(both_axes, picture([0, 2], [4, 4])).reshape(-1).tolist() == [2, 2, 3]


def test_pytorch_half_pixel_of_a_single_element() -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}

    def build(graph: Dialect, v: str) -> str:
        return graph.node("Resize", v, "", "", graph.constant([1, 1, 1, 1]), **attributes)

    assert apply(build, picture([3, 9])).reshape(-1).tolist() == [3]


# Moving, selecting


def test_movement() -> None:
    x = [[1, 2, 3], [4, 5, 6]]
    cases: list[tuple[Any, Any]] = [
        (lambda g, v: g.node("Reshape", v, g.constant([-1, 2])), [[1, 2], [3, 4], [5, 6]]),
        (lambda g, v: g.node("Reshape", v, g.constant([0, 1, -1])), [[[1, 2, 3]], [[4, 5, 6]]]),
        (lambda g, v: g.node("Flatten", v, axis=0), [[1, 2, 3, 4, 5, 6]]),
        (lambda g, v: g.node("Transpose", v, perm=[1, 0]), [[1, 4], [2, 5], [3, 6]]),
        (lambda g, v: g.node("Unsqueeze", v, g.constant([0])), [x]),
        (lambda g, v: g.node("Squeeze", g.node("Unsqueeze", v, g.constant([1])), g.constant([1])), x),
        (lambda g, v: g.node("Gather", v, g.constant([2, 0]), axis=1), [[3, 1], [6, 4]]),
        (lambda g, v: g.node("GatherElements", v, g.constant([[2], [0]]), axis=1), [[3], [4]]),
        (lambda g, v: g.node("Expand", v, g.constant([2, 2, 3])), [x, x]),
        (lambda g, v: g.node("Concat", v, v, axis=0), x + x),
        (lambda g, v: g.nodes("Split", v, g.constant([1, 2]), outputs=2, axis=1)[1], [[2, 3], [5, 6]]),
        (lambda g, v: g.nodes("Split", v, outputs=2, axis=1, num_outputs=2)[1], [[3], [6]]),
        (lambda g, v: g.node("Pad", v, g.constant([0, 1, 1, 0])), [[0, 1, 2, 3], [0, 4, 5, 6], [0] * 4]),
        (
            lambda g, v: g.node("Pad", v, g.constant([0, 1]), g.constant(2.5), g.constant([0])),
            [*x, [2, 2, 2]],
        ),
    ]
    for build, expected in cases:
        assert apply(build, x).tolist() == expected


@pytest.mark.parametrize(
    ("start", "end", "step", "expected"),
    [
        (1, 3, 1, [2, 3]),
        (0, 100, 2, [1, 3, 5]),
        (-2, 2**62, 1, [4, 5]),
        (0, -1, 1, [1, 2, 3, 4]),
        (-1, -(2**62), -2, [5, 3, 1]),
    ],
)
def test_slice(start: int, end: int, step: int, expected: list[int]) -> None:
    def build(graph: Dialect, v: str) -> str:
        return graph.node("Slice", v, *(graph.constant([c]) for c in (start, end, 0, step)))

    assert apply(build, [1, 2, 3, 4, 5]).tolist() == expected


def test_shape_arithmetic_as_torch_exports_chunk() -> None:
    def build(graph: Dialect, v: str) -> str:
        size = graph.node("Gather", graph.node("Shape", v), graph.constant([0]), axis=0)
        half = graph.node("Div", graph.node("Add", size, graph.constant([1])), graph.constant([2]))
        end = graph.node("Mul", half, graph.constant([2]))
        return graph.node("Slice", v, half, end, graph.constant([0]))

    assert apply(build, [1, 2, 3, 4, 5]).tolist() == [4, 5]  # (5 + 1)/2 = 3 to 6


def test_pads_as_torch_exports_them() -> None:
    def build(graph: Dialect, v: str) -> str:
        zeros = graph.node("ConstantOfShape", graph.constant([0]), value=_int64_tensor([0]))
        pairs = graph.node("Concat", graph.constant([0, 1, 2, 0]), zeros, axis=0)
        table = graph.node("Reshape", pairs, graph.constant([-1, 2]))
        limits = (graph.constant([c]) for c in (-1, -(2**63) + 1, 0, -1))
        columns = graph.node("Transpose", graph.node("Slice", table, *limits), perm=[1, 0])
        pads = graph.node("Cast", graph.node("Reshape", columns, graph.constant([-1])), to=7)
        return graph.node("Pad", v, pads, "", mode="constant")

    # torch lists (left, right, top, bottom) of the last axes first: left 0, right 1, top 2, bottom 0
    assert apply(build, [[7]]).tolist() == [[0, 0], [0, 0], [7, 0]]


def _int64_tensor(values: list[int]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(values, dtype=np.int64))


def test_expand_as_torch_exports_it() -> None:
    def build(graph: Dialect, v: str) -> str:
        given = graph.constant([2, -1])
        minus = graph.node("Mul", graph.constant([1, 1]), graph.constant([-1, -1]))
        chosen = graph.node("Where", graph.node("Equal", given, minus), graph.constant([1, 1]), given)
        return graph.node("Expand", v, chosen)

    assert apply(build, [[1, 2]]).tolist() == [[1, 2], [1, 2]]


def test_moved_integers_keep_their_grid_without_a_quantizer() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 4]), 4.0)
    model = graph.model(graph.node("Slice", x, *(graph.constant([c]) for c in (1, 3, 1))))
    (result,) = run(model, input=np.array([[0.0, 1.0, 2.0, 3.0]]))
    assert (result.values.tolist(), result.exponent, result.bits) == ([[32, 64]], -5, 8)


def test_arg_max_and_top_k_take_the_first_of_equals() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 4]), 128.0)
    best = graph.node("ArgMax", x, axis=1, keepdims=0)
    values, indices = graph.nodes("TopK", x, graph.constant([3]), outputs=2)
    results = run(graph.model(best, values, indices), input=np.array([[2, 7, 7, 1]]))
    assert [r.values.tolist() for r in results] == [[1], [[7, 7, 2]], [[1, 2, 0]]]
    assert results[0].bits == 64


# What is kept, what is refused


def test_keep_returns_every_quantized_tensor() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([2]), 128.0)
    doubled = graph.quantize(graph.node("Add", x, x), 128.0)
    model = graph.model(graph.quantize(graph.node("Neg", doubled), 128.0))
    results = run_reference(model, {"input": np.array([3, 100])}, keep=quantized_values(model))
    assert [r.values.tolist() for r in results.values()] == [[-6, -127], [3, 100], [6, 127]]
    with pytest.raises(InputError, match="no tensor is named 'nothing'"):
        run_reference(model, {"input": np.array([3, 100])}, keep=["nothing"])


def test_results_between_operators_are_not_rounded() -> None:
    def build(graph: Dialect, x: str) -> str:
        third = graph.node("Mul", x, graph.constant(0.25))
        return graph.node("Add", graph.node("Relu", third), third)

    # 2 * 2/4 = 1; rounding 0.5 first would give 0
    assert apply(build, [2, -2]).tolist() == [1, 0]


REFUSED: list[tuple[Any, str]] = [
    (lambda g, x: g.node("Softplus", x), "node1 (Softplus): operator Softplus"),
    (lambda g, x: g.node("Gelu", x, approximate="cubic"), "approximate = cubic"),
    (lambda g, x: g.node("MaxPool", x, kernel_shape=[2, 2], ceil_mode=1), "ceil_mode = 1"),
    (lambda g, x: g.node("MaxPool", x, kernel_shape=[2, 2], pads=[2, 0, 0, 0]), "pads (2, 0, 0, 0)"),
    (lambda g, x: g.node("Pad", x, g.constant([0] * 8), mode="reflect"), "mode = reflect"),
    (lambda g, x: g.node("Pad", x, g.constant([0, 0])), "2 pads (two for each of 4 axes)"),
    (lambda g, x: g.node("Pad", x, g.constant([0, 0, -1, 0, 0, 0, 0, 0])), "pads [0, 0, -1"),
    (lambda g, x: g.node("Resize", x, "", g.constant([1.0, 1.0, 1.0, 2.0]), mode="cubic"), "mode = cubic"),
    (lambda g, x: g.node("Resize", x, "", g.constant([1.0, 1.0, 1.0, 1.2]), **NEAREST), "leaves 4 elements"),
    (lambda g, x: g.node("Pow", x, g.constant(-1.0)), "exponents -1.0"),
    (lambda g, x: g.node("Div", x, x), "division by zero"),
    (lambda g, x: g.node("Div", x, g.node("Sqrt", x)), "division by zero"),
    (lambda g, x: g.node("Sqrt", g.node("Neg", x)), "square root of a negative number"),
    (lambda g, x: g.node("Reshape", x, g.constant([3, 5])), "cannot reshape"),
    (lambda g, x: g.node("Conv", x, g.weights([[[[1]]] * 2])), "1 input channels in 1 groups"),
    (lambda g, x: g.node("Conv", x, g.weights([[[[1]]]]), auto_pad="SAME_UPPER"), "auto_pad = SAME_UPPER"),
    (lambda g, x: g.node("Conv", g.node("Sigmoid", x), g.weights([[[[1]]]])), "without a quantizer"),
    (lambda g, x: g.node("Conv", x, g.weights([[[[1]], [[1]]]], [1.0, 2.0], axis=1)), "scaled along axis 1"),
    (lambda g, x: g.node("Conv", x, g.quantized_weights([[[[1.0]]]], [0.0])), "1 not positive"),
    (lambda g, x: g.node("Reshape", x, x), "computed from activations"),
    (lambda g, x: g.quantize(x, 3.0), "threshold = 3.0"),
    (lambda g, x: g.quantize(x, 4.0, bits=32), "num_bits = 32"),
    (
        lambda g, x: g.node("ActivationUniformQuantizer", x, domain="mct_quantizers"),
        "quantizer mct_quantizers::ActivationUniformQuantizer",
    ),
    (lambda g, x: g.node("Relu", x, slope=1.0), "attribute slope"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_by_name(build: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        apply(build, picture([0, 1, 2, 4]))
    assert message in str(raised.value)
    assert raised.value.fix


def test_refuses_an_output_that_is_not_quantized() -> None:
    graph = Dialect()
    model = graph.model(graph.node("Relu", graph.quantize(graph.input([1]), 128.0)))
    with pytest.raises(InputError, match="not on a quantizer's grid"):
        run(model, input=np.array([1]))


def test_refuses_a_rounding_that_no_precision_settles() -> None:
    # sigmoid(x) + sigmoid(-x) = 1 exactly, a tie on a grid of step 2, which no finite precision shows
    def build(graph: Dialect, x: str) -> str:
        return graph.node("Add", graph.node("Sigmoid", x), graph.node("Sigmoid", graph.node("Neg", x)))

    with pytest.raises(InputError, match="not settled with 1024 bits"):
        apply(build, [3], threshold=256.0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input": np.zeros((1, 4))}, "shape (1, 4)"),
        ({"input": np.zeros((1, 3), dtype=bool)}, "dtype bool"),
        ({"input": np.array([[1.0, np.nan, 0.0]])}, "not finite"),
        ({"other": np.zeros((1, 3))}, "['other']"),
    ],
)
def test_refuses_unfitting_inputs(inputs: dict[str, Any], message: str) -> None:
    graph = Dialect()
    model = graph.model(graph.quantize(graph.input([1, 3]), 128.0))
    with pytest.raises(InputError) as raised:
        run_reference(model, inputs)
    assert message in str(raised.value)


def test_refuses_an_old_opset_and_weights_that_are_not_finite() -> None:
    graph = Dialect()
    x = graph.input([1])
    with pytest.raises(InputError, match="opset 12"):
        run(graph.model(graph.quantize(x, 1.0), opset=12), input=np.array([0]))
    product = graph.node("Mul", x, graph.constant([np.inf]))
    with pytest.raises(InputError, match="weight constant0: NaN or infinite"):
        run(graph.model(graph.quantize(product, 1.0)), input=np.array([0]))


def test_the_specification_lists_every_operator() -> None:
    page = (Path(__file__).parents[3] / "docs" / "numerics.md").read_text(encoding="utf-8")
    table = page.split("## Operators")[1].split("An attribute that")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    listed = {name.strip() for cell in first_cells for name in cell.split(",")}
    assert listed == {op_type for domain, op_type in OPERATORS if domain == ""}
    for domain, op_type in OPERATORS:
        assert not domain or f"`{op_type}`" in page


def test_pictures_of_a_batch_do_not_meet() -> None:
    import onnx_ir as ir

    model = ir.load(Path(__file__).parent / "fixtures" / "gate.onnx")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8))
    together = run(model, input=pictures)[0].values
    alone = [run(model, input=picture[None])[0].values for picture in pictures]
    np.testing.assert_array_equal(together, np.concatenate(alone))
