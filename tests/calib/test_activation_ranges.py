"""Ranges against a direct computation, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calib.activation_ranges import per_channel_ranges
from passes.errors import InputError
from tests.graphs import model, node


def conv_then_log(random: np.random.Generator) -> tuple[ir.Model, np.ndarray]:
    weight = random.normal(size=(5, 3, 1, 1)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["c"]), node("ReduceMean", ["c"], ["m"], axes=[2, 3], keepdims=0)]
    nodes += [node("Log", ["c"], ["y"])]
    return model(nodes, {"x": [1, 3, 4, 6]}, ["y", "m"], {"w": weight}), weight


def test_largest_magnitudes() -> None:
    """Of inner tensors and outputs, of rank 4 and 2; one picture after another is the same as all at once."""
    random = np.random.default_rng(0)
    built, weight = conv_then_log(random)
    pictures = random.normal(size=(7, 3, 4, 6)).astype(np.float32)
    convolved = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], pictures)
    found = per_channel_ranges(built, [pictures], ["m", "c"])
    assert list(found) == ["m", "c"]
    np.testing.assert_allclose(found["c"], np.abs(convolved).max(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["m"], np.abs(convolved.mean(axis=(2, 3))).max(axis=0), rtol=1e-4)
    flat = per_channel_ranges(built, [pictures.reshape(7, -1)], ["c"])
    np.testing.assert_array_equal(flat["c"], found["c"])
    assert found["c"].dtype == np.float64
    assert per_channel_ranges(built, [pictures], []) == {}
    assert [value.name for value in built.graph.outputs] == ["y", "m"]


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "does not compute"), ("x", "does not compute"), ("y", "NaN or infinite")]
)
def test_refused(name: str, words: str) -> None:
    built, _ = conv_then_log(np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        per_channel_ranges(built, [np.zeros((1, 3, 4, 6), np.float32)], [name])


def test_a_tensor_without_channels_is_refused() -> None:
    nodes = [node("ReduceSum", ["x"], ["y"], keepdims=0)]
    built = model(nodes, {"x": [1, 3]}, ["y"])
    with pytest.raises(InputError, match="shape"):
        per_channel_ranges(built, [np.zeros((1, 3), np.float32)], ["y"])
