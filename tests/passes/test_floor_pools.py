"""ceil_mode goes exactly where it does nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.pipeline import FLOAT_TRANSFORMS, apply
from tests.graphs import model, node, run

FLOOR = next(t for t in FLOAT_TRANSFORMS if t.name == "floor-pools")


def pool(op: str, size: int, **attributes):
    return model([node(op, ["x"], ["y"], **attributes)], {"x": [1, 2, size, size]}, ["y"])


@settings(deadline=None, max_examples=50)
@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    size=st.integers(5, 14),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_the_result_is_the_same_and_the_attribute_goes_where_the_stride_divides(
    op, size, kernel, stride, pads
):
    if max(pads) >= kernel:
        return
    attributes = {
        "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pads[0], pads[0], pads[1], pads[1]],
    }  # fmt: skip
    built = pool(op, size, ceil_mode=1, **attributes)
    x = np.random.default_rng(0).normal(size=(1, 2, size, size)).astype(np.float32)
    before = run(built, x)[0]
    after, modified = apply(built, FLOOR)
    assert np.array_equal(before, run(after, x)[0])
    assert modified == ((size + sum(pads) - kernel) % stride == 0)


@pytest.mark.parametrize("size", [47, 111])
def test_squeezenets_pools(size):
    _, modified = apply(pool("MaxPool", size, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), FLOOR)
    assert modified


def test_a_pool_without_the_attribute_is_left_alone():
    _, modified = apply(pool("MaxPool", 8, kernel_shape=[2, 2], strides=[2, 2]), FLOOR)
    assert not modified
