"""Legality: every violation of every node, at the float stage and at the quantized one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import onnx_ir as ir

from passes.diagnostics import Diagnostic
from passes.graph import is_quantized, real_inputs
from passes.imx500.geometry import data_nodes
from passes.imx500.quantized import check_quantized
from passes.imx500.rules import INPUT_RULES, OUTPUT_RULES, RULES, Rule
from passes.imx500.stage import float_view


def check_operators(model: ir.Model) -> tuple[Diagnostic, ...]:
    """All violations of all nodes, in graph order.

    Args:
        model: the float graph after simplification, or a graph in the vendor dialect (then the rules on
            quantizers apply as well). Shapes are inferred; the batch is 1 or symbolic.
    """
    graph = float_view(model).model.graph
    found = [rule.diagnose(value) for value in real_inputs(model.graph) for rule in INPUT_RULES]
    for node in data_nodes(graph):
        found.extend(_check_node(node))
    found += [rule.diagnose(value) for value in dict.fromkeys(graph.outputs) for rule in OUTPUT_RULES]
    if is_quantized(model):
        found.extend(check_quantized(model))
    return tuple(diagnostic for diagnostic in found if diagnostic is not None)


OPERATOR_RULE = "imx500/operator"
"""Of an operator that the target does not have, nothing else is told."""


@cache
def _rules_of(operator: str) -> tuple[Rule[ir.Node], ...]:
    """The rules of an operator; whether the target has it at all comes first."""
    rules = (rule for rule in RULES if not rule.operators or operator in rule.operators)
    return tuple(sorted(rules, key=lambda rule: rule.id != OPERATOR_RULE))


def _check_node(node: ir.Node) -> Iterator[Diagnostic]:
    for rule in _rules_of(node.op_type):
        found = rule.diagnose(node)
        if found is not None:
            yield found
            if rule.id == OPERATOR_RULE:
                return
