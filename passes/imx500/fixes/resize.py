"""Resizing that the target has not: a product with an interpolation matrix for each side, or a Gather.

Pixel i of the result lies at x(i) of the source; linear and cubic interpolation take a fixed sum of the
pixels around x(i) (pixels outside are the nearest inside), so one side's resizing is y = X @ M with a
constant M.
Coordinates and weights are those of the ONNX specification of Resize.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import (
    constant,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    text_attribute,
)

COORDINATES = (
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric",
)  # fmt: skip


@fix(("resize-mode", "resize-nearest-mode", "resize-to-one"), "Resize")
def resize(node: ir.Node, build: Builder) -> Rewrite | None:
    """linear, cubic: X @ M along the columns, then along the rows; nearest: Gather of fixed positions."""
    x = node.inputs[0]
    mode = text_attribute(node, "mode", "nearest")
    coordinates = text_attribute(node, "coordinate_transformation_mode", "half_pixel")
    if x is None or coordinates not in COORDINATES or int_attribute(node, "antialias", 0):
        return None
    given, wanted = shape_of(x), shape_of(node.outputs[0])
    scales = _scales(node, given, wanted)
    if len(given) != 4 or given[:2] != wanted[:2] or scales is None:
        return None
    for axis in (3, 2):
        places = source_places(wanted[axis], given[axis], scales[axis], coordinates)
        if mode == "nearest":
            positions = nearest(
                places, given[axis], text_attribute(node, "nearest_mode", "round_prefer_floor")
            )
            if positions != list(range(given[axis])):
                x = build.take(x, axis, positions)
            continue
        matrix = weights(
            places,
            given[axis],
            mode,
            float_attribute(node, "cubic_coeff_a", -0.75),
            bool(int_attribute(node, "exclude_outside", 0)),
        )
        if wanted[axis] != given[axis] or np.any(matrix != np.eye(given[axis])):
            x = _times(build, x, axis, matrix)
    sizes = f"{given[2]}x{given[3]} to {wanted[2]}x{wanted[3]}"
    if mode == "nearest":
        return Rewrite((x,), f"resizing {sizes} became a Gather of fixed positions", Exactness.EXACT)
    done = f"resizing {sizes} ({mode}, {coordinates}) became products with interpolation matrices"
    return Rewrite((x,), done, Exactness.FLOAT)


def _times(build: Builder, x: ir.Value, axis: int, matrix: np.ndarray) -> ir.Value:
    """x times the matrix [source, result] along the axis."""
    if axis == 3:
        return build.op("MatMul", x, build.constant(matrix, "weight"))
    turned = build.transpose(x, (0, 1, 3, 2))
    return build.transpose(build.op("MatMul", turned, build.constant(matrix, "weight")), (0, 1, 3, 2))


def _scales(node: ir.Node, given: tuple[int, ...], wanted: tuple[int, ...]) -> list[np.float32] | None:
    """Result over source, one number an axis: as given, else from the sizes."""
    if text_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None  # the scales are then other ones than the sizes say
    axes = [axis % len(given) for axis in ints_attribute(node, "axes") or range(len(given))]
    scales = [np.float32(after / before) for before, after in zip(given, wanted, strict=True)]
    explicit = constant(input_at(node, 2))
    if explicit is not None and explicit.size:
        if explicit.size != len(axes):
            return None
        for axis, scale in zip(axes, explicit, strict=True):
            scales[axis] = np.float32(scale)
    return scales


def source_places(count: int, source: int, scale: np.float32, coordinates: str) -> NDArray[np.float32]:
    """x(i) for i = 0..count-1, float32 as onnxruntime computes it."""
    i = np.arange(count, dtype=np.float32)
    half = np.float32(0.5)
    if coordinates == "asymmetric":
        return i / scale
    if coordinates == "align_corners":
        if count == 1:
            return np.zeros(1, np.float32)
        return i * np.float32(source - 1) / np.float32(count - 1)
    if coordinates == "pytorch_half_pixel" and count == 1:
        return np.zeros(1, np.float32)
    places = (i + half) / scale - half
    if coordinates == "half_pixel_symmetric":
        adjustment = np.float32(count) / (scale * np.float32(source))
        places += np.float32(source) / 2 * (1 - adjustment)
    return places


def nearest(places: NDArray[np.float32], source: int, rounding: str) -> list[int]:
    """The source pixel of each place."""
    half = np.float32(0.5)
    match rounding:
        case "floor":
            rounded = np.floor(places)
        case "ceil":
            rounded = np.ceil(places)
        case "round_prefer_ceil":
            rounded = np.floor(places + half)
        case _:
            rounded = np.ceil(places - half)
    return [int(place) for place in np.clip(rounded, 0, source - 1)]


def weights(
    places: NDArray[np.float32], source: int, mode: str, cubic: float, exclude_outside: bool
) -> NDArray[np.float64]:
    """The interpolation matrix [source, result]; its columns sum to 1."""
    below = np.floor(places.astype(np.float64))
    t = places - below
    matrix = np.zeros((source, len(places)))
    for offset in (0, 1) if mode == "linear" else (-1, 0, 1, 2):
        distance = np.abs(t - offset)
        tap = 1 - distance if mode == "linear" else _cubic(distance, cubic)
        row = (below + offset).astype(int)
        if exclude_outside:
            tap = np.where((row >= 0) & (row < source), tap, 0.0)
        np.add.at(matrix, (np.clip(row, 0, source - 1), np.arange(len(places))), tap)
    total: NDArray[np.float64] = matrix.sum(axis=0)
    return matrix / total


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' cubic convolution with coefficient a."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


@fix("resize-rank", "Resize")
def flat_resize(node: ir.Node, build: Builder) -> Rewrite | None:
    """Rank 3: resize a picture of height 1."""
    x = node.inputs[0]
    if x is None or len(given := shape_of(x)) != 3:
        return None
    wanted = shape_of(node.outputs[0])
    if given[:2] != wanted[:2] or ints_attribute(node, "axes") is not None:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    flat = build.reshape(x, (*given[:2], 1, given[2]))
    explicit = constant(input_at(node, 2))
    if explicit is not None and explicit.size:
        scales = np.insert(explicit.astype(np.float32), 2, 1.0)
        y = build.op("Resize", flat, None, scales, **attributes)
    else:
        y = build.op(
            "Resize", flat, None, None, np.array([*wanted[:2], 1, wanted[2]], np.int64), **attributes
        )
    done = "the 1-D resizing became a 2-D one on a picture of height 1"
    return Rewrite((build.reshape(y, wanted),), done, Exactness.EXACT)
