"""The Raspberry Pi AI Camera with an injected input in the place of the picture.

`streaming` opens the camera for the check and the demo.

Injection is a debug feature of the sensor: the tensor goes to the inference engine past the sensor's own
image processor. The calls and the meaning of the frame counts are those of Raspberry Pi's own example,
imx500_object_detection_injection_demo.py. picamera2 has them from 0.3.32 on, the kernel since September 2025
(raspberrypi/linux pull request 7040).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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

INSTALL = "sudo apt install -y imx500-all python3-picamera2 python3-openexr"


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
    configuration = {
        "controls": {"FrameRate": FRAME_RATE, "CnnEnableInputTensor": True},
        "buffer_count": 12,
    }
    with streaming(network, configuration, tensor_injection=True) as (imx500, picam2):
        picam2.capture_metadata()  # streaming: the network is on the chip
        yield InjectingCamera(imx500, picam2, given)


@contextmanager
def streaming(network: Path, configuration: Mapping[str, Any], **options: bool) -> Iterator[tuple[Any, Any]]:
    """picamera2's `IMX500` and its started `Picamera2`, with `network` loaded; closed afterwards.

    Args:
        configuration: arguments of `Picamera2.create_preview_configuration`.
        options: further arguments of `IMX500`.

    Raises Problem where `network`, picamera2 or the camera is missing or refuses.
    """
    if not network.is_file():
        raise Problem(
            str(network),
            "no such file",
            "network.rpk, made from this package's packerOut.zip",
            "imx500-package -i packerOut.zip -o FOLDER writes FOLDER/network.rpk",
        )
    try:
        from picamera2 import Picamera2  # type: ignore[import-not-found]
        from picamera2.devices import IMX500  # type: ignore[import-not-found]
    except ImportError as error:
        raise Problem("picamera2", str(error), "a Raspberry Pi with picamera2", INSTALL) from error
    with ExitStack() as opened:
        try:
            imx500 = IMX500(str(network), **options)
            picam2 = Picamera2(imx500.camera_num)
            opened.callback(picam2.close)
            imx500.show_network_fw_progress_bar()
            picam2.start(picam2.create_preview_configuration(**configuration), show_preview=False)
        except TypeError as error:
            raise Problem("picamera2", str(error), "picamera2 0.3.32 or later", UPDATE) from error
        except Exception as error:  # of picamera2, libcamera, the driver or the archive in the file
            raise Problem(
                "camera",
                f"{type(error).__name__}: {error}",
                f"an AI Camera that no other program uses, whose driver takes {network.name}",
                f"close other programs that use the camera; {UPDATE}",
            ) from error
        yield imx500, picam2
