"""Rewrite what the rules refuse, where a faithful rewrite is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph import all_values, from_proto, module_of, static_shape, to_proto
from passes.imx500.fixes.builder import Builder, UnknownShape
from passes.imx500.fixes.registry import FIXES, Exactness, Rewrite
from passes.imx500.geometry import data_nodes, is_constant, rank_of
from passes.imx500.macs import node_macs
from passes.imx500.memory import forecast_memory
from passes.imx500.rules import RULES
from passes.remove_dead import RemoveDead

NORM_OPSET = 17
"""Operator set that brought LayerNormalization. The operators of the target are spelled alike from 13 on
(see passes/opset) up to it."""


@dataclass(frozen=True)
class AppliedFix:
    """One rewrite that was done.

    Attributes:
        rule: id of the rule it answers.
        node: name of the node that was rewritten; the node that now makes its output has this name.
        module: dotted torch module, "" where unknown.
        done: what was done, one sentence.
        exactness: how near the rewritten graph is to the original in float arithmetic.
        macs_added: multiply-accumulates for one picture, after minus before.
        bytes_added: of the memory forecast of the rewritten nodes alone, new minus old, each with its inputs
            and outputs; an estimate. None where the old one works on no picture.
    """

    rule: str
    node: str
    module: str
    done: str
    exactness: Exactness
    macs_added: int
    bytes_added: int | None

    @property
    def exact(self) -> bool:
        """Every number of the result is the same sum of the same products (its order may differ)."""
        return self.exactness is Exactness.EXACT


@dataclass(frozen=True)
class FixResult:
    """The graph after the rewrites.

    Attributes:
        model: the rewritten graph; the given one where nothing was done.
        applied: what was done, in graph order.
    """

    model: ir.Model
    applied: tuple[AppliedFix, ...]


def fix_graph(model: ir.Model) -> FixResult:
    """Rewrite every node that breaks a rule and has a faithful rewrite.

    What a rewrite makes is looked at again, so that a chain of rules is answered by a chain of rewrites.

    Args:
        model: float graph after the float pipeline (named, simplified, shapes inferred). It is not changed.
    """
    fixed = _copy_of(model)
    graph = fixed.graph
    taken = _names(graph)
    answered: dict[ir.Node, frozenset[tuple[str, str]]] = {}
    pending = deque(data_nodes(graph))
    applied: list[AppliedFix] = []
    while pending:
        node = pending.popleft()
        if node.graph is not graph:
            continue  # went with a rewrite of its neighbour
        past = answered.get(node, frozenset())
        found = _rewrite(node, past, fixed.opset_imports[""], taken)
        if found is None:
            continue
        rule, build, rewrite = found
        name, module = node.name or "", module_of(node)
        old = rewrite.nodes or (node,)
        macs = sum(map(node_macs, build.nodes)) - sum(map(node_macs, old))
        op_type = node.op_type
        before, after = (_part_bytes(part, fixed.opset_imports) for part in (old, build.nodes))
        added = None if before is None or after is None else after - before
        _replace(graph, old, build, rewrite)
        applied.append(AppliedFix(rule, name, module, rewrite.done, rewrite.exactness, macs, added))
        for new in build.nodes:
            answered[new] = past | {(rule, op_type)}
        pending.extendleft(reversed(build.nodes))
    if applied:
        RemoveDead()(fixed)
    return FixResult(fixed if applied else model, tuple(applied))


def _rewrite(
    node: ir.Node, past: Iterable[tuple[str, str]], opset: int, taken: set[str]
) -> tuple[str, Builder, Rewrite] | None:
    """The first rewrite for a rule that the node breaks; none for one that it was itself made to answer."""
    for rule in RULES:
        known = (rule.id, node.op_type)
        if known not in FIXES or known in past or (rule.operators and node.op_type not in rule.operators):
            continue
        if rule.check(node) is None:
            continue
        tried = _try(rule.id, node, opset, taken)
        if tried is not None:
            return rule.id, *tried
    return None


def fixable(model: ir.Model, found: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Of pairs of a rule and the name of a node that breaks it, those that `fix_graph` has a rewrite for.

    Each is tried on a copy of the graph and taken back.
    """
    copy = _copy_of(model)
    nodes = {node.name or "": node for node in copy.graph}
    taken = _names(copy.graph)
    answered = set()
    for rule, name in found:
        node = nodes.get(name)
        tried = None if node is None else _try(rule, node, copy.opset_imports[""], taken)
        if tried is not None:
            _take_back(tried[0])
            answered.add((rule, name))
    return frozenset(answered)


def _try(rule: str, node: ir.Node, opset: int, taken: set[str]) -> tuple[Builder, Rewrite] | None:
    """The node's rewrite for the rule; None where there is none, and then nothing is left of the attempt.

    Rewrites count on a batch of 1.
    """
    if (rule, node.op_type) not in FIXES:
        return None
    if any(_batch_of(value) != 1 for value in node.inputs if value is not None and not is_constant(value)):
        return None
    build = Builder(node, opset, taken)
    try:
        rewrite = FIXES[rule, node.op_type](node, build)
    except UnknownShape:
        rewrite = None
    if rewrite is None:
        _take_back(build)
        return None
    return build, rewrite


def _take_back(build: Builder) -> None:
    """The nodes made read nothing any more: other rewrites look at who reads a tensor."""
    for node in build.nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _copy_of(model: ir.Model) -> ir.Model:
    """A copy in an operator set that has what the rewrites use."""
    copy = from_proto(to_proto(model))
    copy.opset_imports[""] = max(NORM_OPSET, copy.opset_imports.get("", NORM_OPSET))
    return copy


def _names(graph: ir.Graph) -> set[str]:
    return {node.name or "" for node in graph} | {value.name or "" for value in all_values(graph)}


def _batch_of(value: ir.Value) -> int | None:
    """The length of the first axis, 1 for a single number; None where it is not known."""
    shape = static_shape(value)
    if shape is None:
        return None
    return shape[0] if shape else 1


def _replace(graph: ir.Graph, old: tuple[ir.Node, ...], build: Builder, rewrite: Rewrite) -> None:
    """Put the new nodes in place of the old; names and readers of the last old node's outputs are kept."""
    last = old[-1]
    outputs = list(rewrite.outputs)
    made = {value for node in build.nodes for value in node.outputs}
    for index, value in enumerate(outputs):
        if value is not None and value not in made:  # the rewrite leaves its input as it is
            outputs[index] = build.op("Identity", value)
    for constant in build.constants:
        graph.register_initializer(constant)
    final = next(value.producer() for value in outputs if value is not None)
    pairs = [
        (before, after) for before, after in zip(last.outputs, outputs, strict=False) if after is not None
    ]
    ir.convenience.replace_nodes_and_values(
        graph, last, old, build.nodes, [before for before, _ in pairs], [after for _, after in pairs]
    )
    assert final is not None
    final.name = last.name


WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})


def _part_bytes(nodes: Sequence[ir.Node], opsets: Mapping[str, int]) -> int | None:
    """The memory forecast of these nodes alone, None where a window moves over what is no picture."""
    if any(node.op_type in WINDOWED and rank_of(node.inputs[0]) != 4 for node in nodes):
        return None
    copies: dict[ir.Value, ir.Value] = {}
    parts = [_copy(node, copies) for node in nodes]
    made = {value for node in parts for value in node.outputs}
    constants = [value for value in copies.values() if value.const_value is not None]
    given = [value for value in copies.values() if value not in made and value.const_value is None]
    graph = ir.Graph(
        given,
        [value for node in parts for value in node.outputs if not value.uses()],
        nodes=parts,
        initializers=constants,
        opset_imports=dict(opsets),
    )
    return forecast_memory(ir.Model(graph, ir_version=9), input_persistency=False).total_bytes


def _copy(node: ir.Node, copies: dict[ir.Value, ir.Value]) -> ir.Node:
    """The node in a graph of its own, reading and making copies of its values."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value not in copies:
            copies[value] = ir.Value(
                name=value.name,
                shape=value.shape,
                type=value.type,
                const_value=ir.convenience.get_const_tensor(value),
            )
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else copies[value] for value in node.inputs],
        node.attributes,
        outputs=[copies[value] for value in node.outputs],
        name=node.name,
    )
