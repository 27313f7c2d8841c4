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


LIBRARY = "/usr/lib/python3/site-packages/torch/nn/modules/conv.py"


def named(node_changes: dict[str, str], doc: str | None = None) -> tuple[str, str]:
    """Module and line of a node that an exporter wrote so."""
    built = model([node("Relu", ["x"], ["y"], name="node_relu_0")], {"x": [1, 3]}, ["y"])
    (relu,) = built.graph
    relu.metadata_props.update(node_changes)
    relu.doc_string = doc
    NameEverything()(built)
    return graphs.module_of(relu), graphs.line_of(relu)


def test_module_and_line_of_an_export_with_dynamo():
    trace = (
        'File "/home/me/net.py", line 15, in forward\n  y\n  File "/home/me/block.py", line 8, in f\n    z\n'
    )
    trace += f'  File "{LIBRARY}", line 554, in forward\n'
    scopes = {"pkg.torch.onnx.name_scopes": "['', 'stem', 'stem.conv', 'conv2d']"}
    assert named({**scopes, "pkg.torch.onnx.stack_trace": trace}) == ("stem.conv", "/home/me/block.py:8")


def test_line_of_an_export_that_is_verbose():
    doc = f"{LIBRARY}(549): _conv_forward\n/home/me/block.py(8): forward\n/home/me/net.py(15): forward\n"
    assert named({}, doc) == ("", "/home/me/block.py:8")


def test_an_export_that_tells_nothing_has_no_line():
    assert named({"pkg.torch.onnx.name_scopes": "['', 'relu']"}) == ("", "")
    assert named({}, f"{LIBRARY}(549): _conv_forward\n") == ("", "")
