"""Fix a symbolic batch at 1: the chip runs one picture at a time, and shapes behind it become constants."""

from __future__ import annotations

import onnx_ir as ir

from passes.graph import real_inputs


class FixBatch(ir.passes.InPlacePass):
    """A symbolic first dimension of every input becomes 1; shapes that depended on it are inferred anew."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in real_inputs(model.graph):
            if value.shape is not None and len(value.shape) > 0 and not isinstance(value.shape[0], int):
                value.shape = ir.Shape([1, *list(value.shape)[1:]])
                modified = True
        if modified:
            forget_shapes(model.graph)
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        for value in real_inputs(model.graph):
            if value.shape is not None and len(value.shape) > 0 and not isinstance(value.shape[0], int):
                raise ir.passes.PostconditionError(f"the batch of {value.name} is still symbolic")


def forget_shapes(graph: ir.Graph) -> None:
    """Drop inferred shapes (ranks of the outputs stay), so that the next inference starts from the inputs."""
    for node in graph:
        for output in node.outputs:
            rank = None if output.shape is None else len(output.shape)
            output.shape = ir.Shape([None] * rank) if output.is_graph_output() and rank is not None else None
