"""Convolutions with any attributes agree with onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calib.graphs import assert_agrees, one_node

sizes = st.integers(1, 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> ir.Model:
    groups, per_group, out_per_group = draw(sizes), draw(sizes), draw(sizes)
    kernel, strides, dilations = draw(st.tuples(sizes, sizes)), draw(pairs), draw(pairs)
    pads = [draw(st.integers(0, 3)) for _ in range(4)]
    # At least one window fits.
    height, width = (
        draw(st.integers(max(1, (k - 1) * d + 1 - p - q), 14))
        for k, d, p, q in zip(kernel, dilations, pads[:2], pads[2:], strict=True)
    )
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight = random.normal(size=(groups * out_per_group, per_group, *kernel)).astype(np.float32)
    bias = random.normal(size=groups * out_per_group).astype(np.float32) if draw(st.booleans()) else None
    return one_node(
        "Conv",
        [(1, groups * per_group, height, width)],
        [weight, bias],
        group=groups,
        strides=strides,
        dilations=dilations,
        pads=pads,
    )


@st.composite
def transposed(draw: st.DrawFn) -> ir.Model:
    groups, per_group, out_per_group = draw(sizes), draw(sizes), draw(sizes)
    kernel, strides, dilations = draw(st.tuples(sizes, sizes)), draw(pairs), draw(pairs)
    # ONNX allows extra rows up to max(stride, dilation), but onnxruntime 1.21 leaves those beyond the stride
    # uninitialised.
    extra = [draw(st.integers(0, s - 1)) for s in strides]
    pads = [draw(st.integers(0, (k - 1) * d // 2)) for k, d in zip(kernel, dilations, strict=True)]
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight = random.normal(size=(groups * per_group, out_per_group, *kernel)).astype(np.float32)
    return one_node(
        "ConvTranspose",
        [(1, groups * per_group, draw(st.integers(2, 8)), draw(st.integers(2, 8)))],
        [weight],
        group=groups,
        strides=strides,
        dilations=dilations,
        pads=[*pads, *pads],
        output_padding=extra,
    )


@settings(max_examples=80, deadline=None)
@given(convolutions())
def test_convolution(model: ir.Model) -> None:
    assert_agrees(model)


@settings(max_examples=40, deadline=None)
@given(transposed())
def test_transposed_convolution(model: ir.Model) -> None:
    assert_agrees(model)
