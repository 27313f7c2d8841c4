"""Pooling, resizing and reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator import enclosures
from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import Value
from compiler.simulator.fixedpoint import FixedPoint, IntArray
from compiler.simulator.functions import square_root
from compiler.simulator.node import AnyValue, Call, operator

_POOL_ATTRIBUTES = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def _taps(call: Call, data: IntArray, fill: int) -> Iterator[IntArray]:
    """For every position in the window, the padded input at that position of each output's window."""
    if data.ndim != 4:
        raise call.refuse(f"input of rank {data.ndim}", "two-dimensional, rank 4", "reshape to [N, C, H, W]")
    call.only("auto_pad", call.string("auto_pad", "NOTSET"), "NOTSET")
    call.only("ceil_mode", call.integer("ceil_mode", 0), 0)
    call.only("dilations", call.integer_list("dilations", (1, 1)), (1, 1))
    kh, kw = call.integer_list("kernel_shape")
    sh, sw = call.integer_list("strides", (1, 1))
    top, left, bottom, right = call.integer_list("pads", (0, 0, 0, 0))
    if max(top, bottom) >= kh or max(left, right) >= kw:
        raise call.refuse(
            f"pads {(top, left, bottom, right)}", f"padding below the kernel {(kh, kw)}", "pad less"
        )
    padded = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    rows = (padded.shape[2] - kh) // sh + 1
    columns = (padded.shape[3] - kw) // sw + 1
    for ky in range(kh):
        for kx in range(kw):
            yield padded[:, :, ky : ky + (rows - 1) * sh + 1 : sh, kx : kx + (columns - 1) * sw + 1 : sw]


@operator("MaxPool", *_POOL_ATTRIBUTES, "storage_order")
def max_pool(call: Call) -> Value:
    """The largest element of each window; padding never wins."""

    def pool(x: FixedPoint) -> FixedPoint:
        # The tensor's own minimum as filling cannot exceed the real elements each window has.
        taps = _taps(call, x.mantissa, int(x.mantissa.min()))
        best = next(taps)
        for tap in taps:
            best = np.maximum(best, tap)
        return FixedPoint(best, x.exponent, x.denominator, x.grid)

    return enclosures.increasing(pool, call.value(0))


@operator("AveragePool", *_POOL_ATTRIBUTES, "count_include_pad")
def average_pool(call: Call) -> Value:
    """The sum of each window over the number of its elements, padding counted or not: an exact fraction."""

    def window_sums(integers: IntArray) -> IntArray:
        size = math.prod(call.integer_list("kernel_shape"))
        integers = fp.with_room(integers, fp.magnitude(integers) * size)
        taps = _taps(call, integers, 0)
        total = next(taps).copy()
        for tap in taps:
            total = total + tap
        return np.asarray(total, dtype=integers.dtype)

    def pool(x: FixedPoint) -> FixedPoint:
        sums = FixedPoint(window_sums(x.mantissa), x.exponent, x.denominator)
        if call.integer("count_include_pad", 0):
            return fp.multiply_by(sums, Fraction(1, math.prod(call.integer_list("kernel_shape"))))
        counts = window_sums(np.ones((1, 1, *x.shape[2:]), dtype=np.int64))
        common = math.lcm(*(int(c) for c in np.unique(counts)))
        return fp.multiply_by(fp.multiply(sums, FixedPoint(common // counts)), Fraction(1, common))

    return enclosures.increasing(pool, call.value(0))


def _mean(value: Value, axes: tuple[int, ...], *, keepdims: bool) -> Value:
    count = math.prod(value.shape[axis] for axis in axes)
    return enclosures.multiply_by(enclosures.total(value, axes, keepdims=keepdims), Fraction(1, count))


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Value:
    value = call.value(0)
    return _mean(value, tuple(range(2, len(value.shape))), keepdims=True)


def _reduction(call: Call) -> tuple[Value, tuple[int, ...], bool]:
    value = call.value(0)
    call.only("noop_with_empty_axes", call.integer("noop_with_empty_axes", 0), 0)
    return value, call.axes(1, len(value.shape)), bool(call.integer("keepdims", 1))


_REDUCE_ATTRIBUTES = ("axes", "keepdims", "noop_with_empty_axes")


@operator("ReduceMean", *_REDUCE_ATTRIBUTES)
def reduce_mean(call: Call) -> Value:
    value, axes, keepdims = _reduction(call)
    return _mean(value, axes, keepdims=keepdims)


@operator("ReduceSum", *_REDUCE_ATTRIBUTES)
def reduce_sum(call: Call) -> Value:
    value, axes, keepdims = _reduction(call)
    return enclosures.total(value, axes, keepdims=keepdims)


@operator("ReduceMax", *_REDUCE_ATTRIBUTES)
def reduce_max(call: Call) -> Value:
    value, axes, keepdims = _reduction(call)
    return enclosures.increasing(lambda x: fp.largest(x, axes, keepdims=keepdims), value)


@operator("ReduceL2", *_REDUCE_ATTRIBUTES)
def reduce_l2(call: Call) -> Value:
    """Square root of the sum of squares."""
    value, axes, keepdims = _reduction(call)
    squares = enclosures.total(enclosures.square(value), axes, keepdims=keepdims)
    return enclosures.apply_increasing(square_root, squares, call.precision)


def intended_scale(scale: float) -> Fraction:
    """The simple fraction a float32 scale stands for: 2/3 for 0.6666667.

    The fraction of the smallest denominator bound (1, 2, 4, ... 2**24) that rounds to the same float32.
    """
    target = np.float32(scale)
    for bound in range(25):
        fraction = Fraction(float(target)).limit_denominator(1 << bound)
        if np.float32(fraction.numerator / fraction.denominator) == target:
            return fraction
    return Fraction(float(target))


def _scales(call: Call, shape: tuple[int, ...]) -> tuple[list[Fraction], list[int]]:
    """Per axis out/in as Resize means it, and the output size."""
    if call.has(3):
        sizes = [int(size) for size in call.integers(3).reshape(-1)]
        return [Fraction(size, old) for size, old in zip(sizes, shape, strict=True)], sizes
    given = [intended_scale(float(f)) for f in call.exact(2).to_fractions().reshape(-1)]
    return given, [math.floor(scale * old) for scale, old in zip(given, shape, strict=True)]


@operator(
    "Resize",
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
)
def resize(call: Call) -> Value:
    """Nearest (asymmetric, floor) or linear (half_pixel, pytorch_half_pixel), one axis after the other."""
    x = call.value(0)
    call.only("antialias", call.integer("antialias", 0), 0)
    call.only("exclude_outside", call.integer("exclude_outside", 0), 0)
    call.only("axes", call.integer_list("axes", ()), ())
    call.only("keep_aspect_ratio_policy", call.string("keep_aspect_ratio_policy", "stretch"), "stretch")
    mode = call.string("mode", "nearest")
    transformation = call.string("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        call.only("coordinate_transformation_mode", transformation, "asymmetric")
        call.only("nearest_mode", call.string("nearest_mode", "round_prefer_floor"), "floor")
    elif mode != "linear" or transformation not in ("half_pixel", "pytorch_half_pixel"):
        raise call.refuse(
            f"mode = {mode}, coordinate_transformation_mode = {transformation}",
            "nearest with asymmetric, or linear with half_pixel or pytorch_half_pixel",
            "use another mode of interpolation",
        )
    scales, sizes = _scales(call, x.shape)
    for axis, (scale, size) in enumerate(zip(scales, sizes, strict=True)):
        if scale == 1:
            continue
        if size == x.shape[axis]:
            raise call.refuse(
                f"a scale of {float(scale)} that leaves {size} elements",
                "a scale that changes the size (runtimes copy here, the formula does not)",
                "give the output size, or drop the Resize",
            )
        if mode == "nearest":
            x = _nearest(x, axis, [math.floor(i / scale) for i in range(size)])
        else:
            single = transformation == "pytorch_half_pixel" and size == 1
            half = Fraction(1, 2)
            x = _linear(x, axis, [Fraction(0) if single else (i + half) / scale - half for i in range(size)])
    return x


def _nearest(x: Value, axis: int, indices: list[int]) -> Value:
    inside = [min(max(i, 0), x.shape[axis] - 1) for i in indices]
    return enclosures.move(x, lambda m: np.take(m, inside, axis=axis))


def _linear(x: Value, axis: int, coordinates: list[Fraction]) -> Value:
    """Between the two neighbours of each coordinate (clamped to the tensor), weighted by the distance."""
    last = x.shape[axis] - 1
    inside = [min(max(c, Fraction(0)), Fraction(last)) for c in coordinates]
    before = [math.floor(c) for c in inside]
    after = [min(i + 1, last) for i in before]
    common = math.lcm(*(c.denominator for c in inside))
    shape = [1] * len(x.shape)
    shape[axis] = -1
    weights = np.array([int((c - i) * common) for c, i in zip(inside, before, strict=True)], dtype=object)

    def weighted(neighbours: list[int], weight: NDArray[Any]) -> Value:
        factor = FixedPoint(fp.with_room(weight, common).reshape(shape))
        taken = enclosures.move(x, lambda m: np.take(m, neighbours, axis=axis))
        return enclosures.multiply(taken, factor)

    return enclosures.multiply_by(
        enclosures.add(weighted(before, common - weights), weighted(after, weights)), Fraction(1, common)
    )


@operator("ArgMax", "axis", "keepdims", "select_last_index")
def arg_max(call: Call) -> AnyValue:
    """Index of the largest element, the first one where several are equal."""
    x = call.exact(0)
    call.only("select_last_index", call.integer("select_last_index", 0), 0)
    axis = call.integer("axis", 0)
    indices = np.expand_dims(np.argmax(x.mantissa, axis=axis), axis)
    return indices if call.integer("keepdims", 1) else np.squeeze(indices, axis)
