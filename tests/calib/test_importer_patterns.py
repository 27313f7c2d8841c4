"""Groups of ONNX nodes that are one operator become one module, and nothing else does."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from calib.importer import to_torch
from passes.graph import from_proto
from passes.names import NameEverything
from tests.calib.graphs import assert_agrees, exported, model_of

SHAPE = (6, 9, 12)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def calls(model: ir.Model) -> list[str]:
    """What the imported module calls, in order: class names of modules, names of functions."""
    module = to_torch(model).module
    nodes = [node for node in module.graph.nodes if node.op.startswith("call_")]
    return [
        type(module.get_submodule(str(node.target))).__name__
        if node.op == "call_module"
        else getattr(node.target, "__name__", str(node.target))
        for node in nodes
    ]


def relu6_swish(x: Tensor) -> Tensor:
    return x * functional.relu6(x + 3) / 6


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def layer_norm_by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


class Affine(nn.Module):
    """LayerNorm over the last two axes, which operator set 16 has as eight nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SHAPE[1:], eps=1e-3)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


GROUPS: dict[str, tuple[nn.Module, int, list[str]]] = {
    "GELU": (nn.GELU(), 17, ["GELU"]),
    "GELU tanh": (nn.GELU("tanh"), 17, ["GELU"]),
    "GELU tanh by hand": (Function(tanh_gelu), 17, ["GELU"]),
    "SiLU": (nn.SiLU(), 17, ["SiLU"]),
    "HardSwish": (nn.Hardswish(), 13, ["Hardswish"]),
    "HardSwish by hand": (Function(relu6_swish), 17, ["Hardswish"]),
    "LayerNorm": (Affine(), 16, ["LayerNorm"]),
    "LayerNorm by hand": (Function(layer_norm_by_hand), 17, ["LayerNorm"]),
    "L2 norm": (Function(lambda x: functional.normalize(x, dim=1)), 17, ["normalize"]),
    "Linear": (nn.Linear(12, 5), 17, ["Linear"]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_group_becomes_one_call(name: str) -> None:
    torch.manual_seed(0)
    network, opset, expected = GROUPS[name]
    model = exported(network, SHAPE, opset)
    assert calls(model) == expected
    assert_agrees(model, tolerance=5e-6)


@pytest.mark.parametrize("name", ["GELU", "SiLU", "HardSwish by hand", "LayerNorm by hand"])
def test_groups_are_found_before_simplification_too(name: str) -> None:
    """The exporter's own spelling, with its constants as Constant nodes."""
    network, opset, expected = GROUPS[name]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, torch.zeros(1, *SHAPE), buffer, opset_version=opset, dynamo=False)
    model = from_proto(onnx.shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue())))
    NameEverything()(model)
    assert calls(model) == expected


APART: dict[str, tuple[nn.Module, list[str]]] = {
    "quick GELU": (Function(lambda x: x * torch.sigmoid(1.702 * x)), ["mul", "Sigmoid", "mul"]),
    "gate of another": (Function(lambda x: torch.relu(x) * torch.sigmoid(x)), ["ReLU", "Sigmoid", "mul"]),
    "no half": (Function(lambda x: x * (1 + torch.erf(x / 2**0.5))), ["truediv", "erf", "add", "mul"]),
    "channel norm": (
        Function(lambda x: (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 1)),
        [],
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_only_looks_like_a_group_stays_apart(name: str) -> None:
    network, expected = APART[name]
    model = exported(network, SHAPE)
    assert calls(model) == expected or (not expected and "LayerNorm" not in calls(model))
    assert_agrees(model, tolerance=5e-6)


def test_a_group_whose_inner_value_is_read_stays_apart() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    assert calls(model_of(nodes, {"x": (1, 3)}, ["y"])) == ["SiLU"]
    assert calls(model_of(nodes, {"x": (1, 3)}, ["y", "s"])) == ["Sigmoid", "mul"]
    tail = helper.make_node("Add", ["y", "s"], ["z"])
    assert calls(model_of([*nodes, tail], {"x": (1, 3)}, ["z"])) == ["Sigmoid", "mul", "add"]


def test_a_group_is_named_after_its_last_node() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="/fc/MatMul"),
        helper.make_node("Add", ["b", "m"], ["y"], name="/fc/Add"),
    ]
    constants = {"w": np.ones((4, 2), np.float32), "b": np.ones(2, np.float32)}
    names = to_torch(model_of(nodes, {"x": (1, 3, 4)}, ["y"], constants)).names
    assert names == {"fc_add": "/fc/Add"}
