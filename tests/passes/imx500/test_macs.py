"""Multiply-accumulates and parameters, against counts by hand and the published student."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch

from passes import graph as graphs
from passes.imx500.macs import LayerCost, count_macs
from passes.pipeline import FLOAT_TRANSFORMS, apply_all
from student.networks import PicoSAM2
from tests.graphs import model, node


def w(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes", "macs", "parameters"),
    [
        ("Conv", [1, 4, 8, 8], [w(6, 4, 3, 3), w(6)], {"pads": [1] * 4}, 64 * 6 * 36, 6 * 36 + 6),
        ("Conv", [1, 4, 8, 8], [w(4, 1, 3, 3)], {"group": 4, "strides": [2, 2]}, 9 * 4 * 9, 36),
        ("ConvTranspose", [1, 4, 8, 8], [w(4, 6, 2, 2)], {"strides": [2, 2]}, 64 * 4 * 6 * 4, 96),
        ("Gemm", [1, 10], [w(10, 3), w(3)], {}, 30, 33),
        ("MatMul", [1, 5, 7, 10], [w(10, 3)], {}, 35 * 30, 30),
        ("BatchNormalization", [1, 4, 2, 2], [w(4), w(4), w(4), w(4)], {}, 0, 8),
    ],
)
def test_one_node(op, shape, constants, attributes, macs, parameters):
    names = [f"c{index}" for index in range(len(constants))]
    built = model(
        [node(op, ["x", *names], ["y"], name="it", **attributes)],
        {"x": shape},
        ["y"],
        dict(zip(names, constants, strict=True)),
    )
    assert count_macs(built) == (LayerCost("it", op, "", macs, parameters),)


def test_weights_used_twice_are_counted_once():
    nodes = [node("Conv", ["x", "k"], ["a"], name="first"), node("Conv", ["a", "k"], ["y"], name="second")]
    costs = count_macs(model(nodes, {"x": [1, 4, 8, 8]}, ["y"], {"k": w(4, 4, 1, 1)}))
    assert [(cost.macs, cost.parameters) for cost in costs] == [(1024, 16), (1024, 0)]


def test_nodes_that_multiply_nothing_are_listed_with_no_cost():
    built = model([node("Relu", ["x"], ["y"], name="it")], {"x": [1, 4, 8, 8]}, ["y"])
    assert count_macs(built) == (LayerCost("it", "Relu", "", 0, 0),)


def test_the_student():
    """323.05 M MACs, 1,262,818 parameters before folding batch norms: counted from the architecture."""
    buffer = io.BytesIO()
    torch.onnx.export(
        PicoSAM2().eval(),
        (torch.zeros(1, 3, 96, 96),),
        buffer,
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    unfolded = [transform for transform in FLOAT_TRANSFORMS if transform.name in ("name", "simplify")]
    proto = onnx.load_from_string(buffer.getvalue())
    costs = count_macs(apply_all(graphs.from_proto(proto), unfolded))
    assert sum(cost.macs for cost in costs) == 323_053_056
    assert sum(cost.parameters for cost in costs) == 1_262_818


def test_what_cannot_be_counted_is_marked():
    nodes = [
        node("Conv", ["x", "k"], ["a"], name="conv"),
        node("Einsum", ["a"], ["b"], name="einsum", equation="abcd->abcd"),
        node("Elu", ["b"], ["c"], name="elu"),
        node("Relu", ["c"], ["y"], name="strange"),
    ]
    built = model(nodes, {"x": ["n", 4, 8, 8]}, ["y"], {"k": w(4, 4, 1, 1)})
    next(n for n in built.graph if n.name == "strange").domain = "my.domain"
    assert {cost.node: cost.counted for cost in count_macs(built)} == {
        "conv": True,
        "einsum": False,
        "elu": True,
        "strange": False,
    }


@pytest.mark.parametrize(("height", "counted"), [(8, True), ("h", False)])
def test_a_product_of_unknown_shape_is_no_exact_count(height, counted):
    nodes = [node("Conv", ["x", "k"], ["y"], name="it")]
    (cost,) = count_macs(model(nodes, {"x": ["n", 4, height, 8]}, ["y"], {"k": w(4, 4, 1, 1)}))
    assert cost.counted is counted
