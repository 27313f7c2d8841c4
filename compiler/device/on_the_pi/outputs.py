"""The typed reader: what a compiled network takes and gives, and its outputs as integers.

The camera hands over float numbers, integer times step (libcamera multiplies with the scale of
dnnParams.xml). Steps are powers of two, so the integers come back exactly.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[Any]

FACTS = "check.json"
"""The file in device-check/ that says everything below."""

WIDTH_UNIT, HEIGHT_UNIT = 32, 2
"""An injected plane is padded to multiples of these, as picamera2's `prepare_tensor_for_injection` does."""


SAME_NETWORK = "use the network.rpk that was made from this package's packerOut.zip"


class Problem(Exception):
    """What stops a check or a demo: the thing, what was found, what it should be, and the way out."""

    def __init__(self, thing: str, found: str, limit: str, fix: str) -> None:
        super().__init__(f"{thing}: {found}; expected {limit}. Fix: {fix}")


@dataclass(frozen=True)
class Input:
    """One picture as the network takes it: 8-bit integers [channels, height, width].

    Attributes:
        signed: the camera delivers pixel p as p - 128.
        colour_order: RGB or BGR, the order of the channels.
        name: of the graph's input.
    """

    name: str
    channels: int
    height: int
    width: int
    signed: bool
    colour_order: str

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8

    def packed(self, integers: Integers, planes: str) -> bytes:
        """The bytes to inject: one plane after the other, padded with zeros to the right and below.

        Args:
            integers: [channels, height, width] in `colour_order`.
            planes: RGB or BGR, the order that network.rpk was made for.
        """
        ordered = integers if planes == self.colour_order else integers[::-1]
        padding = ((0, 0), (0, -self.height % HEIGHT_UNIT), (0, -self.width % WIDTH_UNIT))
        return np.pad(ordered.astype(self.dtype), padding).tobytes()

    def unpacked(self, planar: bytes, planes: str) -> Integers:
        """What the camera says the network saw, [channels, height, width]: planes without padding."""
        seen = np.frombuffer(planar, self.dtype).reshape(self.channels, self.height, self.width)
        return seen if planes == self.colour_order else seen[::-1]


@dataclass(frozen=True)
class Output:
    """One output tensor: real value = integer * step.

    Attributes:
        name: of the ONNX graph's output.
        shape: without the batch, as in the ONNX graph and as `get_outputs` gives it.
        order: names of the dimensions, outermost first.
        step: a power of two.
        bits, signed: the range is -2**(bits-1) .. 2**(bits-1)-1, or 0 .. 2**bits-1.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[str, ...]
    step: float
    bits: int
    signed: bool

    def integers(self, values: NDArray[Any]) -> Integers:
        """float [shape] -> int64 [shape].

        Raises Problem for another shape, for numbers between the steps and for numbers out of range.
        """
        if values.shape != self.shape:
            raise Problem(
                f"output {self.name}",
                f"shape {list(values.shape)}",
                f"{list(self.shape)} ({', '.join(self.order)})",
                SAME_NETWORK,
            )
        steps = values.astype(np.float64) / self.step
        integers = np.rint(steps)
        between = np.flatnonzero(~(steps == integers))  # NaN too
        if between.size:
            raise Problem(
                f"output {self.name}",
                f"{values.reshape(-1)[between[0]]:g} at {list(place(between[0], self.shape))}",
                f"whole multiples of {self.step:g}",
                SAME_NETWORK,
            )
        lowest = -(2 ** (self.bits - 1)) if self.signed else 0
        highest = lowest + 2**self.bits - 1
        if integers.min(initial=lowest) < lowest or integers.max(initial=lowest) > highest:
            raise Problem(
                f"output {self.name}",
                f"integers {integers.min():g} to {integers.max():g}",
                f"{lowest} to {highest}",
                SAME_NETWORK,
            )
        return integers.astype(np.int64)


@dataclass(frozen=True)
class Mask:
    """The output that is a mask: a pixel belongs to it where its real value is above `level`."""

    output: str
    level: float


@dataclass(frozen=True)
class Expected:
    """Expected integers: a file of arrays by output name, and the numerics that give just these."""

    file: str
    numerics: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """check.json.

    Attributes:
        network: name of the network.
        protocol: point-native-96, roi-pad10, or None where it is not known.
        outputs: in the order of the ONNX graph.
        listings: in which order the camera may list the outputs; the first that fits is taken.
        inputs: file of the inputs to inject.
        expected: what the simulator gives for them.
        missing: why numerics of the chip are not among `expected`; None where all are.
    """

    network: str
    protocol: str | None
    input: Input
    outputs: tuple[Output, ...]
    listings: tuple[tuple[int, ...], ...]
    mask: Mask | None
    inputs: str
    expected: tuple[Expected, ...]
    missing: str | None

    def read(
        self, values: Sequence[NDArray[Any]], listing: Sequence[int] | None = None
    ) -> dict[str, Integers]:
        """All outputs of one picture by name, from the list that `IMX500.get_outputs` gives.

        Args:
            listing: the number of each tensor's output; by default the first of `listings` that fits the
                shapes.

        Raises Problem as `Output.integers`, and for another number of tensors.
        """
        if len(values) != len(self.outputs):
            raise Problem("outputs", f"{len(values)} tensors", f"{len(self.outputs)}", SAME_NETWORK)
        chosen = listing or next(filter(lambda one: self._fits(values, one), self.listings), self.listings[0])
        outputs = [self.outputs[index] for index in chosen]
        return {one.name: one.integers(array) for one, array in zip(outputs, values, strict=True)}

    def _fits(self, values: Sequence[NDArray[Any]], listing: Sequence[int]) -> bool:
        shapes = [self.outputs[index].shape for index in listing]
        return all(array.shape == shape for array, shape in zip(values, shapes, strict=True))


def read_facts(folder: Path) -> Facts:
    """Raises Problem where check.json is absent, damaged or of another version."""
    try:
        return facts_from(json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise Problem(
            f"{folder / FACTS}",
            f"cannot be read ({type(error).__name__}: {error})",
            "a file of the package",
            "copy device-check whole",
        ) from error


def facts_from(content: Mapping[str, Any]) -> Facts:
    """The typed form of check.json."""
    if content.get("schema") != 1:
        raise Problem(
            FACTS,
            f"schema {content.get('schema')}",
            "schema 1",
            "use the on_the_pi of the same package",
        )
    mask = content["mask"]
    return Facts(
        network=content["network"],
        protocol=content["protocol"],
        input=Input(**content["input"]),
        outputs=tuple(
            Output(
                name=one["name"],
                shape=tuple(one["shape"]),
                order=tuple(one["order"]),
                step=one["step"],
                bits=one["bits"],
                signed=one["signed"],
            )
            for one in content["outputs"]
        ),
        listings=tuple(tuple(listing) for listing in content["listings"]),
        mask=None if mask is None else Mask(**mask),
        inputs=content["inputs"]["file"],
        expected=tuple(Expected(one["file"], tuple(one["numerics"])) for one in content["expected"]),
        missing=content["missing"],
    )


def read_arrays(path: Path) -> dict[str, Integers]:
    """The arrays of an .npz by name. Raises Problem where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise Problem(
            f"{path}", f"cannot be read ({error})", "an .npz of integers", "copy it again"
        ) from error


def place(flat: int | np.integer[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A position in the flattened array as an index."""
    return tuple(int(i) for i in np.unravel_index(int(flat), shape))
