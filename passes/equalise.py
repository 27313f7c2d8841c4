"""Cross-layer equalisation: bring the channel ranges of a tensor together without changing what it computes.

The chip has one threshold for a whole activation tensor. A channel whose range is a hundredth of the largest
one is left with a hundredth of the levels. Where a layer's output reaches the next layers through operators f
with f(x / s) = f(x) / s alone, the scale s[c] of each channel c is free:

    W1'[c] = W1[c] / s[c],   b1'[c] = b1[c] / s[c],   W2'[:, c] = W2[:, c] s[c]

(Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019). All scales
here are powers of two: products and sums of floats scale exactly, so the float network puts out the same bits
unless a number leaves the range of normal floats.

How far to go: the chip's weights have a threshold for each output channel. So W1' costs nothing, but W2'
gets columns of unequal size, whose small ones lose bits. SmoothQuant's formula (Xiao et al., ICML 2023) puts
the unevenness half on the activations, half on the weights:

    s[c] = r[c]^a / w[c]^(1 - a),   a = 1/2

with r[c] the largest magnitude of the channel as a share of the tensor's, and w[c] the largest weight that
reads it as a share of the largest of its output channel. A depthwise reader has one input for each output:
its w is 1 whatever s is, and where only such layers read a channel a is 1.

A factor common to all channels of a tensor changes nothing, so the scales are counted from their median, or
from the largest of the channels that have to stay as they are. Only channels far from it are scaled
(TOLERANCE): an ordinary network stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import (
    STANDARD_DOMAINS,
    const_array,
    consumers,
    from_proto,
    set_constant,
    static_shape,
    to_proto,
)

STRENGTH = 0.5
"""The exponent a of the formula for channels that a dense layer reads."""

LIMIT = 10
"""Scales lie within 2^-LIMIT .. 2^LIMIT, and a w[c] below 2^-LIMIT counts as that."""

TOLERANCE = 2.0
"""Channels whose scale would lie within 2^-TOLERANCE .. 2^TOLERANCE keep theirs (docs/equalisation.md)."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Layers with a weight for each input and output channel: where scales are absorbed."""

CHANNELWISE = (
    "AveragePool",
    "Dropout",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Relu",
)
"""f(s x) = s f(x) for s > 0, each channel by itself."""

REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
"""The same over axes other than the channels'."""

TYING = ("Add", "Max", "Mean", "Min", "Sub", "Sum")
"""f(s x, s y) = s f(x, y): the channel has one scale in all operands."""

IN_ORDER = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""The elements of a picture keep their order."""

GATES = ("HardSigmoid", "Sigmoid")
"""A factor made by one of these keeps its values; the other factor's scale passes through the product."""

Magnitudes = Mapping[str, NDArray[np.floating]]
"""Tensor name -> the largest magnitude of each channel, [C]."""


@dataclass(frozen=True)
class EqualisedTensor:
    """What equalisation does to one tensor.

    Attributes:
        name: of the tensor.
        channels: it has.
        scaled: channels whose scale is not 1.
        lost_before, lost_after: bits that the median channel has less than the largest one has, log2 of the
            ratio of their magnitudes, over the channels that are not 0 on all pictures.
    """

    name: str
    channels: int
    scaled: int
    lost_before: float
    lost_after: float


@dataclass(frozen=True)
class Equalisation:
    """What `equalise` did: one entry for each measured tensor with a scalable channel, in graph order."""

    tensors: tuple[EqualisedTensor, ...]

    @property
    def scaled(self) -> int:
        """Channels with another scale than 1, over all tensors."""
        return sum(one.scaled for one in self.tensors)


def scalable_tensors(model: ir.Model) -> list[str]:
    """Names of the tensors whose ranges `equalise` needs: those with scalable channels, in graph order.

    What only a Relu or LeakyRelu reads is left out: the chip computes the two as one layer and never stores
    what is between them.
    """
    return [value.name or "" for value in _measured(model.graph, _Scales(model.graph))]


def equalise(
    model: ir.Model, ranges: Magnitudes, strength: float = STRENGTH
) -> tuple[ir.Model, Equalisation]:
    """A copy of the float graph whose channels have ranges that are closer together.

    Args:
        model: float, named, batch norms folded (`passes.pipeline.FLOAT_TRANSFORMS`). It is not changed.
        ranges: for the tensors of `scalable_tensors`, measured on representative pictures. Others are
            ignored. A channel that is absent or always 0 keeps its scale, unless it is tied to another one.
        strength: the exponent a above, 0..1; 1 makes all ranges equal.

    Returns:
        The graph, which computes the same function of its inputs bit for bit as long as no number is
        denormal or overflows, with the same names, and what was done. The same arguments give the same bytes.

    Raises:
        ValueError: ranges that do not fit their tensor or are no magnitudes, or a strength outside of 0..1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} is not within 0..1")
    copy = from_proto(to_proto(model))
    scales = _Scales(copy.graph)
    measured = {
        value: np.asarray(ranges[value.name], np.float64)
        for value in _measured(copy.graph, scales)
        if value.name is not None and value.name in ranges
    }
    for value, magnitudes in measured.items():
        channels = scales.ids(value).size
        if magnitudes.shape != (channels,) or not np.all((magnitudes >= 0) & np.isfinite(magnitudes)):
            raise ValueError(
                f"ranges of {value.name} (shape {magnitudes.shape}) are not {channels} finite magnitudes"
            )
    exponents = _exponents(scales, measured, strength)
    for layer in scales.layers:
        _rescale(layer, exponents[scales.ids(layer.input)], exponents[scales.ids(layer.output)])
    facts = [
        _facts(value, magnitudes, exponents[scales.ids(value)]) for value, magnitudes in measured.items()
    ]
    return copy, Equalisation(tuple(facts))


# Which channels have one scale


@dataclass(frozen=True, eq=False)
class _Layer:
    """A node of LAYERS with constant weights of its own.

    Attributes:
        sources, targets: int [d0, d1], the input and the output channel of each weight [d0, d1, ...].
    """

    node: ir.Node
    weight: NDArray[np.floating]
    sources: NDArray[np.intp]
    targets: NDArray[np.intp]

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def depthwise(self) -> bool:
        """Each output channel reads one input channel."""
        return bool(self.sources.size == self.targets.max() + 1)


class _Scales:
    """The channels of a graph in groups of one scale each; the group of channel 0 has the scale 1.

    Union-find over the channels (axis 1) of all values that some node computes.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._first: dict[ir.Value, int] = {}
        self._parent = [0]
        self.layers: list[_Layer] = []
        for value in [*graph.inputs, *(value for node in graph for value in node.outputs)]:
            if (channels := _channels(value)) is not None and const_array(value) is None:
                self._first[value] = len(self._parent)
                self._parent += range(len(self._parent), len(self._parent) + channels)
        for value in [*graph.inputs, *graph.outputs]:
            self._fix(value)
        for node in graph:
            if (layer := _layer(node)) is not None and {layer.input, layer.output} <= self._first.keys():
                self.layers.append(layer)
            elif not self._passes(node):
                for given in (*node.inputs, *node.outputs):
                    self._fix(given)
            for value in node.outputs:
                if any(use.node.graph is not graph for use in value.uses()):
                    self._fix(value)
        self._roots = np.array([self._root(one) for one in range(len(self._parent))])

    def __contains__(self, value: ir.Value) -> bool:
        return value in self._first

    def ids(self, value: ir.Value) -> NDArray[np.intp]:
        """The group of each channel of a value, 0 where it is not scalable, [C]."""
        first = self._first[value]
        roots: NDArray[np.intp] = self._roots[first : first + (_channels(value) or 0)]
        return roots

    @property
    def size(self) -> int:
        return len(self._roots)

    def _root(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def _unite(self, ones: NDArray[np.intp], others: NDArray[np.intp]) -> None:
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low

    def _own(self, value: ir.Value) -> NDArray[np.intp]:
        return self._first[value] + np.arange(_channels(value) or 0)

    def _fix(self, value: ir.Value | None) -> None:
        if value is not None and value in self._first:
            own = self._own(value)
            self._unite(own, np.zeros_like(own))

    def _tie(self, value: ir.Value | None, other: ir.Value) -> bool:
        """Channel c of one has the scale of channel c of the other; False where they do not correspond."""
        if value is None or not {value, other} <= self._first.keys():
            return False
        if len(self._own(value)) != len(self._own(other)):
            return False
        self._unite(self._own(value), self._own(other))
        return True

    def _passes(self, node: ir.Node) -> bool:
        """Tie the channels that the node passes on; False where it is not known to pass scales on."""
        if node.domain not in STANDARD_DOMAINS or not node.inputs or node.inputs[0] is None:
            return False
        source, target, kind = node.inputs[0], node.outputs[0], node.op_type
        if kind in CHANNELWISE:
            others = [value for value in node.outputs[1:] if value.uses()]
            training = len(node.inputs) > 2 and kind == "Dropout"
            return not others and not training and self._tie(source, target)
        if kind in REDUCTIONS:
            return _keeps_channels(node, source) and self._tie(source, target)
        if kind == "Resize":
            mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
            return mode != "tf_crop_and_resize" and self._tie(source, target)
        if kind == "Pad":
            return _pads_zeros(node) and self._tie(source, target)
        if kind in TYING:
            same = all(v is not None and len(v.shape or ()) == len(target.shape or ()) for v in node.inputs)
            return same and all([self._tie(value, target) for value in node.inputs])
        if kind in ("Mul", "Div"):
            return self._scaled(node, source, target)
        if kind in IN_ORDER:
            return self._reshaped(source, target)
        axis = node.attributes.get_int("axis", 0)
        if kind in ("Concat", "Split") and axis % max(len(target.shape or ()), 1) == 1:
            many = node.inputs if kind == "Concat" else node.outputs
            return self._joined(many, target if kind == "Concat" else source)
        return False

    def _scaled(self, node: ir.Node, source: ir.Value, target: ir.Value) -> bool:
        """A product with a constant or a gate, a quotient by a constant."""
        other = node.inputs[1]
        if other is None:
            return False
        for value, factor in ((source, other), (other, source)):
            maker = factor.producer()
            gate = maker is not None and maker.op_type in GATES
            if node.op_type == "Mul" and (gate or const_array(factor) is not None):
                return len(value.shape or ()) == len(target.shape or ()) and self._tie(value, target)
        same = len(source.shape or ()) == len(target.shape or ())
        return const_array(other) is not None and same and self._tie(source, target)

    def _reshaped(self, source: ir.Value, target: ir.Value) -> bool:
        before, after = static_shape(source), static_shape(target)
        if not {source, target} <= self._first.keys() or before is None or after is None:
            return False
        sizes = [[size for size in shape[1:] if size is not None] for shape in (before, after)]
        known = len(sizes[0]) == len(before) - 1 and len(sizes[1]) == len(after) - 1
        count = int(np.prod(sizes[0]))
        if not known or before[0] != after[0] or count != int(np.prod(sizes[1])):
            return False
        elements = np.arange(count)
        one, other = (elements // int(np.prod(size[1:])) for size in sizes)
        pairs = np.unique(np.stack([one, other]), axis=1)
        self._unite(self._first[source] + pairs[0], self._first[target] + pairs[1])
        return True

    def _joined(self, parts: Sequence[ir.Value | None], whole: ir.Value) -> bool:
        """The parts' channels one after the other are the whole's."""
        known = [value for value in parts if value is not None and value in self._first]
        if len(known) != len(parts) or whole not in self._first:
            return False
        own = np.concatenate([self._own(value) for value in known])
        if len(own) != len(self._own(whole)):
            return False
        self._unite(own, self._own(whole))
        return True


def _channels(value: ir.Value) -> int | None:
    shape = static_shape(value)
    return shape[1] if shape is not None and len(shape) >= 2 else None


def _keeps_channels(node: ir.Node, source: ir.Value) -> bool:
    """A reduction over known axes beyond the channels'."""
    rank = len(source.shape or ())
    axes = node.attributes.get_ints("axes", [])
    if len(node.inputs) > 1 and (array := const_array(node.inputs[1])) is not None:
        axes = array.tolist()
    return bool(axes) and rank > 2 and all(axis % rank > 1 for axis in axes)


def _pads_zeros(node: ir.Node) -> bool:
    """Spatial padding, by zeros or by the tensor's own values."""
    pads = const_array(node.inputs[1]) if len(node.inputs) > 1 else None
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if pads is None or len(node.inputs) > 3:
        return False
    inner = pads.reshape(2, -1)[:, :2]
    array = const_array(fill)
    zero = fill is None or (array is not None and not array.any())
    return not inner.any() and (zero or node.attributes.get_string("mode", "constant") != "constant")


def _layer(node: ir.Node) -> _Layer | None:
    """The node as a layer, None where its weights are shared, computed, or of an unknown layout.

    A shared bias is no obstacle: the chip stores one for each layer anyway.
    """
    if node.op_type not in LAYERS or node.domain not in STANDARD_DOMAINS or node.inputs[0] is None:
        return None
    kernel, offset = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    weight, bias = const_array(kernel), const_array(offset)
    if kernel is None or not _is_own(kernel) or (bias is None and offset is not None):
        return None
    given, made = _channels(node.inputs[0]), _channels(node.outputs[0])
    if weight is None or weight.ndim < 2 or given is None or made is None:
        return None
    first, second = np.arange(weight.shape[0])[:, None], np.arange(weight.shape[1])[None, :]
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        targets = first
        sources = first // max(weight.shape[0] // groups, 1) * weight.shape[1] + second
    elif node.op_type == "ConvTranspose":
        sources = first
        targets = first // max(weight.shape[0] // groups, 1) * weight.shape[1] + second
    else:
        if len(node.inputs[0].shape or ()) != 2 or node.attributes.get_int("transA", 0) != 0:
            return None
        swapped = node.attributes.get_int("transB", 0) != 0
        sources, targets = (second, first) if swapped else (first, second)
    sources, targets = (np.broadcast_to(one, weight.shape[:2]) for one in (sources, targets))
    fits = weight.size and sources.max() + 1 == given and targets.max() + 1 == made
    if not fits or (bias is not None and (bias.size != made or bias.shape[-1:] != (made,))):
        return None
    return _Layer(node, weight, sources, targets)


def _is_own(value: ir.Value) -> bool:
    """An initializer that one node reads once."""
    return value.is_initializer() and not value.is_graph_input() and len(value.uses()) == 1


# How large the scales are


def _measured(graph: ir.Graph, scales: _Scales) -> list[ir.Value]:
    return [
        value
        for node in graph
        for value in node.outputs
        if value in scales and scales.ids(value).any() and not _fused(value)
    ]


def _fused(value: ir.Value) -> bool:
    """The chip never stores it: an activation function is all that reads it."""
    readers = consumers(value)
    return len(readers) == 1 and readers[0].op_type in ("LeakyRelu", "Relu")


def _exponents(
    scales: _Scales, measured: Mapping[ir.Value, NDArray[np.float64]], strength: float
) -> NDArray[np.int_]:
    """log2 of each group's scale, 0 for group 0."""
    ranges, weights = np.zeros(scales.size), np.zeros(scales.size)
    for value, magnitudes in measured.items():
        ids = scales.ids(value)
        kept = magnitudes[ids == 0]
        # Channels that cannot change decide what the others should come to.
        largest = kept.max() if kept.size and kept.max() > 0 else magnitudes.max()
        np.maximum.at(ranges, ids, magnitudes / (largest or 1.0))
    dense = np.zeros(scales.size, np.bool_)
    for layer in scales.layers:
        if not layer.depthwise:
            ids = scales.ids(layer.input)
            dense[ids] = True
            np.maximum.at(weights, ids, _column_shares(layer))
    known = ranges > 0
    share = np.log2(ranges, where=known, out=np.zeros_like(ranges))
    column = np.maximum(np.log2(weights, where=weights > 0, out=np.full_like(weights, -LIMIT)), -LIMIT)
    wanted = np.where(dense, strength * share - (1 - strength) * column, share)
    wanted -= _middles([scales.ids(value) for value in measured], wanted, known)
    moved = known & (np.abs(wanted) > TOLERANCE)
    exponents = np.where(moved, np.clip(np.round(wanted), -LIMIT, LIMIT), 0).astype(np.int_)
    exponents[0] = 0
    return exponents


def _middles(
    tensors: Sequence[NDArray[np.intp]], wanted: NDArray[np.float64], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The median of `wanted` over the groups that share tensors with each group; 0 where one is group 0."""
    family = np.arange(len(wanted))
    before = None
    while before is None or (before != family).any():
        before = family.copy()
        for ids in tensors:
            family[ids] = family[ids].min()
    middles = np.zeros(len(wanted))
    for one in np.unique(family[known & (family > 0)]):
        middles[family == one] = np.median(wanted[known & (family == one)])
    return middles


def _column_shares(layer: _Layer) -> NDArray[np.float64]:
    """For each input channel the largest weight that reads it, as a share of its output channel's largest."""
    magnitude = np.abs(layer.weight.astype(np.float64)).reshape(*layer.weight.shape[:2], -1).max(axis=2)
    rows = np.zeros(layer.targets.max() + 1)
    np.maximum.at(rows, layer.targets, magnitude)
    rows[rows == 0] = 1.0
    columns = np.zeros(layer.sources.max() + 1)
    np.maximum.at(columns, layer.sources, magnitude / rows[layer.targets])
    return columns


def _rescale(layer: _Layer, given: NDArray[np.int_], made: NDArray[np.int_]) -> None:
    """Take the scales of the layer's input and output channels into its weights and bias, in place."""
    change = given[layer.sources] - made[layer.targets]
    if change.any():
        spread = change.reshape(*change.shape, *(1,) * (layer.weight.ndim - 2))
        _store(layer.node, 1, "weight", np.ldexp(layer.weight, spread))
    bias = const_array(layer.node.inputs[2]) if len(layer.node.inputs) > 2 else None
    if bias is not None and made.any() and bias.any():
        _store(layer.node, 2, "bias", np.ldexp(bias, -made))


def _store(node: ir.Node, index: int, role: str, array: NDArray[np.floating]) -> None:
    """Change the constant where it is the node's own, else give the node one."""
    value = node.inputs[index]
    assert value is not None
    assert isinstance(node.graph, ir.Graph)
    if _is_own(value):
        value.const_value = ir.Tensor(array, name=value.name)
    else:
        set_constant(node.graph, node, index, f"{node.name}.{role}", array)


def _facts(value: ir.Value, magnitudes: NDArray[np.float64], exponents: NDArray[np.int_]) -> EqualisedTensor:
    return EqualisedTensor(
        value.name or "",
        len(magnitudes),
        int(np.count_nonzero(exponents)),
        _lost(magnitudes),
        _lost(np.ldexp(magnitudes, -exponents)),
    )


def _lost(magnitudes: NDArray[np.float64]) -> float:
    alive = magnitudes[magnitudes > 0]
    return float(np.log2(alive.max() / np.median(alive))) if alive.size else 0.0
