"""Simplify: constants folded, same function, custom operators refused by name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes import graph as graphs
from passes.errors import InputError
from passes.fix_batch import FixBatch
from passes.pipeline import FLOAT_TRANSFORMS, apply, apply_all
from passes.remove_dead import RemoveDead
from tests.graphs import model, node, op_types, relative_error, run

SIMPLIFY = next(t for t in FLOAT_TRANSFORMS if t.name == "simplify")


def test_shape_arithmetic_is_folded_and_the_function_kept():
    built = model(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"]),
            node("Unsqueeze", ["n", "first"], ["n1"]),
            node("Concat", ["n1", "rest"], ["shape"], axis=0),
            node("Identity", ["x"], ["i"]),
            node("Reshape", ["i", "shape"], ["r"]),
            node("Relu", ["r"], ["y"]),
        ],
        {"x": [1, 4, 3]},
        ["y"],
        {"zero": np.int64(0), "first": np.int64([0]), "rest": np.int64([12])},
    )
    x = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    before = run(built, x)
    after, _ = apply(built, SIMPLIFY)
    assert op_types(after) == ["Reshape", "Relu"]
    assert relative_error(before[0], run(after, x)[0]) == 0


def test_batch_norms_and_metadata_stay_for_the_passes_that_need_them():
    ones = np.ones(3, np.float32)
    built = model(
        [node("BatchNormalization", ["x", "a", "a", "a", "a"], ["y"])],
        {"x": [1, 3, 2, 2]},
        ["y"],
        {"a": ones},
    )
    built.metadata_props["somebody"] = "else"
    built.producer_name, built.producer_version = "pytorch", "2.6.0"
    after, _ = apply(built, SIMPLIFY)
    assert op_types(after) == ["BatchNormalization"]
    assert after.metadata_props["somebody"] == "else"
    assert (after.producer_name, after.producer_version) == ("pytorch", "2.6.0")


def test_custom_operators_are_named():
    built = model([node("Relu", ["x"], ["r"]), node("Neg", ["r"], ["y"])], {"x": [1, 3]}, ["y"])
    relu, negation = built.graph
    custom = ir.Node("my.domain", "Deform", relu.inputs, name="neck.deform")
    custom.outputs[0].name = "deformed"
    built.graph.insert_before(negation, custom)
    negation.replace_input_with(0, custom.outputs[0])
    with pytest.raises(InputError, match=r"my\.domain::Deform \(neck\.deform\)"):
        apply(built, SIMPLIFY)


def test_a_symbolic_batch_becomes_one_and_shapes_follow():
    built = model([node("Relu", ["x"], ["r"]), node("Neg", ["r"], ["y"])], {"x": ["batch", 3, 4, 4]}, ["y"])
    built, modified = apply(built, next(t for t in FLOAT_TRANSFORMS if t.name == "fix-batch"))
    assert modified
    built, _ = apply(built, SIMPLIFY)
    assert all(graphs.static_shape(value) == (1, 3, 4, 4) for value in graphs.all_values(built.graph))


def test_a_fixed_batch_is_left_to_the_rules():
    built = model([node("Relu", ["x"], ["y"])], {"x": [2, 3]}, ["y"])
    assert not FixBatch()(built).modified


def test_dead_nodes_and_constants_go():
    built = model(
        [node("Relu", ["x"], ["y"]), node("Add", ["x", "c"], ["unused"])],
        {"x": [1, 3]},
        ["y"],
        {"c": np.ones(3, np.float32)},
    )
    assert RemoveDead()(built).modified
    assert op_types(built) == ["Relu"]
    assert not built.graph.initializers


def test_the_order_of_the_pipeline():
    """Names first (diagnostics need them), batch norms before the input, dead code last."""
    assert [t.name for t in FLOAT_TRANSFORMS] == [
        "raise-opset", "fix-batch", "name", "simplify", "explicit-pads", "floor-pools",
        "fold-batchnorm", "fold-input", "remove-dead",
    ]  # fmt: skip


def test_the_pipeline_on_its_own_result_changes_nothing():
    from passes import contract as contracts

    rng = np.random.default_rng(0)
    built = model(
        [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["y"])],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)},
        contracts.imagenet(8, 8),
    )
    once = apply_all(built)
    bytes_once = graphs.to_bytes(once)
    assert graphs.to_bytes(apply_all(graphs.parse(bytes_once))) == bytes_once
