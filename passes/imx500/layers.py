"""The network as the chip runs it: ONNX nodes grouped into the layers the converter makes of them.

The converter fuses a convolution or linear layer with the batch norm and the activation that alone read it,
and an addition with a convolution before it that has no activation. Names as in its insight files:
Conv2D_Relu, Conv2D_Add, FullyConnected_Sigmoid.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import onnx_ir as ir

from passes.gelu import gelu_around
from passes.imx500.geometry import (
    behind,
    constant,
    data_nodes,
    input_at,
    int_attribute,
    is_constant,
    is_depthwise,
    is_polyphase,
    round_up,
    shape_behind,
    window,
)

Shape = tuple[int, ...]

Wide = Set[ir.Value]
"""Values of 16 bits, see `passes.imx500.widths`."""


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
    "BatchNormalization": Kind.NORM, "LayerNormalization": Kind.NORM, "InstanceNormalization": Kind.NORM,
    "Softmax": Kind.ACTIVATION,
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


def layers_of(graph: ir.Graph, wide: Wide = frozenset()) -> tuple[Layer, ...]:
    """The layers of a float graph in the order they run; `wide` are the tensors of 16 bits."""
    nodes = [node for node in data_nodes(graph) if node.op_type not in ("Identity", "Dropout")]
    order = {node: index for index, node in enumerate(nodes)}
    readers = _Readers()
    readers.wide = wide
    taken: set[ir.Node] = set()
    heads: dict[ir.Node, Layer] = {}
    depths = _depths(nodes)
    for node in reversed(nodes):
        if node.op_type == "Add":
            layer = _with_addition(node, depths, readers)
            if layer is not None:
                heads[node] = layer
                taken.update(layer.parts)
    gelus = {part: gelu for node in nodes if (gelu := gelu_around(node)) for part in gelu.nodes}
    for node in nodes:
        if node in taken:
            continue
        gelu = gelus.get(node)
        if gelu:
            layer = _make(Kind.ACTIVATION, gelu.erf, list(gelu.nodes), "Gelu")
        elif swish := _wide_swish(node, readers):
            layer = _make(Kind.ACTIVATION, node, swish, "Sigmoid")
        else:
            layer = _layer(node, taken, readers)
        heads[layer.parts[-1]] = layer
        taken.update(layer.parts)
    ordered = sorted(heads.values(), key=lambda layer: max(order[part] for part in layer.parts))
    return _shrinking_branch_first(ordered, readers)


def _shrinking_branch_first(layers: list[Layer], readers: _Readers) -> tuple[Layer, ...]:
    """Of two branches of one tensor that an elementwise layer joins, the one runs first that needs less so.

    A branch is a chain of layers that nothing else reads. It needs its largest step while it runs and keeps
    its last result until the join. Where both orders need as much, the order of the graph stays.
    """
    index = {output: at for at, layer in enumerate(layers) for output in layer.outputs}
    key = [(at, 0) for at in range(len(layers))]
    for join in layers:
        if (join.kind is not Kind.ELEMENTWISE and not join.adds) or len(join.inputs) != 2:
            continue
        branches = (_branch(value, index, layers, readers) for value in join.inputs)
        early, late = sorted(branches, key=lambda branch: branch[-1:])
        if not early or not late or layers[early[0]].inputs[0] is not layers[late[0]].inputs[0]:
            continue
        if _needed(late, early, layers) < _needed(early, late, layers):
            for place, at in enumerate(early):
                key[at] = (late[-1], place + 1)
    return tuple(layers[at] for at in sorted(range(len(layers)), key=key.__getitem__))


def _branch(value: ir.Value, index: dict[ir.Value, int], layers: list[Layer], readers: _Readers) -> list[int]:
    """The chain of layers that makes the value and that nothing else reads, first to last."""
    chain: list[int] = []
    while value in index:
        layer = layers[index[value]]
        alone = len(readers[value]) == 1 and not value.is_graph_output()
        if len(layer.inputs) != 1 or len(layer.outputs) != 1 or not alone:
            break
        chain.insert(0, index[value])
        value = layer.inputs[0]
    return chain


def _needed(first: list[int], second: list[int], layers: list[Layer]) -> int:
    """Numbers alive at the largest step of two branches of one tensor, run one after the other.

    The tensor itself is alive until the second branch has read it.
    """
    fork = prod(shape_of(layers[first[0]].inputs[0]))
    most, result = 0, 0
    for chain in (first, second):
        read, beside = fork, result
        copies = _copies(layers[chain[0]])
        if copies:
            # The last branch to read the tensor gives it up for its padded copy.
            most = max(most, beside + fork * (copies + (chain is first)))
        for at in chain:
            made = prod(shape_of(layers[at].outputs[0]))
            if layers[at].kind is Kind.REDUCE:
                most = max(most, beside + read + _by_channels(layers[at].inputs[0]))
            most = max(most, beside + read + made)
            read = made
            beside = fork if chain is first else result
        result = read
    return most


def _copies(layer: Layer) -> int:
    """Copies of what it reads that a strided convolution needs: padded, if it is, and cut into phases."""
    found = window(layer.main) if layer.kind is Kind.CONVOLUTION else None
    if found is None or max(found.strides) == 1:
        return 0
    return 1 + any((*found.before, *found.after))


def _by_channels(value: ir.Value) -> int:
    """Numbers of the copy that a reduction reads: channels in multiples of 32."""
    channels, *pixels = shape_of(value) or (1,)
    return round_up(channels) * prod(pixels)


def _layer(node: ir.Node, taken: set[ir.Node], readers: _Readers) -> Layer:
    parts, activation = [node], ""
    kind = kind_of(node)
    if kind in (Kind.CONVOLUTION, Kind.GROUPED, Kind.TRANSPOSED, Kind.LINEAR):
        parts, activation = _absorb(node, taken, readers)
    elif node.op_type == "Add":
        parts.extend(_clipping(node, readers))
    return _make(kind, node, parts, activation)


def kind_of(node: ir.Node) -> Kind:
    kind = KINDS.get(node.op_type, Kind.OTHER)
    if node.op_type == "MatMul" and is_constant(input_at(node, 1)):
        return Kind.LINEAR
    if kind is Kind.CONVOLUTION and (is_depthwise(node) or int_attribute(node, "group", 1) > 1):
        return Kind.GROUPED
    return kind


def _absorb(node: ir.Node, taken: set[ir.Node], readers: _Readers) -> tuple[list[ir.Node], str]:
    """The node with the bias addition, batch norm and activation that alone read it."""
    parts = [node]
    reader = _only_reader(parts[-1], readers)
    if reader is not None and node.op_type == "MatMul" and reader.op_type == "Add" and _adds_bias(reader):
        parts.append(reader)
        reader = _only_reader(reader, readers)
    if reader is not None and reader.op_type == "BatchNormalization" and node.op_type != "MatMul":
        parts.append(reader)
        reader = _only_reader(reader, readers)
    if reader is not None and reader.op_type in ACTIVATIONS and reader not in taken:
        return (parts, "") if _is_wide_table(reader, readers) else ([*parts, reader], reader.op_type)
    swish = _swish(parts[-1].outputs[0], readers)
    if swish:
        return ([*parts, *swish], "Sigmoid") if swish[-1].outputs[0] not in readers.wide else (parts, "")
    gelu = _gelu_of(parts[-1].outputs[0], readers)
    return ([*parts, *gelu], "Gelu") if gelu else (parts, "")


def _is_wide_table(node: ir.Node, readers: _Readers) -> bool:
    """A table whose result has 16 bits stands alone; ReLU and Clip run with the convolution all the same."""
    return node.op_type not in CLIPPING_ACTIVATIONS and node.outputs[0] in readers.wide


def _with_addition(add: ir.Node, depths: dict[ir.Node, int], readers: _Readers) -> Layer | None:
    """The addition fused with a convolution before it that nothing else reads and nothing bends.

    Where both operands come from such a convolution, the one that fewer operations lead to takes it; of two
    that as many lead to, the first operand's. The other operand and the sum have 8 bits; how many bits the
    convolution's own result has does not matter, as it is not stored.
    """
    data = [behind(value) for value in add.inputs if value is not None and not is_constant(value)]
    if len(data) != 2 or shape_of(data[0]) != shape_of(data[1]) or data[0] is data[1]:
        return None
    clipping = _clipping(add, readers)
    if [add, *clipping][-1].outputs[0] in readers.wide or add.outputs[0] in readers.wide:
        return None
    candidates: list[list[ir.Node]] = []
    for value, other in (data, data[::-1]):
        if other in readers.wide:
            continue
        chain: list[ir.Node] = []
        producer = value.producer()
        while producer is not None and _only_reader(producer, readers) is not None:
            chain.insert(0, producer)
            if producer.op_type != "BatchNormalization":
                break
            producer = behind(producer.inputs[0]).producer() if producer.inputs[0] is not None else None
        if chain and kind_of(chain[0]) in (Kind.CONVOLUTION, Kind.TRANSPOSED) and chain[0] in depths:
            candidates.append(chain)
    if not candidates:
        return None
    chain = min(candidates, key=lambda chain: depths[chain[0]])
    return _make(kind_of(chain[0]), chain[0], [*chain, add, *clipping], "", adds=True)


def _depths(nodes: list[ir.Node]) -> dict[ir.Node, int]:
    """Of each node the operations on the longest way from an input, with those that a stride takes."""
    depths: dict[ir.Node, int] = {}
    for node in nodes:
        made = (behind(value).producer() for value in node.inputs if value is not None)
        before = (depths.get(maker, 0) for maker in made if maker is not None)
        depths[node] = max(before, default=0) + _operations(node)
    return depths


def _operations(node: ir.Node) -> int:
    """0 for what a layer takes up; a strided convolution pads, cuts and joins, or leaves pixels out."""
    if node.op_type in (*ACTIVATIONS, "BatchNormalization", "Identity", "Dropout"):
        return 0
    found = window(node) if kind_of(node) is Kind.CONVOLUTION else None
    if found is None or max(found.strides) == 1:
        return 1
    shape = shape_behind(input_at(node, 1)) or ()
    inner, out = ((shape[1] or 1), (shape[0] or 1)) if len(shape) > 1 else (1, 1)
    if is_polyphase(inner, out, found.kernel, found.strides):
        return 3 + any((*found.before, *found.after))
    return 2 if max(found.kernel) == 1 else 1


def _clipping(add: ir.Node, readers: _Readers) -> list[ir.Node]:
    """The ReLU or Clip that alone reads an addition: Conv2D_Add_Relu and Add_Relu are one layer."""
    reader = _only_reader(add, readers)
    return [reader] if reader is not None and reader.op_type in CLIPPING_ACTIVATIONS else []


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


def _only_reader(node: ir.Node, readers: _Readers) -> ir.Node | None:
    """The one node that reads the node's output; None where several do or the output leaves the network."""
    value = node.outputs[0]
    found = readers[value]
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


class _Readers(dict[ir.Value, list[ir.Node]]):
    """Who reads a value, looked through Identity and Dropout; looked up once for each value.

    Attributes:
        wide: the values of 16 bits.
    """

    wide: Wide = frozenset()

    def __missing__(self, value: ir.Value) -> list[ir.Node]:
        found: dict[ir.Node, None] = {}
        for use in value.uses():
            if use.node.op_type in ("Identity", "Dropout"):
                found.update(dict.fromkeys(self[use.node.outputs[0]]))
            else:
                found[use.node] = None
        self[value] = list(found)
        return self[value]


def _adds_bias(add: ir.Node) -> bool:
    """One number per entry of the last axis is added, as the bias of a linear layer is."""
    last = (shape_behind(add.outputs[0]) or (None,))[-1]
    return any(is_constant(value) and shape_behind(value) == (last,) for value in add.inputs)


def _swish(value: ir.Value, readers: _Readers) -> list[ir.Node]:
    """The Sigmoid and Mul of x * sigmoid(x), where nothing else reads x."""
    both = readers[value]
    if len(both) != 2 or value.is_graph_output():
        return []
    gates = [node for node in both if node.op_type in ("Sigmoid", "HardSigmoid")]
    products = [node for node in both if node.op_type == "Mul"]
    if len(gates) != 1 or len(products) != 1 or _only_reader(gates[0], readers) is not products[0]:
        return []
    return [gates[0], products[0]]


def _wide_swish(node: ir.Node, readers: _Readers) -> list[ir.Node]:
    """The Sigmoid and Mul of x * sigmoid(x) whose result has 16 bits: one table of its own."""
    if node.op_type not in ("Sigmoid", "HardSigmoid") or node.inputs[0] is None:
        return []
    swish = _swish(behind(node.inputs[0]), readers)
    return swish if swish[:1] == [node] and swish[-1].outputs[0] in readers.wide else []


def _gelu_of(x: ir.Value, readers: _Readers) -> list[ir.Node]:
    """The nodes of a GELU of x that is written as several; in graph order."""
    scales = [node for node in readers[x] if node.op_type in ("Div", "Mul")]
    for erf in (_only_reader(scale, readers) for scale in scales):
        found = None if erf is None else gelu_around(erf)
        if found is not None:
            return list(found.nodes)
    return []
