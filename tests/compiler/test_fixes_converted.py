"""Refused networks, after `--fix`, on the vendor's real converter: quantized by us and converted in full.

Several rewrites share a network to save minutes; the converter's own message names the node that it refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.ptq import mct_ptq
from calib.representative import RepresentativeSet, load_representative
from compiler.converter import ConverterInstall, convert, find_converter
from passes import graph as graphs
from passes.contract import raw
from passes.diagnostics import has_errors
from passes.errors import EnvironmentFault
from passes.graph import static_shape
from passes.imx500.check import check_operators
from passes.imx500.fixes import fix_graph
from passes.pipeline import apply_all
from tests.graphs import model, node, relative_error, run
from tests.networks import export
from tests.oracle import loader

pytestmark = pytest.mark.slow

BLOCK = "nn.Sequential(nn.Conv2d({0}, {1}, 3, padding=1), nn.ReLU())"


def network(init: Sequence[str], forward: Sequence[str], ends: int = 16) -> str:
    """Source of a network: a 3x3 convolution to 16 channels with ReLU, `forward`, a 1x1 convolution to 4."""
    return "\n".join(
        [
            "class Net(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            f"        self.first = {BLOCK.format(3, 16)}",
            f"        self.last = nn.Conv2d({ends}, 4, 1)",
            *(f"        {line}" for line in init),
            "    def forward(self, x):",
            "        x = self.first(x)",
            *(f"        {line}" for line in forward),
            "        return self.last(x)",
        ]
    )


def mixed(channels: int = 16) -> str:
    return BLOCK.format(channels, 16)


TORCH = {
    "places": network(
        [f"self.a, self.b, self.c, self.d = {mixed(4)}, {mixed(32)}, {mixed()}, {mixed()}"],
        [
            "x = self.a(F.pixel_shuffle(x, 2))",
            "x = self.b(x.repeat(1, 2, 1, 1))",
            "x = self.c(torch.flip(x, [3]))",
            "x = self.d(torch.flip(x, [1, 2]))",
        ],
    ),
    "padding": network(
        [f"self.a, self.b, self.c = {mixed()}, {mixed()}, {mixed()}"],
        [
            "x = self.a(F.pad(x, (2, 1, 1, 3), mode='reflect'))",
            "x = self.b(F.pad(x, (1, 1, 2, 2), mode='replicate'))",
            "x = self.c(F.pad(x, (-1, 2, -2, -1)))",
        ],
    ),
    "activations": network(
        [
            f"self.a, self.b, self.c, self.d = {mixed()}, {mixed()}, {mixed()}, {mixed()}",
            "self.many, self.one = nn.PReLU(16), nn.PReLU()",
            "self.many.weight.data = torch.linspace(-0.2, 0.6, 16)",
            "self.conv = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(6))",
        ],
        [
            "x = self.a(self.many(self.conv[0](x)))",
            "x = self.b(F.elu(self.conv[1](x), 0.7) + self.one(self.conv[2](x)))",
            "x = self.c(F.mish(self.conv[3](x)) + F.selu(self.conv[4](x)))",
            "x = self.d(F.softplus(self.conv[5](x)) + 1.5 / (torch.sigmoid(x) + 0.5))",
        ],
    ),
    "transposed": network(
        [
            "self.t = nn.ModuleList([nn.ConvTranspose2d(16, 16, 4, 2, padding=1),",
            "    nn.ConvTranspose2d(16, 16, 3, padding=2, dilation=2),",
            "    nn.ConvTranspose2d(16, 16, 2, groups=4), nn.ConvTranspose2d(16, 16, 2, stride=3),",
            "    nn.ConvTranspose2d(16, 16, 3, 2, padding=1, output_padding=1, groups=16)])",
            "self.down = nn.ModuleList(nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(3))",
        ],
        [
            "x = F.relu(self.down[0](F.relu(self.t[0](x))))",
            "x = F.relu(self.t[2](F.relu(self.t[1](x))))",
            "x = F.relu(self.down[1](F.relu(self.t[3](x))))",
            "x = F.relu(self.down[2](F.relu(self.t[4](x))))",
        ],
    ),
    "convolutions": network(
        [
            f"self.a = {mixed()}",
            "self.even = nn.Conv2d(16, 16, 3, stride=2, padding=2, dilation=2)",
            "self.odd = nn.Conv2d(16, 16, 3, stride=2, padding=3, dilation=3)",
            "self.large = nn.Conv2d(16, 16, 13, padding=6, groups=16)",
            "self.wide = nn.Conv2d(16, 16, 1, padding=2)",
            "self.line = nn.Conv1d(16, 16, 3, padding=1)",
            "self.deep = nn.Conv3d(4, 4, 3, padding=1)",
        ],
        [
            "x = F.relu(self.large(x))",
            "x = F.relu(self.even(F.relu(self.wide(x))))",
            "x = F.relu(self.odd(x))",
            "x = F.relu(self.line(x.flatten(2))).view(1, 16, 9, 9)",
            "x = F.relu(self.deep(x.view(1, 4, 4, 9, 9))).view(1, 16, 9, 9)",
            "x = self.a(x)",
        ],
    ),
    "norms": network(
        [
            f"self.a, self.b, self.c, self.d = {mixed()}, {mixed()}, {mixed()}, {mixed()}",
            "self.group, self.instance = nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True)",
            "self.layer, self.long = nn.LayerNorm([16, 8, 8]), nn.GroupNorm(1, 16)",
            "self.group.weight.data = torch.linspace(0.5, 1.5, 16)",
            "self.group.bias.data = torch.linspace(-0.5, 0.5, 16)",
        ],
        [
            "x = self.a(self.group(x))",
            "x = self.b(self.long(x))",
            "x = F.max_pool2d(self.c(self.instance(x)), 4)",
            "x = self.d(self.layer(x))",
        ],
    ),
    "tokens": network(
        [
            "self.q, self.k, self.v, self.up = (nn.Linear(16, 16) for _ in range(4))",
            "self.register_buffer('mix', torch.randn(64, 64) / 8)",
        ],
        [
            "t = F.max_pool2d(x, 4).flatten(2).transpose(1, 2)",
            "y = F.softmax(self.q(t) @ self.k(t).transpose(1, 2) * 0.25, -1) @ self.v(t)",
            "y = F.relu(self.up(t + y))",
            "y = self.mix @ y",
            "x = y.transpose(1, 2).view(1, 16, 8, 8)",
        ],
    ),
    "pools": network(
        [f"self.a, self.b, self.c = {mixed()}, {mixed()}, {mixed()}"],
        [
            "x = self.a(F.max_pool2d(x, 3, 2, ceil_mode=True))",
            "x = self.b(F.avg_pool2d(x, 3, 2, ceil_mode=True))",
            "x = self.c(F.max_pool2d(x, 2, 1, dilation=2))",
            "x = F.max_pool1d(x.flatten(2), 2).view(1, 16, 3, 6)",
        ],
    ),
    "resizing": network(
        [f"self.a, self.b = {mixed()}, {mixed()}"],
        [
            "x = self.a(F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True))",
            "x = self.b(F.interpolate(x, size=(40, 24), mode='bicubic'))",
            "x = F.interpolate(x.flatten(2), scale_factor=2, mode='linear').view(1, 16, 40, 48)",
        ],
    ),
}
"""Networks as torch exports them."""


def reductions() -> ir.Model:
    """ReduceMin, ReduceL1, ReduceSumSquare, sums of three, a cube, ArgMin and the smallest k as outputs."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r"]),
        node("ReduceMin", ["r"], ["least"], axes=[2], name="minimum"),
        node("ReduceL1", ["r"], ["sum"], axes=[3], name="absolute"),
        node("Sum", ["least", "sum", "r"], ["total"], name="three"),
        node("Conv", ["total", "w1", "b1"], ["c1"], name="second"),
        node("Pow", ["c1", "three"], ["cube"], name="cube"),
        node("Conv", ["cube", "w2", "b1"], ["c2"], name="third"),
        node("Softsign", ["c2"], ["s"], name="softsign"),
        node("HardSigmoid", ["s"], ["h"], name="gate"),
        node("ArgMin", ["h"], ["place"], axis=1, keepdims=1, name="place"),
        node("Conv", ["h", "w1", "b1"], ["y"], name="last"),
    ]
    constants = {
        "w0": rng.normal(0, 0.02, (16, 3, 3, 3)).astype(np.float32),
        "b0": rng.normal(0, 0.1, 16).astype(np.float32),
        "w1": rng.normal(0, 0.05, (16, 16, 1, 1)).astype(np.float32),
        "b1": rng.normal(0, 0.1, 16).astype(np.float32),
        "w2": rng.normal(0, 1e-5, (16, 16, 1, 1)).astype(np.float32),
        "three": np.array(3.0, np.float32),
    }
    return model(nodes, {"x": [1, 3, 16, 16]}, ["y", "place"], constants)


def indices() -> ir.Model:
    """DepthToSpace in the other order, SpaceToDepth, nearest resizing that rounds, negative indices."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r"]),
        node("DepthToSpace", ["r"], ["d"], blocksize=2, mode="DCR", name="shuffle"),
        node("SpaceToDepth", ["d"], ["s"], blocksize=2, name="unshuffle"),
        node("Conv", ["s", "w1", "b1"], ["c1"], name="second"),
        node(
            "Resize",
            ["c1", "", "scales"],
            ["n"],
            mode="nearest",
            coordinate_transformation_mode="half_pixel",
            nearest_mode="round_prefer_ceil",
            name="nearest",
        ),
        node("Gather", ["n", "picked"], ["g"], axis=1, name="gather"),
        node("Conv", ["g", "w2", "b2"], ["y"], name="last"),
    ]
    constants = {
        "w0": rng.normal(0, 0.02, (16, 3, 3, 3)).astype(np.float32),
        "b0": rng.normal(0, 0.1, 16).astype(np.float32),
        "w1": rng.normal(0, 0.2, (16, 16, 1, 1)).astype(np.float32),
        "b1": rng.normal(0, 0.1, 16).astype(np.float32),
        "w2": rng.normal(0, 0.2, (4, 3, 1, 1)).astype(np.float32),
        "b2": rng.normal(0, 0.1, 4).astype(np.float32),
        "scales": np.array([1, 1, 1.5, 1.5], np.float32),
        "picked": np.array([-1, 3, -7]),
    }
    return model(nodes, {"x": [1, 3, 16, 16]}, ["y"], constants)


MADE = {"reductions": reductions, "indices": indices}
"""Networks with operators that torch does not write."""


@pytest.fixture(scope="module")
def install() -> ConverterInstall:
    try:
        return find_converter()
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


def refused(name: str) -> ir.Model:
    if name in MADE:
        return apply_all(MADE[name](), loader.TRANSFORMS)
    exported = loader.export(TORCH[name], [[3, 32, 32]])
    assert exported is not None
    return exported


def pictures(given: ir.Model) -> RepresentativeSet:
    shape = static_shape(given.graph.inputs[0])
    assert shape is not None
    channels, height, width = (side or 1 for side in shape[1:])
    return load_representative("builtin", raw(channels, height, width, signed=True), 8)


@pytest.mark.parametrize("name", [*TORCH, *MADE])
def test_accepted_after_the_fix(name: str, install: ConverterInstall, tmp_path: Path) -> None:
    original = refused(name)
    assert has_errors(check_operators(original))
    fixed = fix_graph(original).model
    assert not has_errors(check_operators(fixed))
    representative = pictures(fixed)
    quantized = mct_ptq(fixed, representative, seed=0, progress=lambda phase, share: None)
    path = tmp_path / f"{name}.onnx"
    graphs.save(quantized, path)
    converted = convert(path, install=install)  # raises ConverterRejected where it is refused
    assert converted.memory.fits
    assert "packerOut.zip" in converted.files


class Refused(nn.Module):
    """Group norm, ELU, a large depthwise kernel and PixelShuffle: each is refused as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.large = nn.Conv2d(16, 16, 13, padding=6, groups=16)
        self.last = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.elu(self.norm(self.stem(x)))
        return functional.pixel_shuffle(self.last(self.large(x)), 2)


def picosam2(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compiler.cli", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PICOSAM2_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )


def test_compile_with_fix_from_the_command_line_to_the_package(tmp_path: Path) -> None:
    """Refused without `--fix`; with it accepted, and what was compiled is the network that was given."""
    torch.manual_seed(0)
    path = export(Refused().eval(), tmp_path / "refused.onnx", 24)
    out, arguments = tmp_path / "package", ["--input", "raw-signed", "--calib-count", "16"]
    refused = picosam2("compile", path, "--out", out, *arguments, cache=tmp_path / "cache")
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("run again with --fix") >= 4
    assert not out.exists()

    done = picosam2("compile", path, "--out", out, "--fix", *arguments, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["check"]["ok"]
    assert {fix["rule"] for fix in report["check"]["fixes"]} >= {
        "imx500/operator",
        "imx500/conv-grouped-kernel",
    }
    assert report["converter"]["fits"]
    with zipfile.ZipFile(out / "packerOut.zip") as archive:
        assert archive.testzip() is None

    pictures = np.random.default_rng(0).integers(-128, 128, (1, 3, 24, 24)).astype(np.float32)
    (given,), (compiled,) = (run(graphs.load(one), pictures) for one in (path, out / "model.onnx"))
    assert relative_error(given, compiled) < 1e-4
