"""A package read back: its int8 graph, float graph and manifest. A quantized .onnx alone will do too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.driver import FLOAT_GRAPH, INT8_GRAPH
from compiler.frontend import Loaded, ModelKind, load_model
from compiler.package import read_manifest
from passes import graph as graphs
from passes.errors import InputError
from student.crops import PROTOCOLS
from student.shipped import shipped_protocol


@dataclass(frozen=True)
class OpenedPackage:
    """What a package holds.

    Attributes:
        name: of the directory or the file.
        loaded: the int8 graph in the vendor dialect, with its input contract.
        float_model: the folded float graph; None for a file alone.
        manifest: manifest.json; empty for a file alone.
    """

    name: str
    loaded: Loaded
    float_model: ir.Model | None
    manifest: Mapping[str, Any]

    @property
    def model(self) -> ir.Model:
        """The int8 graph."""
        return self.loaded.model


def open_package(path: Path) -> OpenedPackage:
    """Read a package directory, or one quantized ONNX file.

    Raises:
        InputError: a folder that is no package or of a compile that failed, a package without its int8 graph,
            a file that is no quantized ONNX, or an int8 graph that is not the one the manifest names.
    """
    if not path.is_dir():
        loaded = load_model(path)
        return OpenedPackage(path.name, _quantized(path, loaded), None, {})
    manifest = read_manifest(path)
    int8, real = path / INT8_GRAPH, path / FLOAT_GRAPH
    if not int8.is_file():
        raise InputError(
            f"package {path}", f"has no {INT8_GRAPH}", "a whole package", "compile the model again"
        )
    loaded = _quantized(int8, load_model(int8))
    said = manifest.get("files", {}).get(INT8_GRAPH, {}).get("sha256")
    if said is not None and said != loaded.sha256:
        raise InputError(
            f"package {path}",
            f"{INT8_GRAPH} has SHA-256 {loaded.sha256[:12]}..., the manifest says {said[:12]}...",
            "the files that were compiled together",
            "compile the model again",
        )
    return OpenedPackage(path.resolve().name, loaded, graphs.load(real) if real.is_file() else None, manifest)


def trained_protocol(manifest: Mapping[str, Any]) -> str | None:
    """The protocol that a package's checkpoint was trained under: the manifest's own, or a shipped file's."""
    named = str(manifest.get("protocol"))
    return named if named in PROTOCOLS else shipped_protocol(str(manifest.get("model", {}).get("sha256")))


def _quantized(path: Path, loaded: Loaded) -> Loaded:
    if loaded.kind is not ModelKind.QUANTIZED_ONNX:
        raise InputError(
            f"model {path}",
            f"is a {loaded.kind.value}",
            "a package directory, or a quantized .onnx in the vendor's dialect",
            f"picosam2 compile {path} --no-convert, then give the package",
        )
    return loaded
