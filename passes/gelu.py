"""GELU as exporters below opset 20 write it: 0.5 * x * (1 + erf(x / sqrt 2)), the factors in any order.

It reaches the converter as one Gelu, a look-up table; an Erf by itself is no operator of the chip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph import const_array

TOLERANCE = 1e-4
"""Relative error up to which a constant is the one of the formula (exporters write 7 digits)."""


@dataclass(frozen=True)
class Gelu:
    """One GELU.

    Attributes:
        x: what it is taken of.
        erf: its Erf.
        nodes: the nodes it is written with, in graph order; nothing outside reads what is between them.
    """

    x: ir.Value
    erf: ir.Node
    nodes: tuple[ir.Node, ...]


def gelu_around(erf: ir.Node) -> Gelu | None:
    """The GELU that this Erf is part of, None where it is part of none."""
    argument = None if erf.op_type != "Erf" else erf.inputs[0]
    scaled = None if argument is None else _multiple(argument)
    if argument is None or scaled is None or not math.isclose(scaled[1], math.sqrt(0.5), rel_tol=TOLERANCE):
        return None
    x, scale = scaled[0], argument.producer()
    add = _only_reader(argument) and _only_reader(erf.outputs[0])
    if scale is None or add is None or add.op_type != "Add" or _number_beside(add, erf.outputs[0]) != 1.0:
        return None
    nodes, factor, with_x = [scale, erf, add], 1.0, False
    node: ir.Node | None = add
    while not (with_x and math.isclose(factor, 0.5, rel_tol=TOLERANCE)):
        assert node is not None
        value, node = node.outputs[0], _only_reader(node.outputs[0])
        if node is None or node.op_type not in ("Mul", "Div") or node.inputs[0] is node.inputs[1]:
            return None
        nodes.append(node)
        number = _number_beside(node, value)
        if number is not None:
            if node.op_type == "Div" and (number == 0.0 or node.inputs[0] is not value):
                return None
            factor *= number if node.op_type == "Mul" else 1.0 / number
            continue
        other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
        if node.op_type == "Div" or with_x or other is None:
            return None
        with_x = True
        if other is not x:
            gate = _multiple(other)
            below = other.producer()
            if gate is None or below is None or gate[0] is not x or _only_reader(other) is None:
                return None
            factor *= gate[1]
            nodes.insert(0, below)
    return Gelu(x, erf, tuple(nodes))


def _multiple(value: ir.Value) -> tuple[ir.Value, float] | None:
    """x and k, where one Mul or Div with a number makes `value` = k x."""
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    first, second = node.inputs
    number = _number(second)
    if first is not None and number is not None and _number(first) is None:
        if node.op_type == "Mul":
            return first, number
        return None if number == 0.0 else (first, 1.0 / number)
    number = _number(first)
    return (second, number) if node.op_type == "Mul" and second is not None and number is not None else None


def _number_beside(node: ir.Node, value: ir.Value) -> float | None:
    """The node's other operand, where it is a number."""
    others = [operand for operand in node.inputs if operand is not value]
    return _number(others[0]) if len(others) == 1 else None


def _number(value: ir.Value | None) -> float | None:
    array = const_array(value)
    return None if array is None or array.size != 1 else float(array.item())


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value, None where there are more, or it is an output of the network."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None
