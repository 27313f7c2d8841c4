"""Several pictures at once through a graph with a batch of 1 built in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from onnx import helper

from calib.importer import to_torch
from calib.importer.batch import gather, spread
from passes.graph import const_array, from_proto, to_proto
from tests.calib.graphs import model_of, one_node, random_inputs, run_onnx

FRAME = np.random.default_rng(0).normal(size=(1, 2, 9, 12)).astype(np.float32)


def framed() -> ir.Model:
    return one_node("Concat", [(1, 6, 9, 12)], [FRAME], axis=1)


def test_a_concatenated_constant_is_repeated_for_each_picture() -> None:
    model = framed()
    imported = to_torch(model)
    assert not imported.batch_free
    spread_module = spread(imported.module, [torch.zeros(1, 6, 9, 12)], 4)
    assert spread_module is not None
    (pictures,) = random_inputs(model, batch=4)
    expected = np.concatenate([run_onnx(model, [pictures[i : i + 1]])[0] for i in range(4)])
    np.testing.assert_array_equal(spread_module(torch.from_numpy(pictures)).numpy(), expected)
    # The module it was made of still takes one picture.
    assert imported.module(torch.zeros(1, 6, 9, 12)).shape == (1, 8, 9, 12)


def test_what_mixes_pictures_is_not_spread() -> None:
    model = one_node("Reshape", [(1, 6, 9, 12)], [np.array([6, 9, 12])])
    assert spread(to_torch(model).module, [torch.rand(1, 6, 9, 12)], 4) is None


def test_gather_makes_the_constants_of_one_picture_again() -> None:
    proto = to_proto(framed())
    (initializer,) = proto.graph.initializer
    repeated = np.repeat(FRAME, 4, axis=0)
    constant = proto.graph.node.add(op_type="Constant", name="frame", output=["constant_0"])
    attribute = constant.attribute.add(name="value", type=4)
    attribute.t.CopyFrom(ir.to_proto(ir.tensor(repeated)))
    proto.graph.node.insert(0, proto.graph.node.pop())
    proto.graph.initializer.remove(initializer)
    model = from_proto(proto)
    gather(model, 4)
    concat = next(node for node in model.graph if node.op_type == "Concat")
    found = const_array(concat.inputs[1])
    assert found is not None
    np.testing.assert_array_equal(found, FRAME)


def test_gather_leaves_the_sizes_of_a_pad_alone() -> None:
    """The exporter joins a Pad's numbers in a Concat; four of them are no batch of four."""
    nodes = [
        helper.make_node("Constant", [], ["pads"], value_ints=[1, 1, 1, 1]),
        helper.make_node("Concat", ["rest", "pads"], ["all"], axis=0),
        helper.make_node("Pad", ["x", "all"], ["y"]),
    ]
    model = model_of(nodes, {"x": (1, 6, 9, 12)}, ["y"], {"rest": np.zeros(4, np.int64)})
    gather(model, 4)
    concat = next(node for node in model.graph if node.op_type == "Concat")
    found = const_array(concat.inputs[1])
    assert found is not None
    assert found.tolist() == [1, 1, 1, 1]
