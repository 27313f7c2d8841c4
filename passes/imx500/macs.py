"""Cost: multiply-accumulates and parameters, counted node by node from the shapes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from passes.graph import module_of
from passes.imx500.geometry import (
    behind,
    data_nodes,
    input_at,
    is_constant,
    is_standard,
    shape_behind,
    window,
)
from passes.imx500.stage import float_view


@dataclass(frozen=True)
class LayerCost:
    """Cost of one node for one picture.

    Attributes:
        node: name of the ONNX node.
        operator: its ONNX operator type.
        module: dotted torch module, "" where unknown.
        macs: multiply-accumulates (a multiplication and an addition count as one).
        parameters: numbers in its weights, biases and normalisation. Weights that several nodes share count
            at the first of them; equal biases may be stored once by chance and count at each.
        counted: both numbers are exact; else they are what is known of an operator or a shape that is not.
    """

    node: str
    operator: str
    module: str
    macs: int
    parameters: int
    counted: bool = True


PARAMETER_INPUTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "PRelu": (1,),
}
"""Which inputs are learnt; of a batch norm the scale and shift, as in torch's parameter count."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose multiply-accumulates are counted."""

NOT_COUNTED = frozenset(
    {
        "Attention", "ConvInteger", "DFT", "DeformConv", "Det", "Einsum", "GRU", "If", "LSTM", "Loop",
        "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN", "STFT", "Scan",
    }
)  # fmt: skip
"""The other operators of ONNX that multiply and accumulate, or hold a graph that may; the chip has none."""


def count_macs(model: ir.Model) -> tuple[LayerCost, ...]:
    """Cost of every node that works on data, in graph order; float or vendor dialect.

    Lengths that are not known (a symbolic batch) count as 1.
    """
    graph = float_view(model).model.graph
    seen: set[ir.Value] = set()
    costs = []
    for node in data_nodes(graph):
        parameters = 0
        for value in _parameter_values(node):
            shape = shape_behind(value) or ()
            if len(shape) < 2 or value not in seen:
                seen.add(value)
                parameters += _size(value)
        costs.append(
            LayerCost(
                node.name or "", node.op_type, module_of(node), node_macs(node), parameters, is_counted(node)
            )
        )
    return tuple(costs)


def is_counted(node: ir.Node) -> bool:
    """The node's multiply-accumulates follow from its operator and its shapes (the batch left aside)."""
    if not is_standard(node) or node.op_type in NOT_COUNTED or not onnx.defs.has(node.op_type):
        return False
    if node.op_type not in PRODUCTS:
        return True
    shapes = [shape_behind(value) for value in (input_at(node, 0), input_at(node, 1), node.outputs[0])]
    return all(shape is not None and None not in shape[1:] for shape in shapes)


def node_macs(node: ir.Node) -> int:
    """Multiply-accumulates of one node: convolutions and matrix products, 0 for every other operator."""
    out = _size(node.outputs[0])
    match node.op_type:
        case "Conv":
            weight = shape_behind(input_at(node, 1)) or ()
            return out * _product(weight[1:])
        case "ConvTranspose":
            weight, found = shape_behind(input_at(node, 1)) or (), window(node)
            return _size(input_at(node, 0)) * _product(weight[1:]) if found is not None else 0
        case "Gemm" | "MatMul":
            inner = (shape_behind(input_at(node, 0)) or (1,))[-1]
            return out * (inner or 1)
    return 0


def _parameter_values(node: ir.Node) -> list[ir.Value]:
    values = [input_at(node, index) for index in PARAMETER_INPUTS.get(node.op_type, ())]
    found = [behind(value) for value in values if value is not None and is_constant(value)]
    if node.op_type == "Add" and _follows_matmul(node):
        found.extend(behind(value) for value in node.inputs if value is not None and is_constant(value))
    return found


def _follows_matmul(add: ir.Node) -> bool:
    """The addition is the bias of a linear layer, which the exporter writes as MatMul and Add."""
    producers = [behind(value).producer() for value in add.inputs if value is not None]
    return any(
        producer is not None and producer.op_type == "MatMul" and is_constant(input_at(producer, 1))
        for producer in producers
    )


def _size(value: ir.Value | None) -> int:
    return _product(shape_behind(value) or ())


def _product(sides: tuple[int | None, ...]) -> int:
    result = 1
    for side in sides:
        result *= side or 1
    return result
