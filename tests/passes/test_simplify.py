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
from passes.simplify import Simplify
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


@pytest.mark.parametrize(("kernel", "kept"), [(1, ["Pad", "Conv"]), (3, ["Conv"])])
def test_a_pad_goes_into_a_convolution_only_where_it_is_below_the_kernel(kernel: int, kept: list[str]):
    """The target takes a Pad of any size, but no convolution that pads by its kernel or more."""
    built = model(
        [node("Pad", ["x", "pads"], ["p"]), node("Conv", ["p", "w"], ["y"], name="conv")],
        {"x": [1, 2, 8, 8]},
        ["y"],
        {
            "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
            "w": np.random.default_rng(0).normal(size=(3, 2, kernel, kernel)).astype(np.float32),
        },
    )
    x = np.random.default_rng(1).normal(size=(1, 2, 8, 8)).astype(np.float32)
    before = run(built, x)
    after, _ = apply(built, SIMPLIFY)
    assert op_types(after) == kept
    assert relative_error(before[0], run(after, x)[0]) < 1e-6


def test_a_reduction_over_the_batch_stays_a_reduction():
    """As a Squeeze of the batch MCT would export it as an If."""
    built = model(
        [node("Relu", ["x"], ["r"]), node("ReduceMean", ["r"], ["y"], axes=[0], keepdims=0)],
        {"x": [1, 3, 4, 4]},
        ["y"],
    )
    after, _ = apply(built, SIMPLIFY)
    assert op_types(after) == ["Relu", "ReduceMean"]


def test_linear_layers_that_read_one_tensor_keep_their_names():
    rng = np.random.default_rng(0)
    names = ["q", "k", "v"]
    built = model(
        [node("MatMul", ["x", f"w{name}"], [f"o{name}"], name=f"/{name}/MatMul") for name in names]
        + [node("Add", ["oq", "ok"], ["s"]), node("Add", ["s", "ov"], ["y"])],
        {"x": [1, 2, 4, 8]},
        ["y"],
        {f"w{name}": rng.normal(size=(8, 8)).astype(np.float32) for name in names},
    )
    built, _ = apply(built, next(t for t in FLOAT_TRANSFORMS if t.name == "name"))
    next(iter(built.graph)).metadata_props[graphs.LINE_KEY] = "net.py:7"
    after, _ = apply(built, SIMPLIFY)
    layers = [n for n in after.graph if n.op_type == "MatMul"]
    assert [graphs.module_of(n) for n in layers] == names
    assert graphs.line_of(layers[0]) == "net.py:7"


@pytest.mark.parametrize(("kernel", "kept"), [(3, ["Pad", "AveragePool"]), (4, ["AveragePool"])])
def test_a_pad_goes_into_a_pool_only_up_to_half_the_kernel(kernel: int, kept: list[str]):
    built = model(
        [
            node("Pad", ["x", "pads"], ["p"]),
            node("AveragePool", ["p"], ["y"], kernel_shape=[kernel, kernel], count_include_pad=1),
        ],
        {"x": [1, 2, 8, 8]},
        ["y"],
        {"pads": np.int64([0, 0, 1, 0, 0, 0, 0, 2])},
    )
    x = np.random.default_rng(1).normal(size=(1, 2, 8, 8)).astype(np.float32)
    before = run(built, x)
    after, _ = apply(built, SIMPLIFY)
    assert op_types(after) == kept
    assert relative_error(before[0], run(after, x)[0]) < 1e-6


def test_the_simplifier_is_loaded_once(monkeypatch):
    built = model([node("Relu", ["x"], ["y"])], {"x": [1, 3, 4, 4]}, ["y"])
    Simplify()(built)

    def opened():
        raise AssertionError("loaded again")

    monkeypatch.setattr("passes.simplify.light_imports", opened)
    Simplify()(built)
