"""The recorded networks: their ONNX and the l2staticData.bin that imx500-converter 3.19.2 made of them.

`python -m benchmarks.chip_numbers --record tests/compiler/chip/fixtures/networks.zip` writes them again.
"""

from __future__ import annotations

import zipfile
from functools import cache
from pathlib import Path

import onnx_ir as ir

from passes.graph import parse

ARCHIVE = Path(__file__).parent / "fixtures" / "networks.zip"


@cache
def names() -> tuple[str, ...]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return tuple(name.removesuffix(".onnx") for name in archive.namelist() if name.endswith(".onnx"))


@cache
def _member(name: str) -> bytes:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return archive.read(name)


def model(name: str) -> ir.Model:
    return parse(_member(f"{name}.onnx"))


def static(name: str) -> bytes:
    return _member(f"{name}.bin")
