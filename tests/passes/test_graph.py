"""Reading and writing ONNX files."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes import contract as contracts
from passes import graph as graphs
from passes.errors import InputError
from tests.graphs import model, node


@pytest.fixture
def convolution():
    weight = np.ones((4, 3, 3, 3), np.float32)
    return model(
        [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": weight},
        contracts.imagenet(8, 8),
    )


def test_written_files_read_back_with_the_contract_and_the_same_bytes(convolution, tmp_path):
    path = tmp_path / "a.onnx"
    graphs.save(convolution, path)
    again = graphs.load(path)
    assert graphs.read_contract(again) == contracts.imagenet(8, 8)
    assert graphs.to_bytes(again) == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_initializers_have_their_own_shape_and_no_other(convolution):
    for value in convolution.graph.initializers.values():
        value.shape = ir.Shape([4, 3, 3, 3])
    proto = graphs.to_proto(convolution)
    assert {info.name for info in proto.graph.value_info} == {"c"}


def test_a_graph_that_contradicts_itself_is_the_users_error(tmp_path):
    proto = onnx.ModelProto()
    proto.CopyFrom(graphs.to_proto(model([node("Relu", ["x"], ["y"])], {"x": [1, 3]}, ["y"])))
    proto.graph.node.append(node("Neg", ["x"], ["y"]))
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="no valid graph"):
        graphs.load(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([1, 3, 8, 9], (3, 8, 9)),
        (["n", 3, 8, 9], (3, 8, 9)),
        ([1, 5], (5, 1, 1)),
        ([1, 5, 7], (5, 7, 1)),
        ([2, 3, 8, 8], None),
        ([1, 3, "h", 8], None),
        ([4], None),
        ([1, 2, 3, 4, 5], None),
    ],
)
def test_what_is_one_picture(shape, expected):
    built = model([node("Relu", ["x"], ["y"])], {"x": shape}, ["y"])
    assert graphs.picture_shape(built.graph.inputs[0]) == expected
