"""ONNX graph -> torch.fx module: the walk over the nodes, and the diagnostics of what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from torch import Tensor, fx, nn

from calib.importer import (
    activation,
    convolution,
    elementwise,
    normalisation,
    pooling,
    reduction,
    resize,
    shape,
)
from calib.importer.context import Context
from calib.importer.patterns import Group, find
from calib.importer.registry import OPERATORS, Importer, UnknownForm
from passes.diagnostics import Diagnostic, Severity
from passes.errors import TargetViolation
from passes.graph import (
    QUANTIZER_DOMAIN,
    STANDARD_DOMAINS,
    const_array,
    module_of,
    real_inputs,
    static_shape,
)

RULE = "import/unknown-operator"
SOURCE = "the importer's table of operators"

FAMILIES = (activation, convolution, elementwise, normalisation, pooling, reduction, resize, shape)
"""The modules whose import fills registry.OPERATORS."""


@dataclass(frozen=True)
class Imported:
    """A float ONNX graph as a torch module.

    Attributes:
        module: takes one float32 tensor per graph input, returns one tensor, or a tuple where the graph has
            several outputs. Tracing it again with torch.fx gives the same nodes with the same names.
        names: fx node name -> name of the ONNX node whose output it computes (for a group of ONNX nodes that
            became one fx node, the last of them). Inputs and constants are not in it.
        batch_free: a batch of pictures gives what the pictures give one by one; where it is false the graph
            has its batch of 1 built in, and only batch 1 may be fed.
    """

    module: fx.GraphModule
    names: dict[str, str]
    batch_free: bool


def to_torch(model: ir.Model, operators: Mapping[str, Importer] = OPERATORS) -> Imported:
    """Import a float graph (constants as initializers, fixed height and width, batch 1 or symbolic).

    `operators` are the importers of the operator types, of the standard domain or the quantizers'.

    Raises TargetViolation with one Diagnostic (rule `import/unknown-operator`) per node that is not known.
    """
    model = _with_batch_1(model)
    context = Context(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))
    problems = _examples(context, model.graph)
    groups = find(model.graph)
    inside = {node for group in groups.values() for node in group.nodes} - set(groups)
    if not problems:
        for node in model.graph:
            if node not in inside and not all(const_array(value) is not None for value in node.outputs):
                problems += _import(context, node, groups.get(node), operators)
    problems += _outputs(context, model.graph) if not problems else []
    if problems:
        where = ", ".join(f"{d.node}: {d.found}" for d in problems[:5])
        raise TargetViolation(
            "model",
            where + (f" and {len(problems) - 5} more" if len(problems) > 5 else ""),
            "operators and forms that can be turned into a torch module for quantization",
            "replace them as each diagnostic says; `picosam2 rules` lists the operators",
            problems,
        )
    ours = fx.GraphModule(context.root, context.graph)
    retraced, names = _retrace(ours, context)
    return Imported(retraced, names, _batch_free(retraced, _random_inputs(model.graph)))


def _with_batch_1(model: ir.Model) -> ir.Model:
    """The model, or where its batch is symbolic a copy with batch 1 and the arithmetic on it folded."""
    inputs = real_inputs(model.graph)
    if all(
        value.shape is None or len(value.shape) == 0 or isinstance(value.shape[0], int) for value in inputs
    ):
        return model
    copy = ir.from_proto(ir.to_proto(model))
    for value in real_inputs(copy.graph):
        if value.shape is not None and len(value.shape) > 0 and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([1, *value.shape.dims[1:]])
    common.ShapeInferencePass()(copy)
    optimizer.fold_constants(copy)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _examples(context: Context, graph: ir.Graph) -> list[Diagnostic]:
    """Add the inputs; the diagnostics name those without a fixed shape or of another type than float."""
    problems = []
    for value, example in zip(real_inputs(graph), _random_inputs(graph), strict=True):
        name = value.name or "input"
        if example is None:
            problems.append(
                _problem(
                    name, "", f"input of shape {value.shape}", "fixed sizes", "export it with fixed sizes"
                )
            )
        elif value.dtype is not None and not value.dtype.is_floating_point():
            problems.append(
                _problem(
                    name, "", f"input of type {value.dtype.name}", "float32", "cast outside of the network"
                )
            )
        else:
            context.add_input(value, example)
    return problems


def _random_inputs(graph: ir.Graph) -> list[Tensor | None]:
    """One picture of uniform numbers in 0..1 per input, None where its shape is not fixed."""
    random = torch.Generator().manual_seed(0)
    examples: list[Tensor | None] = []
    for value in real_inputs(graph):
        shape = static_shape(value)
        sizes = [] if shape is None else [size for size in shape if size is not None]
        fixed = shape is not None and len(sizes) == len(shape)
        examples.append(torch.rand(sizes, generator=random) if fixed else None)
    return examples


def _import(
    context: Context, node: ir.Node, group: Group | None, operators: Mapping[str, Importer]
) -> list[Diagnostic]:
    """Import one node or group; what is not known becomes a diagnostic and its outputs stand-ins."""
    context.enter(node)
    try:
        if group is not None and context.knows(group.input):
            results: Iterable[fx.Node | None] = [group.make(context, context.lookup(group.input))]
        else:
            made = _importer(node, operators)(context, node)
            results = [made] if isinstance(made, fx.Node) else made
        for value, result in zip(node.outputs, results, strict=False):
            if result is not None:
                context.define(value, result)
        return []
    except (UnknownForm, RuntimeError, ValueError, IndexError) as error:
        unknown = error if isinstance(error, UnknownForm) else _refused_by_torch(error)
        unseen = [value for value in node.inputs if value is not None and _unseen(context, value)]
        for value in node.outputs:
            shape = static_shape(value)
            if shape is not None and None not in shape:
                context.stand_in(value, [size for size in shape if size is not None])
        if unseen:
            return []  # the node that should have made this input is reported itself
        return [_problem(node.name or "", module_of(node), unknown.found, unknown.limit, unknown.fix)]


def _refused_by_torch(error: Exception) -> UnknownForm:
    """The node's example could not be computed: its sizes or attributes contradict each other."""
    return UnknownForm(
        f"torch refuses it: {str(error).strip().splitlines()[0]}",
        "shapes and attributes that torch takes",
        "correct the node's attributes",
    )


def _unseen(context: Context, value: ir.Value) -> bool:
    """Computed from the network's inputs by a node that failed."""
    return const_array(value) is None and not context.knows(value)


def _importer(node: ir.Node, operators: Mapping[str, Importer]) -> Importer:
    if node.domain not in (*STANDARD_DOMAINS, QUANTIZER_DOMAIN) or node.op_type not in operators:
        name = f"{node.domain}::{node.op_type}" if node.domain not in STANDARD_DOMAINS else node.op_type
        raise UnknownForm(
            f"operator {name}", f"one of {', '.join(sorted(operators))}", "replace it by known operators"
        )
    return operators[node.op_type]


def _problem(node: str, module: str, found: str, limit: str, fix: str) -> Diagnostic:
    return Diagnostic(RULE, Severity.ERROR, node, module, found, limit, fix, SOURCE)


def _outputs(context: Context, graph: ir.Graph) -> list[Diagnostic]:
    """Add the output node. An output that is constant or another output's tensor is not known to MCT."""
    results: list[fx.Node] = []
    for value in graph.outputs:
        name = value.name or "output"
        if not context.knows(value):
            return [_problem(name, "", "output is constant", "outputs computed from the input", "drop it")]
        result = context.lookup(value)
        if result in results:
            return [_problem(name, "", "same tensor as an earlier output", "outputs that differ", "drop it")]
        results.append(result)
    context.graph.output(results[0] if len(results) == 1 else tuple(results))
    return []


def _retrace(ours: fx.GraphModule, context: Context) -> tuple[fx.GraphModule, dict[str, str]]:
    """Trace once more, as MCT will, so that the fx names are the ones it will use.

    Tracing keeps the order of calls, so the two graphs' calls pair up one by one.
    """
    graph = fx.Tracer().trace(ours)
    calls = [[node for node in g.nodes if node.op.startswith("call_")] for g in (ours.graph, graph)]
    names: dict[str, str] = {}
    for old, new in zip(*calls, strict=True):
        names[new.name] = context.origin[old].name or ""
    return fx.GraphModule(ours, graph), names


def _batch_free(module: nn.Module, inputs: Sequence[Tensor | None]) -> bool:
    """Whether two different pictures in one batch give what each gives alone."""
    first = [x for x in inputs if x is not None]
    second = [1.0 - x for x in first]
    with torch.no_grad():
        alone = [_flat(module(*pictures)) for pictures in (first, second)]
        try:
            pairs = [torch.cat(pair) for pair in zip(first, second, strict=True)]
            # The interpreter, because a GraphModule that fails prints its code to stderr.
            both = _flat(fx.Interpreter(module).run(*pairs))
        except RuntimeError:
            return False
    for one, other, batch in zip(*alone, both, strict=True):
        joined = torch.cat((one, other)) if one.ndim else torch.stack((one, other))
        size = joined.double().abs().max().item() if joined.numel() else 0.0
        if batch.shape != joined.shape or not torch.allclose(
            batch.double(), joined.double(), rtol=1e-3, atol=1e-3 * max(size, 1e-6)
        ):
            return False
    return True


def _flat(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
