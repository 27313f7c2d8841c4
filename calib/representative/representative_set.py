"""A drawn set: the crops of each part, and the pictures they come from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from passes.contract import InputContract

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

PICTURES = 32
"""Default number of calibration crops (docs/calibration.md shows what more of them change)."""

HELD_OUT = 16
"""Number of held-out crops."""


@dataclass(frozen=True)
class Source:
    """A picture that crops of one part were cut from.

    Attributes:
        name: of the file, relative to the folder or wheel.
        sha256: of the file's bytes.
        content: SHA-256 of the decoded pixels and their size (`content.content_hash`).
        part: `calibration`, `deciding` or `held out`.
        crops: how many were cut from it.
        sizes: COCO size class of the object of each crop, in order of drawing; empty without objects.
    """

    name: str
    sha256: str
    content: str
    part: str
    crops: int
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RepresentativeSet:
    """Pictures as the sensor sees them.

    Attributes:
        pictures: uint8 [N, C, H, W], for calibration, channels in the contract's order.
        held_out: uint8 [M, C, H, W], from parts of the source that the others do not show.
        contract: the input the pictures were made for.
        sources: every picture used, in order of name; the only picture of a source once for each part.
        seed: seed of the choice of pictures and crops.
        how: one sentence for the calibration card.
        deciding: uint8 [D, C, H, W], from pictures of their own; none where none were asked for.
        deciding_masks: bool [D, H, W], the object each of them is centred on; None for sources without masks.
        deciding_pictures: int64 [D], index in `sources` of each one's picture: crops of one picture are not
            independent, so intervals are taken over pictures.
        left_out: content hashes of the pictures met while drawing that were to be excluded.
        protocol: what crops around objects were asked to be cut by; None: point-native.
    """

    pictures: Pixels
    held_out: Pixels
    contract: InputContract
    sources: tuple[Source, ...]
    seed: int
    how: str
    deciding: Pixels = field(default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8))
    deciding_masks: Mask | None = None
    deciding_pictures: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: tuple[str, ...] = ()
    protocol: str | None = None


def delivered(pictures: Pixels, contract: InputContract) -> NDArray[np.float32]:
    """The integers the sensor delivers for pixels 0..255: p, or p - 128 where the input is signed.

    uint8 [N, C, H, W] -> float32 [N, C, H, W], whole numbers.
    """
    return pictures.astype(np.float32) + np.float32(contract.lowest)
