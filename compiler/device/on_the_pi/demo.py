"""Point at something in front of the camera and see its mask.

    python3 -m on_the_pi.demo network.rpk --point 320,240
    python3 -m on_the_pi.demo network.rpk --box 250,180,400,330 --frames 10 --out masks

The chip takes a picture and nothing else, so the prompt is the place of the crop: the sensor's region of
interest is set so that the network sees what the prompt protocol shows. Coordinates are pixels of the
`--size` picture, from the top left corner. Pictures with the mask drawn in are written to `--out`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import UPDATE, streaming
from .check import FOLDER
from .outputs import Facts, Problem, read_facts

POINT, ROI = "point-native-96", "roi-pad10"

MARGIN = 0.10
"""roi-pad10: share of the box added on each side."""

SETTLE = 8
"""Frames until a new region of interest reaches the outputs."""

PATIENCE = 300
"""Frames to wait for outputs; loading a network onto the chip takes a while."""

COLOUR, TINT = (255, 140, 0), 0.45
"""Of the mask, and how much of it covers the picture."""


@dataclass(frozen=True)
class Window:
    """A square of the picture: left, top and side in its pixels."""

    left: int
    top: int
    side: int


def point_window(x: float, y: float, size: int) -> Window:
    """point-native-96: `size` pixels around the point, not rescaled."""
    return Window(int(x) - size // 2, int(y) - size // 2, size)


def box_window(x0: float, y0: float, x1: float, y1: float) -> Window:
    """roi-pad10: the box and 10 % on each side, made square around the same centre."""
    width, height = x1 - x0, y1 - y0
    side = max(1, round(max(height, width) * (1.0 + 2.0 * MARGIN)))
    return Window(round(x0 + (width - side) / 2), round(y0 + (height - side) / 2), side)


def inside(window: Window, width: int, height: int) -> Window:
    """Moved into the picture: the sensor has no pixels outside.

    Raises Problem where it is larger than the picture.
    """
    if window.side > min(width, height):
        raise Problem(
            "prompt", f"a window of {window.side} pixels", f"at most {min(width, height)}", "a smaller box"
        )
    return Window(
        min(max(window.left, 0), width - window.side),
        min(max(window.top, 0), height - window.side),
        window.side,
    )


def on_sensor(
    window: Window, size: tuple[int, int], scaler_crop: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Left, top, width and height in sensor pixels, as `set_inference_roi_abs` takes them.

    Args:
        size: width and height of the picture.
        scaler_crop: left, top, width and height of the part of the sensor that the picture shows (metadata
            `ScalerCrop`).
    """
    left, top, wide, high = scaler_crop
    across, down = wide / size[0], high / size[1]
    return (
        round(left + window.left * across),
        round(top + window.top * down),
        round(window.side * across),
        round(window.side * down),
    )


def painted(picture: NDArray[np.uint8], mask: NDArray[np.bool_], window: Window) -> NDArray[np.uint8]:
    """The picture [H, W, 3] with the mask [S, S] in its window and a white frame around it."""
    drawn = picture.copy()
    rows = (np.arange(window.side) * mask.shape[0]) // window.side
    columns = (np.arange(window.side) * mask.shape[1]) // window.side
    part = drawn[window.top : window.top + window.side, window.left : window.left + window.side]
    hit = mask[np.ix_(rows, columns)]
    part[hit] = np.rint((1 - TINT) * part[hit] + TINT * np.array(COLOUR)).astype(np.uint8)
    part[[0, -1]] = 255
    part[:, [0, -1]] = 255
    return drawn


def mask_in(facts: Facts, values: tuple[NDArray[Any], ...]) -> NDArray[np.bool_]:
    """bool [S, S] from the outputs of a frame. Raises Problem for a network without a mask."""
    if facts.mask is None:
        raise Problem(facts.network, "no output is a mask of its input", "a segmenter", "use its outputs")
    (output,) = (one for one in facts.outputs if one.name == facts.mask.output)
    mask: NDArray[np.bool_] = facts.read(values)[output.name][0] * output.step > facts.mask.level
    return mask


def prompt_window(
    facts: Facts, point: Sequence[float] | None, box: Sequence[float] | None, width: int, height: int
) -> Window:
    """The protocol's window; of a prompt that is not given the middle of the picture.

    Raises Problem for a point where the network was trained on boxes.
    """
    if facts.protocol == ROI and box is None:
        raise Problem("prompt", "no box", f"a box: the network was trained under {ROI}", "--box X0,Y0,X1,Y1")
    if box is not None and facts.protocol != POINT:
        return inside(box_window(*box), width, height)
    x, y = point or (
        (width / 2, height / 2) if box is None else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    )
    return inside(point_window(x, y, facts.input.height), width, height)


def set_region(imx500: Any, region: tuple[int, int, int, int]) -> None:
    """Make the network see `region`: left, top, width and height in sensor pixels.

    `IMX500.set_inference_roi_abs` prints what the driver refuses and raises nothing, but keeps in
    `config["roi"]`, clipped to the sensor, the last region that the driver took (picamera2's imx500.py).
    What the sensor itself does with it cannot be read back.

    Raises Problem where the driver did not take it.
    """
    imx500.set_inference_roi_abs(region)
    kept = imx500.config.get("roi")
    taken = None if kept is None else (kept.x, kept.y, kept.width, kept.height)
    if taken is None or any(abs(a - b) > 1 for a, b in zip(taken, region, strict=True)):
        raise Problem(
            "region of interest",
            f"the driver's is {'not known' if taken is None else list(taken)}",
            f"{list(region)} (left, top, width, height); picamera2 prints above what the driver refused",
            UPDATE,
        )


def show(network: Path, chosen: argparse.Namespace, facts: Facts) -> None:
    """Run the camera and write the pictures. Raises Problem where it cannot."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Problem(
            "Pillow", str(error), "what picamera2 needs too", "sudo apt install -y python3-pil"
        ) from error
    size = chosen.size
    window = prompt_window(facts, chosen.point, chosen.box, *size)
    with streaming(network, {"main": {"size": size}}) as (imx500, picam2):
        try:
            chosen.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(error) from error
        set_region(imx500, on_sensor(window, size, picam2.capture_metadata()["ScalerCrop"]))
        written = waited = 0
        for _ in range(SETTLE):
            picam2.capture_metadata()
        while written < chosen.frames:
            request = picam2.capture_request()
            try:
                metadata = request.get_metadata()
                values = imx500.get_outputs(metadata)
                picture = np.asarray(request.make_image("main").convert("RGB"))
            finally:
                request.release()
            if values is None:
                waited += 1
                if waited > PATIENCE:
                    raise Problem("camera", "no outputs", "one for each picture", "look at `dmesg`")
                continue
            mask = mask_in(facts, tuple(values))
            path = chosen.out / f"{written:04d}.png"
            try:
                Image.fromarray(painted(picture, mask, window)).save(path)
            except OSError as error:
                raise _unwritable(error) from error
            times = imx500.get_kpi_info(metadata)
            said = "" if times is None else f", network {times[0]:.2f} ms, DSP {times[1]:.2f} ms"
            print(f"{path}: {mask.mean():.1%} of the window{said}")
            written += 1


def _unwritable(error: OSError) -> Problem:
    return Problem("--out", str(error), "a folder that can be written", "give another --out")


def _numbers(count: int, separator: str = ",") -> Any:
    def parse(text: str) -> tuple[float, ...]:
        numbers = tuple(float(part) for part in text.split(separator))
        if len(numbers) != count:
            raise ValueError(text)
        return numbers

    return parse


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m on_the_pi.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("network", type=Path, help="network.rpk, made by imx500-package")
    parser.add_argument("--point", type=_numbers(2), metavar="X,Y", help="default: the middle")
    parser.add_argument("--box", type=_numbers(4), metavar="X0,Y0,X1,Y1", help="left, top, right, bottom")
    parser.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="default: 640x480")
    parser.add_argument("--frames", type=int, default=1, metavar="N", help="pictures to write")
    parser.add_argument("--out", type=Path, default=Path("masks"), metavar="DIR", help="default: masks")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="device-check of the package")
    chosen = parser.parse_args(arguments)
    try:
        show(chosen.network, chosen, read_facts(chosen.folder))
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
