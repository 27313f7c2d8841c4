"""Whole networks: the imported module gives the original's numbers, and MCT's tracer keeps its names."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import fx, nn

from calib.importer import to_torch
from student.networks import NETWORKS
from tests.calib.graphs import assert_agrees, exported, model_of, one_node
from tests.networks import FOREIGN, randomised

BUILD: dict[str, Callable[[], nn.Module]] = {**FOREIGN, **NETWORKS}
SIZE = (3, 64, 64)


def graph_of(name: str, dynamic: bool = False) -> ir.Model:
    torch.manual_seed(0)
    return exported(randomised(BUILD[name]()), SIZE, dynamic=dynamic)


@pytest.mark.parametrize("name", BUILD)
def test_network_agrees_with_onnxruntime(name: str) -> None:
    assert_agrees(graph_of(name), tolerance=1e-5, low=0.0, high=1.0)


@pytest.mark.parametrize("name", ["picosam2", "shufflenet_v2_x0_5", "lraspp_mobilenet_v3_large"])
def test_a_symbolic_batch_gives_the_same_module(name: str) -> None:
    fixed, symbolic = to_torch(graph_of(name)), to_torch(graph_of(name, dynamic=True))
    assert symbolic.batch_free
    assert list(fixed.names) == list(symbolic.names)
    picture = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fixed.module(picture), symbolic.module(picture), rtol=0, atol=0)


def test_the_model_is_not_changed() -> None:
    model = graph_of("picosam2", dynamic=True)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    to_torch(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", ["picosam3", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_names_survive_another_trace_and_lead_back(name: str) -> None:
    model = graph_of(name)
    imported = to_torch(model)
    traced = fx.Tracer().trace(imported.module)
    calls = [node.name for node in traced.nodes if node.op.startswith("call_")]
    assert calls == list(imported.names)
    nodes = [node.name for node in model.graph]
    assert set(imported.names.values()) <= set(nodes)
    # In the graph's order, and every convolution is there.
    places = [nodes.index(original) for original in imported.names.values()]
    assert places == sorted(places)
    assert {n.name for n in model.graph if n.op_type == "Conv"} <= set(imported.names.values())


def test_submodules_are_called_after_their_nodes() -> None:
    imported = to_torch(graph_of("picosam2"))
    convolutions = [name for name, m in imported.module.named_modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0] == "encoder_stage1_encoder_stage1_0_Conv"
    assert imported.names["encoder_stage1_encoder_stage1_0_conv"] == "/encoder_stage1/encoder_stage1.0/Conv"


@pytest.mark.parametrize("name", ["forward", "add", "graph", "1x1", "class", "weird name/é", "x0"])
def test_any_node_name_becomes_an_identifier_that_clashes_with_nothing(name: str) -> None:
    model = one_node("Relu", [(1, 3, 4, 4)])
    next(iter(model.graph)).name = name
    imported = to_torch(model)
    (module_name,) = [n for n, _ in imported.module.named_children()]
    assert module_name.isidentifier()
    assert not hasattr(nn.Module, module_name)
    assert module_name != "x0"
    assert list(imported.names.values()) == [name]


def test_several_inputs_and_outputs_keep_their_order() -> None:
    nodes = [
        helper.make_node("Sub", ["b", "a"], ["d"], name="difference"),
        helper.make_node("Add", ["a", "d"], ["s"], name="sum"),
    ]
    model = model_of(nodes, {"a": (1, 3, 4, 4), "b": (1, 3, 1, 1)}, ["s", "d"])
    assert_agrees(model)
