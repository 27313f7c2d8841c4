"""One graph that breaks each rule, and its neighbour that does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes import graph as graphs
from passes.diagnostics import Severity
from passes.imx500.check import check_operators
from passes.imx500.limits import ACCEPTED_OPERATORS, CONVERTER, MAX_GROUPED_KERNEL, MAX_NORM_ROW
from passes.imx500.memory import forecast_memory
from passes.imx500.rules import INPUT_RULES, RULES
from passes.imx500.rules.operators import REPLACEMENTS
from tests.graphs import model, node

INT = np.int64


def w(*shape: int) -> np.ndarray:
    return np.full(shape, 0.1, dtype=np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=INT)


@dataclass(frozen=True)
class One:
    """A graph of one node `op` on an input x; `constants` are its further inputs, in order."""

    op: str
    shape: tuple[int, ...] = (1, 4, 8, 8)
    constants: tuple[np.ndarray | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    first: bool = False
    """The constants stand before x."""

    def build(self) -> ir.Model:
        names = ["" if array is None else f"c{index}" for index, array in enumerate(self.constants)]
        inputs = [*names, "x"] if self.first else ["x", *names]
        arrays = {name: array for name, array in zip(names, self.constants, strict=True) if name}
        outputs = [f"y{index}" for index in range(self.outputs)]
        return model(
            [node(self.op, inputs, outputs, name="it", **self.attributes)],
            {"x": list(self.shape)},
            outputs,
            arrays,
        )


def two_inputs(op: str, first: tuple[int, ...], second: tuple[int, ...], **attributes: Any) -> ir.Model:
    """A graph of one node on two network inputs."""
    inputs = {"x": list(first), "z": list(second)}
    return model([node(op, ["x", "z"], ["y"], name="it", **attributes)], inputs, ["y"])


def gelu(scale: float) -> ir.Model:
    nodes = [
        node("Div", ["x", "scale"], ["d"]),
        node("Erf", ["d"], ["e"], name="it"),
        node("Add", ["e", "one"], ["a"]),
        node("Mul", ["x", "a"], ["m"]),
        node("Mul", ["m", "half"], ["y"]),
    ]
    numbers = {"scale": scale, "one": 1.0, "half": 0.5}
    constants = {name: np.array(number, np.float32) for name, number in numbers.items()}
    return model(nodes, {"x": [1, 4, 8, 8]}, ["y"], constants)


def dynamic_clip() -> ir.Model:
    nodes = [node("ReduceMax", ["x"], ["top"], keepdims=0), node("Clip", ["x", "", "top"], ["y"], name="it")]
    return model(nodes, {"x": [1, 4, 8, 8]}, ["y"])


def behind(op: str) -> ir.Model:
    nodes = [node(op, ["x"], ["a"], axis=1), node("Neg", ["a"], ["y"], name="it")]
    return model(nodes, {"x": [1, 4, 8, 8]}, ["y"])


def conv(shape=(1, 4, 8, 8), weight=(4, 4, 3, 3), **attributes: Any) -> One:
    return One("Conv", shape, (w(*weight),), attributes)


def transposed(weight=(4, 4, 2, 2), **attributes: Any) -> One:
    return One("ConvTranspose", constants=(w(*weight),), attributes=attributes)


def pool(op="MaxPool", shape=(1, 4, 8, 8), kernel=(2, 2), outputs=1, **attributes: Any) -> One:
    return One(op, shape, attributes={"kernel_shape": list(kernel), **attributes}, outputs=outputs)


def resize(shape=(1, 4, 8, 8), scales=(1, 1, 2, 2), **attributes: Any) -> One:
    given = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", **attributes}
    return One("Resize", shape, (None, np.array(scales, np.float32)), given)


def nearest(rounding: str, scales=(1, 1, 2, 2)) -> One:
    form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
    return resize(scales=scales, mode="nearest", **form)


PAIRS: dict[str, tuple[One | ir.Model, One | ir.Model]] = {
    "conv-rank": (conv((1, 4, 8), (4, 4, 3)), conv()),
    "conv-weight": (two_inputs("Conv", (1, 4, 8, 8), (4, 4, 3, 3)), conv()),
    "conv-padding": (conv(pads=[3, 3, 3, 3]), conv(pads=[2, 2, 2, 2])),
    "conv-stride-dilation": (conv(strides=[2, 1], dilations=[1, 2]), conv(strides=[2, 2])),
    "conv-grouped-kernel": (
        conv((1, 4, 16, 16), (4, 1, MAX_GROUPED_KERNEL + 1, 1), group=4),
        conv((1, 4, 16, 16), (4, 1, MAX_GROUPED_KERNEL, 1), group=4),
    ),
    "convtranspose-padding": (transposed((4, 4, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]), transposed()),
    "convtranspose-groups": (transposed((4, 2, 2, 2), group=2), transposed()),
    "convtranspose-dilation": (transposed(dilations=[2, 2]), transposed()),
    "convtranspose-stride": (transposed(strides=[3, 3]), transposed(strides=[2, 2])),
    "gemm-form": (One("Gemm", (1, 4), (w(4, 3),), {"alpha": 0.5}), One("Gemm", (1, 4), (w(4, 3),))),
    "linear-rank": (One("MatMul", (1, 8, 4), (w(4, 3),)), One("MatMul", (1, 2, 8, 4), (w(4, 3),))),
    "linear-weight": (
        One("MatMul", (1, 2, 8, 4), (w(2, 4, 3),)),
        One("MatMul", (1, 2, 8, 4), (w(4, 3),)),
    ),
    "matmul-rank": (
        two_inputs("MatMul", (1, 2, 8, 4), (1, 4, 3)),
        two_inputs("MatMul", (1, 8, 4), (1, 4, 3)),
    ),
    "data-type": (behind("ArgMax"), behind("Softmax")),
    "operator": (One("Elu"), One("Relu")),
    "erf": (gelu(1.0), gelu(2**0.5)),
    "pool-rank": (pool(shape=(1, 4, 8), kernel=(2,)), pool()),
    "pool-ceil-mode": (pool("AveragePool", ceil_mode=1), pool("AveragePool")),
    "pool-dilation": (pool(dilations=[2, 2]), pool(dilations=[1, 1])),
    "pool-padding": (pool(kernel=(3, 3), pads=[2, 2, 2, 2]), pool(kernel=(3, 3), pads=[1, 1, 1, 1])),
    "pool-uneven-padding": (
        pool(kernel=(3, 3), pads=[0, 0, 1, 1]),
        pool("AveragePool", kernel=(3, 3), pads=[0, 0, 1, 1], count_include_pad=1),
    ),
    "pool-indices": (pool(outputs=2), pool()),
    "resize-rank": (resize((1, 4, 8), (1, 1, 2)), resize()),
    "resize-mode": (resize(coordinate_transformation_mode="align_corners"), resize()),
    "resize-nearest-mode": (nearest("round_prefer_floor"), nearest("floor")),
    "resize-scale": (
        nearest("floor", scales=(1, 1, 1.01, 2)),
        nearest("floor", scales=(1, 1, 1.5, 2)),
    ),
    "resize-to-one": (
        resize(scales=(1, 1, 0.125, 0.125), coordinate_transformation_mode="pytorch_half_pixel"),
        resize(scales=(1, 1, 0.125, 0.125)),
    ),
    "pad-mode": (
        One("Pad", constants=(ints(0, 0, 1, 1, 0, 0, 1, 1),), attributes={"mode": "reflect"}),
        One("Pad", constants=(ints(0, 0, 1, 1, 0, 0, 1, 1),)),
    ),
    "pad-amount": (
        One("Pad", constants=(ints(0, 0, -1, 0, 0, 0, 0, 0),)),
        One("Pad", constants=(ints(0, 1, 0, 0, 0, 0, 0, 2),)),
    ),
    "rank": (
        One("ReduceMean", attributes={"axes": [1, 2, 3], "keepdims": 0}),
        One("ReduceMean", attributes={"axes": [1, 2, 3]}),
    ),
    "batch-axis": (One("Softmax", attributes={"axis": 0}), One("Softmax", attributes={"axis": 1})),
    "reshape-batch": (One("Reshape", constants=(ints(4, 64),)), One("Reshape", constants=(ints(1, 256),))),
    "broadcast-batch": (One("Add", constants=(w(2, 1, 1, 1),)), One("Add", constants=(w(4, 1, 1),))),
    "transpose-batch": (
        One("Transpose", attributes={"perm": [1, 0, 2, 3]}),
        One("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    ),
    "squeeze-batch": (One("Unsqueeze", constants=(ints(0),)), One("Unsqueeze", constants=(ints(1),))),
    "slice": (
        One("Slice", constants=(ints(-1), ints(-9), ints(3), ints(-1))),
        One("Slice", constants=(ints(0), ints(8), ints(3), ints(2))),
    ),
    "gather-indices": (
        One("Gather", constants=(ints(0, -1),), attributes={"axis": 1}),
        One("Gather", constants=(ints(0, 3),), attributes={"axis": 1}),
    ),
    "reduce-batch": (
        One("ReduceMean", attributes={"axes": [0, 1]}),
        One("ReduceMean", attributes={"axes": [1]}),
    ),
    "reduce-axes": (
        # Opset 17 has the attribute for ReduceSum alone.
        One("ReduceSum", attributes={"noop_with_empty_axes": 1}),
        One("ReduceSum", constants=(ints(2),), attributes={"noop_with_empty_axes": 1}),
    ),
    "norm-batch": (One("ReduceL2", attributes={"axes": [0]}), One("ReduceL2", attributes={"axes": [1]})),
    "topk": (
        One("TopK", constants=(ints(2),), attributes={"largest": 0}, outputs=2),
        One("TopK", constants=(ints(2),), outputs=2),
    ),
    "argmax": (
        One("ArgMax", attributes={"axis": 1, "select_last_index": 1}),
        One("ArgMax", attributes={"axis": 1}),
    ),
    "layernorm-axis": (
        One("LayerNormalization", constants=(w(8, 8),), attributes={"axis": -2}),
        One("LayerNormalization", constants=(w(8),), attributes={"axis": -1}),
    ),
    "empty": (conv((1, 4, 2, 2)), conv((1, 4, 3, 3))),
    "convtranspose-output-padding": (
        transposed(strides=[2, 2], output_padding=[2, 0]),
        transposed(strides=[2, 2], output_padding=[1, 0]),
    ),
    "layernorm-outputs": (
        One("LayerNormalization", constants=(w(8),), attributes={"axis": -1}, outputs=2),
        One("LayerNormalization", constants=(w(8),), attributes={"axis": -1}),
    ),
    "layernorm-length": (
        One("LayerNormalization", (1, MAX_NORM_ROW + 1), (w(MAX_NORM_ROW + 1),), {"axis": -1}),
        One("LayerNormalization", (1, MAX_NORM_ROW), (w(MAX_NORM_ROW),), {"axis": -1}),
    ),
    "batchnorm-rank": (
        One("BatchNormalization", (1, 4, 2, 2, 2), (w(4), w(4), w(4), w(4))),
        One("BatchNormalization", (1, 4, 2), (w(4), w(4), w(4), w(4))),
    ),
    "batchnorm-mode": (
        One(
            "BatchNormalization",
            constants=(w(4), w(4), w(4), w(4)),
            attributes={"training_mode": 1},
            outputs=3,
        ),
        One("BatchNormalization", constants=(w(4), w(4), w(4), w(4))),
    ),
    "clip-bounds": (dynamic_clip(), One("Clip", constants=(np.float32(0), np.float32(6)))),
    "hardsigmoid-slope": (One("HardSigmoid"), One("HardSigmoid", attributes={"alpha": 1 / 6})),
    "pow-exponent": (One("Pow", constants=(np.float32(3),)), One("Pow", constants=(np.float32(2),))),
    "minmax-inputs": (One("Max", constants=(w(1), w(1))), One("Max", constants=(w(1),))),
}
"""Rule -> (a graph that breaks it, a graph like it that does not)."""


def resize_with_antialias(antialias: int) -> ir.Model:
    """antialias came with opset 18."""
    shrinking = resize(scales=(1, 1, 0.5, 0.5)).build()
    next(iter(shrinking.graph)).attributes["antialias"] = ir.AttrInt64("antialias", antialias)
    return shrinking


PAIRS["resize-antialias"] = (resize_with_antialias(1), resize_with_antialias(0))


def built(one: One | ir.Model) -> ir.Model:
    return one.build() if isinstance(one, One) else one


def test_every_rule_has_a_pair_of_graphs():
    assert {f"imx500/{name}" for name in PAIRS} == {rule.id for rule in RULES}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_rule(name: str):
    bad, good = PAIRS[name]
    rule = next(rule for rule in RULES if rule.id == f"imx500/{name}")
    found = [d for d in check_operators(built(bad)) if d.rule == rule.id]
    assert len(found) == 1
    assert found[0].node == "it"
    assert found[0].severity == rule.severity
    assert found[0].limit == rule.text
    assert found[0].source == f"{CONVERTER}, measured"
    assert found[0].found
    assert found[0].fix
    assert check_operators(built(good)) == ()


def test_rule_texts_have_their_limits_filled_in():
    assert all(rule.text and "{" not in rule.text for rule in RULES)
    depthwise = next(rule for rule in RULES if rule.id == "imx500/conv-grouped-kernel")
    assert depthwise.text == "A depthwise or grouped kernel has at most 12 rows and 12 columns"


def test_all_violations_of_all_nodes_are_told():
    nodes = [
        node("Elu", ["x"], ["a"], name="first"),
        node("Conv", ["a", "k"], ["b"], name="second", pads=[5] * 4, strides=[2, 2], dilations=[2, 2]),
        node("Tile", ["b", "repeats"], ["y"], name="third"),
    ]
    constants = {"k": w(4, 4, 3, 3), "repeats": ints(1, 2, 1, 1)}
    found = check_operators(model(nodes, {"x": [1, 4, 8, 8]}, ["y"], constants))
    assert [(d.rule, d.node) for d in found] == [
        ("imx500/operator", "first"),
        ("imx500/conv-padding", "second"),
        ("imx500/conv-stride-dilation", "second"),
        ("imx500/operator", "third"),
    ]


def test_a_finding_names_value_limit_and_fix():
    bad = built(conv(pads=[3, 3, 3, 3]))
    places = {graphs.MODULE_KEY: "encoder.stage1.0", graphs.LINE_KEY: "net.py:12"}
    next(iter(bad.graph)).metadata_props.update(places)
    (found,) = check_operators(bad)
    assert (found.module, found.line) == ("encoder.stage1.0", "net.py:12")
    assert found.found == "pads = [3, 3, 3, 3] with effective kernel [3, 3]"
    assert "smaller than the effective kernel" in found.limit
    assert found.fix == (
        "put nn.ZeroPad2d((3, 3, 3, 3)) before the convolution and give it padding=0, which is the same"
    )


def test_an_operator_of_a_foreign_domain_is_named_with_it():
    strange = built(One("Relu"))
    relu = next(iter(strange.graph))
    relu.domain = "my.domain"
    (found,) = check_operators(strange)
    assert found.rule == "imx500/operator"
    assert found.found == "operator my.domain::Relu"


def test_no_replacement_is_given_for_an_operator_that_is_accepted():
    assert not set(REPLACEMENTS) & set(ACCEPTED_OPERATORS)


def test_uneven_padding_has_no_limit():
    assert check_operators(built(conv(pads=[5, 0, 4, 0]))) == ()


def test_shape_arithmetic_is_not_judged():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "zero_axis"], ["n1"]),
        node("Concat", ["n1", "rest"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["y"]),
    ]
    constants = {"zero": INT(0), "zero_axis": ints(0), "rest": ints(-1)}
    assert check_operators(model(nodes, {"x": ["n", 4, 8, 8]}, ["y"], constants)) == ()


@pytest.mark.parametrize(
    ("shape", "kind", "rule"),
    [
        ([2, 3, 8, 8], onnx.TensorProto.FLOAT, "imx500/input-batch"),
        ([1, 3, "h", 8], onnx.TensorProto.FLOAT, "imx500/input-dynamic"),
        ([8], onnx.TensorProto.FLOAT, "imx500/input-rank"),
        ([1, 3, 8, 8], onnx.TensorProto.DOUBLE, "imx500/input-type"),
    ],
)
def test_inputs(shape: list[int | str], kind: int, rule: str):
    found = check_operators(model([node("Relu", ["x"], ["y"])], {"x": shape}, ["y"], kind=kind))
    errors = [d for d in found if d.rule == rule]
    assert len(errors) == 1
    assert errors[0].severity is Severity.ERROR
    assert "input x" in errors[0].found
    assert rule in {known.id for known in INPUT_RULES}


def test_a_symbolic_batch_is_fine():
    assert check_operators(model([node("Relu", ["x"], ["y"])], {"x": ["n", 3, 8, 8]}, ["y"])) == ()


@pytest.mark.parametrize("between", ["Identity", "Dropout"])
def test_one_tensor_as_two_outputs(between: str):
    nodes = [node("Relu", ["x"], ["y"]), node(between, ["y"], ["z"])]
    (found,) = check_operators(model(nodes, {"x": [1, 3, 8, 8]}, ["y", "z"]))
    assert (found.rule, found.found) == (
        "imx500/output-twice",
        "output z is the same tensor as output y",
    )


def test_an_output_that_no_input_reaches():
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["c"], ["z"])]
    found = check_operators(model(nodes, {"x": [1, 3, 8, 8]}, ["y", "z"], {"c": w(1, 3)}))
    assert [(d.rule, d.found) for d in found] == [("imx500/output-constant", "output z is a constant")]


def test_a_graph_without_shapes_is_judged_as_far_as_it_goes():
    bad = built(conv(pads=[3, 3, 3, 3]))
    for value in graphs.all_values(bad.graph):
        if value.producer() is not None:
            value.shape = None
    assert [d.rule for d in check_operators(bad)] == ["imx500/conv-padding"]
    forecast_memory(bad)


LEGAL = ("Relu", "Sigmoid", "Softmax", "Neg", "Abs", "Sqrt", "GlobalAveragePool", "Identity", "HardSwish")
ILLEGAL = ("Elu", "Softplus", "Reciprocal", "Log", "Sign", "Floor")


@given(names=st.lists(st.sampled_from((*LEGAL, *ILLEGAL)), min_size=1, max_size=12))
def test_there_is_a_violation_for_each_that_was_planted(names: list[str]):
    nodes = [
        node(name, [f"v{index}"], [f"v{index + 1}"], name=f"n{index}") for index, name in enumerate(names)
    ]
    network = model(nodes, {"v0": [1, 4, 8, 8]}, [f"v{len(names)}"])
    planted = [f"n{index}" for index, name in enumerate(names) if name in ILLEGAL]
    assert [d.node for d in check_operators(network)] == planted
    assert forecast_memory(network).fits


@pytest.mark.parametrize(
    ("mode", "scale", "found", "fix"),
    [
        (1, "g", "training_mode = 1", "model.eval()"),
        (0, "c", "scale computed by the network", "* and +"),
        (1, "c", "training_mode = 1, scale computed by the network", "* and +"),
    ],
)
def test_a_batch_norm_says_what_it_is(mode: int, scale: str, found: str, fix: str):
    constants = {name: np.ones(4, np.float32) for name in "gbmv"}
    outputs = ["y", "mean", "variance"][: 3 if mode else 1]
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]),
        node("Reshape", ["p", "shape"], ["c"]),
        node("BatchNormalization", ["x", scale, "b", "m", "v"], outputs, name="it", training_mode=mode),
    ]
    told = check_operators(model(nodes, {"x": [1, 4, 8, 8]}, ["y"], {**constants, "shape": ints(4)}))
    (it,) = [d for d in told if d.rule == "imx500/batchnorm-mode"]
    assert it.found == found
    assert fix in it.fix
