"""Where the accuracy goes: which layer's rounding does how much harm.

The int8 graph runs in onnxruntime as standard operators with some of its quantizers left out
(`partly_quantized`): a layer without them computes with the float weights, the float bias and unrounded
results. Four questions are asked, each on the same pictures:

- everything quantized: the signal-to-noise ratio of each layer's result against float, where it arises;
- all weights and no activation, and the reverse: the same ratio, so that one sees which of the two does it;
- one layer quantized, all others float: the ratio at the network's output. This is what one layer costs;
- of that layer only the weights, only the result.

The ratio in decibels is 10 log10(sum float^2 / sum (int8 - float)^2), sums over all pictures and elements.
For several outputs the ratios noise / signal are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.agreement import session
from compiler.dialect import to_standard
from compiler.inspection.layers import WARNING_DB, quantized_layers
from compiler.inspection.mask_output import MaskOutput, mask_outputs
from passes.errors import InputError
from passes.graph import const_array, from_proto, real_inputs, set_constant, to_proto
from student.crops import mask_iou

SCHEMA = 1
"""Version of `Sensitivity.to_json`."""

BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias, zero where it is missing."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Ratios:
    """Signal-to-noise ratios in dB: infinite where nothing changes, None where there is nothing to quantize.

    Attributes:
        both: weights and activations quantized.
        weights, activations: one kind alone. A layer's corrected bias counts as its weights.
    """

    both: float
    weights: float | None
    activations: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "both": _json_number(self.both),
            "weights": _json_number(self.weights),
            "activations": _json_number(self.activations),
        }


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        name, operators, tensor: of `compiler.inspection.layers.Layer`.
        here: with the whole network quantized, at the layer's own result.
        alone: with this layer alone quantized, at the network's output.
        share: this layer's part of the noise at the output, 0..1; the noises of all layers alone sum to 1.
        agreement: mean IoU with the float masks, this layer alone quantized; None without a mask output.
    """

    name: str
    operators: tuple[str, ...]
    tensor: str
    here: Ratios
    alone: Ratios
    share: float
    agreement: float | None

    @property
    def warned(self) -> bool:
        return self.alone.both < WARNING_DB

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "operators": list(self.operators),
            "tensor": self.tensor,
            "here_db": self.here.to_json(),
            "alone_at_output_db": self.alone.to_json(),
            "share_of_noise": round(self.share, 4),
            "mask_iou_alone": None if self.agreement is None else round(self.agreement, 4),
            "warning": self.warned,
        }


@dataclass(frozen=True)
class Sensitivity:
    """What was measured; the table, the plot and the JSON are pure functions of it.

    Attributes:
        model: name of the package.
        pictures: number of pictures.
        source: one sentence about them.
        layers: in graph order.
        output: of the whole network, at its output.
        agreement: mean IoU with the float masks of the whole network; None without a mask output.
        sum_of_parts: noise power of all layers alone, summed, over that of the whole network.
    """

    model: str
    pictures: int
    source: str
    layers: tuple[LayerSensitivity, ...]
    output: Ratios
    agreement: float | None
    sum_of_parts: float

    @property
    def worst(self) -> LayerSensitivity:
        """The layer that, quantized alone, puts most noise on the output."""
        return min(self.layers, key=lambda layer: layer.alone.both)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "model": self.model,
            "pictures": self.pictures,
            "source": self.source,
            "kind": "measured",
            "warning_db": WARNING_DB,
            "output_db": self.output.to_json(),
            "mask_iou": None if self.agreement is None else round(self.agreement, 4),
            "sum_of_parts": _json_number(self.sum_of_parts),
            "worst": self.worst.name,
            "warnings": [layer.name for layer in self.layers if layer.warned],
            "layers": [layer.to_json() for layer in self.layers],
        }


def _json_number(number: float | None) -> float | None:
    """Rounded; null for what does not exist and for an infinite ratio."""
    return None if number is None or not math.isfinite(number) else round(number, 2)


# Partly quantized graphs

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


# Measuring


def measure_sensitivity(
    model: ir.Model,
    float_model: ir.Model | None,
    pictures: Sequence[Floats],
    *,
    name: str,
    source: str,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Sensitivity:
    """Every layer's sensitivity on some pictures.

    Args:
        model: vendor dialect.
        float_model: the graph it was made from (`partly_quantized`); None: what is left without quantizers.
        pictures: for each input float32 [N, ...], the integers the sensor delivers.
        name, source: for the report.
        progress: called with networks run, networks to run, and which one runs.

    Raises:
        InputError: no quantizer, no output of real numbers, or values that are not finite.
    """
    layers = quantized_layers(model)
    own = [value.name or "" for value in model.graph.outputs if value.dtype in (None, ir.DataType.FLOAT)]
    if not layers or not own:
        raise InputError(
            f"sensitivity of {name}",
            "every output holds indices" if layers else "a graph without quantizers",
            "a quantized graph with an output of real numbers",
            "export the network with its logits as an output" if layers else "compile the model first",
        )
    read = list(dict.fromkeys([*(layer.tensor for layer in layers), *own]))
    feeds = _feeds(model, pictures)
    masks = mask_outputs(model)

    def network(quantized: Collection[Part], names: Sequence[str]) -> _Network:
        return _Network(partly_quantized(model, quantized, float_model, names), names)

    def everything(kind: str) -> set[Part]:
        return {(index, part) for index in range(len(layers)) for part in KINDS[kind]}

    alone = [
        (index, kind)
        for index, layer in enumerate(layers)
        for kind in KINDS
        if kind == "both" or (bool(layer.weights) if kind == "weights" else layer.activation is not None)
    ]
    runs = len(KINDS) + len(alone)
    real = network((), read)
    whole: dict[str, _Harm] = {}
    for done, kind in enumerate(KINDS):
        progress(done, runs, f"the whole network, {kind}")
        whole[kind] = _harm(feeds, map(real, feeds), network(everything(kind), read), masks)
    truth = [{tensor: values[tensor] for tensor in own} for values in map(real, feeds)]
    single: dict[Part, _Harm] = {}
    for done, (index, kind) in enumerate(alone, start=len(KINDS)):
        progress(done, runs, layers[index].name)
        quantized = {(index, part) for part in KINDS[kind]}
        single[index, kind] = _harm(feeds, truth, network(quantized, own), masks)
    progress(runs, runs, "done")

    total = sum(harm.at(own) for (_, kind), harm in single.items() if kind == "both")
    at_output = whole["both"].at(own)
    return Sensitivity(
        model=name,
        pictures=len(feeds),
        source=source,
        layers=tuple(
            LayerSensitivity(
                name=layer.name,
                operators=layer.operators,
                tensor=layer.tensor,
                here=_ratios({kind: harm.at([layer.tensor]) for kind, harm in whole.items()}),
                alone=_ratios({kind: harm.at(own) for (of, kind), harm in single.items() if of == index}),
                share=single[index, "both"].at(own) / total if total else 0.0,
                agreement=single[index, "both"].agreement,
            )
            for index, layer in enumerate(layers)
        ),
        output=_ratios({kind: harm.at(own) for kind, harm in whole.items()}),
        agreement=whole["both"].agreement,
        sum_of_parts=total / at_output if at_output else 1.0,
    )


def layers_alone(
    model: ir.Model,
    float_model: ir.Model | None,
    pictures: Sequence[Floats],
    names: Collection[str] | None = None,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> dict[str, float]:
    """`LayerSensitivity.alone.both` in dB by layer, without the rest; of the layers in `names`, None for all.

    Empty where no output is one of real numbers. `progress` is told the layer and the share done.
    """
    own = [value.name or "" for value in model.graph.outputs if value.dtype in (None, ir.DataType.FLOAT)]
    if not own:
        return {}
    feeds = _feeds(model, pictures)
    real = _Network(partly_quantized(model, (), float_model), own)
    truth = [real(feed) for feed in feeds]
    layers = quantized_layers(model)
    alone = {}
    for index, layer in enumerate(layers):
        if names is None or layer.name in names:
            progress(layer.name, index / len(layers))
            quantized = {(index, part) for part in KINDS["both"]}
            tested = _Network(partly_quantized(model, quantized, float_model), own)
            alone[layer.name] = _decibels(_harm(feeds, truth, tested, ()).at(own))
    return alone


class _Network:
    """A standard graph in onnxruntime: a feed in, the values of `names` by name out."""

    def __init__(self, model: ir.Model, names: Sequence[str]) -> None:
        self._session, self._names = session(model), list(names)

    def __call__(self, feed: Mapping[str, Floats]) -> dict[str, Floats]:
        values = self._session.run(self._names, dict(feed))
        return {
            name: _finite(name, np.asarray(value)) for name, value in zip(self._names, values, strict=True)
        }


@dataclass(frozen=True)
class _Harm:
    """Powers, summed over all pictures and elements, by tensor; and the mean IoU of the masks."""

    signal: Mapping[str, float]
    noise: Mapping[str, float]
    agreement: float | None

    def at(self, tensors: Sequence[str]) -> float:
        """Noise over signal, the mean over tensors; a tensor without signal counts as one of unit power."""
        return float(np.mean([self.noise[tensor] / (self.signal[tensor] or 1.0) for tensor in tensors]))


def _harm(
    feeds: Sequence[Mapping[str, Floats]],
    truth: Iterable[Mapping[str, Floats]],
    tested: _Network,
    masks: Sequence[MaskOutput],
) -> _Harm:
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    ious = []
    for feed, real in zip(feeds, truth, strict=True):
        for name, found in (values := tested(feed)).items():
            signal[name] = signal.get(name, 0.0) + _power(real[name])
            noise[name] = noise.get(name, 0.0) + _power(found - real[name])
        ious += [mask_iou(real[m.name] > m.level, values[m.name] > m.level) for m in masks]
    return _Harm(signal, noise, float(np.mean(ious)) if ious else None)


def _feeds(model: ir.Model, pictures: Sequence[Floats]) -> list[dict[str, Floats]]:
    """One feed a picture, with the batch of one that compiled graphs are fixed at."""
    inputs = real_inputs(model.graph)
    return [
        {
            value.name or "": one[index : index + 1].reshape([1, *one.shape[1:][: _rank(value) - 1]])
            for value, one in zip(inputs, pictures, strict=True)
        }
        for index in range(len(pictures[0]))
    ]


def _rank(value: ir.Value) -> int:
    return 4 if value.shape is None else len(value.shape)


def _finite(name: str, values: NDArray[Any]) -> Floats:
    if not np.isfinite(values).all():
        raise InputError(
            f"tensor {name}",
            f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite on a picture",
            "finite numbers",
            "look for a division, root or exponential that leaves the range",
        )
    return values.astype(np.float32, copy=False)


def _ratios(noise_over_signal: Mapping[str, float]) -> Ratios:
    """By kind; None for a kind that was not measured."""
    weights, activations = (
        _decibels(noise_over_signal[kind]) if kind in noise_over_signal else None
        for kind in ("weights", "activations")
    )
    return Ratios(_decibels(noise_over_signal["both"]), weights, activations)


def _power(values: Floats) -> float:
    return float(np.square(values.astype(np.float64)).sum())


def _decibels(noise_over_signal: float) -> float:
    return -10.0 * math.log10(noise_over_signal) if noise_over_signal > 0 else math.inf
