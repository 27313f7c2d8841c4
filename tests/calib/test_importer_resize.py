"""Resizing picks the right pixels, for any size and scale."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx_ir as ir
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calib.importer import to_torch
from tests.calib.graphs import assert_agrees, check, one_node, random_inputs, run_torch

lengths = st.integers(1, 12)
targets = st.integers(1, 30)


def _resize(height: int, width: int, mode: str, coordinates: str, **target: np.ndarray) -> ir.Model:
    return one_node(
        "Resize",
        [(1, 3, height, width)],
        [None, target.get("scales"), target.get("sizes")],
        mode=mode,
        coordinate_transformation_mode=coordinates,
        nearest_mode="floor",
    )


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, targets, targets)
def test_nearest_to_any_size(height: int, width: int, to_height: int, to_width: int) -> None:
    """Against exact arithmetic: onnxruntime rounds the scale to float32 and is off by a pixel at 14 -> 2."""
    sizes = np.array([1, 3, to_height, to_width], np.int64)
    model = _resize(height, width, "nearest", "asymmetric", sizes=sizes)
    inputs = random_inputs(model)
    rows = [int(Fraction(y * height, to_height)) for y in range(to_height)]
    columns = [int(Fraction(x * width, to_width)) for x in range(to_width)]
    check(run_torch(to_torch(model).module, inputs), [inputs[0][:, :, rows][..., columns]], 0.0)


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, targets, targets)
def test_linear_to_any_size(height: int, width: int, to_height: int, to_width: int) -> None:
    sizes = np.array([1, 3, to_height, to_width], np.int64)
    assert_agrees(_resize(height, width, "linear", "half_pixel", sizes=sizes), tolerance=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(2, 12),
    st.sampled_from([0.5, 0.75, 1.25, 1.5, 2.0, 2.5, 3.0, 7.0]),
    st.sampled_from([0.5, 1.0, 1.75, 2.0, 4.0]),
    st.sampled_from([("nearest", "asymmetric"), ("linear", "half_pixel")]),
)
def test_by_a_scale(
    height: int, width: int, vertical: float, horizontal: float, mode: tuple[str, str]
) -> None:
    # Where a scale is rounded away (2 rows by 1.25 are 2 rows) torch copies: such nodes are refused.
    for size, scale in ((height, vertical), (width, horizontal)):
        assume(int(size * scale) not in (size, 2 * size) or scale in (1.0, 2.0))
    scales = np.array([1, 1, vertical, horizontal], np.float32)
    assert_agrees(_resize(height, width, *mode, scales=scales), tolerance=1e-5)
