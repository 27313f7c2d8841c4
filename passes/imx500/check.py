"""Legality: every violation of every node, at the float stage and at the quantized one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import onnx_ir as ir

from passes.diagnostics import Diagnostic, Severity
from passes.graph import is_quantized, module_of, real_inputs, static_shape
from passes.imx500.geometry import data_nodes, static_nodes
from passes.imx500.limits import MAX_RANK, MIN_RANK, SOURCE
from passes.imx500.quantized import check_quantized
from passes.imx500.rules import RULES, Rule
from passes.imx500.stage import float_view


def check_operators(model: ir.Model) -> tuple[Diagnostic, ...]:
    """All violations of all nodes, in graph order.

    Args:
        model: the float graph after simplification, or a graph in the vendor dialect (then the rules on
            quantizers apply as well). Shapes are inferred; the batch is 1 or symbolic.
    """
    found = [*_check_inputs(model.graph)]
    graph = float_view(model).model.graph
    for node in data_nodes(graph):
        found.extend(_check_node(node))
    found.extend(_check_outputs(graph))
    if is_quantized(model):
        found.extend(check_quantized(model))
    return tuple(found)


OPERATOR_RULE = "imx500/operator"
"""Of an operator that the target does not have, nothing else is told."""


@cache
def _rules_of(operator: str) -> tuple[Rule, ...]:
    """The rules of an operator; whether the target has it at all comes first."""
    rules = (rule for rule in RULES if not rule.operators or operator in rule.operators)
    return tuple(sorted(rules, key=lambda rule: rule.id != OPERATOR_RULE))


def _check_node(node: ir.Node) -> Iterator[Diagnostic]:
    for rule in _rules_of(node.op_type):
        found = rule.check(node)
        if found is not None:
            yield Diagnostic(
                rule.id,
                rule.severity,
                node.name or "",
                module_of(node),
                found.found,
                rule.text,
                found.fix,
                SOURCE,
            )
            if rule.id == OPERATOR_RULE:
                return


def _check_inputs(graph: ir.Graph) -> Iterator[Diagnostic]:
    """Batch 1 or symbolic, every other axis a number, float32."""
    for value in real_inputs(graph):
        shape = static_shape(value)
        if shape is None or not MIN_RANK <= len(shape) <= MAX_RANK:
            rank = "unknown" if shape is None else str(len(shape))
            yield _about_input(
                value,
                "input-rank",
                f"rank {rank}",
                f"{MIN_RANK} to {MAX_RANK} axes, the batch included",
                "export with an example input that has the batch axis, for instance (1, 3, 96, 96)",
            )
            continue
        if shape[0] not in (None, 1):
            yield _about_input(
                value,
                "input-batch",
                f"batch {shape[0]}",
                "a batch of 1, or a symbolic one",
                "export with an example input of batch 1",
            )
        if None in shape[1:]:
            yield _about_input(
                value,
                "input-dynamic",
                f"shape {[dim if dim is not None else '?' for dim in shape]}",
                "every axis but the batch is a fixed number",
                "export without dynamic_axes for channels, height and width, or give --input-size HxW",
            )
        if value.dtype not in (None, ir.DataType.FLOAT):
            yield _about_input(
                value,
                "input-type",
                f"type {value.dtype}",
                "float32 (the sensor's integers are handed over as floats)",
                "export with a float32 example input",
            )


def _check_outputs(graph: ir.Graph) -> Iterator[Diagnostic]:
    """Every output depends on the input."""
    static, inputs = static_nodes(graph), set(graph.inputs)
    for value in graph.outputs:
        producer = value.producer()
        if producer in static or (producer is None and value not in inputs):
            yield Diagnostic(
                "imx500/output-constant",
                Severity.ERROR,
                "",
                "",
                f"output {value.name} is a constant",
                "every output depends on the input",
                "leave it out of the network: the host knows it",
                SOURCE,
            )


def _about_input(value: ir.Value, rule: str, found: str, limit: str, fix: str) -> Diagnostic:
    return Diagnostic(
        f"imx500/{rule}", Severity.ERROR, "", "", f"input {value.name}: {found}", limit, fix, SOURCE
    )
