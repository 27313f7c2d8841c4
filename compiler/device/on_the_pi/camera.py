"""The Raspberry Pi AI Camera with an injected input in the place of the picture.

Injection is a debug feature of the sensor: the tensor goes to the inference engine past the sensor's own
image processor. The calls and the meaning of the frame counts are those of Raspberry Pi's own example,
imx500_object_detection_injection_demo.py. picamera2 has them from 0.3.32 on, the kernel since September 2025
(raspberrypi/linux pull request 7040).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .outputs import SAME_NETWORK, Input, Integers, Problem

FRAME_RATE = 12
"""Frames a second while injecting, as in Raspberry Pi's example."""

FRAMES = 64
"""Frames to wait for an answer: five seconds; frame counts are known modulo 256."""

ATTEMPTS = 8
"""Injections of one input before giving up: an answer whose frame was missed is asked for again."""

UPDATE = "sudo apt update && sudo apt full-upgrade, then reboot"


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back for one input.

    Attributes:
        outputs: as `IMX500.get_outputs` gives them: float, in the camera's order, without the batch.
        seen: the input as the camera read it back, [C, H, W]; None where it does not hand it over.
        times_ms: the chip's own figures for the network and for its pre-processing; None where it gives none.
    """

    outputs: tuple[NDArray[Any], ...]
    seen: Integers | None
    times_ms: tuple[float, float] | None


class Camera(Protocol):
    """What answers to one input, [C, H, W]."""

    def run(self, integers: Integers) -> Answer: ...


class InjectingCamera:
    """A streaming camera that takes its input from us.

    Args:
        imx500: `picamera2.devices.IMX500` opened for injection.
        picam2: the started `Picamera2`.
        given: what the package says of the input.

    Raises Problem where network.rpk is of another network.
    """

    def __init__(self, imx500: Any, picam2: Any, given: Input) -> None:
        self._imx500, self._picam2, self._input = imx500, picam2, given
        tensor = imx500.config["input_tensor"]
        found = (tensor["width"], tensor["height"], tensor["dtype"])
        wanted = (given.width, given.height, "signed" if given.signed else "unsigned")
        if found != wanted:
            raise Problem(
                "network.rpk",
                "an input of {}x{}, {}".format(*found),
                "{}x{}, {}".format(*wanted),
                SAME_NETWORK,
            )
        self._planes = tensor["input_format"]
        if self._planes not in ("RGB", "BGR"):
            raise Problem(
                "network.rpk", f"input format {self._planes}", "RGB or BGR", "package packerOut.zip again"
            )

    def run(self, integers: Integers) -> Answer:
        """Inject one input and wait for the outputs that belong to it.

        Raises Problem where the camera does not answer.
        """
        data = self._input.packed(integers, self._planes)
        for _ in range(ATTEMPTS):
            answer = self._answer_at(self._inject(data))
            if answer is not None:
                return answer
        raise Problem(
            "camera",
            f"no outputs for an injected input after {ATTEMPTS} attempts of up to {FRAMES} frames",
            "outputs at the frame that the driver names",
            f"close other programs that use the camera; {UPDATE}",
        )

    def _inject(self, data: bytes) -> int:
        """Hands the bytes to the driver; the count of the frame in which their outputs will be."""
        descriptor = os.memfd_create("input", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            self._imx500._IMX500__set_input_tensor(descriptor)
            return int(self._imx500.get_injection_cmp_frm())
        except RuntimeError as error:
            raise Problem("injection", str(error), "a driver that takes the tensor", UPDATE) from error
        finally:
            os.close(descriptor)

    def _answer_at(self, due: int) -> Answer | None:
        """The answer in frame `due`; None where that frame went by unseen or without outputs."""
        for _ in range(FRAMES):
            metadata = self._picam2.capture_metadata()
            info = metadata.get("CnnOutputTensorInfo")
            if not info:
                continue
            count = self._imx500._IMX500__get_output_tensor_info(info)["frameCount"]
            ahead = (due - count + 128) % 256 - 128
            if ahead <= 0:
                return self._answer(metadata) if ahead == 0 else None
        return None

    def _answer(self, metadata: Mapping[str, Any]) -> Answer | None:
        outputs = self._imx500.get_outputs(dict(metadata))
        if outputs is None:
            return None
        seen = metadata.get("CnnInputTensor")
        return Answer(
            tuple(np.asarray(values) for values in outputs),
            self._input.unpacked(bytes(seen), self._planes) if seen else None,
            self._imx500.get_kpi_info(dict(metadata)),
        )


@contextmanager
def open_camera(network: Path, given: Input) -> Iterator[InjectingCamera]:
    """The camera with `network` loaded, streaming and ready for injection.

    Raises Problem where picamera2, the kernel or the camera does not offer it.
    """
    imx500, picam2_class = _opened(network)
    picam2 = picam2_class(imx500.camera_num)
    try:
        configuration = picam2.create_preview_configuration(
            controls={"FrameRate": FRAME_RATE, "CnnEnableInputTensor": True}, buffer_count=12
        )
        imx500.show_network_fw_progress_bar()
        picam2.start(configuration, show_preview=False)
        picam2.capture_metadata()  # streaming: the network is on the chip
        yield InjectingCamera(imx500, picam2, given)
    finally:
        picam2.close()


def _opened(network: Path) -> tuple[Any, Any]:
    try:
        from picamera2 import Picamera2  # type: ignore[import-not-found]
        from picamera2.devices import IMX500  # type: ignore[import-not-found]
    except ImportError as error:
        raise Problem(
            "picamera2",
            str(error),
            "a Raspberry Pi with picamera2",
            "sudo apt install -y imx500-all python3-picamera2 python3-openexr",
        ) from error
    try:
        return IMX500(str(network), tensor_injection=True), Picamera2
    except TypeError as error:
        raise Problem("picamera2", "knows no input injection", "0.3.32 or later", UPDATE) from error
    except RuntimeError as error:
        raise Problem("camera", str(error), "an AI Camera whose driver takes inputs", UPDATE) from error
