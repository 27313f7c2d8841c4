"""SAM-family teachers as ONNX exports: SAM, MobileSAM, EfficientSAM-like encoders behind SAM's mask decoder.

A folder holds `encoder.onnx` (input float32 [N, 3, 1024, 1024], output [N, 256, 64, 64]) and `sam.onnx`, the
prompt encoder and mask decoder as segment-anything's `scripts/export_onnx_model.py` writes them.
Preprocessing is segment-anything's: longest side to 1024, ImageNet mean and deviation, zeros right and below.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.errors import InputError, first_line
from student.crops import Pixels
from student.teachers import Answer, Embedding, Prompt, fingerprint

if TYPE_CHECKING:
    import onnxruntime

SIDE = 1024
"""Side of the encoder's square input, pixels."""

GRID = 256
"""Side of the decoder's low-resolution masks, cells."""

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
"""Of ImageNet's red, green and blue in 0..255 (segment-anything, build_sam.py)."""

PREPROCESSING = "sam-1024-bilinear-1"
"""Part of the fingerprint: changes whenever `_encoder_input` gives other numbers."""

_DECODER_INPUTS = (
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
)
_POINT, _BOX_FIRST, _BOX_SECOND, _PADDING = 1.0, 2.0, 3.0, -1.0


class SamOnnx:
    """A teacher (`student.teachers.Teacher`) from a folder with `encoder.onnx` and `sam.onnx`.

    Args:
        directory: the folder.
        threads: cores used; 0 uses all of them.

    Raises:
        InputError: a file is missing or is not such an export.
    """

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._encoder = _session(directory, "encoder.onnx", self._threads)
        # One thread a prompt: two threads inside one prompt gain a third of its time (62 to 42 ms), two
        # prompts side by side half of it; and the answers do not depend on the number of threads.
        self._decoder = _session(directory, "sam.onnx", 1)
        inputs = {i.name for i in self._decoder.get_inputs()}
        outputs = {o.name for o in self._decoder.get_outputs()}
        missing = [n for n in _DECODER_INPUTS if n not in inputs]
        missing += [n for n in ("low_res_masks", "iou_predictions") if n not in outputs]
        if missing:
            raise InputError(
                str(directory / "sam.onnx"),
                f"has no {', '.join(missing)}",
                "inputs and outputs of segment-anything's ONNX export",
                "export the decoder with segment-anything's scripts/export_onnx_model.py",
            )
        shape = self._encoder.get_inputs()[0].shape
        if list(shape[1:]) != [3, SIDE, SIDE]:
            raise InputError(
                str(directory / "encoder.onnx"),
                f"input of shape {shape}",
                f"[N, 3, {SIDE}, {SIDE}]",
                "export the image encoder alone, without its preprocessing",
            )
        self.name = f"onnx:{directory.resolve().name}"
        self.fingerprint = fingerprint(
            (directory / "encoder.onnx", directory / "sam.onnx"), "sam-onnx", PREPROCESSING
        )

    @property
    def versions(self) -> Mapping[str, str]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}

    def stride(self, height: int, width: int) -> float:
        """Picture pixels per cell; the longest side of the picture spans the 256 cells."""
        return max(height, width) / GRID

    def embed(self, picture: Pixels) -> Embedding:
        """Features float16 [1, 256, 64, 64]; `picture` is RGB uint8 [H, W, 3]."""
        features = self._encoder.run(None, {self._encoder.get_inputs()[0].name: _encoder_input(picture)})[0]
        return Embedding(np.asarray(features, np.float16), *picture.shape[:2])

    def prompt(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Logits [ceil(H / stride), ceil(W / stride)]; of several masks the best by predicted IoU."""
        height, width = embedding.height, embedding.width
        stride = self.stride(height, width)
        rows, columns = math.ceil(height / stride - 1e-6), math.ceil(width / stride - 1e-6)
        shared = {
            "image_embeddings": embedding.features.astype(np.float32),
            "mask_input": np.zeros((1, 1, GRID, GRID), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([height, width], np.float32),
        }

        def answer(prompt: Prompt) -> Answer:
            points, labels = _points(prompt, SIDE / max(height, width))
            masks, scores = self._decoder.run(
                ["low_res_masks", "iou_predictions"],
                {**shared, "point_coords": points, "point_labels": labels},
            )
            best = int(np.argmax(scores[0]))
            return Answer(masks[0, best, :rows, :columns].copy(), float(scores[0, best]))

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(answer, prompts))


def _points(prompt: Prompt, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates x, y [1, n, 2] in the encoder's pixels and labels [1, n]; a padding point for no box."""
    points, labels = [(float(prompt.column), float(prompt.row))], [_POINT]
    if prompt.box is None:
        points, labels = [*points, (0.0, 0.0)], [*labels, _PADDING]
    else:
        left, top, width, height = prompt.box
        points += [(left, top), (left + width, top + height)]
        labels += [_BOX_FIRST, _BOX_SECOND]
    return np.array([points], np.float32) * np.float32(scale), np.array([labels], np.float32)


def _encoder_input(picture: Pixels) -> NDArray[np.float32]:
    """Float32 [1, 3, 1024, 1024]: the picture scaled, normalised and padded with zeros."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    scaled = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR), np.float32)
    padded = np.zeros((1, 3, SIDE, SIDE), np.float32)
    padded[0, :, : size[1], : size[0]] = ((scaled - MEAN) / DEVIATION).transpose(2, 0, 1)
    return padded


def _session(directory: Path, name: str, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    path = directory / name
    if not path.is_file():
        raise InputError(
            str(path),
            "is not there",
            "a folder with encoder.onnx and sam.onnx",
            "give the folder of a SAM-family ONNX export, for example onnx:teacher/",
        )
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(
            str(path), first_line(error), "a model onnxruntime opens", "export the teacher again"
        ) from error
