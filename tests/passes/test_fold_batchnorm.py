"""fold == unfolded, for every producer, with shared weights, groups and second readers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.pipeline import FLOAT_TRANSFORMS, apply
from tests.graphs import model, node, op_types, relative_error, run

FOLD = next(t for t in FLOAT_TRANSFORMS if t.name == "fold-batchnorm")


def norm_constants(rng: np.random.Generator, channels: int, prefix: str = "") -> dict[str, np.ndarray]:
    return {
        f"{prefix}g": rng.uniform(-2, 2, channels).astype(np.float32),
        f"{prefix}be": rng.normal(size=channels).astype(np.float32),
        f"{prefix}m": rng.normal(size=channels).astype(np.float32),
        f"{prefix}v": rng.uniform(0.1, 3, channels).astype(np.float32),
    }


def norm(source: str, target: str, prefix: str = "", **attributes):
    return node(
        "BatchNormalization",
        [source, *(f"{prefix}{name}" for name in ("g", "be", "m", "v"))],
        [target],
        **attributes,
    )


def assert_folds(built, *arrays: np.ndarray) -> list[str]:
    before = run(built, *arrays)
    after, _ = apply(built, FOLD)
    for reference, output in zip(before, run(after, *arrays), strict=True):
        assert relative_error(reference, output) <= 1e-5
    return op_types(after)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3]),
)
def test_convolutions(seed, op, groups, bias, epsilon):
    rng = np.random.default_rng(seed)
    shape = (8, 4 // groups, 3, 2) if op == "Conv" else (4, 8 // groups, 3, 2)
    constants = {"w": rng.normal(size=shape).astype(np.float32)}
    if bias:
        constants["b"] = rng.normal(size=8).astype(np.float32)
    names = list(constants)
    built = model(
        [node(op, ["x", *names], ["c"], group=groups), norm("c", "y", epsilon=epsilon)],
        {"x": [1, 4, 6, 5]},
        ["y"],
        constants | norm_constants(rng, 8),
    )
    assert assert_folds(built, rng.normal(size=(1, 4, 6, 5)).astype(np.float32)) == [op]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (6,), (1, 6)])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_gemm(transposed, bias, alpha):
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(6, 4) if transposed else (4, 6)).astype(np.float32)}
    if bias is not None:
        constants["b"] = rng.normal(size=bias).astype(np.float32)
    names = list(constants)
    built = model(
        [node("Gemm", ["x", *names], ["c"], transB=transposed, alpha=alpha, beta=0.7), norm("c", "y")],
        {"x": [1, 4]},
        ["y"],
        constants | norm_constants(rng, 6),
    )
    assert assert_folds(built, rng.normal(size=(1, 4)).astype(np.float32)) == ["Gemm"]


def test_weights_shared_with_another_convolution_are_copied():
    rng = np.random.default_rng(0)
    built = model(
        [
            node("Conv", ["x", "w"], ["a"]),
            norm("a", "n"),
            node("Conv", ["x", "w"], ["b"]),
            norm("b", "o", "second_"),
            node("Conv", ["x", "w"], ["plain"]),
        ],
        {"x": [1, 3, 5, 5]},
        ["n", "o", "plain"],
        {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
        | norm_constants(rng, 4)
        | norm_constants(rng, 4, "second_"),
    )
    assert assert_folds(built, rng.normal(size=(1, 3, 5, 5)).astype(np.float32)) == ["Conv"] * 3


@pytest.mark.parametrize("second", ["reader", "output"])
def test_a_second_reader_of_the_convolution_keeps_the_batch_norm(second):
    rng = np.random.default_rng(0)
    nodes = [node("Conv", ["x", "w"], ["c"]), norm("c", "y")]
    outputs = ["y", "c"]
    if second == "reader":
        nodes.append(node("Relu", ["c"], ["r"]))
        outputs = ["y", "r"]
    constants = {"w": rng.normal(size=(4, 3, 1, 1)).astype(np.float32)} | norm_constants(rng, 4)
    built = model(nodes, {"x": [1, 3, 5, 5]}, outputs, constants)
    ops = assert_folds(built, rng.normal(size=(1, 3, 5, 5)).astype(np.float32))
    assert "BatchNormalization" in ops


def test_a_batch_norm_without_a_producer_stays():
    rng = np.random.default_rng(0)
    built = model([norm("x", "y")], {"x": [1, 4, 3, 3]}, ["y"], norm_constants(rng, 4))
    assert assert_folds(built, rng.normal(size=(1, 4, 3, 3)).astype(np.float32)) == ["BatchNormalization"]


def test_the_output_keeps_its_name():
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(4, 3, 1, 1)).astype(np.float32)} | norm_constants(rng, 4)
    nodes = [node("Conv", ["x", "w"], ["c"]), norm("c", "mask")]
    built = model(nodes, {"x": [1, 3, 5, 5]}, ["mask"], constants)
    after, _ = apply(built, FOLD)
    assert [value.name for value in after.graph.outputs] == ["mask"]
