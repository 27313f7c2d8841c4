"""The quantized stage: kinds and widths of quantizers, thresholds, missing quantizers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx_ir as ir
import pytest

from passes import graph as graphs
from passes.diagnostics import Severity, has_errors
from passes.imx500.check import check_operators
from passes.imx500.memory import forecast_memory
from passes.imx500.quantized import check_quantized
from passes.imx500.rules import QUANTIZED_RULES, TENSOR_RULES
from passes.imx500.stage import float_view

DOMAIN = graphs.QUANTIZER_DOMAIN


def activation(source: str, result: str, kind="ActivationPOTQuantizer", **attributes) -> onnx.NodeProto:
    given = {"num_bits": 8, "signed": 1, "threshold": 1.0, **attributes}
    return oh.make_node(kind, [source], [result], domain=DOMAIN, name=f"q_{source}", **given)


def weights(kind="WeightsSymmetricQuantizer", **attributes) -> onnx.NodeProto:
    given = {"num_bits": 8, "signed": 1, "per_channel": 1, "channel_axis": 0, **attributes}
    return oh.make_node(kind, ["k", "t"], ["qk"], domain=DOMAIN, name="q_k", **given)


def network(*nodes: onnx.NodeProto, output="y") -> ir.Model:
    """Quantizers around one 3x3 convolution with ReLU, 3 -> 32 channels, as MCT writes it."""
    given = {node.output[0]: node for node in nodes}
    standard = [
        activation("x", "qx"),
        weights(),
        oh.make_node("Conv", ["qx", "qk", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        oh.make_node("Relu", ["c"], ["r"], name="relu"),
        activation("r", "y", signed=0),
    ]
    graph = oh.make_graph(
        [given.pop(node.output[0], node) for node in standard],
        "quantized",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [oh.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [
            onh.from_array(np.full((32, 3, 3, 3), 0.1, np.float32), "k"),
            onh.from_array(np.full(32, 0.25, np.float32), "t"),
            onh.from_array(np.zeros(32, np.float32), "b"),
        ],
    )
    assert not given
    opsets = [oh.make_opsetid("", 20), oh.make_opsetid(DOMAIN, 1)]
    return graphs.from_proto(oh.make_model(graph, opset_imports=opsets, ir_version=9))


def without(built: ir.Model, name: str) -> ir.Model:
    """The network with a quantizer taken out."""
    (quantizer,) = [node for node in built.graph if node.name == name]
    ir.convenience.replace_all_uses_with(
        quantizer.outputs[0], quantizer.inputs[0], replace_graph_outputs=True
    )
    built.graph.remove(quantizer, safe=True)
    return built


def test_what_mct_writes_is_legal():
    assert check_operators(network()) == ()


@pytest.mark.parametrize(
    ("node", "rule", "found"),
    [
        (activation("x", "qx", num_bits=4), "imx500/bits-activations", "num_bits = 4"),
        (weights(num_bits=3), "imx500/bits-weights", "num_bits = 3"),
        (weights(num_bits=16), "imx500/bits-weights", "num_bits = 16"),
        (
            activation("x", "qx", kind="ActivationUniformQuantizer"),
            "imx500/quantizer-activations",
            "quantizer ActivationUniformQuantizer",
        ),
        (
            weights(kind="WeightsUniformQuantizer"),
            "imx500/quantizer-weights",
            "quantizer WeightsUniformQuantizer",
        ),
        (activation("x", "qx", threshold=0.0), "imx500/threshold", "threshold = 0"),
        (
            activation("r", "y", signed=0, num_bits=16),
            "imx500/signed-16-bit",
            "num_bits = 16, signed = 0",
        ),
        (activation("x", "qx", num_bits=16), "imx500/reads-8-bit", "num_bits = 16, read by conv (Conv)"),
    ],
)
def test_quantizers_that_are_refused(node: onnx.NodeProto, rule: str, found: str):
    errors = check_operators(network(node))
    assert [(d.rule, d.found, d.severity) for d in errors] == [(rule, found, Severity.ERROR)]
    assert errors[0].node == node.name


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_widths_of_weights_that_pass(bits: int):
    assert check_operators(network(weights(num_bits=bits))) == ()


def wide(*behind: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> ir.Model:
    """A tensor `qx` [1, 32, 16, 16] of 16 bits, read by the nodes; what they make, `made`, has 8."""
    nodes = [activation("x", "qx", num_bits=16), *behind, activation("made", "y")]
    graph = oh.make_graph(
        nodes,
        "wide",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 32, 16, 16])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onh.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [oh.make_opsetid("", 20), oh.make_opsetid(DOMAIN, 1)]
    return graphs.from_proto(oh.make_model(graph, opset_imports=opsets, ir_version=9))


KERNEL = np.ones((32, 32, 1, 1), np.float32)
AXES = {"axes": np.array([2, 3])}
SIZES = {"sizes": np.array([1, 32, 32, 32])}


@pytest.mark.parametrize(
    ("operator", "attributes", "constants"),
    [
        ("Conv", {}, {"w": KERNEL}),
        ("ConvTranspose", {}, {"w": KERNEL}),
        ("MatMul", {}, {"w": np.ones((16, 16), np.float32)}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, {}),
        ("GlobalAveragePool", {}, {}),
        ("Softmax", {"axis": 1}, {}),
        ("ReduceMean", {}, AXES),
        ("ReduceSum", {}, AXES),
        ("ReduceMax", {}, AXES),
    ],
)
def test_what_the_converter_refuses_to_read_in_16_bits(operator, attributes, constants):
    """Each was refused by the converter: "input number 0 not support 16 number of bits"."""
    node = oh.make_node(operator, ["qx", *constants], ["made"], name="reader", **attributes)
    (error,) = [d for d in check_operators(wide(node, constants=constants)) if d.rule == "imx500/reads-8-bit"]
    assert (error.severity, error.node, error.found) == (
        Severity.ERROR,
        "q_x",
        f"num_bits = 16, read by reader ({operator})",
    )


def test_a_resize_reads_8_bits():
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    node = oh.make_node("Resize", ["qx", "", "", "sizes"], ["made"], name="reader", **mode)
    found = {d.rule for d in check_operators(wide(node, constants=SIZES))}
    assert found == {"imx500/reads-8-bit"}


@pytest.mark.parametrize(
    ("operator", "constants"),
    [
        *((operator, {}) for operator in ("Sigmoid", "Tanh", "HardSwish", "Gelu", "Exp", "Relu")),
        *((operator, {}) for operator in ("LeakyRelu", "Abs", "Neg", "Sqrt", "Sin")),
        *((operator, {"c": np.float32(0.5)}) for operator in ("Add", "Mul")),
        ("Reshape", {"shape": np.array([1, 32, 256])}),
        ("ReduceL2", {"axes": np.array([1])}),
    ],
)
def test_what_the_converter_reads_in_16_bits(operator, constants):
    node = oh.make_node(operator, ["qx", *constants], ["made"], name="reader")
    assert check_operators(wide(node, constants=constants)) == ()


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Concat"])
def test_two_tensors_of_which_one_has_16_bits(operator):
    attributes = {"axis": 1} if operator == "Concat" else {}
    nodes = [
        oh.make_node("Relu", ["x"], ["other"], name="relu"),
        activation("other", "narrow", signed=0),
        oh.make_node(operator, ["qx", "narrow"], ["made"], name="reader", **attributes),
    ]
    assert check_operators(wide(*nodes)) == ()


def test_16_bits_that_were_moved_are_still_16_bits():
    """The converter refused a Transpose between the quantizer and a convolution."""
    nodes = [
        oh.make_node("Transpose", ["qx"], ["turned"], name="turn", perm=[0, 1, 3, 2]),
        oh.make_node("Conv", ["turned", "w"], ["made"], name="conv"),
    ]
    found = [d.found for d in check_operators(wide(*nodes, constants={"w": KERNEL})) if d.node == "q_x"]
    assert found == ["num_bits = 16, read by conv (Conv)"]


def test_a_second_quantizer_narrows():
    nodes = [
        activation("qx", "narrow"),
        oh.make_node("Conv", ["narrow", "w"], ["made"], name="conv"),
    ]
    rules = {d.rule for d in check_operators(wide(*nodes, constants={"w": KERNEL}))}
    assert rules == {"imx500/quantizer-weights-missing"}


def test_a_threshold_that_is_no_power_of_two_is_a_warning():
    (warning,) = check_operators(network(activation("x", "qx", threshold=1.3)))
    assert warning.rule == "imx500/threshold-power-of-two"
    assert warning.severity is Severity.WARNING
    assert warning.fix.startswith("set the threshold to 2,")


@pytest.mark.parametrize(
    ("quantizer", "found"),
    [
        ("q_x", "tensor x without a quantizer, read by conv"),
        ("q_r", "tensor r without a quantizer, an output of the network"),
    ],
)
def test_missing_quantizers_of_activations(quantizer: str, found: str):
    (error,) = check_operators(without(network(), quantizer))
    assert (error.rule, error.found) == ("imx500/quantizer-missing", found)


def test_bare_weights_are_a_note():
    """The converter was seen to take them (MCT writes shared layers so)."""
    found = check_operators(without(network(), "q_k"))
    assert [(d.rule, d.severity) for d in found] == [("imx500/quantizer-weights-missing", Severity.NOTE)]
    assert not has_errors(found)


def test_a_float_graph_lacks_every_quantizer():
    found = check_quantized(float_view(network()).model)
    assert [(d.found, d.node) for d in found if d.rule == "imx500/quantizer-missing"] == [
        ("tensor x without a quantizer, read by conv", ""),
        ("tensor r without a quantizer, an output of the network", "relu"),
    ]


def test_an_unquantized_tensor_is_found_behind_what_only_moves_it():
    built = without(network(), "q_r")
    (relu,) = [node for node in built.graph if node.name == "relu"]
    turned = ir.Node("", "Transpose", relu.outputs, [ir.AttrInt64s("perm", [0, 2, 3, 1])], name="turn")
    built.graph.append(turned)
    built.graph.outputs[0] = turned.outputs[0]
    turned.outputs[0].name = "y"
    assert [(d.rule, d.node) for d in check_operators(built)] == [("imx500/quantizer-missing", "relu")]


def test_a_quantizer_without_threshold():
    built = network()
    (quantizer,) = [node for node in built.graph if node.name == "q_x"]
    del quantizer.attributes["threshold"]
    assert [(d.rule, d.found) for d in check_operators(built)] == [("imx500/threshold", "no threshold")]


def test_every_rule_of_this_stage_is_broken_here():
    broken = {
        *check_operators(network(activation("x", "qx", kind="ActivationUniformQuantizer", num_bits=4))),
        *check_operators(network(weights(kind="WeightsUniformQuantizer", num_bits=3))),
        *check_operators(network(activation("x", "qx", threshold=-1.0))),
        *check_operators(network(activation("x", "qx", threshold=1.3))),
        *check_operators(without(network(), "q_k")),
        *check_operators(without(network(), "q_x")),
        *check_operators(network(activation("x", "qx", num_bits=16))),
        *check_operators(network(activation("r", "y", num_bits=16, signed=0))),
    }
    assert {d.rule for d in broken} == {rule.id for rule in (*QUANTIZED_RULES, *TENSOR_RULES)}


def test_the_rules_on_operators_see_through_quantizers():
    built = network()
    (relu,) = [node for node in built.graph if node.name == "relu"]
    relu.op_type = "Elu"
    assert [(d.rule, d.node) for d in check_operators(built)] == [("imx500/operator", "relu")]


def test_forecast_of_a_quantized_graph():
    """3 -> 32, 3x3: 32 * 32 * 9 + 6 * 32 + 32 for the output; 5,632 of input and two tensors of 8,192."""
    forecast = forecast_memory(network())
    assert forecast.model_bytes == 9_216 + 192 + 32
    assert forecast.runtime_bytes == 5_632 + 2 * 8_192


def test_weights_of_four_bits_take_half():
    """The input's convolution is kept at 8 bits, so the one behind it is looked at."""
    nodes = network().graph
    wide = network(weights(num_bits=4))
    assert len(nodes) == len(wide.graph)
    kernel = wide.graph.initializers["k"]
    kernel.const_value = ir.tensor(np.full((32, 32, 3, 3), 0.1, np.float32), name="k")
    kernel.shape = ir.Shape((32, 32, 3, 3))
    wide.graph.inputs[0].shape = ir.Shape(("batch", 32, 16, 16))
    assert forecast_memory(wide).model_bytes == 9_216 // 2 + 192 + 32
