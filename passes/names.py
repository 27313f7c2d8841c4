"""Give every node and value a stable name.

Names are what diagnostics, dumps and the quantized graph refer to, so they must be there, be unique, and be
the same in every run. Names the exporter gave are kept. torch.onnx.export(dynamo=False) writes the path of
the torch module into them (`/features/features.0/conv/conv.1/Conv`), which is where the dotted module path
of a diagnostic comes from; with dynamo=True it writes path and stack trace into each node's metadata, and
with verbose=True the stack trace into its doc_string.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from passes.graph import LINE_KEY, MODULE_KEY, all_values, is_quantized, unique_name

SCOPES, STACK = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"
"""Keys in the metadata of a node that torch.onnx.export(dynamo=True) wrote."""

LIBRARY = re.compile(r"[/\\](site-packages|dist-packages|torch[/\\](nn|jit|onnx|_))")
"""Files that are not the user's own."""


class NameEverything(ir.passes.InPlacePass):
    """Unique, stable names for nodes and values; module paths in the nodes' metadata."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        before = _signature(graph)
        quantized = is_quantized(model)  # its nodes are named after float nodes, not after torch modules
        taken: set[str] = set()
        for node in graph:
            node.name = unique_name(node.name or _after_output(node), taken)
            if not quantized and MODULE_KEY not in node.metadata_props and (module := _module(node)):
                node.metadata_props[MODULE_KEY] = module
            if not quantized and LINE_KEY not in node.metadata_props and (line := source_line(_trace(node))):
                node.metadata_props[LINE_KEY] = line
        # Inputs, outputs and initializers are the graph's interface: they choose first and keep their names.
        values: set[str] = set()
        interface = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        fixed = {id(value) for value in interface}
        for value in interface:
            if value.name:
                values.add(value.name)
        for value in all_values(graph):
            if id(value) in fixed and value.name:
                continue
            producer = value.producer()
            base = value.name or (f"{producer.name}_output_{value.index()}" if producer else "value")
            value.name = unique_name(base, values)
        return ir.passes.PassResult(model, modified=_signature(graph) != before)

    def ensures(self, model: ir.Model) -> None:
        names = [node.name for node in model.graph]
        values = [value.name for value in all_values(model.graph)]
        for kind, found in (("node", names), ("value", values)):
            if not all(found) or len(set(found)) != len(found):
                raise ir.passes.PostconditionError(f"a {kind} has no name of its own")


def module_path(node_name: str) -> str:
    """Dotted module path from a torch exporter's node name, "" where the name is of another make.

    Every scope is one component; a child of a Sequential repeats its parent's name
    (`features`, `features.0`), so a component that extends the last one replaces it.
    """
    if not node_name.startswith("/"):
        return ""
    path: list[str] = []
    for scope in node_name[1:].split("/")[:-1]:
        if path and scope.startswith(path[-1] + "."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)


def _module(node: ir.Node) -> str:
    """From the exporter's metadata, else from the node's name, else from its weight's (`down1.weight`)."""
    scopes: list[str] = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
    if len(scopes) > 1:
        return scopes[-2]  # the last one is the operation itself
    if module := module_path(node.name or ""):
        return module
    for value in node.inputs[1:2]:
        if value is not None and value.is_initializer() and (value.name or "").endswith(".weight"):
            module = (value.name or "").removesuffix(".weight")
            return "" if module == node.name else module  # a weight of ours is named after its node
    return ""


def _trace(node: ir.Node) -> str:
    return node.metadata_props.get(STACK) or node.doc_string or ""


def source_line(trace: str) -> str:
    """`FILE:LINE` of the innermost call in the user's own code, "" where the stack trace names none.

    The trace is Python's own, or what torch.onnx.export(verbose=True) writes, the innermost call first.
    """
    calls = re.findall(r'File "([^"]+)", line (\d+)', trace)[::-1]
    calls = calls or re.findall(r"^(.+\.py)\((\d+)\): ", trace, re.MULTILINE)
    return next((f"{file}:{line}" for file, line in calls if not LIBRARY.search(file)), "")


def _after_output(node: ir.Node) -> str:
    """A node without a name is named after its first output, else after its operator."""
    first = node.outputs[0].name if node.outputs else None
    return f"{node.op_type}_{first}" if first else node.op_type


def _signature(graph: ir.Graph) -> list[str | None]:
    return [node.name for node in graph] + [value.name for value in all_values(graph)]
