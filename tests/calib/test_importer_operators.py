"""Every operator the importer knows gives onnxruntime's numbers, in every form it knows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from calib.importer import OPERATORS, to_torch
from passes.imx500.limits import ACCEPTED_OPERATORS
from tests.calib.graphs import assert_agrees, model_of, one_node

RANDOM = np.random.default_rng(1)
X = (1, 6, 9, 12)
"""Batch, channels, height, width: no two alike, so that no axis can stand for another."""


def f(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def i(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def s(number: float) -> np.ndarray:
    return np.array(number, np.float32)


CASES: dict[str, ir.Model] = {
    "Conv": one_node("Conv", [X], [f(4, 6, 3, 5), f(4)], pads=[1, 2, 1, 2], strides=[2, 1]),
    "Conv uneven padding": one_node("Conv", [X], [f(4, 6, 3, 3)], pads=[0, 1, 2, 0]),
    "Conv depthwise dilated": one_node(
        "Conv", [X], [f(12, 1, 3, 3), f(12)], group=6, pads=[2, 2, 2, 2], dilations=[2, 2]
    ),
    "Conv SAME_UPPER": one_node("Conv", [X], [f(4, 6, 4, 4)], auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv SAME_LOWER": one_node("Conv", [X], [f(4, 6, 2, 3)], auto_pad="SAME_LOWER", strides=[2, 3]),
    "Conv VALID": one_node("Conv", [X], [f(4, 6, 2, 3)], auto_pad="VALID"),
    "ConvTranspose": one_node("ConvTranspose", [X], [f(6, 4, 2, 2), f(4)], strides=[2, 2]),
    "ConvTranspose padded": one_node(
        "ConvTranspose", [X], [f(6, 4, 3, 4)], strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2]
    ),
    "ConvTranspose grouped": one_node("ConvTranspose", [X], [f(6, 2, 3, 3), f(4)], group=2, dilations=[2, 1]),
    "Gemm": one_node("Gemm", [(1, 7)], [f(7, 5), f(5)]),
    "Gemm transB": one_node("Gemm", [(1, 7)], [f(5, 7), f(1, 5)], transB=1, alpha=0.5, beta=2.0),
    "Gemm no C": one_node("Gemm", [(1, 7)], [f(5, 7)], transB=1),
    "Gemm scalar C": one_node("Gemm", [(1, 7)], [f(7, 5), s(0.5)]),
    "MatMul constant": one_node("MatMul", [(1, 6, 9)], [f(9, 4)]),
    "MatMul constant left": one_node("MatMul", [(1, 6, 9)], [f(4, 6)], first=1),
    "MatMul constant rank 3": one_node("MatMul", [(1, 6, 9)], [f(1, 9, 4)]),
    "MatMul two": one_node("MatMul", [(1, 6, 9), (1, 9, 4)]),
    "BatchNormalization": one_node(
        "BatchNormalization", [X], [f(6), f(6), f(6), np.abs(f(6))], epsilon=1e-3
    ),
    "BatchNormalization rank 2": one_node("BatchNormalization", [(1, 6)], [f(6), f(6), f(6), np.abs(f(6))]),
    "BatchNormalization rank 3": one_node(
        "BatchNormalization", [(1, 6, 4)], [f(6), f(6), f(6), np.abs(f(6))]
    ),
    "LayerNormalization": one_node("LayerNormalization", [X], [f(12), f(12)], epsilon=1e-3),
    "LayerNormalization no bias": one_node("LayerNormalization", [X], [f(9, 12)], axis=2),
    "MaxPool": one_node("MaxPool", [X], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0]),
    "MaxPool ceil": one_node("MaxPool", [X], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "MaxPool dilated": one_node("MaxPool", [X], kernel_shape=[2, 2], dilations=[2, 3]),
    "AveragePool": one_node("AveragePool", [X], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 1, 1, 1]),
    "AveragePool counted": one_node(
        "AveragePool", [X], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    # Operator set 17: onnxruntime 1.21 counts the padding wrongly in its kernel for set 19 and later.
    "AveragePool uneven": one_node(
        "AveragePool", [X], kernel_shape=[3, 3], pads=[0, 1, 2, 1], count_include_pad=1, opset=17
    ),
    "GlobalAveragePool": one_node("GlobalAveragePool", [X]),
    "GlobalMaxPool": one_node("GlobalMaxPool", [X]),
    "Relu": one_node("Relu", [X]),
    "Sigmoid": one_node("Sigmoid", [X]),
    "Tanh": one_node("Tanh", [X]),
    "HardSwish": one_node("HardSwish", [X]),
    "Softplus": one_node("Softplus", [X]),
    "Mish": one_node("Mish", [X]),
    "LeakyRelu": one_node("LeakyRelu", [X], alpha=0.2),
    "Elu": one_node("Elu", [X], alpha=1.5),
    "Gelu": one_node("Gelu", [X]),
    "Gelu tanh": one_node("Gelu", [X], approximate="tanh"),
    "HardSigmoid": one_node("HardSigmoid", [X], alpha=1 / 6, beta=0.5),
    "PRelu one": one_node("PRelu", [X], [f(1)]),
    "PRelu channels": one_node("PRelu", [X], [f(6, 1, 1)]),
    "Clip relu6": one_node("Clip", [X], [s(0), s(6)]),
    "Clip relu": one_node("Clip", [X], [s(0), None]),
    "Clip both": one_node("Clip", [X], [s(-1.5), s(0.25)]),
    "Clip max": one_node("Clip", [X], [None, s(0.5)]),
    "Clip min": one_node("Clip", [X], [s(-0.5)]),
    "Clip attributes": one_node("Clip", [X], opset=10, min=-1.0, max=2.0),
    "Softmax": one_node("Softmax", [X], axis=1),
    "Softmax last": one_node("Softmax", [X]),
    "Softmax opset 11": one_node("Softmax", [(1, 6)], opset=11),
    "LogSoftmax": one_node("LogSoftmax", [X], axis=2),
    "Neg": one_node("Neg", [X]),
    "Abs": one_node("Abs", [X]),
    "Exp": one_node("Exp", [X]),
    "Log": one_node("Log", [X]),
    "Sqrt": one_node("Sqrt", [X]),
    "Reciprocal": one_node("Reciprocal", [X]),
    "Sin": one_node("Sin", [X]),
    "Cos": one_node("Cos", [X]),
    "Erf": one_node("Erf", [X]),
    "Floor": one_node("Floor", [X]),
    "Ceil": one_node("Ceil", [X]),
    "Round": one_node("Round", [X]),
    "Sign": one_node("Sign", [X]),
    "Add": one_node("Add", [X, X]),
    "Add broadcast": one_node("Add", [X, (1, 6, 1, 1)]),
    "Add number": one_node("Add", [X], [s(0.5)]),
    "Add channels": one_node("Add", [X], [f(6, 1, 1)]),
    "Add number left": one_node("Add", [X], [s(0.5)], first=1),
    "Add raises rank": one_node("Add", [(1, 6)], [f(1, 1, 1)]),
    "Sub": one_node("Sub", [X, X]),
    "Sub number left": one_node("Sub", [X], [s(0.5)], first=1),
    "Sub picture left": one_node("Sub", [X], [f(9, 12)], first=1),
    "Mul": one_node("Mul", [X, (1, 1, 9, 12)]),
    "Mul picture": one_node("Mul", [X], [f(1, 6, 9, 12)]),
    "Div": one_node("Div", [X, X]),
    "Div number": one_node("Div", [X], [s(3)]),
    "Div number left": one_node("Div", [X], [s(3)], first=1),
    "Max": one_node("Max", [X, X, (1, 6, 1, 1)]),
    "Max number": one_node("Max", [X], [s(0.5)]),
    "Max channels": one_node("Max", [X], [f(6, 1, 1)], first=1),
    "Min": one_node("Min", [X, X]),
    "Min number": one_node("Min", [X], [s(0.5)], first=1),
    "Sum": one_node("Sum", [X, X, X], [s(0.5)]),
    "Pow": one_node("Pow", [X], [s(2)]),
    "Pow half": one_node("Pow", [X], [s(0.5)]),
    "Pow channels": one_node("Pow", [X], [np.abs(f(6, 1, 1))]),
    "Pow two": one_node("Pow", [X, X]),
    "Concat": one_node("Concat", [X, (1, 3, 9, 12)], axis=1),
    "Concat with constant": one_node("Concat", [X], [f(1, 2, 9, 12)], axis=-3),
    "Concat itself": model_of([helper.make_node("Concat", ["x", "x"], ["y"], axis=2)], {"x": X}, ["y"]),
    "Split": one_node("Split", [X], [i(2, 1, 3)], outputs=3, axis=1),
    "Split equal": one_node("Split", [X], outputs=3, axis=-1, num_outputs=3),
    "Split rest": one_node("Split", [X], outputs=2, axis=2, num_outputs=2),
    "Split attribute": one_node("Split", [X], outputs=2, axis=1, split=[4, 2], opset=12),
    "Slice": one_node("Slice", [X], [i(1, -7), i(6, 2**62), i(1, 3), i(2, 3)]),
    "Slice default axes": one_node("Slice", [X], [i(0, 2), i(1, -1)]),
    "Slice whole": one_node("Slice", [X], [i(0), i(100), i(2)]),
    "Slice attributes": one_node("Slice", [X], starts=[1], ends=[5], axes=[2], opset=9),
    "Gather list": one_node("Gather", [X], [i(5, 0, -2)], axis=1),
    "Gather one": one_node("Gather", [X], [np.array(-1, np.int64)], axis=2),
    "Pad": one_node("Pad", [X], [i(0, 0, 1, 2, 0, 0, 3, 4)]),
    "Pad value channels": one_node("Pad", [X], [i(0, 1, 0, 0, 0, 2, 0, 0), s(1.5)]),
    "Pad axes": one_node("Pad", [X], [i(1, 2, 3, 4), s(-1), i(-1, 2)]),
    "Pad crop": one_node("Pad", [X], [i(0, 0, -1, 0, 0, 0, 0, -2)]),
    "Pad nothing": one_node("Pad", [X], [i(*[0] * 8)]),
    "Pad reflect": one_node("Pad", [X], [i(0, 0, 1, 2, 0, 0, 3, 4)], mode="reflect"),
    "Pad edge": one_node("Pad", [X], [i(0, 0, 1, 2, 0, 0, 3, 4)], mode="edge"),
    "Pad attribute": one_node("Pad", [X], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=2.0, opset=10),
    "Transpose": one_node("Transpose", [X], perm=[0, 3, 1, 2]),
    "Transpose rank 6": one_node("Transpose", [(1, 2, 3, 4, 2, 3)], perm=[0, 2, 4, 3, 5, 1]),
    "Transpose batch": one_node("Transpose", [X]),
    "Reshape": one_node("Reshape", [X], [i(1, 2, 3, -1)]),
    "Reshape zero": one_node("Reshape", [X], [i(0, 0, -1)]),
    "Reshape batch": one_node("Reshape", [X], [i(6, 9, 12)]),
    "Flatten": one_node("Flatten", [X]),
    "Flatten 2": one_node("Flatten", [X], axis=2),
    "Flatten last": one_node("Flatten", [X], axis=-1),
    "Squeeze": one_node("Squeeze", [(1, 6, 1, 1)], [i(-1, 2)]),
    "Squeeze attribute": one_node("Squeeze", [(1, 6, 1, 1)], axes=[2], opset=12),
    "Squeeze all": one_node("Squeeze", [(1, 6, 1, 4)]),
    "Unsqueeze": one_node("Unsqueeze", [(1, 6)], [i(-1, 1)]),
    "Expand": one_node("Expand", [(1, 6, 1, 1)], [i(1, 6, 9, 12)]),
    "Expand rank": one_node("Expand", [(1, 6, 1, 1)], [i(2, 1, 6, 1, 3)]),
    "Expand nothing": one_node("Expand", [X], [i(1, 1)]),
    "Identity": one_node("Identity", [X]),
    "Dropout": one_node("Dropout", [X]),
    "Cast": one_node("Cast", [X], to=1),
    "ReduceMean": one_node("ReduceMean", [X], [i(2, -1)]),
    "ReduceMean attribute": one_node("ReduceMean", [X], axes=[1], keepdims=0, opset=13),
    "ReduceMean all": one_node("ReduceMean", [X]),
    "ReduceSum": one_node("ReduceSum", [X], [i(1)], keepdims=0),
    "ReduceMax": one_node("ReduceMax", [X], [i(1)]),
    "ReduceMin": one_node("ReduceMin", [X], [i(3)]),
    "ReduceL2": one_node("ReduceL2", [X], [i(1)]),
    "ArgMax": one_node("ArgMax", [X], axis=1, keepdims=0),
    "ArgMax kept": one_node("ArgMax", [X], axis=-1),
    "TopK": one_node("TopK", [X], [i(3)], outputs=2, axis=1),
    "TopK smallest": one_node("TopK", [X], [i(2)], outputs=2, largest=0),
    "Resize nearest scales": one_node(
        "Resize",
        [X],
        [None, f32(1, 1, 2, 3)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "Resize nearest sizes": one_node(
        "Resize",
        [X],
        [None, None, i(1, 6, 20, 7)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "Resize nearest half pixel": one_node("Resize", [X], [None, None, i(1, 6, 27, 24)], mode="nearest"),
    "Resize linear scales": one_node("Resize", [X], [None, f32(1, 1, 1.5, 0.5)], mode="linear"),
    "Resize linear sizes": one_node(
        "Resize",
        [X],
        [None, None, i(1, 6, 20, 7)],
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    "Resize linear to one": one_node("Resize", [X], [None, None, i(1, 6, 1, 1)], mode="linear"),
    "Resize linear from one": one_node(
        "Resize",
        [(1, 6, 1, 1)],
        [None, None, i(1, 6, 9, 12)],
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    "Resize align corners": one_node(
        "Resize",
        [X],
        [None, None, i(1, 6, 20, 7)],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "Resize axes": one_node("Resize", [X], [None, None, i(18, 24)], mode="linear", axes=[2, 3]),
    "Resize opset 10": one_node("Resize", [X], [f32(1, 1, 2, 2)], mode="nearest", opset=10),
}  # fmt: skip

POSITIVE = ("Log", "Sqrt", "Pow half", "Pow channels", "Pow two", "Div", "Div number left", "Reciprocal")
"""Cases that are fed numbers in 0.5..3, where the function is defined and tame."""

# float32 transcendental functions and long sums differ in their last digits between the two programs.
LOOSER = {"Exp": 1e-6, "Gelu": 1e-6, "Gelu tanh": 1e-5, "Mish": 1e-5, "Erf": 1e-5, "Sigmoid": 1e-6}


@pytest.mark.parametrize("name", CASES)
def test_operator_agrees_with_onnxruntime(name: str) -> None:
    low, high = (0.5, 3.0) if name in POSITIVE else (-3.0, 3.0)
    assert_agrees(CASES[name], tolerance=LOOSER.get(name, 2e-6), low=low, high=high)


def test_every_known_operator_has_a_case() -> None:
    assert {name.split()[0] for name in CASES} == set(OPERATORS)


def test_every_operator_the_target_accepts_is_known() -> None:
    assert set(ACCEPTED_OPERATORS) <= set(OPERATORS)


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("Conv", True),
        ("Reshape", True),
        ("Reshape batch", False),
        ("Concat with constant", False),
        ("Transpose batch", False),
        ("ReduceMean all", False),
        ("Expand rank", False),
    ],
)
def test_batch_free_tells_where_a_batch_of_one_is_built_in(name: str, free: bool) -> None:
    assert to_torch(CASES[name]).batch_free is free
