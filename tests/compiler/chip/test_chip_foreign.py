"""The predicted integers of networks that no one here wrote, against the vendor's real converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler import cli
from compiler.chip import chip_layer_constants, read_compiled, static_data
from passes.graph import load
from tests.networks import export, foreign

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "convolutions", "undecoded"),
    [("mobilenet_v2", 52, ["Gemm"]), ("unet_concat", 11, ["ConvTranspose", "ConvTranspose"])],
)
def test_all_decoded_layers_are_exact(
    name: str, convolutions: int, undecoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ReLU6, residual additions, depthwise strides; concatenations and pooling."""
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    path, out = export(foreign(name), tmp_path / f"{name}.onnx"), tmp_path / "package"
    arguments = ["compile", str(path), "--out", str(out), "--calib-count", "16", "--input", "imagenet", "-q"]
    assert cli.run(arguments) == 0
    model = load(out / "model_quant.onnx")
    predicted = chip_layer_constants(model)
    read = read_compiled(static_data((out / "packerOut.zip").read_bytes()), model)
    assert [unknown.operator for unknown in predicted.undecoded] == undecoded
    assert read.missing == ()
    assert len(predicted.layers) == convolutions
    for node, layer in predicted.layers.items():
        for field in ("weights", "multiplier", "shift", "bias"):
            expected, found = getattr(layer, field), getattr(read.layers[node], field)
            assert np.array_equal(found, expected), f"{node}: {int((found != expected).sum())} {field} differ"
        assert read.layers[node].padding_as_expected, node
