"""The network as the chip runs it: ONNX nodes grouped into the layers the converter makes of them.

The converter fuses a convolution or linear layer with the batch norm and the activation that alone read it,
and an addition with the last convolution before it that has no activation. Names as in its insight files:
Conv2D_Relu, Conv2D_Add, FullyConnected_Sigmoid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from passes.imx500.geometry import (
    behind,
    constant,
    data_nodes,
    input_at,
    int_attribute,
    is_constant,
    is_depthwise,
    is_gelu_erf,
    shape_behind,
)

Shape = tuple[int, ...]


class Kind(StrEnum):
    CONVOLUTION = "convolution"
    GROUPED = "grouped convolution"
    TRANSPOSED = "transposed convolution"
    LINEAR = "linear"
    POOL = "pool"
    RESIZE = "resize"
    ELEMENTWISE = "elementwise"
    CONCAT = "concat"
    ACTIVATION = "activation"
    NORM = "normalisation"
    REDUCE = "reduction"
    OTHER = "other"


TABLE_ACTIVATIONS = ("Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Sin", "Cos")
"""Activations that are a look-up table, fused into the layer before them."""

TABLE_OPERATORS = ("Exp", "Sqrt", "Abs")
"""Other operators that are a look-up table, always a layer of their own."""

CLIPPING_ACTIVATIONS = ("Relu", "Clip")
"""Activations that the requantization does on its way."""

ACTIVATIONS = (*TABLE_ACTIVATIONS, *CLIPPING_ACTIVATIONS, "LeakyRelu")

KINDS = {
    "Conv": Kind.CONVOLUTION, "ConvTranspose": Kind.TRANSPOSED, "Gemm": Kind.LINEAR, "MatMul": Kind.OTHER,
    "MaxPool": Kind.POOL, "AveragePool": Kind.POOL, "Resize": Kind.RESIZE,
    "GlobalAveragePool": Kind.REDUCE, "GlobalMaxPool": Kind.REDUCE, "ReduceMean": Kind.REDUCE,
    "ReduceSum": Kind.REDUCE, "ReduceMax": Kind.REDUCE, "ReduceL2": Kind.REDUCE, "ArgMax": Kind.REDUCE,
    "Add": Kind.ELEMENTWISE, "Sub": Kind.ELEMENTWISE, "Mul": Kind.ELEMENTWISE, "Div": Kind.ELEMENTWISE,
    "Max": Kind.ELEMENTWISE, "Min": Kind.ELEMENTWISE, "Concat": Kind.CONCAT,
    "BatchNormalization": Kind.NORM, "LayerNormalization": Kind.NORM, "Softmax": Kind.ACTIVATION,
    "Neg": Kind.ELEMENTWISE, "Pow": Kind.ELEMENTWISE,
    **dict.fromkeys((*ACTIVATIONS, *TABLE_OPERATORS), Kind.ACTIVATION),
}  # fmt: skip
"""Operator -> what kind of layer it is; every other operator moves data (Kind.OTHER)."""

UNSIGNED = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Sqrt", "Abs")
"""Operators whose result is never negative, so that quantization makes it unsigned."""

SIGN_KEEPING = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Resize",
    "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
    "Expand", "Pad",
)  # fmt: skip
"""Operators whose result is as unsigned as what they read."""


@dataclass(frozen=True)
class Layer:
    """One step of the chip's schedule.

    Attributes:
        kind: what the main node does.
        main: the node that gives the layer its name; its weights are the layer's.
        parts: all nodes, in order; the last one makes the layer's output.
        inputs: the data it reads, each once (constants are not data).
        outputs: the data it makes.
        activation: operator of the fused activation, "" where there is none.
        adds: an addition is fused.
    """

    kind: Kind
    main: ir.Node
    parts: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    activation: str = ""
    adds: bool = False

    @property
    def name(self) -> str:
        return self.main.name or self.outputs[0].name or self.main.op_type


def shape_of(value: ir.Value) -> Shape:
    """Shape without the batch; a length that is not known counts as 1."""
    return tuple(dim or 1 for dim in (shape_behind(value) or ())[1:])


def channels_of(value: ir.Value) -> int:
    """Length of the first axis behind the batch, 1 where there is none."""
    return (*shape_of(value), 1)[0]


def is_unsigned(value: ir.Value) -> bool:
    """The value is never negative, as far as its operators tell."""
    seen, pending = set[ir.Value](), [behind(value)]
    while pending:
        current = pending.pop()
        producer = current.producer()
        if current in seen:
            continue
        seen.add(current)
        if producer is None:
            return False
        if producer.op_type in SIGN_KEEPING:
            pending.extend(behind(v) for v in producer.inputs if v is not None and not is_constant(v))
        elif producer.op_type not in UNSIGNED and not _clips_at_zero(producer):
            return False
    return True


def _clips_at_zero(node: ir.Node) -> bool:
    low = constant(input_at(node, 1)) if node.op_type == "Clip" else None
    return low is not None and bool((low >= 0).all())


def layers_of(graph: ir.Graph) -> tuple[Layer, ...]:
    """The layers of a float graph in the order they run."""
    nodes = [node for node in data_nodes(graph) if node.op_type not in ("Identity", "Dropout")]
    order = {node: index for index, node in enumerate(nodes)}
    taken: set[ir.Node] = set()
    heads: dict[ir.Node, Layer] = {}
    for node in reversed(nodes):
        if node.op_type == "Add":
            layer = _with_addition(node, order)
            if layer is not None:
                heads[node] = layer
                taken.update(layer.parts)
    for node in nodes:
        if node in taken:
            continue
        layer = _gelu(node) or _layer(node, taken)
        heads[layer.parts[-1]] = layer
        taken.update(layer.parts)
    return tuple(sorted(heads.values(), key=lambda layer: max(order[part] for part in layer.parts)))


def _layer(node: ir.Node, taken: set[ir.Node]) -> Layer:
    parts, activation = [node], ""
    kind = kind_of(node)
    if kind in (Kind.CONVOLUTION, Kind.GROUPED, Kind.TRANSPOSED, Kind.LINEAR):
        parts, activation = _absorb(node, taken)
    return _make(kind, node, parts, activation)


def kind_of(node: ir.Node) -> Kind:
    kind = KINDS.get(node.op_type, Kind.OTHER)
    if node.op_type == "MatMul" and is_constant(input_at(node, 1)):
        return Kind.LINEAR
    if kind is Kind.CONVOLUTION and (is_depthwise(node) or int_attribute(node, "group", 1) > 1):
        return Kind.GROUPED
    return kind


def _absorb(node: ir.Node, taken: set[ir.Node]) -> tuple[list[ir.Node], str]:
    """The node with the bias addition, batch norm and activation that alone read it."""
    parts = [node]
    reader = _only_reader(parts[-1])
    if reader is not None and node.op_type == "MatMul" and reader.op_type == "Add" and _adds_bias(reader):
        parts.append(reader)
        reader = _only_reader(reader)
    if reader is not None and reader.op_type == "BatchNormalization" and node.op_type != "MatMul":
        parts.append(reader)
        reader = _only_reader(reader)
    if reader is not None and reader.op_type in ACTIVATIONS and reader not in taken:
        return [*parts, reader], reader.op_type
    swish = _swish(parts[-1].outputs[0])
    if swish:
        return [*parts, *swish], "Sigmoid"
    gelu = _gelu_of(parts[-1].outputs[0])
    return ([*parts, *gelu], "Gelu") if gelu else (parts, "")


def _with_addition(add: ir.Node, order: dict[ir.Node, int]) -> Layer | None:
    """The addition fused with the last convolution before it that nothing else reads and nothing bends."""
    data = [behind(value) for value in add.inputs if value is not None and not is_constant(value)]
    if len(data) != 2 or shape_of(data[0]) != shape_of(data[1]) or data[0] is data[1]:
        return None
    candidates: list[list[ir.Node]] = []
    for value in data:
        chain: list[ir.Node] = []
        producer = value.producer()
        while producer is not None and _only_reader(producer) is not None:
            chain.insert(0, producer)
            if producer.op_type != "BatchNormalization":
                break
            producer = behind(producer.inputs[0]).producer() if producer.inputs[0] is not None else None
        if chain and kind_of(chain[0]) is Kind.CONVOLUTION and chain[0] in order:
            candidates.append(chain)
    if not candidates:
        return None
    chain = max(candidates, key=lambda nodes: order[nodes[0]])
    return _make(kind_of(chain[0]), chain[0], [*chain, add], "", adds=True)


def _make(kind: Kind, main: ir.Node, parts: list[ir.Node], activation: str, adds: bool = False) -> Layer:
    inside = {output for part in parts for output in part.outputs}
    inputs = dict.fromkeys(
        behind(value)
        for part in parts
        for value in part.inputs
        if value is not None and not is_constant(value) and behind(value) not in inside
    )
    last = parts[-1]
    outputs = tuple(out for out in last.outputs if out.uses() or out.is_graph_output()) or last.outputs[:1]
    return Layer(kind, main, tuple(parts), tuple(inputs), tuple(outputs), activation, adds)


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads the node's output; None where several do or the output leaves the network."""
    value = node.outputs[0]
    readers = _readers(value)
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _readers(value: ir.Value) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    for use in value.uses():
        if use.node.op_type in ("Identity", "Dropout"):
            found.update(dict.fromkeys(_readers(use.node.outputs[0])))
        else:
            found[use.node] = None
    return list(found)


def _adds_bias(add: ir.Node) -> bool:
    """One number per entry of the last axis is added, as the bias of a linear layer is."""
    last = (shape_behind(add.outputs[0]) or (None,))[-1]
    return any(is_constant(value) and shape_behind(value) == (last,) for value in add.inputs)


def _swish(value: ir.Value) -> list[ir.Node]:
    """The Sigmoid and Mul of x * sigmoid(x), where nothing else reads x."""
    readers = _readers(value)
    if len(readers) != 2 or value.is_graph_output():
        return []
    gates = [node for node in readers if node.op_type in ("Sigmoid", "HardSigmoid")]
    products = [node for node in readers if node.op_type == "Mul"]
    if len(gates) != 1 or len(products) != 1 or _only_reader(gates[0]) is not products[0]:
        return []
    return [gates[0], products[0]]


def _gelu(node: ir.Node) -> Layer | None:
    """A GELU written as several nodes, beginning at the scaling in front of its Erf."""
    erf = _only_reader(node)
    if node.op_type not in ("Div", "Mul") or erf is None or erf.op_type != "Erf" or not is_gelu_erf(erf):
        return None
    x = next(behind(v) for v in node.inputs if v is not None and not is_constant(v))
    parts = _gelu_of(x)
    return _make(Kind.ACTIVATION, erf, parts, "Gelu") if parts else None


def _gelu_of(x: ir.Value) -> list[ir.Node]:
    """The nodes of 0.5 * x * (1 + erf(x / sqrt 2)), where only they read x; in graph order."""
    scales = [node for node in _readers(x) if node.op_type in ("Div", "Mul")]
    for scale in scales:
        erf = _only_reader(scale)
        if erf is None or erf.op_type != "Erf" or not is_gelu_erf(erf):
            continue
        parts = [scale, erf]
        parts.extend(_until_product(erf, x))
        return parts
    return []


def _until_product(erf: ir.Node, x: ir.Value) -> Iterator[ir.Node]:
    """The addition of one, the product with x, and products with numbers around it."""
    reader, met = _only_reader(erf), False
    while reader is not None and reader.op_type in ("Add", "Mul"):
        constants = any(is_constant(value) for value in reader.inputs)
        if not constants and met:
            return
        met |= not constants
        yield reader
        reader = _only_reader(reader) if constants or not met or _scales_next(reader) else None


def _scales_next(node: ir.Node) -> bool:
    """The node's one reader multiplies it by a number."""
    reader = _only_reader(node)
    return reader is not None and reader.op_type == "Mul" and any(map(is_constant, reader.inputs))
