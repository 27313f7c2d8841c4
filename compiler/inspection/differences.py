"""Two executions of one quantized network, compared integer by integer.

A source gives the integers of tensors by name for the same delivered integers; `SOURCES` lists those that
compute, a recording is a file (`recording.py`). The float network counts as one too: its values are put on
each tensor's own grid, so that a difference is a number of quantization steps (LSB).

What is carried from layer to layer is not told apart from what arises: the first tensor that differs, in
graph order, is the one to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.agreement import session
from compiler.dialect import output_grid
from compiler.inspection.engines import ENGINES, Engine, fast_engine
from compiler.inspection.layers import quantized_layers
from compiler.inspection.opened_package import OpenedPackage
from compiler.inspection.partly_quantized import KINDS, partly_quantized
from compiler.inspection.recording import read_recording
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.numerics import ALL_NUMERICS, slug
from compiler.simulator.reference import quantized_values
from passes.errors import InputError
from passes.graph import real_inputs

SCHEMA = 1
"""Version of `Differences.to_json`."""

Integers = NDArray[Any]
Inputs = Mapping[str, Integers]
"""Integers the sensor delivers, [N, ...] by input name."""

Source = Callable[[OpenedPackage, Inputs], Mapping[str, Integers]]
"""Integers by tensor name, [N, ...], of any of `compared_tensors`."""


@dataclass(frozen=True, eq=False)
class TensorDifference:
    """One tensor.

    Attributes:
        tensor, layer: its name, and that of the layer that computes it.
        shape: [N, ...].
        histogram: how many values have each difference second - first, in LSB; 0 included.
        channels: differing values in each channel (axis 1), over all pictures.
    """

    tensor: str
    layer: str
    shape: tuple[int, ...]
    histogram: Mapping[int, int]
    channels: tuple[int, ...]

    @property
    def values(self) -> int:
        return sum(self.histogram.values())

    @property
    def differing(self) -> int:
        return self.values - self.histogram.get(0, 0)

    @property
    def share(self) -> float:
        return self.differing / self.values if self.values else 0.0

    @property
    def largest(self) -> int:
        """The largest difference in LSB, whatever its sign."""
        return max((abs(step) for step in self.histogram), default=0)

    def to_json(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "layer": self.layer,
            "shape": list(self.shape),
            "values": self.values,
            "differing": self.differing,
            "share": self.share,
            "largest_lsb": self.largest,
            "histogram_lsb": {str(step): count for step, count in sorted(self.histogram.items())},
            "channels": {str(index): count for index, count in enumerate(self.channels) if count},
        }


@dataclass(frozen=True, eq=False)
class Differences:
    """The comparison; tables, JSON and the picture are pure functions of it.

    Attributes:
        model: name of the package.
        first, second: names of the sources.
        pictures: number of pictures.
        tensors: those that both sources give, in graph order.
        absent: quantized tensors and outputs that one of them does not give.
        map: of the first differing tensor, int64 [C, H, W]: for each place the difference second - first of
            the picture in which it is largest; None where nothing differs.
        first_integers: what the first source gave, in the smallest integer type of each tensor's range.
    """

    model: str
    first: str
    second: str
    pictures: int
    tensors: tuple[TensorDifference, ...]
    absent: tuple[str, ...]
    map: Integers | None
    first_integers: Mapping[str, Integers]

    @property
    def first_differing(self) -> TensorDifference | None:
        return next((tensor for tensor in self.tensors if tensor.differing), None)

    def to_json(self) -> dict[str, Any]:
        first = self.first_differing
        return {
            "schema": SCHEMA,
            "model": self.model,
            "first": self.first,
            "second": self.second,
            "pictures": self.pictures,
            "equal": first is None,
            "first_differing": None if first is None else {"tensor": first.tensor, "layer": first.layer},
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "absent": list(self.absent),
        }


# Sources


def float_source(package: OpenedPackage, inputs: Inputs) -> dict[str, Integers]:
    """The float network, each value rounded to the grid of its tensor."""
    return _through_onnxruntime(package, inputs, quantized=False)


def onnxruntime_source(package: OpenedPackage, inputs: Inputs) -> dict[str, Integers]:
    """The int8 file as onnxruntime computes it in float32 (`compiler.dialect`)."""
    return _through_onnxruntime(package, inputs, quantized=True)


def engine_source(opened: Callable[[ir.Model], Engine]) -> Source:
    """An engine of the simulator (`compiler.inspection.engines`)."""

    def run(package: OpenedPackage, inputs: Inputs) -> dict[str, Integers]:
        found = opened(package.model)(inputs, quantized_values(package.model))
        return {name: tensor.values for name, tensor in found.items()}

    return run


SOURCES: dict[str, Source] = {
    "float": float_source,
    "onnxruntime": onnxruntime_source,
    **{name: engine_source(opened) for name, opened in ENGINES.items()},
    **{slug(one): engine_source(partial(fast_engine, numerics=one)) for one in ALL_NUMERICS},
}
"""What can be computed, by name; the names of numerics are those of the expected files of `device-check/`."""


def recorded(tensors: Mapping[str, Integers]) -> Source:
    """A recording as a source; it was checked when it was read."""
    return lambda package, inputs: tensors


def open_source(text: str, package: OpenedPackage) -> tuple[Source, Inputs | None]:
    """A name in `SOURCES`, or an .npz file; and the input that the file holds.

    Raises:
        InputError: another name, or a recording of another network.
    """
    if text in SOURCES:
        return SOURCES[text], None
    if not text.endswith(".npz"):
        raise InputError(
            "diff",
            repr(text),
            f"one of {', '.join(SOURCES)}, or an .npz of recorded integers",
            "correct the name",
        )
    tensors = read_recording(Path(text))
    inputs = [value.name or "" for value in real_inputs(package.model.graph)]
    known = {*inputs, *compared_tensors(package.model)}
    if unknown := sorted(set(tensors) - known):
        raise InputError(
            f"recording {text}",
            f"{unknown[0]!r} is no tensor of {package.name}",
            f"names such as {', '.join(sorted(known)[:3])}; `picosam2 diff --format json` lists them",
            "rename the array, or give the package that was recorded",
        )
    held = {name: tensors.pop(name) for name in inputs if name in tensors}
    return recorded(tensors), held if len(held) == len(inputs) else None


def compared_tensors(model: ir.Model) -> dict[str, Grid | None]:
    """The quantized tensors and the outputs in graph order, with their grids (None: indices).

    An output that no quantizer rounds is left out: it holds no integers.
    """
    real = {layer.tensor for layer in quantized_layers(model) if layer.activation is None}
    values = {v.name: v for node in model.graph for v in node.outputs if v.name not in real}
    names = [*quantized_values(model), *(value.name or "" for value in model.graph.outputs)]
    return {name: output_grid(values[name]) for name in dict.fromkeys(names) if name in values}


def _through_onnxruntime(package: OpenedPackage, inputs: Inputs, *, quantized: bool) -> dict[str, Integers]:
    model, grids = package.model, compared_tensors(package.model)
    layers = range(len(quantized_layers(model)))
    parts = {(index, part) for index in layers for part in KINDS["both"]} if quantized else set()
    running = session(partly_quantized(model, parts, package.float_model, list(grids)))
    count = len(next(iter(inputs.values())))
    kept: dict[str, list[Integers]] = {name: [] for name in grids}
    for index in range(count):
        feed = {name: values[index : index + 1].astype(np.float32) for name, values in inputs.items()}
        for (name, grid), value in zip(grids.items(), running.run(list(grids), feed), strict=True):
            kept[name].append(_on_grid(name, np.asarray(value), grid))
    return {name: np.concatenate(values) for name, values in kept.items()}


def _on_grid(name: str, values: NDArray[Any], grid: Grid | None) -> Integers:
    if grid is None:
        return values.astype(np.int64)
    if not np.isfinite(values).all():
        raise InputError(
            f"tensor {name}", "NaN or infinite values", "finite numbers", "look at the operators before it"
        )
    steps = np.rint(values.astype(np.float64) / grid.step)
    return np.clip(steps, grid.lowest, grid.highest).astype(np.int64)


# Comparing


def find_differences(
    package: OpenedPackage,
    first: tuple[str, Source],
    second: tuple[str, Source],
    inputs: Inputs,
    progress: Callable[[str], None] = lambda name: None,
) -> Differences:
    """Runs two sources on the same input and compares every tensor that both give.

    Args:
        first, second: name for the report, and the source.
        inputs: see `Inputs`.
        progress: called with the name of the source about to run.

    Raises:
        InputError: what a source refuses, tensors of different shapes, recorded integers outside their
            tensor's range, or no common tensor.
    """
    ran = []
    for name, source in (first, second):
        progress(name)
        ran.append(source(package, inputs))
    grids = compared_tensors(package.model)
    count = len(next(iter(inputs.values())))
    names = [name for name in grids if name in ran[0] and name in ran[1]]
    if not names:
        raise InputError(
            f"diff of {first[0]} and {second[0]}",
            "they have no tensor in common",
            "at least one",
            "record the outputs of the same package",
        )
    of_layer = {layer.tensor: layer.name for layer in quantized_layers(package.model)}
    tensors, where = [], None
    for name in names:
        one = _checked(first[0], name, ran[0][name], grids[name])
        other = _checked(second[0], name, ran[1][name], grids[name])
        if one.shape != other.shape:
            raise InputError(
                f"tensor {name}",
                f"{first[0]} has shape {list(one.shape)}, {second[0]} {list(other.shape)}",
                "one shape",
                "record the same pictures in the layout N,C,H,W of the graph",
            )
        steps = other - one
        tensors.append(_difference(name, of_layer.get(name, name), steps))
        if where is None and tensors[-1].differing:
            where = _map(steps)
    return Differences(
        model=package.name,
        first=first[0],
        second=second[0],
        pictures=count,
        tensors=tuple(tensors),
        absent=tuple(name for name in grids if name not in names),
        map=where,
        first_integers={name: _smallest(ran[0][name], grids[name]) for name in grids if name in ran[0]},
    )


def _smallest(values: Integers, grid: Grid | None) -> Integers:
    """Integers in the storage of their grid: int8 or uint8 up to 8 bits, else 16; indices in int64."""
    if grid is None:
        return values.astype(np.int64)
    return values.astype(f"{'i' if grid.signed else 'u'}{1 if grid.bits <= 8 else 2}")


def _checked(who: str, name: str, values: Integers, grid: Grid | None) -> Integers:
    if (
        grid is not None
        and values.size
        and not (grid.lowest <= values.min() and values.max() <= grid.highest)
    ):
        raise InputError(
            f"tensor {name} of {who}",
            f"values {values.min()} to {values.max()}",
            f"{grid.lowest} to {grid.highest}, the range of its quantizer",
            "record the integers with their sign as the device puts them out",
        )
    return values.astype(np.int64)


def _difference(name: str, layer: str, steps: Integers) -> TensorDifference:
    found, counts = np.unique(steps, return_counts=True)
    channels = (steps != 0).reshape(*steps.shape[:2], -1).sum(axis=(0, 2)) if steps.ndim > 1 else []
    return TensorDifference(
        name,
        layer,
        steps.shape,
        {int(step): int(count) for step, count in zip(found, counts, strict=True)},
        tuple(int(count) for count in channels),
    )


def _map(steps: Integers) -> Integers:
    """int64 [C, H, W]: for each place the difference of the picture in which it is largest."""
    chosen = np.abs(steps).argmax(axis=0)
    largest: Integers = np.take_along_axis(steps, chosen[None], axis=0)[0]
    channels = largest.shape[0] if largest.ndim > 2 else 1  # vectors and matrices: one plane
    plane: Integers = largest.reshape(channels, -1, largest.shape[-1] if largest.ndim else 1)
    return plane


def named_inputs(package: OpenedPackage, inputs: Sequence[Integers]) -> Inputs:
    """Arrays in the order of the graph's inputs, by name."""
    names = [value.name or "" for value in real_inputs(package.model.graph)]
    return dict(zip(names, inputs, strict=True))
