"""Reading weights, multipliers, shifts and biases back out of packerOut.zip.

l2staticData.bin is a sequence of records, each a multiple of 32 bytes long: per convolution its kernel, the
multipliers followed by the shifts (one byte a channel each), and the biases (int32, little-endian). Where
a record stands depends on the converter's internal names, so it is looked for: the reader goes through
every multiple of 32 and takes the place that fits the expected bytes best, then reads what stands there.
Records may not overlap, and whatever no record covers is reported.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.chip.constants import chip_layer_constants, conv_strides, is_depthwise, layer_name
from compiler.chip.layer import ChipLayer
from compiler.chip.layouts import kernel_places, numbers_of, pack, unpack
from passes.errors import InputError
from passes.imx500.geometry import round_up
from passes.imx500.weights import LANES

STATIC_DATA = "l2staticData.bin"
"""Member of packerOut.zip with all constants of the network."""

PROBE = 128
"""Bytes of a record that are compared at every place; the best ones are then compared whole."""

FINALISTS = 8
AGREEMENT = 0.75
"""Share of a record's nonzero bytes that has to agree: unrelated bytes agree in one of 256."""

UNUSED_LOG2_SCALE = -32
"""log2 of the scale that channels beyond Cout have: their multiplier is 0, their shift -log2(threshold)."""


@dataclass(frozen=True, eq=False)
class CompiledLayer:
    """What stands in the file for one layer; the arrays as in ChipLayer.

    Attributes:
        offsets: of the kernel, the multipliers and shifts, and the biases, in bytes from the file's start.
        padding_as_expected: lanes beyond the layer's channels hold what they hold in every network seen.
    """

    name: str
    weights: NDArray[np.int8]
    multiplier: NDArray[np.uint8]
    shift: NDArray[np.int8]
    bias: NDArray[np.int32]
    offsets: tuple[int, int, int]
    padding_as_expected: bool


@dataclass(frozen=True)
class CompiledNumbers:
    """Everything that was read.

    Attributes:
        layers: by ONNX node.
        missing: node and record ("kernel", "multipliers and shifts", "biases") of what was not found.
        remainder: (offset, length, all zero) of each stretch that no record covers: tables, constants of
            additions (zero in every network seen), and whatever was not decoded.
        size: bytes of the file.
    """

    layers: Mapping[str, CompiledLayer]
    missing: tuple[tuple[str, str], ...]
    remainder: tuple[tuple[int, int, bool], ...]
    size: int


def static_data(packer_out: bytes) -> bytes:
    """l2staticData.bin of a packerOut.zip.

    Raises InputError where the zip is damaged or has no such member.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packer_out)) as archive:
            return archive.read(STATIC_DATA)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(
            "packerOut.zip",
            f"{error}",
            f"a zip of the converter with {STATIC_DATA}",
            "convert the model again",
        ) from error


def read_compiled(data: bytes, model: ir.Model) -> CompiledNumbers:
    """The numbers that the file holds for each layer of the quantized model it was made of.

    Args:
        data: l2staticData.bin.
        model: the quantized model; says which layers there are and where to start looking.
    """
    found = np.frombuffer(data, dtype=np.uint8)
    nodes = {layer_name(node): node for node in model.graph}
    free = np.ones(len(found), dtype=bool)
    layers: dict[str, CompiledLayer] = {}
    missing = []
    for name, expected in chip_layer_constants(model).layers.items():
        records = [
            ("kernel", _kernel_records(nodes[name], expected)),
            ("multipliers and shifts", [_Record(_scales_record(expected))]),
            ("biases", [_Record(_bias_record(expected))]),
        ]
        claimed = []
        for what, candidates in records:
            claim = _claim(candidates, found, free)
            if claim is None:
                missing.append((name, what))
            else:
                claimed.append(claim)
        if len(claimed) == len(records):
            layers[name] = _read(expected, claimed, found)
    return CompiledNumbers(layers, tuple(missing), _stretches(found, free), len(found))


@dataclass(frozen=True, eq=False)
class _Record:
    """Bytes that are expected somewhere; `places` says which weight each number of a kernel is."""

    content: NDArray[np.uint8]
    places: NDArray[np.int64] | None = None
    offset: int = -1

    def of(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes that stand there."""
        return data[self.offset : self.offset + len(self.content)]


def _claim(candidates: list[_Record], data: NDArray[np.uint8], free: NDArray[np.bool_]) -> _Record | None:
    """The first candidate that is found, its place taken."""
    for candidate in candidates:
        offset = _locate(candidate.content, data, free)
        if offset is not None:
            free[offset : offset + len(candidate.content)] = False
            return replace(candidate, offset=offset)
    return None


def _kernel_records(node: ir.Node, layer: ChipLayer) -> list[_Record]:
    """The kernel in each order that it may have."""
    shape, bits = layer.weights.shape, layer.weight_bits
    orders = kernel_places(shape, conv_strides(node), depthwise=is_depthwise(node, shape), bits=bits)
    return [_Record(pack(layer.weights, places, bits), places) for places in orders]


def _scales_record(layer: ChipLayer) -> NDArray[np.uint8]:
    """c32(Cout) multipliers, then as many shifts."""
    lanes = round_up(len(layer.multiplier))
    record = np.zeros((2, lanes), dtype=np.uint8)
    record[0, : len(layer.multiplier)] = layer.multiplier
    record[1] = np.array(_unused_shift(layer), dtype=np.int8).view(np.uint8)
    record[1, : len(layer.shift)] = layer.shift.view(np.uint8)
    return record.reshape(-1)


def _unused_shift(layer: ChipLayer) -> int:
    """The shift of lanes beyond Cout: 32 + e - log2(threshold) with e = -32."""
    grid = layer.output_grid
    return -(grid.exponent + grid.bits - int(grid.signed))


def _bias_record(layer: ChipLayer) -> NDArray[np.uint8]:
    record = np.zeros(round_up(len(layer.bias)), dtype="<i4")
    record[: len(layer.bias)] = layer.bias
    return record.view(np.uint8)


def _locate(record: NDArray[np.uint8], data: NDArray[np.uint8], free: NDArray[np.bool_]) -> int | None:
    """The free multiple of 32 where `record` fits best, None where it fits nowhere."""
    count = (len(data) - len(record)) // LANES + 1
    if count <= 0:
        return None
    telling = np.flatnonzero(record)
    probe = telling[:PROBE] if len(telling) else np.arange(min(len(record), PROBE))
    starts = np.arange(count) * LANES
    agree = np.zeros(count, dtype=np.int64)
    for place in probe:
        agree += data[starts + place] == record[place]
    best = None
    for candidate in np.argsort(-agree, kind="stable")[:FINALISTS]:
        start = int(candidate) * LANES
        stretch = slice(start, start + len(record))
        equal = data[stretch] == record
        share = float(equal[telling].mean()) if len(telling) else float(equal.all())
        if share >= AGREEMENT and free[stretch].all() and (best is None or share > best[0]):
            best = (share, start)
    return None if best is None else best[1]


def _read(layer: ChipLayer, records: list[_Record], data: NDArray[np.uint8]) -> CompiledLayer:
    kernel, scales, biases = (record.of(data) for record in records)
    places = records[0].places
    assert places is not None  # a kernel's record has them
    numbers = numbers_of(kernel, layer.weight_bits)
    channels, lanes = len(layer.bias), round_up(len(layer.bias))
    multipliers, shifts = scales[:lanes], scales[lanes:].view(np.int8)
    integers = biases.view("<i4")
    as_expected = (
        not numbers[places < 0].any()
        and not multipliers[channels:].any()
        and bool((shifts[channels:] == _unused_shift(layer)).all())
        and not integers[channels:].any()
    )
    return CompiledLayer(
        layer.name,
        unpack(numbers, places, layer.weights.shape),
        multipliers[:channels].copy(),
        shifts[:channels].copy(),
        integers[:channels].astype(np.int32),
        (records[0].offset, records[1].offset, records[2].offset),
        as_expected,
    )


def _stretches(data: NDArray[np.uint8], free: NDArray[np.bool_]) -> tuple[tuple[int, int, bool], ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]]).astype(np.int8)))
    return tuple(
        (int(start), int(end - start), not data[start:end].any())
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
