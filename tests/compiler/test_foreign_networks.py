"""Networks that no one here wrote go the whole way, on the vendor's real converter."""

from __future__ import annotations

import json
import zipfile

import pytest

from compiler import cli
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
