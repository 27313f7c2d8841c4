"""The layers of a quantized graph: what lies between one activation quantizer and those before it.

A layer is an activation quantizer with the operators that compute what it rounds (a convolution and its ReLU,
an addition, a resize) and the quantizers of their weights. It bears the dotted path of the module in the
user's model; operators written outside any module (`a + b`) keep the name of their ONNX node.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from passes.graph import is_activation_quantizer, is_quantizer, module_of

FUNCTIONS = ("Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "Gelu")
"""Operators that follow the one a layer is named by."""

WARNING_DB = 20.0
"""Below this ratio at the output a layer, quantized alone, is warned of (docs/simulator.md, measured)."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer.

    Attributes:
        name: dotted module path where known, else the node's name; unique in the graph.
        operators: operator types in graph order, quantizers left out; empty for the input's quantizer.
        nodes: those operators.
        weights: the quantizers of their weights.
        activation: the quantizer of the result; None where the graph leaves its output unquantized.
        tensor: name of the result.
    """

    name: str
    operators: tuple[str, ...]
    nodes: tuple[ir.Node, ...]
    weights: tuple[ir.Node, ...]
    activation: ir.Node | None
    tensor: str


def quantized_layers(model: ir.Model) -> tuple[Layer, ...]:
    """The layers of a vendor-dialect graph, in graph order.

    An operator that feeds two quantizers belongs to the first of them. Operators behind the last quantizer
    are a layer only where they have quantized weights; those that merely move integers are none.
    """
    order = {node: index for index, node in enumerate(model.graph)}
    taken: set[ir.Node] = set()
    taken_names: dict[str, int] = {}
    layers = []
    for node in model.graph:
        if is_activation_quantizer(node):
            found = _segment(node.inputs[0], taken, order)
            layers.append(_layer(found, node, node.outputs[0], taken_names))
    for output in model.graph.outputs:
        found = _segment(output, taken, order)
        if any(is_quantizer(node) for node in found):
            layers.append(_layer(found, None, output, taken_names))
    return tuple(layers)


def _segment(end: ir.Value | None, taken: set[ir.Node], order: dict[ir.Node, int]) -> list[ir.Node]:
    """The nodes that compute `end` from quantized activations and inputs, and that no layer has yet."""
    waiting, found = [end], []
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or node in taken or is_activation_quantizer(node):
            continue
        taken.add(node)
        found.append(node)
        waiting += node.inputs
    return sorted(found, key=order.__getitem__)


def _layer(
    found: list[ir.Node], activation: ir.Node | None, result: ir.Value, taken_names: dict[str, int]
) -> Layer:
    weights = tuple(node for node in found if is_quantizer(node))
    nodes = tuple(node for node in found if not is_quantizer(node) and node.op_type != "Constant")
    weighted = [node for node in nodes if any(v is not None and v.producer() in weights for v in node.inputs)]
    computing = [node for node in nodes if node.op_type not in FUNCTIONS]
    named = next(iter([*weighted, *computing[-1:], *nodes[-1:]]), None)
    if named is not None:
        name = module_of(named) or (named.name or result.name or "").strip("/")
    else:  # the quantizer of an input, or a second one behind another
        before = None if activation is None else activation.inputs[0]
        name = ("" if before is None else before.name) or result.name or ""
    taken_names[name] = count = taken_names.get(name, 0) + 1
    return Layer(
        name if count == 1 else f"{name} ({count})",
        tuple(node.op_type for node in nodes),
        nodes,
        weights,
        activation,
        result.name or "",
    )
