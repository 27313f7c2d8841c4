"""Networks that no one here wrote go the whole way, on the vendor's real converter."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler import cli
from compiler.simulator.engine import compile_program
from passes import graph as graphs
from tests.compiler.simulator.engines_agree import mismatches
from tests.networks import FOREIGN, export, foreign

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FOREIGN)
def test_compiles(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    path = export(foreign(name), tmp_path / f"{name}.onnx")
    out = tmp_path / "package"
    assert (
        cli.run(["compile", str(path), "--out", str(out), "--calib-count", "16", "--input", "imagenet"]) == 0
    ), capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert report["converter"]["fits"]
    with zipfile.ZipFile(out / "packerOut.zip") as archive:
        assert archive.testzip() is None
    quantized = graphs.load(out / "model_quant.onnx")
    size = graphs.static_shape(graphs.real_inputs(quantized.graph)[0])
    pictures = np.random.default_rng(0).integers(0, 256, (2, *size[1:]))
    program = compile_program(quantized)
    assert mismatches(quantized, {program.inputs[0]: pictures}, program, one_by_one=True) == {}


class ConvNextBlock(nn.Module):
    """LayerNorm and linear layers over the channels of a picture, as ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x.permute(0, 2, 3, 1))
        return x + self.narrow(functional.gelu(self.wide(y))).permute(0, 3, 1, 2)


def test_linear_layers_over_the_channels_of_a_picture(tmp_path, capsys, monkeypatch):
    """The weights reach the converter transposed; a second shape for them would make it refuse the file."""
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    path = export(ConvNextBlock().eval(), tmp_path / "block.onnx", 32)
    out = tmp_path / "package"
    arguments = ["compile", str(path), "--out", str(out), "--memory-report-only", "--input", "unit"]
    assert cli.run(arguments) == 0, capsys.readouterr().err
    assert json.loads((out / "report.json").read_text())["agreement"]["outputs"][0]["snr_db"] > 20


@pytest.mark.parametrize("size", [960, 1600])
def test_too_large_for_the_chip_is_refused_by_us_first(size, tmp_path, capsys):
    """Skips hold the first level over the whole network: the converter's tiling cannot help."""
    path = export(foreign("unet_concat"), tmp_path / "unet.onnx", size)
    out = tmp_path / "package"
    assert cli.run(["compile", str(path), "--out", str(out), "--input", "imagenet", "-q"]) == 2
    error = capsys.readouterr().err
    assert "memory" in error
    assert "8,388,480" in error or "8.00 MB" in error
    assert not out.exists()
