"""Feature hints: the student's middle layer learns what a teacher's image encoder sees.

A mask says one bit a pixel about one object. The teacher's embedding of the whole picture says what every
place of it is like, so a student with few pictures learns more from each (after FitNets, arXiv 1412.6550).
The student's features in front of its second decoder stage (1/8 of the input's size, with the whole crop in
their receptive field) are mapped by one 1x1 convolution, which is thrown away after training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from passes.errors import InputError
from student.augment import View
from student.networks import DECODER
from student.teach import embedding_path

STRIDE = 8
"""Crop pixels per feature: that of the second decoder stage's input."""

TEACHER_CHANNELS = 256
"""Channels of a SAM image embedding."""


def read_embedding(folder: Path, picture: bytes) -> NDArray[np.float16]:
    """The kept embedding of a picture file's bytes: float16 [C, g, g], the grid laid over the longer side.

    Args:
        folder: `EMBEDDINGS/<fingerprint>`, written by `picosam2 teach --embeddings`.

    Raises:
        InputError: missing, broken, or of a teacher whose embedding is no single square grid.
    """
    path = embedding_path(folder, picture)
    try:
        kept = np.load(path)
    except (OSError, ValueError) as error:
        raise InputError(
            str(path),
            f"no readable embedding ({error.__class__.__name__})",
            "the embedding of every training picture",
            "run `picosam2 teach` with --embeddings on these pictures, or train without --embeddings",
        ) from error
    if kept.ndim != 4 or kept.shape[:2] != (1, TEACHER_CHANNELS) or kept.shape[2] != kept.shape[3]:
        raise InputError(
            str(path),
            f"an embedding of shape {list(kept.shape)}",
            f"[1, {TEACHER_CHANNELS}, g, g], as SAM's image encoders give it",
            "train without --embeddings",
        )
    grid: NDArray[np.float16] = kept[0].astype(np.float16)
    return grid


def shown_features(
    grid: NDArray[np.float16], picture_size: tuple[int, int], view: View, cells: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the teacher saw in a view.

    Args:
        grid: float16 [C, g, g], from `read_embedding`.
        picture_size: height and width.
        cells: features along each side of the view.

    Returns:
        float32 [C, cells, cells], bilinear between the grid's cells, and float32 [cells, cells]: 1 where the
        cell's centre lies in the picture, else 0.
    """
    stride = max(picture_size) / grid.shape[1]
    centres = (np.arange(cells) + 0.5) / cells
    rows, columns = view.top + centres * view.height, view.left + centres * view.width
    if view.mirrored:
        columns = columns[::-1]
    inside = np.outer(
        (rows >= 0) & (rows < picture_size[0]), (columns >= 0) & (columns < picture_size[1])
    ).astype(np.float32)
    first_row, below = _neighbours(rows / stride - 0.5, grid.shape[1])
    first_column, right = _neighbours(columns / stride - 0.5, grid.shape[2])
    band = grid[:, first_row].astype(np.float32) * (1.0 - below)[:, None]
    band += grid[:, first_row + 1].astype(np.float32) * below[:, None]
    shown = band[:, :, first_column] * (1.0 - right) + band[:, :, first_column + 1] * right
    return shown.astype(np.float32), inside


def _neighbours(place: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The cell before each place and how far the place lies towards the next one, within the grid."""
    place = np.clip(place, 0.0, size - 1.0)
    first = np.minimum(place.astype(np.int64), size - 2)
    return first, (place - first).astype(np.float32)


class Hinted(nn.Module):
    """A student and the map from its features to the teacher's: pictures -> (logits, features)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.to_teacher = nn.Conv2d(DECODER[0], TEACHER_CHANNELS, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """float [N, 1, S, S] and float [N, 256, S / 8, S / 8] of float [N, 3, S, S]."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught.append(inputs[0])

        up2: nn.Module = self.network.up2  # type: ignore[assignment]
        hook = up2.register_forward_pre_hook(catch)
        try:
            logits = self.network(pictures)
        finally:
            hook.remove()
        return logits, self.to_teacher(caught[0])


def feature_loss(features: Tensor, teachers: Tensor, inside: Tensor) -> Tensor:
    """1 - cosine similarity of each sample's features with the teacher's, averaged over `inside`: [N].

    Args:
        features, teachers: float32 [N, C, h, w].
        inside: float32 [N, h, w]; where it is 0 nothing is asked.
    """
    apart = 1.0 - functional.cosine_similarity(features, teachers, dim=1)
    loss: Tensor = (apart * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1.0)
    return loss
