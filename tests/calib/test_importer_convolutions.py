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
    # torch wants the extra rows below the stride or the dilation, and something left of the output.
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
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


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from(["nearest", "linear"]),
)
def test_resize_to_any_size(height: int, width: int, to_height: int, to_width: int, mode: str) -> None:
    sizes = np.array([1, 3, to_height, to_width], np.int64)
    coordinates = "asymmetric" if mode == "nearest" else "half_pixel"
    model = one_node(
        "Resize",
        [(1, 3, height, width)],
        [None, None, sizes],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor",
    )
    assert_agrees(model, tolerance=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(2, 12),
    st.sampled_from([0.5, 0.75, 1.25, 1.5, 2.0, 2.5, 3.0, 7.0]),
    st.sampled_from([0.5, 1.0, 1.75, 2.0, 4.0]),
    st.sampled_from(["nearest", "linear"]),
)
def test_resize_by_a_scale(height: int, width: int, vertical: float, horizontal: float, mode: str) -> None:
    scales = np.array([1, 1, vertical, horizontal], np.float32)
    coordinates = "asymmetric" if mode == "nearest" else "half_pixel"
    model = one_node(
        "Resize",
        [(1, 3, height, width)],
        [None, scales],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor",
    )
    assert_agrees(model, tolerance=1e-5)
