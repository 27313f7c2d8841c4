"""The float graph's names come back onto what MCT's exporter writes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from calib.restore import restore
from passes.contract import raw
from passes.graph import MODULE_KEY, QUANTIZER_DOMAIN, from_proto, static_shape, write_contract
from tests.calib.graphs import model_of

HOLDER = "_activation_holder_quantizer"


def quantizer(scope: str, given: str, made: str) -> onnx.NodeProto:
    return helper.make_node(
        "ActivationPOTQuantizer",
        [given],
        [made],
        name=f"/{scope}{HOLDER}/ActivationPOTQuantizer",
        domain=QUANTIZER_DOMAIN,
        num_bits=8,
        signed=0,
        threshold=8.0,
    )


def float_model() -> ir.Model:
    """Conv, Relu, Split, and a Resize of its first part; 7 is an output, as torch's exporter calls them."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="/net/conv/Conv"),
        helper.make_node("Relu", ["c"], ["r"], name="/net/act/Relu"),
        helper.make_node("Split", ["r", "parts"], ["s0", "s1"], name="/net/Split", axis=1),
        helper.make_node("Resize", ["s0", "", "", "size"], ["7"], name="/net/Resize", mode="nearest"),
    ]
    constants = {
        "w": np.ones((4, 3, 1, 1), np.float32),
        "b": np.zeros(4, np.float32),
        "parts": np.array([1, 3], np.int64),
        "size": np.array([1, 1, 9, 9], np.int64),
    }
    model = model_of(nodes, {"x": (1, 3, 4, 4)}, ["7", "s1"], constants)
    next(iter(model.graph)).metadata_props[MODULE_KEY] = "net.conv"
    write_contract(model, raw(3, 4, 4))
    return model


NAMES = {"net_conv": "/net/conv/Conv", "net_act": "/net/act/Relu", "split": "/net/Split", "up": "/net/Resize"}


def exported_model() -> ir.Model:
    """As MCT's exporter writes the float model: symbolic batch, arithmetic on shapes, its own names."""
    weight = helper.make_node(
        "WeightsSymmetricQuantizer",
        ["net_conv_bn.weight", "t"],
        ["wq"],
        name="/net_conv_bn/WeightsSymmetricQuantizer",
        domain=QUANTIZER_DOMAIN,
        num_bits=8,
        signed=1,
        per_channel=1,
        channel_axis=0,
    )
    threshold = helper.make_node(
        "Constant",
        [],
        ["t"],
        name="/net_conv_bn/Constant",
        value=numpy_helper.from_array(np.ones(4, np.float32)),
    )
    nodes = [
        quantizer("x", "input", "xq"),
        threshold,
        weight,
        helper.make_node("Conv", ["xq", "wq", "bias"], ["c"], name="/net_conv_bn/layer/Conv"),
        helper.make_node("Relu", ["c"], ["r"], name="/net_act/Relu"),
        quantizer("net_act", "r", "rq"),
        helper.make_node("Split", ["rq", "sizes"], ["a", "output_1"], name="/split/Split", axis=1),
        helper.make_node("Shape", ["a"], ["shape"], name="/up/Shape"),
        helper.make_node("Slice", ["shape", "zero", "two"], ["front"], name="/up/Slice"),
        helper.make_node("Concat", ["front", "nine"], ["target"], name="/up/Concat", axis=0),
        helper.make_node("Resize", ["a", "", "", "target"], ["u"], name="/up/Resize", mode="nearest"),
        quantizer("up", "u", "output_0"),
    ]
    constants = {
        "net_conv_bn.weight": np.ones((4, 3, 1, 1), np.float32),
        "bias": np.zeros(4, np.float32),
        "sizes": np.array([1, 3], np.int64),
        "zero": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "nine": np.array([9, 9], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch_size", 3, 4, 4])],
        [
            helper.make_tensor_value_info(f"output_{i}", TensorProto.FLOAT, ["batch_size", None, None, None])
            for i in range(2)
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(QUANTIZER_DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=9, producer_name="pytorch")
    return from_proto(proto)


def restored() -> ir.Model:
    quantized = exported_model()
    restore(quantized, float_model(), NAMES, ["x"])
    return quantized


def test_nodes_and_values_have_the_float_graphs_names() -> None:
    found = {
        str(node.name): ([v.name if v else "" for v in node.inputs], [v.name for v in node.outputs])
        for node in restored().graph
        if node.op_type != "Constant"
    }
    conv = "/net/conv/Conv"
    assert found == {
        "x/quantizer": (["x"], ["x/quantized"]),
        f"{conv}/weight_quantizer": (
            [f"{conv}/weight", f"{conv}/weight_threshold"],
            [f"{conv}/weight_quantized"],
        ),
        conv: (["x/quantized", f"{conv}/weight_quantized", f"{conv}/bias"], ["c"]),
        "/net/act/Relu": (["c"], ["r/real"]),
        "/net/act/Relu/quantizer": (["r/real"], ["r"]),
        "/net/Split": (["r", "/net/Split/constant"], ["s0", "s1"]),
        "/net/Resize": (["s0", "", "", "/net/Resize/constant"], ["7/real"]),
        "/net/Resize/quantizer": (["7/real"], ["7"]),
    }


def test_interface_metadata_and_producer() -> None:
    quantized, model = restored(), float_model()
    assert [(v.name, static_shape(v)) for v in quantized.graph.inputs] == [("x", (1, 3, 4, 4))]
    assert [(v.name, static_shape(v)) for v in quantized.graph.outputs] == [
        ("7", (1, 1, 9, 9)),
        ("s1", (1, 3, 4, 4)),
    ]
    assert quantized.metadata_props == model.metadata_props
    assert quantized.producer_name == "pytorch"
    modules = {node.name: node.metadata_props.get(MODULE_KEY) for node in quantized.graph}
    assert modules["/net/conv/Conv"] == modules["/net/conv/Conv/weight_quantizer"] == "net.conv"
    assert modules["x/quantizer"] is None


def test_sizes_are_constants_and_every_value_has_its_shape() -> None:
    graph = restored().graph
    assert "Shape" not in {node.op_type for node in graph}
    resize = next(node for node in graph if node.op_type == "Resize")
    sizes = resize.inputs[3]
    assert sizes is not None
    assert sizes.const_value is not None
    np.testing.assert_array_equal(sizes.const_value.numpy(), [1, 1, 9, 9])
    assert all(static_shape(value) is not None for node in graph for value in node.outputs)


def test_what_mct_adds_to_a_node_is_named_after_it() -> None:
    quantized = exported_model()
    relu = next(node for node in quantized.graph if node.op_type == "Relu")
    relu.name = "/net_act_post_add/Add"
    restore(quantized, float_model(), NAMES, ["x"])
    assert "/net/act/Relu/post_add" in {node.name for node in quantized.graph}
