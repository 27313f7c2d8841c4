"""auto_pad and its explicit form are the same function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import contract as contracts
from passes.pipeline import FLOAT_TRANSFORMS, apply, apply_all
from tests.graphs import model, node, op_types, run

EXPLICIT = next(t for t in FLOAT_TRANSFORMS if t.name == "explicit-pads")


@settings(deadline=None, max_examples=60)
@given(
    op=st.sampled_from(["Conv", "MaxPool"]),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    size=st.tuples(st.integers(6, 13), st.integers(6, 13)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
)
def test_the_same_result(op, mode, size, kernel, stride):
    weight = np.random.default_rng(0).normal(size=(2, 2, kernel, kernel)).astype(np.float32)
    conv = op == "Conv"
    built = model(
        [
            node(
                op,
                ["x", "w"] if conv else ["x"],
                ["y"],
                auto_pad=mode,
                strides=[stride] * 2,
                kernel_shape=[kernel] * 2,
            )
        ],
        {"x": [1, 2, *size]},
        ["y"],
        {"w": weight} if conv else {},
    )
    x = np.random.default_rng(1).normal(size=(1, 2, *size)).astype(np.float32)
    before = run(built, x)[0]
    after, modified = apply(built, EXPLICIT)
    assert modified == (mode == "VALID" or all((-(-n // stride) - 1) * stride + kernel >= n for n in size))
    assert modified != ("auto_pad" in next(iter(after.graph)).attributes)
    assert np.array_equal(before, run(after, x)[0])


def test_a_first_convolution_with_auto_pad_takes_the_normalisation_like_any_other():
    """Without explicit pads it would get a convolution in front, and the input would lose a bit."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    built = model(
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        {"x": [1, 3, 16, 16]},
        ["y"],
        {"w": weight},
        contracts.imagenet(16, 16),
    )
    assert op_types(apply_all(built)) == ["Concat", "Concat", "Conv"]


@pytest.mark.parametrize("pads", [None, [1, 1, 1, 1]])
def test_explicit_pads_stay(pads):
    weight = np.zeros((4, 3, 3, 3), np.float32)
    attributes = {} if pads is None else {"pads": pads}
    built = model([node("Conv", ["x", "w"], ["y"], **attributes)], {"x": [1, 3, 8, 8]}, ["y"], {"w": weight})
    assert not apply(built, EXPLICIT)[1]
