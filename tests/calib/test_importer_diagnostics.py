"""What the importer does not know: every node is named at once, with what was found and what to do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from calib.importer import to_torch
from passes.diagnostics import Severity
from passes.errors import ExitCode, TargetViolation
from passes.graph import MODULE_KEY
from tests.calib.graphs import model_of, one_node

X = (1, 6, 9, 12)


def refused(model: ir.Model) -> TargetViolation:
    with pytest.raises(TargetViolation) as caught:
        to_torch(model)
    assert caught.value.exit_code is ExitCode.TARGET
    assert all(d.rule == "import/unknown-operator" for d in caught.value.diagnostics)
    assert all(d.severity is Severity.ERROR and d.fix for d in caught.value.diagnostics)
    return caught.value


def test_all_unknown_nodes_are_reported_at_once_and_in_order() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("Selu", ["a"], ["b"], name="first"),
        helper.make_node("Slice", ["b", "start", "end", "axis", "step"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"], name="fine too"),
        helper.make_node("MaxPool", ["d"], ["y"], name="third", kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
    ]
    constants = {
        "start": np.array([-1], np.int64),
        "end": np.array([-(2**31)], np.int64),
        "axis": np.array([3], np.int64),
        "step": np.array([-1], np.int64),
    }
    model = model_of(nodes, {"x": X}, ["y"], constants)
    next(n for n in model.graph if n.name == "second").metadata_props[MODULE_KEY] = "net.flip"
    violation = refused(model)
    found = [(d.node, d.module, d.found) for d in violation.diagnostics]
    assert found == [
        ("first", "", "operator Selu"),
        ("second", "net.flip", "steps = [-1]"),
        ("third", "", "pads = [0, 0, 1, 1]"),
    ]
    assert "first: operator Selu" in str(violation)


def test_nodes_behind_an_unknown_one_without_shape_are_not_blamed() -> None:
    nodes = [
        helper.make_node("Unheard", ["x"], ["a"], name="unknown", domain="vendor"),
        helper.make_node("Relu", ["a"], ["y"], name="innocent"),
    ]
    assert [d.node for d in refused(model_of(nodes, {"x": X}, ["y"])).diagnostics] == ["unknown"]


FORMS = {
    "auto_pad": one_node("ConvTranspose", [X], [np.ones((6, 2, 2, 2), np.float32)], auto_pad="SAME_UPPER"),
    "[0, 0, 1, 0]": one_node("ConvTranspose", [X], [np.ones((6, 2, 2, 2), np.float32)], pads=[0, 0, 1, 0]),
    "rank 3": one_node("Conv", [(1, 6, 9)], [np.ones((2, 6, 3), np.float32)]),
    "input 1 (x1) is computed": one_node("Conv", [X, (2, 6, 3, 3)]),
    "transA = 1": one_node("Gemm", [(7, 1)], [np.ones((7, 5), np.float32)], transA=1),
    "C of shape (3, 5)": one_node("Gemm", [(3, 7)], [np.ones((7, 5), "f4"), np.ones((3, 5), "f4")]),
    "alpha = 0.2": one_node("HardSigmoid", [X]),
    "coordinate_transformation_mode = half_pixel": one_node(
        "Resize", [X], [None, None, np.array([1, 6, 10, 13])], mode="nearest"
    ),
    "mode = cubic": one_node("Resize", [X], [None, None, np.array([1, 6, 18, 24])], mode="cubic"),
    "by 1.01 and 1": one_node(
        "Resize",
        [X],
        [None, np.array([1, 1, 1.01, 1], np.float32)],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "scales = [1.0, 2.0": one_node("Resize", [X], [None, np.array([1, 2, 1, 1], np.float32)]),
    "axis = 0 of rank 4": one_node("Softmax", [X], axis=0, opset=11),
    "Indices": one_node("MaxPool", [X], outputs=2, kernel_shape=[2, 2]),
    "without count_include_pad": one_node("AveragePool", [X], kernel_shape=[3, 3], pads=[1, 0, 0, 0]),
    "dilations = [2, 2]": one_node("AveragePool", [X], kernel_shape=[3, 3], dilations=[2, 2]),
    "training_mode = 1": one_node(
        "BatchNormalization", [X], [np.ones(6, np.float32)] * 4, training_mode=1
    ),
    "rank 5": one_node("BatchNormalization", [(1, 6, 2, 2, 2)], [np.ones(6, np.float32)] * 4),
    "indices of rank 2": one_node("Gather", [X], [np.array([[0, 1]])], axis=1),
    "mode = wrap": one_node("Pad", [X], [np.array([0, 0, 1, 1, 0, 0, 1, 1])], mode="wrap"),
    "select_last_index = 1": one_node("ArgMax", [X], select_last_index=1),
    "noop_with_empty_axes": one_node("ReduceMean", [X], noop_with_empty_axes=1),
    "float32 to INT64": one_node("Cast", [X], to=7),
    "slope of shape (12,)": one_node("PRelu", [X], [np.ones(12, np.float32)]),
    "invalid for input of size": one_node("Reshape", [X], [np.array([1, 5, 7])]),
    "torch refuses it": one_node("MaxPool", [X], kernel_shape=[2, 2], pads=[2, 2, 2, 2]),
    "fixed sizes": one_node("Relu", [("N", 3, "H", "W")]),
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_unknown_form_is_named(text: str) -> None:
    model = FORMS[text]
    if text == "Indices":
        model.graph.outputs[1].dtype = ir.DataType.INT64
        reader = ir.Node("", "Cast", [model.graph.outputs[1]], [ir.AttrInt64("to", 1)])
        model.graph.append(reader)
    (diagnostic,) = refused(model).diagnostics[:1]
    assert text in f"{diagnostic.found} {diagnostic.limit}"
    assert diagnostic.node in ("the_node", "x0")


def test_outputs_that_mct_cannot_have_are_named() -> None:
    relu, identity = helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])
    same = model_of([relu, identity], {"x": X}, ["y", "z"])
    assert [d.node for d in refused(same).diagnostics] == ["z"]
    constant = model_of([relu], {"x": X}, ["y", "c"], {"c": np.ones(3, np.float32)})
    assert [d.node for d in refused(constant).diagnostics] == ["c"]
