"""Where the accuracy goes: which layer's rounding does how much harm.

The int8 graph runs in onnxruntime as standard operators with some of its quantizers left out
(`partly_quantized`). Four questions are asked, each on the same pictures:

- everything quantized: the signal-to-noise ratio of each layer's result against float, where it arises;
- all weights and no activation, and the reverse: the same ratio, so that one sees which of the two does it;
- one layer quantized, all others float: the ratio at the network's output. This is what one layer costs;
- of that layer only the weights, only the result.

The ratio in decibels is 10 log10(sum float^2 / sum (int8 - float)^2), sums over all pictures and elements.
For several outputs the ratios noise / signal are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.inspection.layers import WARNING_DB
from compiler.inspection.mask_output import MaskOutput, mask_outputs
from compiler.inspection.partly_quantized import KINDS, Floats, Part, PartlyQuantizedNetwork
from passes.errors import InputError
from passes.graph import real_inputs
from student.crops import mask_iou

SCHEMA = 1
"""Version of `Sensitivity.to_json`."""


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
        progress: called with networks run, networks to run (each picture anew), and the last one's name.

    Raises:
        InputError: no quantizer, no output of real numbers, or values that are not finite.
    """
    network = PartlyQuantizedNetwork(model, float_model)
    layers, own = network.layers, network.real_outputs
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
    whole = {kind: _Harm(read, masks) for kind in KINDS}
    single = {
        (index, kind): _Harm(own, masks)
        for index, layer in enumerate(layers)
        for kind in KINDS
        if kind == "both" or (bool(layer.weights) if kind == "weights" else layer.activation is not None)
    }
    runs = len(feeds) * (len(whole) + len(single))
    done = 0
    for feed in feeds:
        real = network.run(feed, network.results)
        for kind, harm in whole.items():
            progress(done, runs, f"the whole network, {kind}")
            harm.add(real, network.run(feed, read, network.every(kind)))
            done += 1
        each = network.each_outputs(feed, real, [_layer_parts(*key) for key in single])
        for ((index, _), harm), found in zip(single.items(), each, strict=True):
            harm.add(real, found)
            done += 1
            progress(done, runs, layers[index].name)
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
    network = PartlyQuantizedNetwork(model, float_model)
    alone, feeds = LayersAlone(network, names), _feeds(model, pictures)
    for number, feed in enumerate(feeds):

        def tell(name: str, share: float, before: int = number) -> None:
            progress(name, (before + share) / len(feeds))

        alone.add(feed, network.run(feed, network.results), tell)
    return alone.decibels()


class LayersAlone:
    """`LayerSensitivity.alone.both` of a network's layers, picture by picture."""

    def __init__(self, network: PartlyQuantizedNetwork, names: Collection[str] | None = None) -> None:
        """Of the layers in `names`, None for all; of none where no output is one of real numbers."""
        self._network = network
        self._harms = {
            index: _Harm(network.real_outputs, ())
            for index, layer in enumerate(network.layers)
            if network.real_outputs and (names is None or layer.name in names)
        }

    def add(
        self,
        feed: Mapping[str, Floats],
        real: Mapping[str, Floats],
        progress: Callable[[str, float], None] = lambda name, share: None,
    ) -> None:
        """One picture; `real` of `PartlyQuantizedNetwork.outputs_of`, `progress` of `layers_alone`."""
        network, choices = self._network, [_layer_parts(index, "both") for index in self._harms]
        each = network.each_outputs(feed, real, choices)
        for done, ((index, harm), found) in enumerate(zip(self._harms.items(), each, strict=True), start=1):
            harm.add(real, found)
            progress(network.layers[index].name, done / len(choices))

    def decibels(self) -> dict[str, float]:
        """By layer."""
        return {
            self._network.layers[index].name: _decibels(harm.at(self._network.real_outputs))
            for index, harm in self._harms.items()
        }


def _layer_parts(index: int, kind: str) -> set[Part]:
    return {(index, part) for part in KINDS[kind]}


class _Harm:
    """Powers of some tensors, summed over pictures and elements, and the mean IoU of the masks."""

    def __init__(self, tensors: Sequence[str], masks: Sequence[MaskOutput]) -> None:
        self._masks, self._ious = masks, list[float]()
        self._signal, self._noise = dict.fromkeys(tensors, 0.0), dict.fromkeys(tensors, 0.0)

    def add(self, real: Mapping[str, Floats], found: Mapping[str, Floats]) -> None:
        """One picture; InputError for values that are not finite."""
        for name in self._signal:
            right, value = _finite(name, real[name]), _finite(name, found[name])
            self._signal[name] += _power(right)
            self._noise[name] += _power(value - right)
        self._ious += [mask_iou(real[m.name] > m.level, found[m.name] > m.level) for m in self._masks]

    def at(self, tensors: Sequence[str]) -> float:
        """Noise over signal, the mean over tensors; a tensor without signal counts as one of unit power."""
        return float(np.mean([self._noise[tensor] / (self._signal[tensor] or 1.0) for tensor in tensors]))

    @property
    def agreement(self) -> float | None:
        return float(np.mean(self._ious)) if self._ious else None


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
