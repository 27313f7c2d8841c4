"""The input contract: what an integer sensor pixel becomes before the network sees it.

The sensor hands over integers. With `signed` false the integer is the pixel p (0..255); with `signed` true
it is p - 128 (-128..127), which is how the IMX500 delivers a signed input tensor (picamera2 does the same).
The network sees `scale[c] * q + offset[c]` for the delivered integer q of channel c, and nothing else is
applied anywhere. The contract travels in the metadata of the ONNX file, in our checkpoints and in the
package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from passes.errors import InputError

METADATA_KEY = "picosam2.input_contract"
"""Key of the contract's JSON in ONNX metadata_props and in a checkpoint's `_metadata`."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLOUR_ORDERS = ("RGB", "BGR", "GREY", "ANY")


@dataclass(frozen=True)
class InputContract:
    """Shape, colour order and scaling of the input; see the module's docstring for the formula.

    Attributes:
        channels, height, width: shape of one picture, without the batch.
        colour_order: RGB, BGR, GREY, or ANY for tensors that are no picture.
        scale, offset: one float64 per channel.
        signed: the delivered integer is p - 128 instead of p.
    """

    channels: int
    height: int
    width: int
    colour_order: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    signed: bool = False

    def __post_init__(self) -> None:
        if len(self.scale) != self.channels or len(self.offset) != self.channels:
            raise InputError(
                "input contract",
                f"{len(self.scale)} scales and {len(self.offset)} offsets for {self.channels} channels",
                "one scale and one offset per channel",
                "give as many values as the input has channels",
            )
        if any(s <= 0 for s in self.scale):
            raise InputError("input contract", f"scale {self.scale}", "scales are positive", "give 1/std")
        if self.colour_order not in COLOUR_ORDERS:
            raise InputError(
                "input contract",
                f"colour_order {self.colour_order!r}",
                f"one of {', '.join(COLOUR_ORDERS)}",
                "correct the name",
            )

    @property
    def lowest(self) -> int:
        """Smallest integer the sensor delivers."""
        return -128 if self.signed else 0

    @property
    def highest(self) -> int:
        """Largest integer the sensor delivers."""
        return 127 if self.signed else 255

    @property
    def is_raw(self) -> bool:
        """The network takes the delivered integers themselves (what the folding pass ensures)."""
        return all(s == 1.0 for s in self.scale) and all(o == 0.0 for o in self.offset)

    def as_raw(self) -> InputContract:
        """The same input after the normalisation went into the network."""
        ones, zeros = (1.0,) * self.channels, (0.0,) * self.channels
        return InputContract(
            self.channels, self.height, self.width, self.colour_order, ones, zeros, self.signed
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"scale": list(self.scale), "offset": list(self.offset)}

    def dumps(self) -> str:
        """One line of JSON with sorted keys; `loads` reads it back exactly."""
        return json.dumps(self.to_json(), sort_keys=True)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> InputContract:
        """Raises InputError where a field is missing, unknown, or of the wrong kind."""
        fields = ("channels", "height", "width", "colour_order", "scale", "offset", "signed")
        missing, unknown = [f for f in fields if f not in data], [f for f in data if f not in fields]
        if missing or unknown:
            raise _wrong(f"missing {missing}, unknown {unknown}", f"the fields {', '.join(fields)}")
        sizes = [data[f] for f in fields[:3]]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise _wrong(f"channels, height, width = {sizes}", "positive integers")
        for field in ("scale", "offset"):
            numbers = data[field]
            if not isinstance(numbers, list | tuple) or not all(
                type(n) in (int, float) and math.isfinite(n) for n in numbers
            ):
                raise _wrong(f"{field} = {numbers!r}", "a list of finite numbers, one per channel")
        if type(data["signed"]) is not bool:
            raise _wrong(f"signed = {data['signed']!r}", "true or false")
        return InputContract(
            channels=sizes[0],
            height=sizes[1],
            width=sizes[2],
            colour_order=str(data["colour_order"]),
            scale=tuple(float(s) for s in data["scale"]),
            offset=tuple(float(o) for o in data["offset"]),
            signed=data["signed"],
        )

    @staticmethod
    def loads(text: str) -> InputContract:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError("input contract", f"no JSON ({error})", "a JSON object", "correct it") from error
        if not isinstance(data, dict):
            raise InputError("input contract", f"a JSON {type(data).__name__}", "a JSON object", "correct it")
        return InputContract.from_json(data)


def _wrong(found: str, limit: str) -> InputError:
    return InputError("input contract", found, limit, "correct it; docs/architecture.md shows an example")


def imagenet(height: int, width: int) -> InputContract:
    """The convention of torchvision and of the PicoSAM2 authors: x = (p/255 - mean) / std, RGB."""
    scale = tuple(1.0 / (255.0 * s) for s in IMAGENET_STD)
    offset = tuple(-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
    return InputContract(3, height, width, "RGB", scale, offset)


def unit(channels: int, height: int, width: int) -> InputContract:
    """x = p/255."""
    return _uniform(channels, height, width, 1.0 / 255.0, signed=False)


def raw(channels: int, height: int, width: int, *, signed: bool = False) -> InputContract:
    """The network takes the delivered integers themselves."""
    return _uniform(channels, height, width, 1.0, signed=signed)


def centred(channels: int, height: int, width: int) -> InputContract:
    """x = (p - 128)/64 from a signed input: the shipped student's convention.

    The scale is a power of two and there is no offset, so zero padding of the normalised input is zero
    padding of the delivered integers (mid-grey): nothing is lost or added when it is folded.
    """
    return _uniform(channels, height, width, 1.0 / 64.0, signed=True)


def _uniform(channels: int, height: int, width: int, scale: float, *, signed: bool) -> InputContract:
    order = {3: "RGB", 1: "GREY"}.get(channels, "ANY")
    return InputContract(
        channels, height, width, order, (scale,) * channels, (0.0,) * channels, signed=signed
    )
