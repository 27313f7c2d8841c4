"""Nodes of an exported program lead back to the torch module and the line they come from."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compiler.frontend import load_model
from passes import graph as graphs
from tests.graphs import run


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.elu(self.layers(x))  # elu


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.block(x) + y, torch.log(y)  # sum and logarithm


def line_with(text: str) -> str:
    lines = inspect.getsource(inspect.getmodule(Block)).splitlines()
    return f"{__file__}:{next(i for i, line in enumerate(lines, 1) if line.endswith(f'# {text}'))}"


def test_modules_and_lines_of_an_exported_program(tmp_path: Path) -> None:
    network, path = Network().eval(), tmp_path / "model.pt2"
    shapes = ((1, 2, 6, 6), (1, 4, 4, 4))
    examples = tuple(torch.zeros(shape) for shape in shapes)
    torch.export.save(torch.export.export(network, examples), path)
    model = load_model(path, declared="raw-signed").model
    assert [(node.name, graphs.module_of(node)) for node in model.graph] == [
        ("/block/layers/0/Conv", "block.layers.0"),
        ("/block/layers/1/Sigmoid", "block.layers.1"),
        ("/block/Elu", "block"),
        ("/Add", ""),
        ("/Log", ""),
    ]
    lines = {node.op_type: graphs.line_of(node) for node in model.graph}
    assert lines["Elu"] == line_with("elu")
    assert lines["Add"] == lines["Log"] == line_with("sum and logarithm")
    arrays = [np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32) for shape in shapes]
    with torch.no_grad():
        expected = network(*map(torch.from_numpy, arrays))
    for ours, theirs in zip(run(model, *arrays), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
