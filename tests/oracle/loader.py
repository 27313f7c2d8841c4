"""Reading the oracle, and making of a case the graph that our own path would check."""

from __future__ import annotations

import gzip
import io
import json
import textwrap
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional

from passes import graph as graphs
from passes.diagnostics import has_errors
from passes.imx500.check import check_operators
from passes.imx500.memory import forecast_memory
from passes.pipeline import FLOAT_TRANSFORMS, apply_all

FOLDER = Path(__file__).parent
OPSET = 17
TRANSFORMS = tuple(t for t in FLOAT_TRANSFORMS if t.name != "fold-input")
"""The float pipeline without the step that needs an input contract."""


@cache
def cases() -> tuple[dict[str, Any], ...]:
    return _read("cases.jsonl.gz")


@cache
def probes() -> tuple[dict[str, Any], ...]:
    """The probes that have a verdict (two were killed)."""
    return tuple(probe for probe in _read("probes.jsonl.gz") if probe["stage"] != "killed")


@cache
def known() -> dict[str, dict[str, str]]:
    """Where our verdict differs from the oracle's, with the reason; see README.md."""
    lists: dict[str, dict[str, str]] = json.loads((FOLDER / "known.json").read_text())
    return lists


def _read(name: str) -> tuple[dict[str, Any], ...]:
    with gzip.open(FOLDER / name, "rt") as lines:
        return tuple(json.loads(line) for line in lines)


def snippet_of(probe: dict[str, Any]) -> str:
    """The probe as a network: a 1x1 convolution with ReLU, then the probe's operator."""
    channels = probe["input"][0]
    head = (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.c0 = nn.Conv2d({channels}, {channels}, 1)\n"
    )
    init = textwrap.indent(probe["init"], " " * 8)
    forward = textwrap.indent(f"x = F.relu(self.c0(x))\n{probe['forward']}\nreturn x", " " * 8)
    return f"{head}{init}\n    def forward(self, x):\n{forward}\n"


def network(snippet: str, seed: int = 0) -> nn.Module:
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional}
    exec(snippet, scope)
    torch.manual_seed(seed)
    made: nn.Module = scope["Net"]()
    return made.eval()


def export(snippet: str, shapes: list[list[int]]) -> ir.Model | None:
    """The float graph as we check it; None where PyTorch cannot export the network."""
    examples = tuple(torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) for shape in shapes)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network(snippet),
                examples,
                buffer,  # type: ignore[arg-type]  # a file object is taken as well
                dynamo=False,
                opset_version=OPSET,
            )
        except torch.onnx.errors.OnnxExporterError:
            return None
        model = graphs.from_proto(onnx.load_from_string(buffer.getvalue()))
        return apply_all(model, TRANSFORMS)


def case_graph(case: dict[str, Any]) -> ir.Model | None:
    return export(case["snippet"], case["inputs"])


def probe_graph(probe: dict[str, Any]) -> ir.Model | None:
    return export(snippet_of(probe), [probe["input"]])


def accepts(model: ir.Model | None, with_memory: bool) -> bool:
    """Our verdict; a network that cannot be exported is refused."""
    if model is None or has_errors(check_operators(model)):
        return False
    return not (with_memory and has_errors(forecast_memory(model).diagnostics))
