"""A stand-in for picamera2's IMX500 and Picamera2: a chip whose network is a program of the simulator.

It takes what the driver takes (a file descriptor with padded planes), counts frames modulo 256, and hands the
outputs over in the frame that it named, as floats flattened with the first dimension fastest, as
`IMX500.get_outputs` reads them.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest

from compiler.simulator.engine import Program

DELAY = 5
"""Frames between an injection and its outputs."""


def install(monkeypatch: pytest.MonkeyPatch, imx500: Callable[..., Any], picam2: Callable[..., Any]) -> None:
    """Makes two stand-ins what `picamera2` and `picamera2.devices` give."""
    library, devices = types.ModuleType("picamera2"), types.ModuleType("picamera2.devices")
    library.Picamera2, devices.IMX500 = picam2, imx500
    monkeypatch.setitem(sys.modules, "picamera2", library)
    monkeypatch.setitem(sys.modules, "picamera2.devices", devices)


class ChipStandIn:
    """Both of picamera2's objects in one.

    Args:
        program: what the chip computes; of one input [1, C, H, W] and of outputs in `listing`'s order.
        listing: the order in which the camera lists the outputs.
        planes: RGB or BGR, what network.rpk was made for.
        count: the frame count to start from.
        missed: numbers of captures, from 0, in which a frame is skipped.
        reads_back: the metadata holds the input that the network saw.
    """

    camera_num = 0

    def __init__(
        self,
        program: Program,
        shape: tuple[int, int, int],
        *,
        listing: Sequence[int] = (0, 1),
        planes: str = "RGB",
        signed: bool = True,
        count: int = 250,
        missed: Collection[int] = (),
        reads_back: bool = True,
    ) -> None:
        self._program, self._shape, self._listing, self._planes = program, shape, listing, planes
        self._dtype = np.int8 if signed else np.uint8
        self._count, self._missed, self._captures, self._reads_back = count, missed, 0, reads_back
        self._due, self._seen = -1, np.zeros(shape, self._dtype)
        self.injections = 0
        self.config = {
            "input_tensor": {
                "width": shape[2],
                "height": shape[1],
                "dtype": "signed" if signed else "unsigned",
                "input_format": planes,
            }
        }

    # IMX500

    def _IMX500__set_input_tensor(self, descriptor: int) -> None:  # noqa: N802 (picamera2's name)
        channels, height, width = self._shape
        padded = (channels, height + height % 2, -(-width // 32) * 32)
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        if len(data) != int(np.prod(padded)):
            raise RuntimeError(f"{len(data)} bytes")
        self._seen = np.frombuffer(data, self._dtype).reshape(padded)[:, :height, :width]
        self._due = (self._count + DELAY) % 256
        self.injections += 1

    def get_injection_cmp_frm(self) -> int:
        return self._due

    def _IMX500__get_output_tensor_info(self, info: bytes) -> dict[str, int]:  # noqa: N802 (picamera2's name)
        return {"frameCount": info[0]}

    def get_outputs(self, metadata: dict[str, Any]) -> list[np.ndarray] | None:
        return metadata.get("outputs")

    @staticmethod
    def get_kpi_info(metadata: dict[str, Any]) -> tuple[float, float] | None:
        return metadata.get("times")

    @staticmethod
    def show_network_fw_progress_bar() -> None: ...

    # Picamera2

    @staticmethod
    def create_preview_configuration(**keywords: object) -> dict[str, object]:
        return keywords

    @staticmethod
    def start(configuration: dict[str, object], *, show_preview: bool) -> None: ...

    @staticmethod
    def close() -> None: ...

    def capture_metadata(self) -> dict[str, Any]:
        self._count = (self._count + 1 + (self._captures in self._missed)) % 256
        self._captures += 1
        if self._captures % 7 == 0:
            return {}  # a frame without tensors
        real = self._seen if self._count == self._due else np.zeros_like(self._seen)
        ordered = real if self._planes == "RGB" else real[::-1]
        found = list(self._program.run({self._program.inputs[0]: ordered[None]}).values())
        outputs = [found[index].real()[0].astype(np.float32) for index in self._listing]
        metadata = {"CnnOutputTensorInfo": bytes([self._count]), "outputs": outputs, "times": (14.25, 1.5)}
        return metadata | ({"CnnInputTensor": real.tobytes()} if self._reads_back else {})
