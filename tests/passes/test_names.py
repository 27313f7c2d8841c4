"""Names: unique, stable, and leading back to the torch module."""

from __future__ import annotations

import numpy as np
import pytest

from passes import graph as graphs
from passes.names import NameEverything, module_path
from tests.graphs import model, node


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("/encoder_stage1/encoder_stage1.0/Conv", "encoder_stage1.0"),
        ("/features/features.0/conv/conv.1/Conv", "features.0.conv.1"),
        ("/down1/Conv", "down1"),
        ("/Add_3", ""),
        ("Conv_7", ""),
        ("", ""),
    ],
)
def test_module_paths_of_the_torch_exporter(name, module):
    assert module_path(name) == module


def test_nameless_and_doubled_names_become_unique_and_the_interface_keeps_its_names():
    built = model(
        [
            node("Relu", ["x"], ["a"]),
            node("Relu", ["a"], ["b"], name="same"),
            node("Neg", ["b"], ["y"], name="same"),
        ],
        {"x": [1, 3]},
        ["y"],
    )
    result = NameEverything()(built)
    names = [n.name for n in result.model.graph]
    assert result.modified
    assert names == ["Relu_a", "same", "same_1"]
    assert [v.name for v in (*built.graph.inputs, *built.graph.outputs)] == ["x", "y"]


def test_naming_twice_changes_nothing():
    built = model([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])], {"x": [1, 3]}, ["y"])
    NameEverything()(built)
    before = graphs.to_bytes(built)
    assert not NameEverything()(built).modified
    assert graphs.to_bytes(built) == before


def test_a_module_is_read_from_the_weight_where_the_node_has_no_scope():
    weight = np.ones((2, 3, 1, 1), np.float32)
    built = model(
        [node("Conv", ["x", "stem.conv.weight"], ["y"], name="/Conv")],
        {"x": [1, 3, 4, 4]},
        ["y"],
        {"stem.conv.weight": weight},
    )
    NameEverything()(built)
    assert graphs.module_of(next(iter(built.graph))) == "stem.conv"
