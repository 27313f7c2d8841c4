"""Remove what no output depends on: nodes, initializers, and unused operator-set imports."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


class RemoveDead(ir.passes.InPlacePass):
    """Drop unused nodes, initializers and functions; the graph's inputs and outputs stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = common.RemoveUnusedNodesPass()(model)
        functions = common.RemoveUnusedFunctionsPass()(model)
        return ir.passes.PassResult(model, modified=nodes.modified or functions.modified)

    def ensures(self, model: ir.Model) -> None:
        dead = [
            node.name
            for node in model.graph
            if not any(output.uses() or output.is_graph_output() for output in node.outputs)
        ]
        if dead:
            raise ir.passes.PostconditionError(f"dead nodes are left: {dead}")
