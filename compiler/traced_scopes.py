"""Where the operators of an exported program come from: torch module and source line, carried into ONNX.

A torch.export program remembers both for each of its operations, but the exporter sees one flat module. So
each operation is traced in a scope of its own; the exporter writes the scope into the names of the ONNX
nodes, which lead back to the operation.
"""

from __future__ import annotations

import re
import types
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from passes.graph import LINE_KEY, MODULE_KEY
from passes.names import source_line

if TYPE_CHECKING:
    import torch

SCOPE = "operation"
"""Class name in the scopes, which the exporter drops."""


def trace_in_scopes(program: torch.fx.GraphModule) -> None:
    """Change how the module runs, in place: one operation after the other, each in a scope named after it."""
    from torch import _C, fx

    class Steps(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            state = _C._get_tracing_state()
            if state is None or n.op != "call_function":
                return super().run_node(n)
            state.push_scope(f"{SCOPE}::{n.name}")
            try:
                return super().run_node(n)
            finally:
                state.pop_scope()

    def forward(self: fx.GraphModule, *arguments: Any) -> Any:
        return Steps(self).run(*arguments)

    program.forward = types.MethodType(forward, program)


def restore_places(graph: ir.Graph, program: torch.fx.GraphModule) -> None:
    """Module path and source line into the metadata of the nodes, the module path into their names."""
    operations = {operation.name: operation.meta for operation in program.graph.nodes}
    for node in graph:
        scope, _, kind = (node.name or "").removeprefix("/").rpartition("/")
        if scope not in operations:
            continue
        module = _module(operations[scope])
        node.name = "/".join(["", *module.split("."), kind] if module else ["", kind])
        if module:
            node.metadata_props[MODULE_KEY] = module
        if line := source_line(operations[scope].get("stack_trace") or ""):
            node.metadata_props[LINE_KEY] = line


def _module(operation: dict[str, Any]) -> str:
    """Dotted path of the innermost module, "" where the program has none that is a path.

    Of a network that is itself an nn.Sequential torch saves expressions such as getattr(L['fn'], '0').
    """
    paths = [path for path, _ in (operation.get("nn_module_stack") or {}).values()]
    return paths[-1] if paths and all(re.fullmatch(r"(\w+(\.\w+)*)?", path) for path in paths) else ""
