"""The int8 graph with some of its quantizers left out, as standard operators in onnxruntime.

A layer without its quantizers computes with the float weights, the float bias and unrounded results. A
layer's change touches only what lies behind it, so the graph runs in pieces (`PartlyQuantizedNetwork`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.agreement import session
from compiler.dialect import to_standard
from compiler.inspection.layers import Layer, quantized_layers
from passes.graph import all_values, const_array, from_proto, real_inputs, set_constant, to_proto

BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias, zero where it is missing."""

Floats = NDArray[np.float32]

Part = tuple[int, str]
"""Index of a layer (`quantized_layers`), and `weights` or `activations`."""

KINDS = {"both": ("weights", "activations"), "weights": ("weights",), "activations": ("activations",)}
"""The fields of `Ratios`, and what is quantized for each."""


def partly_quantized(
    model: ir.Model,
    quantized: Collection[Part],
    float_model: ir.Model | None = None,
    read: Collection[str] = (),
) -> ir.Model:
    """A vendor-dialect graph in standard operators that keeps some of its quantizers.

    Args:
        model: the quantized graph.
        quantized: the parts that keep their quantizers.
        float_model: the graph it was made from. Where both have a node of one name, what calibration changed
            in its constants (the bias correction) goes with the quantizers of the layer's weights.
        read: names of further values to put out.
    """
    copy = from_proto(to_proto(model))
    graph = copy.graph
    originals = {} if float_model is None else {node.name: node for node in float_model.graph}
    for index, layer in enumerate(quantized_layers(copy)):
        if (index, "weights") not in quantized:
            for quantizer in layer.weights:
                _drop(graph, quantizer)
            for node in layer.nodes:
                if (original := originals.get(node.name)) is not None and original.op_type == node.op_type:
                    _restore_constants(graph, node, original)
        if layer.activation is not None and (index, "activations") not in quantized:
            _drop(graph, layer.activation)
    values = {value.name: value for node in graph for value in node.outputs}
    present = {value.name for value in graph.outputs}
    graph.outputs.extend(values[name] for name in read if name not in present)
    return to_standard(copy)


def _drop(graph: ir.Graph, quantizer: ir.Node) -> None:
    """Nothing in the place of a quantizer; its result keeps its name."""
    old = quantizer.outputs[0]
    passed = ir.Node("", "Identity", [quantizer.inputs[0]], name=f"{quantizer.name}/none")
    new = passed.outputs[0]
    new.name, new.dtype, new.shape = old.name, old.dtype or ir.DataType.FLOAT, old.shape
    old.name = f"{old.name}/dropped"
    graph.insert_before(quantizer, passed)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(quantizer, safe=True)


def _restore_constants(graph: ir.Graph, node: ir.Node, original: ir.Node) -> None:
    """Gives a node the constants that it had before calibration, a bias that it did not have as zeros."""
    for index, value in enumerate(node.inputs):
        changed = const_array(value)
        if changed is None or changed.dtype != np.float32:
            continue
        given = original.inputs[index] if index < len(original.inputs) else None
        before = const_array(given)
        if given is None and node.op_type in BIASED and index == 2:
            before = np.zeros_like(changed)
        if before is not None and before.shape == changed.shape and not np.array_equal(before, changed):
            set_constant(graph, node, index, f"{node.name}/float.{index}", before.astype(np.float32))


# Running them

STRIDE = 6
"""Layers between two places from which the rest of the network can run as one session, faster than in pieces:
the shipped student's 36 layers alone on one picture take 0.16 s in all instead of 0.26 s (measured)."""


@dataclass(frozen=True)
class _Piece:
    """What computes values from layers' results and network inputs.

    Attributes:
        results: their names: of one layer's result, of one output, or of all outputs behind some layer.
        inputs: names of what it reads.
        parts: those whose quantizers it contains.
    """

    results: tuple[str, ...]
    inputs: tuple[str, ...]
    parts: frozenset[Part]


class PartlyQuantizedNetwork:
    """`partly_quantized` graphs cut at the layers' results, in onnxruntime.

    Each piece runs in a session of its own, one for each choice of its quantizers. So networks that differ in
    some layers share the others, and of a change only what lies behind it runs again. The values are those of
    the whole graph but for the float32 rounding of what onnxruntime fuses there and not here.

    Attributes:
        layers: of the model.
        results: names of the layers' results and of the outputs.
        real_outputs: names of the outputs that are real numbers, no indices.
    """

    def __init__(self, model: ir.Model, float_model: ir.Model | None = None) -> None:
        """`model` and `float_model` as for `partly_quantized`; both stay as they are."""
        self.layers = quantized_layers(model)
        outputs = tuple(value.name or "" for value in model.graph.outputs)
        self.results = tuple(dict.fromkeys([*(layer.tensor for layer in self.layers), *outputs]))
        self.real_outputs = tuple(
            value.name or "" for value in model.graph.outputs if value.dtype in (None, ir.DataType.FLOAT)
        )
        self._model, self._float_model = model, float_model
        cut = _Cut(model, self.layers)
        self._pieces = [cut.piece([name], self.results[:n]) for n, name in enumerate(self.results)]
        self._tails = {
            number: cut.piece(later, self.results[:number])
            for number in range(STRIDE, len(self.results), STRIDE)
            if (later := [name for name in self.results[number:] if name in outputs])
        }
        self._last_reader = {
            name: number for number, piece in enumerate(self._pieces) for name in piece.inputs
        }
        self._outputs = frozenset(outputs)
        self._graphs: dict[frozenset[Part], _StandardGraph] = {}
        self._sessions: dict[tuple[_Piece, frozenset[Part]], Any] = {}
        self._lock = Lock()

    def every(self, kind: str) -> frozenset[Part]:
        """All parts of a kind of `KINDS`."""
        return frozenset((index, part) for index in range(len(self.layers)) for part in KINDS[kind])

    def run(
        self, feed: Mapping[str, Floats], read: Collection[str], quantized: Collection[Part] = ()
    ) -> dict[str, Floats]:
        """Values by name.

        Args:
            feed: by input name, in the shapes of the graph's inputs.
            read: some of `results`.
            quantized: the parts that keep their quantizers.
        """
        values = dict(feed)
        for number, piece in enumerate(self._pieces):
            values.update(self._compute(piece, piece.parts.intersection(quantized), values))
            for name in piece.inputs:
                if self._last_reader[name] == number and name not in read:
                    values.pop(name, None)
        return {name: values[name] for name in read}

    def outputs_of(
        self, feed: Mapping[str, Floats], real: Mapping[str, Floats], quantized: Collection[Part]
    ) -> dict[str, Floats]:
        """The outputs alone, for which only what changes runs.

        Args:
            feed, quantized: as for `run`.
            real: what `run` gives for the feed and all `results` without any quantizer.
        """
        known, changed = {**feed, **real}, set[str]()
        kept = [piece.parts.intersection(quantized) for piece in self._pieces]
        last = max((number for number, parts in enumerate(kept) if parts), default=-1)
        for number, piece in enumerate(self._pieces):
            if number > last and not changed:
                break
            if number > last and number in self._tails:
                known.update(self._compute(self._tails[number], frozenset(), known))
                break
            if kept[number] or not changed.isdisjoint(piece.inputs):
                (name,) = piece.results
                known.update(self._compute(piece, kept[number], known))
                if not np.array_equal(known[name], real[name]):
                    changed.add(name)
        return {name: known[name] for name in self._outputs}

    def each_outputs(
        self, feed: Mapping[str, Floats], real: Mapping[str, Floats], choices: Sequence[Collection[Part]]
    ) -> Iterator[dict[str, Floats]]:
        """`outputs_of` for each choice of parts, on all cores this process may use; in the order given."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            yield from pool.map(lambda parts: self.outputs_of(feed, real, parts), choices)

    def _compute(
        self, piece: _Piece, kept: frozenset[Part], values: Mapping[str, Floats]
    ) -> dict[str, Floats]:
        with self._lock:
            if (piece, kept) not in self._sessions:
                self._sessions[piece, kept] = session(self._graph(piece, kept).cut(piece), threads=1)
            running = self._sessions[piece, kept]
        found = running.run(piece.results, {name: values[name] for name in piece.inputs})
        return dict(zip(piece.results, found, strict=True))

    def _graph(self, piece: _Piece, kept: frozenset[Part]) -> _StandardGraph:
        """Where layers share weights, a piece may need a choice that none of the usual graphs has."""
        usual = (frozenset[Part](), *map(self.every, KINDS))
        quantized = next((whole for whole in usual if whole & piece.parts == kept), kept)
        if quantized not in self._graphs:
            whole = partly_quantized(self._model, quantized, self._float_model, self.results)
            self._graphs[quantized] = _StandardGraph(to_proto(whole))
        return self._graphs[quantized]


class _Cut:
    """Finds what computes a value of a vendor-dialect graph."""

    def __init__(self, model: ir.Model, layers: Sequence[Layer]) -> None:
        self._owners: dict[ir.Node, Part] = {}
        for index, layer in enumerate(layers):
            self._owners.update(dict.fromkeys((*layer.nodes, *layer.weights), (index, "weights")))
            if layer.activation is not None:
                self._owners[layer.activation] = (index, "activations")
        self._values = {value.name or "": value for value in all_values(model.graph)}
        self._inputs = {value.name or "" for value in real_inputs(model.graph)}

    def piece(self, results: Sequence[str], known: Collection[str]) -> _Piece:
        """What computes `results` from `known` values and the network's inputs."""
        given = self._inputs.union(known)
        waiting = [self._values[name].producer() for name in results]
        nodes, inputs = set[ir.Node](), set[str]()
        while waiting:
            node = waiting.pop()
            if node is None or node in nodes:
                continue
            nodes.add(node)
            names = {value.name or "" for value in node.inputs if value is not None}
            inputs |= names & given
            waiting += [self._values[name].producer() for name in names - given]
        parts = frozenset(self._owners[node] for node in nodes if node in self._owners)
        return _Piece(tuple(results), tuple(sorted(inputs)), parts)


class _StandardGraph:
    """A graph of standard operators to cut pieces from."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self._proto = proto
        self._producers = {name: node for node in graph.node for name in node.output}
        self._order = {name: index for index, node in enumerate(graph.node) for name in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._infos: dict[str, onnx.ValueInfoProto] = {
            info.name: info for info in (*graph.value_info, *graph.input, *graph.output)
        }

    def cut(self, piece: _Piece) -> ir.Model:
        """The nodes and constants that compute the piece's results from its inputs."""
        nodes, constants = dict[int, onnx.NodeProto](), dict[str, onnx.TensorProto]()
        waiting = list(piece.results)
        while waiting:
            name = waiting.pop()
            if name in self._constants:
                constants[name] = self._constants[name]
            elif name and name not in piece.inputs and self._order[name] not in nodes:
                nodes[self._order[name]] = node = self._producers[name]
                waiting += node.input
        graph = onnx.GraphProto(
            name=piece.results[0],
            node=[nodes[index] for index in sorted(nodes)],
            initializer=constants.values(),
            input=[self._info(name) for name in piece.inputs],
            output=[self._info(name) for name in piece.results],
        )
        proto = onnx.ModelProto(
            ir_version=self._proto.ir_version,
            opset_import=self._proto.opset_import,
            functions=self._proto.functions,
            graph=graph,
        )
        return from_proto(proto)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        """Its type; of a quantizer's result that the file does not describe, float32."""
        unknown: onnx.ValueInfoProto = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        return self._infos.get(name, unknown)
