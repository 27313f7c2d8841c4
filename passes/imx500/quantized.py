"""Legality of a graph in the vendor dialect: what the float stage does not have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from passes.diagnostics import Diagnostic
from passes.graph import is_quantizer, real_inputs
from passes.imx500.geometry import is_constant, static_nodes
from passes.imx500.rules import QUANTIZED_RULES, TENSOR_RULES
from passes.imx500.rules.quantizers import PRESERVING


def check_quantized(model: ir.Model) -> tuple[Diagnostic, ...]:
    """All violations of the quantized stage: kinds, widths and thresholds of quantizers, and missing ones."""
    subjects = ((rule, node) for node in model.graph for rule in QUANTIZED_RULES)
    found = [
        rule.diagnose(node) for rule, node in subjects if not rule.operators or node.op_type in rule.operators
    ]
    found += [rule.diagnose(value) for value in _computed(model.graph) for rule in TENSOR_RULES]
    return tuple(diagnostic for diagnostic in found if diagnostic is not None)


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    """Where numbers come from that no quantizer has seen: inputs, and what layers compute."""
    static = static_nodes(graph)
    yield from real_inputs(graph)
    for node in graph:
        if node not in static and not is_quantizer(node) and node.op_type not in PRESERVING:
            yield from (value for value in node.outputs if not is_constant(value))
