"""Small quantized segmenters as packages, for the tests of what reads packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.driver import FLOAT_GRAPH, INT8_GRAPH
from compiler.package import write_package
from passes import graph as graphs
from passes.contract import raw
from tests.compiler.simulator.simulator_graphs import Dialect

SIZE = 32
LAYERS = ("stem", "body", "body", "head")
"""Modules of the four convolutions of `segmenter`; the third shares its module with the second."""


def segmenter(seed: int = 0) -> ir.Model:
    """Four convolutions with ReLUs between them, an addition, and one map of logits; int8, N = 1."""
    generator = np.random.default_rng(seed)
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, SIZE, SIZE]), 128.0)

    def convolution(value: str, inputs: int, outputs: int, gain: float) -> str:
        weight = generator.normal(size=(outputs, inputs, 3, 3)).astype(np.float32)
        weight *= np.float32(gain / np.sqrt(9 * inputs))
        bias = graph.constant(generator.normal(size=outputs) * gain)
        thresholds = np.abs(weight).max(axis=(1, 2, 3))
        kept = graph.quantized_weights(weight, thresholds)
        return graph.node("Conv", value, kept, bias, pads=[1, 1, 1, 1])

    stem = graph.quantize(graph.node("Relu", convolution(pixels, 3, 6, 1 / 64)), 4.0, signed=False)
    body = graph.quantize(graph.node("Relu", convolution(stem, 6, 6, 1.0)), 4.0, signed=False)
    more = graph.quantize(graph.node("Relu", convolution(body, 6, 6, 1.0)), 4.0, signed=False)
    both = graph.quantize(graph.node("Add", stem, more), 8.0, signed=False)
    model = graph.model(graph.quantize(convolution(both, 6, 1, 1.0), 8.0))
    modules = iter(LAYERS)
    for node in model.graph:
        if node.op_type == "Conv":
            node.metadata_props[graphs.MODULE_KEY] = next(modules)
    return _finished(model)


def red_finder(size: int = 96, gain: float = 0.5) -> ir.Model:
    """Half the red channel of the delivered integers: a pixel is mask where red is more than 129.

    A negative gain finds everything else.
    """
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, 3, size, size]), 128.0)
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, 0] = gain
    return _finished(
        graph.model(graph.quantize(graph.node("Conv", pixels, graph.quantized_weights(weight, [1.0])), 64.0)),
        size,
    )


def float_twin(model: ir.Model, shift: float = 0.0) -> ir.Model:
    """The graph without its quantizers, node names kept, every bias shifted as bias correction does."""
    copy = graphs.from_proto(graphs.to_proto(model))
    for node in list(copy.graph):
        if graphs.is_quantizer(node):
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0], replace_graph_outputs=True)
            copy.graph.remove(node, safe=True)
        elif node.op_type == "Conv" and len(node.inputs) == 3:
            bias = graphs.const_array(node.inputs[2])
            assert bias is not None
            graphs.set_constant(copy.graph, node, 2, f"{node.name}.own", (bias + shift).astype(np.float32))
    output = copy.graph.outputs[0]
    output.shape, output.dtype = model.graph.outputs[0].shape, ir.DataType.FLOAT
    return copy


def layer_node(model: ir.Model, op_type: str, number: int = 0) -> ir.Node:
    """The node of this kind and number, in graph order."""
    return [node for node in model.graph if node.op_type == op_type][number]


def packaged(folder: Path, graph: ir.Model, float_graph: ir.Model | None = None, **facts: object) -> Path:
    """A package directory that holds the graphs."""
    files = {INT8_GRAPH: graphs.to_bytes(graph)}
    if float_graph is not None:
        files[FLOAT_GRAPH] = graphs.to_bytes(float_graph)
    write_package(folder, files, {"seed": 0, **facts})
    return folder


def _finished(model: ir.Model, size: int = SIZE) -> ir.Model:
    output = model.graph.outputs[0]
    output.shape, output.dtype = ir.Shape([1, 1, size, size]), ir.DataType.FLOAT
    graphs.write_contract(model, raw(3, size, size, signed=True))
    return model
