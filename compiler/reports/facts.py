"""What the reports show beyond the verdicts: each layer's numbers, and the masks on pictures held out.

Both networks run on the integers the sensor delivers: the int8 one in the exact simulator (in onnxruntime
where the simulator refuses the graph), the float one in onnxruntime with the same tensor names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.representative import RepresentativeSet, delivered
from compiler.agreement import agreement_by_picture, session
from compiler.dialect import activation_grid
from compiler.inspection.layers import Layer
from compiler.inspection.mask_output import MaskOutput, mask_outputs
from compiler.inspection.partly_quantized import PartlyQuantizedNetwork
from compiler.inspection.sensitivity import LayersAlone
from compiler.simulator.fixedpoint import Grid
from passes.errors import EnvironmentFault, InputError
from passes.graph import real_inputs, static_shape
from passes.imx500.macs import count_macs
from passes.imx500.memory import MemoryForecast, forecast_memory

LAYER_PICTURES = 4
"""Pictures that the layers are measured on."""

OVERLAYS = 8
"""Pictures shown with their masks, those with the lowest agreement first."""

SHOWN_SIDE = 192
"""Pixels of a shown picture's longer side, at most."""

EXACT_SIMULATOR, ONNXRUNTIME = "exact simulator", "onnxruntime"

Floats = NDArray[np.float32]
Feed = Mapping[str, Floats]


@dataclass(frozen=True)
class LayerFacts:
    """One layer of the quantized network.

    Attributes:
        name, operators: of `compiler.inspection.layers.Layer`.
        shape: of its result, batch included.
        macs, parameters: counted from the shapes (exact).
        weight_bits: of its weights; None without any.
        weight_bytes: of model memory (forecast), weights, biases and tables.
        activation_bytes: of runtime memory its result takes (forecast); None where it takes none of its own.
        lowest, highest: of the float network's result on the pictures (measured).
        grid: of the integers it puts out; None where nothing is rounded.
        clipped: share of the float values that the grid cannot hold, 0..1 (measured).
        here_db: signal-to-noise ratio of the result, the whole network quantized; infinite where exact.
        alone_db: the same at the network's outputs with this layer alone quantized.
    """

    name: str
    operators: tuple[str, ...]
    shape: tuple[int | None, ...]
    macs: int
    parameters: int
    weight_bits: int | None
    weight_bytes: int
    activation_bytes: int | None
    lowest: float
    highest: float
    grid: Grid | None
    clipped: float
    here_db: float
    alone_db: float

    @property
    def threshold(self) -> float | None:
        """The quantizer's threshold: step times 2^(bits - signed)."""
        return None if self.grid is None else self.grid.step * 2.0 ** (self.grid.bits - self.grid.signed)

    def to_json(self) -> dict[str, Any]:
        """For report.json; ratios rounded, null where infinite."""
        return {
            "name": self.name,
            "operators": list(self.operators),
            "shape": list(self.shape),
            "macs": self.macs,
            "parameters": self.parameters,
            "weight_bits": self.weight_bits,
            "weight_bytes": self.weight_bytes,
            "activation_bytes": self.activation_bytes,
            "range": [self.lowest, self.highest],
            "threshold": self.threshold,
            "activation_bits": None if self.grid is None else self.grid.bits,
            "signed": None if self.grid is None else self.grid.signed,
            "clipped_share": round(self.clipped, 6),
            "here_db": _json_number(self.here_db),
            "alone_at_output_db": _json_number(self.alone_db),
        }


@dataclass(frozen=True, eq=False)
class Overlay:
    """One held-out picture with both masks.

    Attributes:
        number: index among the held-out pictures.
        agreement: IoU of the two masks, 0..1.
        png: the picture as the network sees it.
        real, int8: bool [H, W], of the float and of the int8 network.
    """

    number: int
    agreement: float
    png: bytes
    real: NDArray[np.bool_]
    int8: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Facts:
    """Measured on held-out pictures.

    Attributes:
        engine: what ran the int8 network, `EXACT_SIMULATOR` or `ONNXRUNTIME`.
        pictures: number of pictures the layers were measured on.
        layers: in graph order.
        agreements: of each held-out picture (`compiler.agreement.agreement_by_picture` of the first output);
            empty for an output that has no such measure.
        overlays: lowest agreement first; empty where no output is one mask of the picture's size.
    """

    engine: str
    pictures: int
    layers: tuple[LayerFacts, ...]
    agreements: tuple[float, ...]
    overlays: tuple[Overlay, ...]

    @property
    def worst(self) -> LayerFacts | None:
        """The layer that, quantized alone, puts most noise on the outputs."""
        return min(self.layers, key=lambda layer: layer.alone_db, default=None)

    def share_of_noise(self, layer: LayerFacts) -> float:
        """Its part of the noise of all layers alone, 0..1."""
        total = sum(_noise(one) for one in self.layers)
        return _noise(layer) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """For report.json; the pictures stay in report.html."""
        return {
            "kind": "measured",
            "engine": self.engine,
            "pictures": self.pictures,
            "agreement_by_picture": [round(value, 6) for value in self.agreements],
            "layers": [
                layer.to_json() | {"share_of_noise": round(self.share_of_noise(layer), 4)}
                for layer in self.layers
            ],
        }


def _noise(layer: LayerFacts) -> float:
    return float(10.0 ** (-layer.alone_db / 10.0))


def _json_number(number: float) -> float | None:
    return round(number, 2) if math.isfinite(number) else None


def measure_facts(
    float_model: ir.Model,
    quantized: ir.Model,
    sets: Sequence[RepresentativeSet],
    progress: Callable[[str, float | None], None] = lambda phase, share: None,
) -> Facts:
    """Layers and masks of a network on the held-out pictures of `sets`, one set for each input.

    Args:
        float_model: folded; takes delivered integers.
        quantized: vendor dialect, same inputs.
        sets: as drawn for the calibration.
        progress: told what is measured, and the share done.

    Raises:
        InputError: what `quantized` holds cannot be run.
    """
    names = [value.name or "" for value in real_inputs(quantized.graph)]
    feeds = _feeds(quantized, names, sets)
    network = PartlyQuantizedNetwork(quantized, float_model)
    layers, output = network.layers, quantized.graph.outputs[0].name or ""
    engine, int8 = _int8_network(quantized, network)
    measured, alone = [_Tensor() for _ in layers], LayersAlone(network)
    tensors = [layer.tensor for layer in layers]
    chosen = feeds[:LAYER_PICTURES]
    for number, feed in enumerate(chosen):

        def tell(name: str, share: float, before: int = number) -> None:
            progress(f"what {name} costs alone", (before + share) / len(chosen))

        truth, found = network.run(feed, network.results), int8(feed, tensors)
        for layer, one in zip(layers, measured, strict=True):
            one.add(truth[layer.tensor], found[layer.tensor], _grid(layer))
        alone.add(feed, truth, tell)
    pairs = _outputs(float_model, int8, feeds, output)
    mask = next((one for one in mask_outputs(float_model) if one.name == output), None)
    both = [np.concatenate([pair[side] for pair in pairs]) for side in (0, 1)]
    _, values = agreement_by_picture(both[0], both[1], 0.0 if mask is None else mask.level)
    return Facts(
        engine,
        len(chosen),
        _layer_facts(quantized, layers, measured, alone.decibels()),
        () if values is None else tuple(float(value) for value in values),
        _overlays(quantized, sets, pairs, output),
    )


def _feeds(model: ir.Model, names: Sequence[str], sets: Sequence[RepresentativeSet]) -> list[Feed]:
    """One feed a picture, float32, in the shapes of the graph's inputs with a batch of one."""
    arrays = [delivered(one.held_out, one.contract) for one in sets]
    shapes = [
        [1, *(side for side in (static_shape(value) or ())[1:] if side is not None)]
        for value in real_inputs(model.graph)
    ]
    return [
        {name: array[index].reshape(shape) for name, array, shape in zip(names, arrays, shapes, strict=True)}
        for index in range(len(arrays[0]))
    ]


Network = Callable[[Feed, Sequence[str]], dict[str, Floats]]
"""A feed and the names to read, to real numbers by name."""


def _int8_network(model: ir.Model, network: PartlyQuantizedNetwork) -> tuple[str, Network]:
    """What runs the int8 network, and how: the exact simulator, else onnxruntime."""
    from compiler.inspection.engines import fast_engine

    try:
        engine = fast_engine(model)
    except (InputError, EnvironmentFault):  # an operator it does not know, or no C compiler
        everything = network.every("both")
        return ONNXRUNTIME, lambda feed, read: network.run(feed, read, everything)

    def run(feed: Feed, read: Sequence[str]) -> dict[str, Floats]:
        found = engine(feed, read)
        return {name: found[name].real().astype(np.float32) for name in read}

    return EXACT_SIMULATOR, run


@dataclass
class _Tensor:
    """Sums over the pictures."""

    signal: float = 0.0
    noise: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    clipped: int = 0
    values: int = 0

    def add(self, real: Floats, found: Floats, grid: Grid | None) -> None:
        self.signal += float(np.square(real, dtype=np.float64).sum())
        noise = np.subtract(found, real, dtype=np.float64)
        self.noise += float(np.square(noise, out=noise).sum())
        self.lowest = min(self.lowest, float(real.min()))
        self.highest = max(self.highest, float(real.max()))
        self.values += real.size
        if grid is not None:
            low, high = ((end + half) * grid.step for end, half in ((grid.lowest, -0.5), (grid.highest, 0.5)))
            self.clipped += int(((real < low) | (real > high)).sum())


def _grid(layer: Layer) -> Grid | None:
    return None if layer.activation is None else activation_grid(layer.activation)


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10.0 * math.log10(max(signal, 1e-300) / noise)


def _outputs(
    float_model: ir.Model, int8: Network, feeds: Sequence[Feed], output: str
) -> list[tuple[Floats, Floats]]:
    """The first output of the float and of the int8 network, [1, ...] for each picture."""
    running = session(float_model, threads=1)  # more would wait actively for work while the int8 network runs
    given, (first, *_) = [value.name for value in running.get_inputs()], running.get_outputs()
    return [
        (
            running.run([first.name], dict(zip(given, feed.values(), strict=True)))[0],
            int8(feed, [output])[output],
        )
        for feed in feeds
    ]


def _layer_facts(
    model: ir.Model, layers: Sequence[Layer], measured: Sequence[_Tensor], alone: Mapping[str, float]
) -> tuple[LayerFacts, ...]:
    costs = {cost.node: cost for cost in count_macs(model)}
    forecast = forecast_memory(model)
    facts = []
    for layer, one in zip(layers, measured, strict=True):
        nodes = [node.name or "" for node in layer.nodes]
        own = [costs[name] for name in nodes if name in costs]
        bits = [node.attributes.get_int("num_bits", 8) for node in layer.weights]
        end = layer.nodes[-1].outputs[0] if layer.nodes else None
        shape = None if end is None else static_shape(end)
        facts.append(
            LayerFacts(
                layer.name,
                layer.operators,
                shape or _shape_of(model, layer),
                sum(cost.macs for cost in own),
                sum(cost.parameters for cost in own),
                min(bits, default=None),
                sum(row.bytes for row in forecast.weights if row.name in nodes),
                _activation_bytes(forecast, layer),
                one.lowest,
                one.highest,
                _grid(layer),
                one.clipped / one.values if one.values else 0.0,
                _decibels(one.signal, one.noise),
                alone.get(layer.name, math.inf),
            )
        )
    return tuple(facts)


def _shape_of(model: ir.Model, layer: Layer) -> tuple[int | None, ...]:
    """Of the tensor itself, of what its quantizer rounds where that is not known."""
    value = next((v for node in model.graph for v in node.outputs if v.name == layer.tensor), None)
    before = None if layer.activation is None else layer.activation.inputs[0]
    known = [static_shape(one) for one in (value, before) if one is not None]
    return next((shape for shape in known if shape is not None), ())


def _activation_bytes(forecast: MemoryForecast, layer: Layer) -> int | None:
    names = {layer.tensor, *(value.name for node in layer.nodes for value in node.outputs)}
    if layer.activation is not None and layer.activation.inputs[0] is not None:
        names.add(layer.activation.inputs[0].name)
    return max((row.bytes for row in forecast.tensors if row.name in names), default=None)


def _overlays(
    model: ir.Model, sets: Sequence[RepresentativeSet], pairs: Sequence[tuple[Floats, Floats]], output: str
) -> tuple[Overlay, ...]:
    """The pictures with the least agreement, of a network that gives one mask of its one picture."""
    from student.crops import mask_iou

    mask = next((one for one in mask_outputs(model) if one.name == output), None)
    pictures, contract = sets[0].held_out, sets[0].contract
    if mask is None or len(sets) != 1 or contract.channels not in (1, 3):
        return ()
    if any(real.shape != (1, 1, contract.height, contract.width) for real, _ in pairs):
        return ()
    masks = [tuple(_mask(values, mask) for values in pair) for pair in pairs]
    scores = [mask_iou(*both) for both in masks]
    worst = sorted(range(len(scores)), key=lambda index: (scores[index], index))[:OVERLAYS]
    blue_first = contract.colour_order == "BGR"
    return tuple(
        Overlay(
            index,
            scores[index],
            _png(pictures[index][::-1] if blue_first else pictures[index]),
            *masks[index],
        )
        for index in worst
    )


def _mask(values: Floats, mask: MaskOutput) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = values[0, 0] > mask.level
    return inside


def _png(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [1 or 3, H, W] as a PNG, made smaller where it is larger than `SHOWN_SIDE`."""
    from PIL import Image

    image = Image.fromarray(
        picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0))
    )
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
