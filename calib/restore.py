"""Put the float graph's names, shapes and metadata back onto what MCT's exporter wrote.

The exporter names a node `/<MCT node>/.../<operator>`. An MCT node is an fx node of the imported module, or
was made from one: a batch norm folded into it (`<name>_bn`, `bn_<name>`), a shift of a negative activation
(`<name>_post_add`, `<name>_pre_pad`), the quantizer behind it (`<name>_activation_holder_quantizer`).

After restoring, with N the float node that a quantized node comes from and v the float value it computes:

- the node that computes v is called N; its helpers N/<operator>; the quantizer of v N/quantizer, and those of
  its weights N/weight_quantizer;
- v is the value behind the quantizer, the one other layers read; where there is one, the value before it is
  v/real;
- weights are N/weight, N/weight_threshold and N/bias;
- nodes carry the module path of N; inputs, outputs and the model carry the float model's names and metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from passes.graph import (
    MODULE_KEY,
    QUANTIZER_DOMAIN,
    all_values,
    const_array,
    from_proto,
    is_activation_quantizer,
    is_quantizer,
    module_of,
    real_inputs,
    to_proto,
    unique_name,
)

HOLDER = "_activation_holder_quantizer"
"""What MCT appends to a node's name for the quantizer of its output."""


def restore(
    quantized: ir.Model, model: ir.Model, names: Mapping[str, str], placeholders: Sequence[str]
) -> None:
    """Change `quantized` in place.

    Args:
        quantized: what MCT's exporter wrote, inputs and outputs in the float graph's order.
        model: the float graph.
        names: fx node name -> float node name (Imported.names).
        placeholders: fx names of the inputs, in order.
    """
    inputs = real_inputs(model.graph)
    origins = dict(names) | {
        placeholder: value.name or "" for placeholder, value in zip(placeholders, inputs, strict=True)
    }
    _restore_interface(quantized.graph, model.graph)
    _infer_shapes(quantized)
    # The exporter spells constant sizes (those of Pad and Resize) as arithmetic on shapes and constants.
    optimizer.fold_constants(quantized, should_fold=_is_arithmetic)
    common.RemoveUnusedNodesPass()(quantized)
    _infer_shapes(quantized)
    _rename(quantized.graph, model.graph, origins)
    quantized.metadata_props.update(model.metadata_props)


def _restore_interface(quantized: ir.Graph, graph: ir.Graph) -> None:
    """Names, shapes and types of inputs and outputs; MCT's exporter makes every batch symbolic."""
    for ours, theirs in (
        *zip(real_inputs(graph), quantized.inputs, strict=True),
        *zip(graph.outputs, quantized.outputs, strict=True),
    ):
        theirs.name, theirs.shape, theirs.type = ours.name, ours.shape, ours.type


def _infer_shapes(quantized: ir.Model) -> None:
    """Shape and type of every value, afresh: what the exporter infers behind a quantizer is not reliable.

    ONNX does not know the quantizers; for the inference they are Identity nodes.
    """
    proto = to_proto(quantized)
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        if node.domain == QUANTIZER_DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:], node.input[1:]
    known = {v.name: v for v in all_values(from_proto(onnx.shape_inference.infer_shapes(proto)).graph)}
    for value in (value for node in quantized.graph for value in node.outputs):
        if value.name in known and value not in quantized.graph.outputs:
            value.shape, value.type = known[value.name].shape, known[value.name].type


def _is_arithmetic(node: ir.Node) -> bool | None:
    """Fold what is computed from constants alone, quantizers excepted; None leaves it to the optimizer."""
    constant = all(value is None or const_array(value) is not None for value in node.inputs)
    return (not is_quantizer(node) and constant and bool(node.inputs)) or None


# Names


@dataclass(frozen=True)
class _Origin:
    """Where an exported node comes from.

    Attributes:
        name: the float node's (or input's) name.
        part: what MCT appended where it made the node itself, for instance `post_add`; else "".
    """

    name: str
    part: str

    @property
    def stem(self) -> str:
        return f"{self.name}/{self.part}" if self.part else self.name


def _origin(node: ir.Node, origins: Mapping[str, str]) -> _Origin | None:
    """The float node of an exported node, None where its name does not tell."""
    scopes = (node.name or "").split("/")
    if len(scopes) < 3:
        return None
    name = scopes[1].removesuffix(HOLDER)
    for exact in (name, name.removesuffix("_bn"), name.removeprefix("bn_")):
        if exact in origins:
            return _Origin(origins[exact], "")
    longest = max((fx for fx in origins if name.startswith(f"{fx}_")), key=len, default=None)
    return _Origin(origins[longest], name.removeprefix(f"{longest}_")) if longest else None


def _rename(quantized: ir.Graph, graph: ir.Graph, origins: Mapping[str, str]) -> None:
    floats = {node.name: node for node in graph}
    known = {node: origin for node in quantized if (origin := _origin(node, origins))}
    # The last node of an origin computes its value; what comes before it are helpers.
    computing = {origin: node for node, origin in known.items() if _computes(node)}
    values = {id(value): value.name for value in (*quantized.inputs, *quantized.outputs)}
    taken = {name for name in values.values() if name}
    nodes: set[str] = set()
    for node, origin in known.items():
        node.name = unique_name(_node_name(node, origin, computing.get(origin) is node), nodes)
        if (source := floats.get(origin.name)) is not None and (module := module_of(source)):
            node.metadata_props[MODULE_KEY] = module
    for node in quantized:
        if node not in known:
            # Constants outside of any module, mostly: they belong to the node that reads them.
            reader = next((use.node for value in node.outputs for use in value.uses()), node)
            node.name = unique_name(f"{reader.name}/{node.op_type}", nodes)
    wanted: dict[int, str] = {}
    for origin, node in computing.items():
        if not origin.part and origin.name in floats:
            for value, ours in zip(node.outputs, floats[origin.name].outputs, strict=False):
                behind = next((use.node for use in value.uses() if is_activation_quantizer(use.node)), None)
                wanted[id(value)] = f"{ours.name}/real" if behind else ours.name or ""
                if behind:
                    wanted[id(behind.outputs[0])] = ours.name or ""
    for node in quantized:
        stem = known[node].stem if node in known else node.name
        if is_quantizer(node):
            role = "quantized" if is_activation_quantizer(node) else "weight_quantized"
            wanted.setdefault(id(node.outputs[0]), f"{stem}/{role}")
        for role, value in _operands(node):
            wanted.setdefault(id(value), f"{stem}/{role}")
    for value in all_values(quantized):
        if id(value) not in values:
            producer = value.producer()
            stem = f"{producer.name}_output_{value.index()}" if producer else value.name or "constant"
            values[id(value)] = unique_name(wanted.get(id(value), stem), taken)
    for suffix in (" ", ""):  # twice, because an old name may be another value's new one
        for value in list(all_values(quantized)):
            value.name = f"{values[id(value)]}{suffix}"


def _computes(node: ir.Node) -> bool:
    return not is_quantizer(node) and node.op_type != "Constant"


def _node_name(node: ir.Node, origin: _Origin, computes: bool) -> str:
    if computes:
        return origin.stem
    if is_activation_quantizer(node):
        return f"{origin.stem}/quantizer"
    return f"{origin.stem}/weight_quantizer" if is_quantizer(node) else f"{origin.stem}/{node.op_type}"


def _operands(node: ir.Node) -> Iterator[tuple[str, ir.Value]]:
    """The node's constant inputs and what they are to it."""
    for index, value in enumerate(node.inputs):
        if value is not None and const_array(value) is not None:
            if is_quantizer(node):
                yield ("weight", "weight_threshold")[index], value
            elif node.op_type in ("Conv", "ConvTranspose", "Gemm") and index == 2:
                yield "bias", value
            else:
                yield "constant", value
