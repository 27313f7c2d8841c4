"""Teachers: big promptable networks whose answers the student learns.

A teacher embeds a picture once and is prompted many times. It answers on its own low-resolution grid, whose
cells are squares of `stride` picture pixels and which covers exactly the picture: padding and stretching are
the teacher's own business.

`Sam2` opens SAM 2 and 2.1 from a local checkpoint. SAM-family ONNX exports are opened by the compiler,
because the student imports no ONNX.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.errors import EnvironmentFault, InputError, first_line
from student.crops import Box, Mask, Pixels

STABILITY_OFFSET = 1.0
"""SAM's stability score compares the masks at logits above +1 and above -1 (segment-anything, amg.py)."""


@dataclass(frozen=True)
class Prompt:
    """A point in picture pixels, and the object's box where it is known."""

    row: int
    column: int
    box: Box | None = None


@dataclass(frozen=True)
class Embedding:
    """What a teacher knows about a picture of `height` x `width` pixels.

    `features` is float16 in the teacher's own layout: a teacher answers from the rounded numbers, so its
    answers do not depend on whether an embedding was kept on disk.
    """

    features: NDArray[np.float16]
    height: int
    width: int


@dataclass(frozen=True)
class Answer:
    """Logits float32 [h, w] (inside above 0) on the teacher's grid, and the IoU the teacher expects."""

    logits: NDArray[np.float32]
    predicted_iou: float


class Teacher(Protocol):
    """Anything that answers prompts on pictures; the same inputs must give the same answers."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the weights and the version of the preprocessing."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """The packages that compute the answers."""
        ...

    def stride(self, height: int, width: int) -> float:
        """Picture pixels per cell of the grid, along both axes, for a picture of this size."""
        ...

    def embed(self, picture: Pixels) -> Embedding:
        """`picture`: RGB uint8 [H, W, 3]."""
        ...

    def prompt(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer a prompt: [ceil(H / stride), ceil(W / stride)] logits."""
        ...


def stability(logits: NDArray[Any]) -> float:
    """SAM's stability score in [0, 1]: IoU of the masks at logits above +1 and above -1; 0 without any."""
    wide = int(np.count_nonzero(logits > -STABILITY_OFFSET))
    return int(np.count_nonzero(logits > STABILITY_OFFSET)) / wide if wide else 0.0


def picture_mask(logits: NDArray[np.float32], stride: float, height: int, width: int) -> Mask:
    """The answer's mask in the picture, bool [height, width]: logits interpolated bilinearly, above 0."""
    rows, columns = logits.shape
    part = (0.0, 0.0, min(width / stride, float(columns)), min(height / stride, float(rows)))
    plane = Image.fromarray(np.ascontiguousarray(logits, np.float32))
    return np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR, box=part)) > 0.0


def fingerprint(files: Iterable[Path], *parts: str) -> str:
    """Hex SHA-256 over the contents of files in the order given, and over texts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


SAM2_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
"""A checkpoint directory in Hugging Face's layout, as of `facebook/sam2.1-hiera-tiny`."""

PROMPTS_AT_ONCE = 16
"""Prompts per call of SAM 2's decoder: bounds the memory of its full-resolution masks."""


class Sam2:
    """SAM 2 or 2.1 from a local directory in Hugging Face's layout; nothing is fetched from anywhere.

    Box-and-point prompts take the decoder's single mask; point prompts the best of its three by predicted
    IoU. SAM 2 stretches pictures to a square, so its masks are resampled to square cells; the shorter side
    keeps its number of cells and nothing is lost along the longer one.

    Args:
        directory: holds `SAM2_FILES`.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: the directory is no such checkpoint, or there is no such device.
        EnvironmentFault: transformers is missing or too old.
    """

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        _refuse_incomplete(directory)
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch

        try:
            from transformers import Sam2Model, Sam2Processor
            from transformers.utils import logging as remarks
        except ImportError as error:
            raise EnvironmentFault(
                "transformers",
                first_line(error),
                "4.56 or newer within 4.x",
                "pip install 'transformers>=4.56,<5'",
            ) from error
        _require_device(device)
        # the published checkpoints hold the video model, of which the image model is a part; loading says so
        before = remarks.get_verbosity()
        remarks.set_verbosity(logging.ERROR)
        try:
            model, loading = Sam2Model.from_pretrained(
                directory, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
            self._processor: Any = Sam2Processor.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # transformers and safetensors raise whatever they meet
            raise InputError(
                f"teacher sam2:{directory}", first_line(error), "a SAM 2 checkpoint", _GET_SAM2
            ) from error
        finally:
            remarks.set_verbosity(before)
        # without this check transformers would fill what the file lacks with random numbers
        lacking = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        if lacking:
            raise InputError(
                f"teacher sam2:{directory}",
                f"{len(lacking)} weights are missing or of another shape (first: {sorted(lacking)[0]})",
                "every weight of SAM 2's image model",
                _GET_SAM2,
            )
        self._model: Any = model.to(device).eval()
        self._device = device
        self._grid: int = model.config.prompt_encoder_config.image_size // 4
        self.name = f"sam2:{directory.resolve().name}"
        files = sorted(p for p in directory.iterdir() if p.suffix == ".safetensors" or p.name in SAM2_FILES)
        self.fingerprint = fingerprint(files, "sam2-transformers-1")

    @property
    def versions(self) -> Mapping[str, str]:
        return {name: version(name) for name in ("torch", "torchvision", "transformers")}

    def stride(self, height: int, width: int) -> float:
        """Picture pixels per cell; the shorter side of the picture spans the decoder's 256 cells."""
        return min(height, width) / self._grid

    def embed(self, picture: Pixels) -> Embedding:
        """The three feature maps of a picture, RGB uint8 [H, W, 3], one after the other in one vector."""
        import torch

        pixels = self._processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            maps = self._model.get_image_embeddings(pixels.to(self._device))
        flat = np.concatenate([m.cpu().numpy().ravel() for m in maps])
        return Embedding(flat.astype(np.float16), *picture.shape[:2])

    def prompt(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Logits [ceil(H / stride), ceil(W / stride)], one answer a prompt."""
        maps = self._maps(embedding)
        answers: dict[int, Answer] = {}
        for boxed in (True, False):
            numbers = [i for i, prompt in enumerate(prompts) if (prompt.box is not None) is boxed]
            for first in range(0, len(numbers), PROMPTS_AT_ONCE):
                batch = numbers[first : first + PROMPTS_AT_ONCE]
                found = self._decode(embedding, maps, [prompts[i] for i in batch])
                answers.update(zip(batch, found, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def _maps(self, embedding: Embedding) -> list[Any]:
        """The feature maps float32 [1, C, h, w] from the flat vector, finest first."""
        import torch

        sizes = [tuple(size) for size in self._model.backbone_feature_sizes]
        channels = self._model.hidden_dim
        # the decoder's conv_s0 and conv_s1 leave an eighth and a quarter of the channels
        shapes = [
            (1, count, *size)
            for count, size in zip((channels // 8, channels // 4, channels), sizes, strict=True)
        ]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        flat = embedding.features.astype(np.float32)
        return [
            torch.from_numpy(part.reshape(shape)).to(self._device)
            for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)
        ]

    def _decode(self, embedding: Embedding, maps: list[Any], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answers to prompts that all have a box, or all have none."""
        import torch

        inputs: dict[str, Any] = {
            "input_points": [[[[float(p.column), float(p.row)]] for p in prompts]],
            "input_labels": [[[1] for _ in prompts]],
        }
        boxes = [p.box for p in prompts if p.box is not None]
        if boxes:
            inputs["input_boxes"] = [[[x, y, x + w, y + h] for x, y, w, h in boxes]]
        size = [[embedding.height, embedding.width]]
        inputs = dict(self._processor(original_sizes=size, return_tensors="pt", **inputs))
        del inputs["original_sizes"]
        with torch.inference_mode():
            out = self._model(
                image_embeddings=maps,
                multimask_output=not boxes,
                **{name: value.to(self._device) for name, value in inputs.items()},
            )
        scores, masks = out.iou_scores[0].cpu().numpy(), out.pred_masks[0].cpu().numpy()
        best = scores.argmax(axis=1)
        stride = self.stride(embedding.height, embedding.width)
        return [
            Answer(_square_cells(masks[i, b], embedding.height, embedding.width, stride), float(scores[i, b]))
            for i, b in enumerate(best.tolist())
        ]


_GET_SAM2 = (
    f"give a directory with {', '.join(SAM2_FILES)}, for instance from `huggingface-cli download "
    "facebook/sam2.1-hiera-tiny --local-dir DIR`"
)


def _require_device(device: str) -> None:
    """Raises InputError for what names no device, or none of this machine."""
    import torch

    gpus = torch.cuda.device_count()
    try:
        named = torch.device(device)
    except RuntimeError:
        named = None
    there = {"cpu": 1, "cuda": gpus}
    if named is None or (named.index or 0) >= there.get(named.type, 0):
        raise InputError(
            f"device {device}",
            "no such device here",
            f"cpu, or cuda:N for one of {gpus} GPUs",
            "use --device cpu",
        )


def _refuse_incomplete(directory: Path) -> None:
    """Raises InputError where the directory lacks a file of the layout."""
    missing = [name for name in SAM2_FILES if not (directory / name).is_file()]
    if (directory / "model.safetensors.index.json").is_file() and "model.safetensors" in missing:
        missing.remove("model.safetensors")  # a checkpoint in several files
    if not missing:
        return
    original = sorted(directory.glob("*.pt")) if directory.is_dir() else []
    fix = _GET_SAM2
    if original or directory.suffix == ".pt":
        fix += "; a .pt file of the original layout is converted by transformers' convert_sam2_to_hf.py"
    raise InputError(
        f"teacher sam2:{directory}", f"no {', '.join(missing)}", "a checkpoint in Hugging Face's layout", fix
    )


def _square_cells(plane: NDArray[np.float32], height: int, width: int, stride: float) -> NDArray[np.float32]:
    """A plane stretched over a picture, resampled bilinearly to square cells of `stride` picture pixels."""
    for axis, length in enumerate((height, width)):
        cells = plane.shape[axis]
        count = math.ceil(length / stride - 1e-6)
        place = np.clip((np.arange(count) + 0.5) * stride * cells / length - 0.5, 0, cells - 1)
        low = np.minimum(place.astype(np.intp), max(cells - 2, 0))
        share = (place - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        high = np.minimum(low + 1, cells - 1)
        plane = plane.take(low, axis) * (1 - share) + plane.take(high, axis) * share
    return plane
