"""How far the int8 network agrees with the float network on pictures that were never used for calibration.

Both run in onnxruntime on the same delivered integers: the float graph as folded, the quantized graph as it
goes to the converter (`compiler.dialect`). For one-channel maps the figure is the mean IoU of the masks
(logit > 0, or probability > 1/2); for maps of several channels the share of pixels with the same winning
channel; for vectors the share of pictures with the same winner; for other shapes, and for indices (ArgMax)
of more than one place a picture, the share of positions with the same winner. Beside each stands the
signal-to-noise ratio of the raw values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.dialect import to_standard
from compiler.inspection.mask_output import mask_outputs
from passes.errors import InputError
from passes.graph import to_bytes
from student.crops import mask_iou


@dataclass(frozen=True)
class OutputAgreement:
    """Agreement of one output.

    Attributes:
        name: the output.
        measure: what `value` is: mask-iou, pixel-agreement, position-agreement, winner-agreement or snr-only.
        value: 0..1, 1 is full agreement; None for snr-only.
        snr_db: 10 log10(sum float^2 / sum (int8 - float)^2), infinite where they are equal.
    """

    name: str
    measure: str
    value: float | None
    snr_db: float


@dataclass(frozen=True)
class Agreement:
    """Measured on `pictures` pictures; one entry per output."""

    pictures: int
    outputs: tuple[OutputAgreement, ...]


def measure_agreement(
    float_model: ir.Model,
    quantized: ir.Model,
    pictures: Sequence[np.ndarray],
    progress: Callable[[float], None] = lambda _: None,
) -> Agreement:
    """Run both networks over the held-out pictures, one at a time.

    Args:
        float_model: folded, takes delivered integers.
        quantized: vendor dialect, same inputs.
        pictures: for each input float32 [N, C, H, W], the integers the sensor delivers; N is the same.
        progress: called with the share done, 0..1.
    """
    reference, tested = session(float_model), session(to_standard(quantized))
    names = [output.name for output in reference.get_outputs()]
    levels = {mask.name: mask.level for mask in mask_outputs(float_model)}
    floats: list[list[np.ndarray]] = [[] for _ in names]
    integers: list[list[np.ndarray]] = [[] for _ in names]
    count = len(pictures[0])
    for index in range(count):
        for kept, ran in ((floats, reference), (integers, tested)):
            feed = {
                given.name: one[index].reshape([1, *given.shape[1:]])
                for given, one in zip(ran.get_inputs(), pictures, strict=True)
            }
            for name, output, values in zip(names, kept, ran.run(None, feed), strict=True):
                output.append(_finite(name, np.asarray(values)))
        progress((index + 1) / count)
    outputs = tuple(
        compare_output(name, np.concatenate(a), np.concatenate(b), levels.get(name, 0.0))
        for name, a, b in zip(names, floats, integers, strict=True)
    )
    return Agreement(count, outputs)


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values; raises InputError where some are no numbers."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(
            f"output {name}",
            f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite on a picture",
            "finite outputs",
            "look for a division, root or exponential that leaves the range, or declare the right --input",
        )
    return values


def session(model: ir.Model, threads: int = 0) -> Any:
    """An onnxruntime session of a standard graph on the CPU; `threads` of one run, 0 for all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])


def compare_output(name: str, real: np.ndarray, quantized: np.ndarray, level: float = 0.0) -> OutputAgreement:
    """One output of the float and the quantized network on the same pictures, [N, ...] each."""
    noise = float(np.square(quantized.astype(np.float64) - real).sum())
    signal = float(np.square(real.astype(np.float64)).sum())
    snr = float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
    measure, values = agreement_by_picture(real, quantized, level)
    return OutputAgreement(name, measure, None if values is None else float(values.mean()), snr)


def agreement_by_picture(
    real: np.ndarray, quantized: np.ndarray, level: float = 0.0
) -> tuple[str, NDArray[np.float64] | None]:
    """The measure that fits the output, and its value 0..1 for each of N pictures; None for snr-only.

    Args:
        real, quantized: [N, ...]; channels are the second dimension. Integers are indices, winners already.
        level: a pixel is mask where the value is greater (`MaskOutput.level`).
    """
    if real.dtype.kind in "iu":
        same = (real == quantized).reshape(len(real), -1)
        measure = "position-agreement" if same.shape[1] > 1 else "winner-agreement"
        return measure, same.mean(axis=1, dtype=np.float64)
    if real.ndim == 4 and real.shape[1] == 1:
        ious = [mask_iou(a > level, b > level) for a, b in zip(real, quantized, strict=True)]
        return "mask-iou", np.array(ious, np.float64)
    if real.ndim >= 2 and real.shape[1] > 1:
        same = (real.argmax(axis=1) == quantized.argmax(axis=1)).reshape(len(real), -1)
        several = "pixel-agreement" if real.ndim == 4 else "position-agreement"
        measure = several if same.shape[1] > 1 else "winner-agreement"
        return measure, same.mean(axis=1, dtype=np.float64)
    return "snr-only", None
