"""A list of native steps laid out for the kernels: tensors in one arena, weights in the kernels' order."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator.native.build import Variant, kernels
from compiler.simulator.native_steps import Image, Kind, NativeStep
from passes.errors import InputError

GROUP = 16
"""Channels are padded to whole groups: one vector of int32."""

BLOCK = 64
"""Channels that the 3x3 depthwise kernel takes at once."""

ALIGNMENT = 64

SLACK = 64
"""Bytes behind the last tensor that a vector load may touch."""


def _fields(kind: Any, *names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("offset", ctypes.c_int64),
        *_fields(ctypes.c_int32, "channels", "pixel", "row", "height", "width"),
        *_fields(ctypes.c_int32, "top", "left", "bottom", "right", "zero", "flip"),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *_fields(ctypes.c_int32, "kind", "out", "in_count", "groups"),
        *_fields(ctypes.c_int32 * 2, "kernel", "stride", "dilation", "pad"),
        *_fields(ctypes.c_int32, "low", "high", "lowest", "bound_count"),
        ("shift", ctypes.c_int32 * 3),
        ("raw", ctypes.c_int32),
        ("tie", ctypes.c_float),
        ("quads", ctypes.c_int32),
        *_fields(ctypes.c_void_p, "inputs", "weights", "initial", "scale", "shifted"),
        *_fields(ctypes.c_void_p, "bounds", "blocks", "rows", "columns", "tables"),
    )


class _Program(ctypes.Structure):
    _fields_ = (
        ("tensor_count", ctypes.c_int32),
        ("step_count", ctypes.c_int32),
        ("tensors", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
    )


class _Transfers(ctypes.Structure):
    _fields_ = (("imports", ctypes.c_void_p), ("exports", ctypes.c_void_p))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: its border, bytes of a pixel and a row, and its first byte."""

    border: tuple[int, int, int, int]
    pixel: int
    row: int
    size: int
    start: int

    @property
    def origin(self) -> int:
        top, left, _, _ = self.border
        return self.start + top * self.row + left * self.pixel


class NativeProgram:
    """Native steps that follow each other, ready to run.

    Holds the arrays the kernels point into, one arena per thread, and no state between calls.
    """

    def __init__(self, steps: Sequence[NativeStep], variant: Variant = "native") -> None:
        """Lay the steps out. Raises EnvironmentFault where the kernels cannot be built."""
        self._library = kernels(variant)
        self._kept: list[NDArray[Any]] = []
        images: dict[str, Image] = {}
        for step in steps:
            for image in (*step.inputs, step.output):
                images.setdefault(image.name, image)
        made = {step.output.name for step in steps}
        self.inputs = tuple(name for name in images if name not in made)
        self.images = images
        self._raw = frozenset(step.output.name for step in steps if step.raw)
        self._numbers = {name: number for number, name in enumerate(images)}
        places, self._arena_bytes = _places(steps, images, self._raw)
        self._tensors = (_Tensor * len(images))(
            *(_tensor(image, places[name]) for name, image in images.items())
        )
        self._steps = (_Step * len(steps))(*(self._step(step) for step in steps))
        entering = self._array(np.array([*(self._numbers[name] for name in self.inputs), -1], dtype=np.int32))
        self._program = _Program(
            len(images), len(steps), ctypes.addressof(self._tensors), ctypes.addressof(self._steps), entering
        )
        self._arenas = threading.local()

    def run(
        self, values: Mapping[str, NDArray[Any]], wanted: Collection[str], threads: int
    ) -> dict[str, NDArray[Any]]:
        """The wanted tensors, [N, ...] in the order of the graph: bytes as int8 or uint8, raw ones as int32.

        Args:
            values: the input tensors, int8 or uint8 as their grids say, [N, ...].
            threads: several pictures are shared out, one picture is cut into rows.
        """
        count = len(values[self.inputs[0]])
        given = {name: self._import(name, values[name], count) for name in self.inputs}
        results = {
            name: np.empty((count, *self.images[name].shape), self._dtype(name))
            for name in {*wanted, *self._raw}
        }
        pointers = ctypes.c_void_p * len(self.images)
        imports, exports = pointers(), pointers()
        for name, array in given.items():
            imports[self._numbers[name]] = array.ctypes.data
        for name, array in results.items():
            exports[self._numbers[name]] = array.ctypes.data
        transfers = _Transfers(ctypes.addressof(imports), ctypes.addressof(exports))
        self._execute(transfers, count, max(1, threads))
        return {name: results[name] for name in wanted}

    def _import(self, name: str, array: NDArray[Any], count: int) -> NDArray[Any]:
        """The array as the kernels read it. Raises InputError where the graph announced another shape."""
        expected = (count, *self.images[name].shape)
        if array.shape != expected or array.dtype != self._dtype(name):
            raise InputError(
                f"tensor {name}",
                f"shape {array.shape}, {array.dtype}",
                f"{expected}, {self._dtype(name)}, from the graph's shapes",
                "export the model again",
            )
        return np.ascontiguousarray(array)

    def _execute(self, transfers: _Transfers, count: int, threads: int) -> None:
        run = self._library.run

        def call(arena: int, barrier: Any, first: int, last: int, thread: int, together: int) -> None:
            run(
                ctypes.byref(self._program), ctypes.byref(transfers), ctypes.c_void_p(arena),
                barrier, first, last, thread, together,
            )  # fmt: skip

        barrier = (ctypes.c_int32 * 32)()
        if threads == 1:
            call(self._arena(0), barrier, 0, count, 0, 1)
            return
        with _LOCKS.setdefault(os.getpid(), threading.Lock()):
            pool = _pool(threads - 1)
            shared = count - count % threads
            parts = []
            if shared:
                each = shared // threads
                parts = [(self._arena(t), barrier, t * each, (t + 1) * each, 0, 1) for t in range(threads)]
                _together(pool, call, parts)
            if shared < count:
                arena = self._arena(0)
                parts = [(arena, barrier, shared, count, t, threads) for t in range(threads)]
                _together(pool, call, parts)

    def _arena(self, number: int) -> int:
        """The first aligned byte of this thread's arena of that number."""
        arenas = self._arenas.__dict__.setdefault("arenas", {})
        if number not in arenas:
            arenas[number] = np.zeros(self._arena_bytes + ALIGNMENT + SLACK, dtype=np.uint8)
        address = int(arenas[number].ctypes.data)
        return address + -address % ALIGNMENT

    def _dtype(self, name: str) -> np.dtype[Any]:
        if name in self._raw:
            return np.dtype(np.int32)
        return np.dtype(np.int8 if self.images[name].grid.signed else np.uint8)

    def _array(self, array: NDArray[Any] | None) -> int | None:
        if array is None:
            return None
        kept = np.ascontiguousarray(array)
        self._kept.append(kept)
        return int(kept.ctypes.data)

    def _step(self, step: NativeStep) -> _Step:
        made = _Step(
            kind=int(step.kind),
            out=self._numbers[step.output.name],
            in_count=len(step.inputs),
            groups=step.groups,
            low=step.low,
            high=step.high,
            raw=int(step.raw),
            inputs=self._array(np.array([self._numbers[i.name] for i in step.inputs], dtype=np.int32)),
            rows=self._array(step.rows),
            columns=self._array(step.columns),
            tables=self._array(step.tables),
        )
        for name in ("kernel", "stride", "dilation", "pad"):
            getattr(made, name)[:] = getattr(step.window, name)
        made.shift[:] = step.shift
        if step.weights is not None:
            self._convolution(made, step)
        return made

    def _convolution(self, made: _Step, step: NativeStep) -> None:
        assert step.weights is not None
        image = step.inputs[0]
        sums = step.weights.astype(np.int64).reshape(len(step.weights), -1).sum(axis=1)
        initial = (-image.zero * sums).astype(np.int32)
        interleaved = step.kind is Kind.DEPTHWISE and self._interleaves(step)
        unit = BLOCK if interleaved else GROUP
        made.initial = self._array(_channels(initial, unit, interleaved))
        if step.requantization is not None:
            wanted = step.requantization
            made.low, made.high, made.tie = wanted.low, wanted.high, wanted.tie
            made.lowest, made.bound_count = wanted.low, wanted.bounds.shape[1]
            made.scale = self._array(_channels(wanted.scale, unit, interleaved))
            made.shifted = self._array(_channels(wanted.shifted, unit, interleaved))
            padded = np.zeros((_ceil(len(initial), unit), wanted.bounds.shape[1]), dtype=np.int32)
            padded[: len(initial)] = wanted.bounds
            made.bounds = self._array(padded)
        if step.kind is Kind.DENSE:
            made.quads = -(-image.channels // 4)
            blocks = _blocks(_ceil(step.output.channels, GROUP) // GROUP)
            made.blocks = self._array(
                np.array([*(n for block in blocks for n in block), 0, 0], dtype=np.int32)
            )
            made.weights = self._array(_dense_weights(step.weights, blocks))
        elif step.kind is Kind.GROUPED:
            made.weights = self._array(step.weights)
        elif interleaved:
            made.quads = 1
            made.weights = self._array(_interleaved_weights(step.weights))
        else:
            channels, _, height, width = step.weights.shape
            padded = np.zeros((height, width, _ceil(channels, GROUP)), dtype=np.int8)
            padded[:, :, :channels] = step.weights[:, 0].transpose(1, 2, 0)
            made.weights = self._array(padded)

    def _interleaves(self, step: NativeStep) -> bool:
        """The 3x3 depthwise kernel of the vector build takes it."""
        window = step.window
        plain = (window.kernel, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))
        return plain and not step.raw and self._library.vector_build() == 1


def _ceil(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _blocks(groups: int) -> list[tuple[int, int]]:
    """(first group, groups) of at most 4 groups each, as equal as possible: 80 channels are 48 and 32."""
    count = -(-groups // 4)
    sizes = [groups // count + (1 if i < groups % count else 0) for i in range(count)]
    starts = np.cumsum([0, *sizes[:-1]])
    return [(int(start), size) for start, size in zip(starts, sizes, strict=True)]


def _dense_weights(weights: NDArray[np.int8], blocks: Sequence[tuple[int, int]]) -> NDArray[np.int8]:
    """[Cout, Cin, kh, kw] -> for each block [tap][quad of inputs][group][16 outputs][4 inputs]."""
    outputs, inputs, height, width = weights.shape
    padded = np.zeros((_ceil(outputs, GROUP), _ceil(inputs, 4), height * width), dtype=np.int8)
    padded[:outputs, :inputs] = weights.reshape(outputs, inputs, -1)
    groups = padded.reshape(-1, GROUP, padded.shape[1] // 4, 4, height * width)
    ordered = groups.transpose(4, 2, 0, 1, 3)
    return np.concatenate([ordered[:, :, start : start + size].reshape(-1) for start, size in blocks])


def _interleave() -> NDArray[np.int64]:
    """Channel of each place in a block of 64: vector j, lane 4l + e holds channel 16l + 4j + e."""
    j, lane, e = np.meshgrid(np.arange(4), np.arange(4), np.arange(4), indexing="ij")
    return (16 * lane + 4 * j + e).reshape(-1)


def _channels(array: NDArray[Any], unit: int, interleaved: bool) -> NDArray[Any]:
    """Per-channel numbers padded with zeros to whole units, in the order of the kernel."""
    padded = np.zeros(_ceil(len(array), unit), dtype=array.dtype)
    padded[: len(array)] = array
    return padded.reshape(-1, BLOCK)[:, _interleave()].reshape(-1) if interleaved else padded


def _interleaved_weights(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """[C, 1, 3, 3] -> [block][kx][64 places][ky 0, 1, 2 and a zero]."""
    padded = np.zeros((_ceil(len(weights), BLOCK), 3, 4), dtype=np.int8)
    padded[: len(weights), :, :3] = weights[:, 0].transpose(0, 2, 1)
    blocks = padded.reshape(-1, BLOCK, 3, 4)[:, _interleave()]
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).reshape(-1)


def _tensor(image: Image, place: _Place) -> _Tensor:
    top, left, bottom, right = place.border
    return _Tensor(
        place.origin, image.channels, place.pixel, place.row, image.height, image.width,
        top, left, bottom, right, image.zero, image.zero,
    )  # fmt: skip


def _places(
    steps: Sequence[NativeStep], images: Mapping[str, Image], raw: Collection[str]
) -> tuple[dict[str, _Place], int]:
    """A place for every tensor, where tensors that are never needed at the same time may share bytes.

    First fit by the order of the steps. Raw accumulators go straight to their export and take no bytes.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    borders: dict[str, tuple[int, ...]] = {name: (0, 0, 0, 0) for name in images}
    for number, step in enumerate(steps):
        for image in step.inputs:
            first.setdefault(image.name, -1)
            last[image.name] = number
            borders[image.name] = tuple(map(max, borders[image.name], step.border(image)))
        first[step.output.name] = number
        last.setdefault(step.output.name, number)
    places: dict[str, _Place] = {}
    end = 0
    for name in sorted(images, key=lambda n: first[n]):
        image, (top, left, bottom, right) = images[name], borders[name]
        pixel = _ceil(image.channels, GROUP)
        row = (left + image.width + right) * pixel
        size = 0 if name in raw else _ceil((top + image.height + bottom) * row, ALIGNMENT)
        taken = sorted(
            (places[other].start, places[other].start + places[other].size)
            for other in places
            if first[other] <= last[name] and first[name] <= last[other]
        )
        start = 0
        for low, high in taken:
            if start + size <= low:
                break
            start = max(start, high)
        places[name] = _Place((top, left, bottom, right), pixel, row, size, start)
        end = max(end, start + size)
    return places, end


_LOCKS: dict[int, threading.Lock] = {}
"""By process: held while threads work together: they wait for each other, so not for those of another call.

A process forked while another thread holds the lock would find it locked for ever, so it has its own.
"""

_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that stay; a forked process starts its own."""
    key = (os.getpid(), workers)
    if key not in _POOLS:
        _POOLS[key] = ThreadPoolExecutor(workers, thread_name_prefix="simulator")
    return _POOLS[key]


def _together(pool: ThreadPoolExecutor, call: Any, parts: Sequence[tuple[Any, ...]]) -> None:
    """All parts at once, the first one in this thread: threads of one picture wait for each other."""
    others = [pool.submit(call, *part) for part in parts[1:]]
    try:
        call(*parts[0])
    finally:
        wait(others)  # also when interrupted: they write to arrays of the caller
    for other in others:
        other.result()
