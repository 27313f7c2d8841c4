"""The memory forecast: what the chip's 8 MB will hold, from the graph alone, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from passes.diagnostics import Diagnostic, Severity
from passes.graph import real_inputs
from passes.imx500.geometry import is_constant, round_up
from passes.imx500.layers import Layer, layers_of, shape_of
from passes.imx500.limits import MEMORY_BUDGET, MEMORY_RESERVED, SOURCE
from passes.imx500.schedule import (
    Buffer,
    Layout,
    bytes_of,
    input_persistency,
    schedule_of,
)
from passes.imx500.stage import DEFAULT_BITS, float_view
from passes.imx500.weights import WeightRow, is_whole_picture, weight_rows
from passes.imx500.widths import wide_values

EXACT, ESTIMATED = "exact", "estimated"

EXACT_OPERATORS = frozenset(
    {"Conv", "Relu", "MaxPool", "Resize", "Add", "Concat", "Clip", "Reshape", "Flatten", "Gemm"}
)
"""A network of these alone has had its model bytes forecast exactly in every case measured."""


@dataclass(frozen=True)
class TensorRow:
    """One copy of a tensor in runtime memory.

    Attributes:
        name: ONNX value, with the copy's purpose where it is not the tensor itself.
        bytes: bytes on the chip.
        layout: which axis is rounded up to 32: channels, rows, wide or columns; packed for an output.
        first_step, last_step: when it is made and when it is read for the last time.
    """

    name: str
    bytes: int
    layout: str
    first_step: int
    last_step: int


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of the chip's memory.

    Attributes:
        model_bytes: weights, biases, tables.
        runtime_bytes: the most that is alive at one step, the persistent input included.
        total_bytes: both and the chip's reserve.
        budget_bytes: what there is.
        fits: total_bytes <= budget_bytes, without tiling.
        may_tile: it does not fit, but the converter may cut the network into tiles: nothing is skipped over
            other layers, and weights, input and outputs fit by themselves.
        input_persistency_bytes: of the runtime, what keeps the input for the host; 0 when switched off.
        exactness: "exact" or "estimated" for model_bytes, runtime_bytes and total_bytes.
        tensors: every copy of every tensor.
        weights: every layer that keeps anything in model memory.
        peak_step: the step at which runtime_bytes is reached.
        steps: names of the steps.
    """

    model_bytes: int
    runtime_bytes: int
    total_bytes: int
    budget_bytes: int
    fits: bool
    may_tile: bool
    input_persistency_bytes: int
    exactness: Mapping[str, str]
    tensors: tuple[TensorRow, ...]
    weights: tuple[WeightRow, ...]
    peak_step: int
    steps: tuple[str, ...]

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """An error where it does not fit, a warning where tiling may make it fit or it fits barely."""
        if not self.fits:
            return (_does_not_fit(self),)
        if self.total_bytes + self.runtime_bytes * UNCERTAIN > self.budget_bytes:
            return (_fits_barely(self),)
        return ()


def forecast_memory(
    model: ir.Model, input_persistency: bool = True, weight_bits: int = DEFAULT_BITS
) -> MemoryForecast:
    """Forecast the memory of a float graph (as quantization will leave it) or of a vendor-dialect graph.

    Args:
        model: shapes inferred, batch 1 or symbolic; lengths that are not known count as 1.
        input_persistency: the input stays in memory while the network runs (the converter's default).
        weight_bits: what the weights of a float graph will get, wherever the chip stores them so.
    """
    view = float_view(model, weight_bits)
    graph = view.model.graph
    wide = wide_values(view)
    layers = layers_of(graph, wide)
    weights = weight_rows(layers, view)
    inputs = frozenset(real_inputs(graph))
    schedule = schedule_of(graph, layers, wide, inputs if input_persistency else frozenset())
    persistent = sum(_kept(graph)) if input_persistency else 0
    unused = _unused_by_vectors(graph) if input_persistency else 0
    if input_persistency:
        schedule.buffers = _without_inputs(schedule.buffers, graph)
    peak, peak_step = schedule.placed_bytes(_kept(graph) if input_persistency else [])
    model_bytes, runtime_bytes = sum(row.bytes for row in weights), peak + unused
    total = model_bytes + runtime_bytes + MEMORY_RESERVED
    known = _is_exact(graph, layers)
    return MemoryForecast(
        model_bytes=model_bytes,
        runtime_bytes=runtime_bytes,
        total_bytes=total,
        budget_bytes=MEMORY_BUDGET,
        fits=total <= MEMORY_BUDGET,
        may_tile=total > MEMORY_BUDGET and _may_tile(graph, layers, model_bytes + persistent),
        input_persistency_bytes=persistent,
        exactness=MappingProxyType(
            {
                "model_bytes": EXACT if known else ESTIMATED,
                "runtime_bytes": ESTIMATED,
                "total_bytes": ESTIMATED,
            }
        ),
        tensors=tuple(
            TensorRow(buffer.name, buffer.bytes, buffer.layout.value, max(buffer.first, 0), buffer.last)
            for buffer in schedule.buffers
        ),
        weights=weights,
        peak_step=peak_step,
        steps=tuple(step.name for step in schedule.steps),
    )


def _is_exact(graph: ir.Graph, layers: tuple[Layer, ...]) -> bool:
    """The model bytes of such networks were forecast to the byte in every case measured."""
    parts = [part for layer in layers for part in layer.parts]
    if any(part.op_type not in EXACT_OPERATORS for part in parts):
        return False
    if any(
        is_constant(value) for part in parts if part.op_type in ("Add", "Concat") for value in part.inputs
    ):
        return False
    return not any(value in set(graph.outputs) for value in real_inputs(graph)) and not any(
        is_whole_picture(layer) for layer in layers
    )


def _kept(graph: ir.Graph) -> list[int]:
    return [input_persistency(shape_of(value)) for value in real_inputs(graph)]


def _unused_by_vectors(graph: ir.Graph) -> int:
    """What lies empty behind a vector: its place is a multiple of 2,048 bytes."""
    sizes = [input_persistency(shape_of(value)) for value in real_inputs(graph) if len(shape_of(value)) == 1]
    return sum(round_up(size, VECTOR_PLACE) - size for size in sizes)


VECTOR_PLACE = 2_048


def _without_inputs(buffers: list[Buffer], graph: ir.Graph) -> list[Buffer]:
    """A persistent input is kept for the whole run, so it has no buffer of its own."""
    inputs = set(real_inputs(graph))
    return [buffer for buffer in buffers if not _is_original(buffer, inputs)]


def _is_original(buffer: Buffer, inputs: set[ir.Value]) -> bool:
    return buffer.tensor in inputs and buffer.name == buffer.tensor.name and buffer.layout is Layout.COLUMNS


def _may_tile(graph: ir.Graph, layers: tuple[Layer, ...], fixed: int) -> bool:
    """Nothing is skipped over other layers, and what cannot be tiled fits.

    Tiles are cut along the rows of a chain; weights, input and outputs (by channels and packed at once) stay
    whole.
    """
    index = {output: step for step, layer in enumerate(layers) for output in layer.outputs}
    for step, layer in enumerate(layers):
        if any(step - index.get(value, step - 1) > 1 for value in layer.inputs):
            return False
    outputs = sum(
        bytes_of(shape_of(value), Layout.CHANNELS) + bytes_of(shape_of(value), Layout.PACKED)
        for value in graph.outputs
    )
    return fixed + outputs + MEMORY_RESERVED <= MEMORY_BUDGET


UNCERTAIN = 0.07
"""Part of the runtime bytes that a network should have to spare. The last 18 networks were forecast at most
0.06 % too low before they were converted, the 25 before them up to 18 % (docs/memory.md)."""


def _fits_barely(forecast: MemoryForecast) -> Diagnostic:
    spare = forecast.budget_bytes - forecast.total_bytes
    return Diagnostic(
        "imx500/memory",
        Severity.WARNING,
        "",
        "",
        f"{forecast.total_bytes:,} bytes (estimated), {spare:,} to spare",
        f"the chip has {forecast.budget_bytes:,} bytes, and runtime is estimated",
        "compile it with --memory-report-only to be sure, or make the picture or the channels smaller",
        SOURCE,
    )


def _does_not_fit(forecast: MemoryForecast) -> Diagnostic:
    at_peak = sorted(
        (t for t in forecast.tensors if t.first_step <= forecast.peak_step <= t.last_step),
        key=lambda tensor: -tensor.bytes,
    )
    largest = ", ".join(f"{tensor.name} {tensor.bytes:,}" for tensor in at_peak[:3])
    where = forecast.steps[forecast.peak_step] if forecast.steps else ""
    if forecast.model_bytes > forecast.runtime_bytes:
        fix = "use fewer channels: weights take most of it"
    elif forecast.input_persistency_bytes and (
        forecast.total_bytes - forecast.input_persistency_bytes <= forecast.budget_bytes
    ):
        fix = "switch input persistency off, which leaves out the copy of the input"
    else:
        fix = f"make the picture or the channels smaller at step {where}, where most is alive ({largest})"
    if forecast.may_tile:
        fix = f"the converter may cut it into tiles and take minutes for it; to be sure, {fix}"
    return Diagnostic(
        "imx500/memory",
        Severity.WARNING if forecast.may_tile else Severity.ERROR,
        where,
        "",
        f"{forecast.total_bytes:,} bytes (model {forecast.model_bytes:,}, runtime "
        f"{forecast.runtime_bytes:,}, reserve {MEMORY_RESERVED:,}; estimated)",
        f"the chip has {forecast.budget_bytes:,} bytes",
        fix,
        SOURCE,
    )
