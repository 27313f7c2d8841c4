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
    ],
)
def test_quantizers_that_are_refused(node: onnx.NodeProto, rule: str, found: str):
    errors = check_operators(network(node))
    assert [(d.rule, d.found, d.severity) for d in errors] == [(rule, found, Severity.ERROR)]
    assert errors[0].node == node.name


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_widths_of_weights_that_pass(bits: int):
    assert check_operators(network(weights(num_bits=bits))) == ()


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
