"""The dialect in standard operators computes what mct_quantizers' own operators compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from compiler.agreement import measure_agreement
from compiler.dialect import output_grid, quantized_weight, to_standard
from passes import graph as graphs
from tests.graphs import run


def quantized_convolution(weight: np.ndarray, thresholds: np.ndarray, seed: int = 0):
    """input -> POT quantizer -> Conv with quantized weights -> Relu -> POT quantizer, as MCT exports it."""
    rng = np.random.default_rng(seed)
    pot = {"domain": "mct_quantizers", "num_bits": 8, "mctq_version": "1.6.0"}
    nodes = [
        oh.make_node("ActivationPOTQuantizer", ["x"], ["xq"], name="in", signed=1, threshold=128.0, **pot),
        oh.make_node(
            "WeightsSymmetricQuantizer",
            ["w", "t"],
            ["wq"],
            name="wq",
            signed=1,
            per_channel=1,
            channel_axis=0,
            **pot,
        ),
        oh.make_node("Conv", ["xq", "wq", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        oh.make_node("Relu", ["c"], ["r"], name="relu"),
        oh.make_node("ActivationPOTQuantizer", ["r"], ["y"], name="out", signed=0, threshold=64.0, **pot),
    ]
    graph = oh.make_graph(
        nodes,
        "dialect",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, weight.shape[1], 12, 12])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, weight.shape[0], 12, 12])],
        [
            onh.from_array(weight, "w"),
            onh.from_array(thresholds, "t"),
            onh.from_array(rng.normal(size=weight.shape[0]).astype(np.float32), "b"),
        ],
    )
    opsets = [oh.make_opsetid("", 17), oh.make_opsetid("mct_quantizers", 1)]
    return oh.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.fixture(scope="module")
def proto():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(5, 3, 3, 3)).astype(np.float32) * 0.1
    thresholds = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float32) * np.float32(0.9)
    return quantized_convolution(weight, thresholds)


def test_the_same_numbers_as_the_vendors_operators(proto):
    import mct_quantizers
    import onnxruntime

    x = np.random.default_rng(0).integers(-140, 140, (1, 3, 12, 12)).astype(np.float32)
    options = mct_quantizers.get_ort_session_options()
    vendors = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]
    ours = run(to_standard(graphs.from_proto(proto)), x)[0]
    step = 64 / 256
    assert np.abs(vendors - ours).max() <= step  # a rounding tie may fall to the other side in float32
    assert (vendors != ours).mean() < 1e-3


def test_a_weight_by_hand():
    weight = np.float32([[[[0.5]]], [[[-3.0]]], [[[0.0040]]]])
    built = graphs.from_proto(quantized_convolution(weight, np.float32([1.0, 2.0, 1.0])))
    quantizer = next(n for n in built.graph if n.op_type == "WeightsSymmetricQuantizer")
    # 0.5 / (1/128) = 64; -3 / (2/128) = -192 saturates at -128; 0.004 * 128 = 0.512 rounds to 1
    assert quantized_weight(quantizer).ravel().tolist() == [0.5, -2.0, 1 / 128]


def test_the_grid_of_an_output(proto):
    grid = output_grid(graphs.from_proto(proto).graph.outputs[0])
    assert (grid.bits, grid.signed, grid.step, grid.lowest, grid.highest) == (8, False, 0.25, 0, 255)


def test_agreement_of_a_network_with_itself_is_full_and_of_another_is_not(proto):
    quantized = graphs.from_proto(proto)
    pictures = np.random.default_rng(0).integers(-128, 128, (3, 3, 12, 12)).astype(np.float32)
    standard = to_standard(quantized)
    same = measure_agreement(standard, quantized, [pictures])
    assert (same.pictures, same.outputs[0].value, same.outputs[0].snr_db) == (3, 1.0, float("inf"))
    other = graphs.from_proto(
        quantized_convolution(np.ones((5, 3, 3, 3), np.float32), np.ones(5, np.float32))
    )
    assert measure_agreement(standard, other, [pictures]).outputs[0].value < 0.9
