"""Small material: a quantized fixture, its float graph, random crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from calib.representative import RepresentativeSet
from compiler.cache import Cache
from compiler.quantizing.ways import Material
from passes.contract import raw
from tests.calib.qat.small_graphs import SHAPE, fixture, without_quantizers


def silent(phase: str, share: float | None) -> None:
    """A progress nobody looks at."""


def crops(count: int, deciding: int = 0, masks: np.ndarray | None = None) -> RepresentativeSet:
    """Random pixels; every deciding crop is of a picture of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (count + deciding, *SHAPE), np.uint8)
    return RepresentativeSet(
        pixels[:count],
        pixels[:1],
        raw(*SHAPE, signed=False),
        (),
        0,
        "random",
        pixels[count:],
        masks,
        np.arange(deciding),
    )


def material(folder: Path, name: str = "residual", count: int = 64) -> tuple[Material, ir.Model]:
    """Material of a fixture, and the fixture."""
    quantized = fixture(name)
    one = Material(without_quantizers(quantized), (crops(count, 16),), 16, 0, Cache(folder), silent)
    return one, quantized
