"""Convolutions and matrix products: integer accumulation, then the scales, then the bias, all exact."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.simulator import fixedpoint as fp
from compiler.simulator.fixedpoint import FixedPoint, IntArray
from compiler.simulator.node import Call, ScaledWeights, operator

_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _require_2d(call: Call, x: FixedPoint, weights: ScaledWeights) -> None:
    if len(x.shape) != 4 or len(weights.shape) != 4:
        raise call.refuse(
            f"input of rank {len(x.shape)}", "two-dimensional, rank 4", "reshape to [N, C, H, W]"
        )
    call.only("auto_pad", call.string("auto_pad", "NOTSET"), "NOTSET")
    kernel = call.integer_list("kernel_shape", weights.shape[2:])
    if kernel != weights.shape[2:]:
        raise call.refuse(f"kernel_shape {kernel}", f"the weights' {weights.shape[2:]}", "export again")


def _finish(call: Call, accumulated: IntArray, x: FixedPoint, weights: ScaledWeights) -> FixedPoint:
    """acc * s_w[c] * s_x + bias[c]; the channel is axis 1 of the accumulators."""
    rank = accumulated.ndim
    inputs = FixedPoint(accumulated, x.exponent, x.denominator)
    result = fp.multiply(inputs, weights.scale_along(1, rank))
    if not call.has(2):
        return result
    bias = call.exact(2)
    shape = (1, -1) + (1,) * (rank - 2)
    return fp.add(result, fp.move(bias, lambda m: m.reshape(shape)))


@operator("Conv", *_CONV_ATTRIBUTES)
def conv(call: Call) -> FixedPoint:
    """out[n, o, y, x] = bias[o] + sum over i, ky, kx of w[o, i, ky, kx] * in[n, i, y*s + ky*d - p, ...]."""
    x, weights = call.exact(0), call.weights(1, axis=0)
    _require_2d(call, x, weights)
    strides = call.integer_list("strides", (1, 1))
    dilations = call.integer_list("dilations", (1, 1))
    top, left, bottom, right = call.integer_list("pads", (0, 0, 0, 0))
    groups = call.integer("group", 1)
    out_channels, in_group, kh, kw = weights.shape
    batch, channels, height, width = x.shape
    if channels != in_group * groups or out_channels % groups:
        raise call.refuse(
            f"{channels} input channels in {groups} groups", f"{in_group} per group", "export the model again"
        )
    rows = (height + top + bottom - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    columns = (width + left + right - (kw - 1) * dilations[1] - 1) // strides[1] + 1

    dtype = fp.accumulator(x.mantissa, weights.integers, in_group * kh * kw)
    padded = np.pad(x.mantissa.astype(dtype), ((0, 0), (0, 0), (top, bottom), (left, right)))
    kernel = weights.integers.astype(dtype).reshape(groups, out_channels // groups, in_group, kh, kw)
    accumulated: NDArray[Any] = np.zeros((batch, groups, out_channels // groups, rows * columns), dtype)
    for ky in range(kh):
        for kx in range(kw):
            y0, x0 = ky * dilations[0], kx * dilations[1]
            tap = padded[
                :,
                :,
                y0 : y0 + (rows - 1) * strides[0] + 1 : strides[0],
                x0 : x0 + (columns - 1) * strides[1] + 1 : strides[1],
            ]
            tap = tap.reshape(batch, groups, in_group, rows * columns)
            accumulated += np.matmul(kernel[None, :, :, :, ky, kx], tap)
    shaped = fp.to_integers(accumulated).reshape(batch, out_channels, rows, columns)
    return _finish(call, shaped, x, weights)


@operator("ConvTranspose", *_CONV_ATTRIBUTES, "output_padding")
def conv_transpose(call: Call) -> FixedPoint:
    """Every input pixel adds its kernel into out[n, o, y*s + ky*d - p, ...]; then the bias."""
    x, weights = call.exact(0), call.weights(1, axis=1)
    _require_2d(call, x, weights)
    strides = call.integer_list("strides", (1, 1))
    dilations = call.integer_list("dilations", (1, 1))
    top, left, bottom, right = call.integer_list("pads", (0, 0, 0, 0))
    extra = call.integer_list("output_padding", (0, 0))
    call.only("group", call.integer("group", 1), 1)
    channels, out_channels, kh, kw = weights.shape
    batch, _, height, width = x.shape
    rows = (height - 1) * strides[0] + (kh - 1) * dilations[0] + 1 + extra[0]
    columns = (width - 1) * strides[1] + (kw - 1) * dilations[1] + 1 + extra[1]

    dtype = fp.accumulator(x.mantissa, weights.integers, channels * kh * kw)
    flat = x.mantissa.astype(dtype).reshape(batch, channels, height * width)
    kernel = weights.integers.astype(dtype)
    accumulated: NDArray[Any] = np.zeros((batch, out_channels, rows, columns), dtype)
    for ky in range(kh):
        for kx in range(kw):
            contribution = np.matmul(kernel[:, :, ky, kx].T, flat)
            y0, x0 = ky * dilations[0], kx * dilations[1]
            accumulated[
                :,
                :,
                y0 : y0 + (height - 1) * strides[0] + 1 : strides[0],
                x0 : x0 + (width - 1) * strides[1] + 1 : strides[1],
            ] += contribution.reshape(batch, out_channels, height, width)
    cropped = fp.to_integers(accumulated)[:, :, top : rows - bottom, left : columns - right]
    return _finish(call, cropped, x, weights)


def _exact_matmul(a: IntArray, b: IntArray) -> IntArray:
    dtype = fp.accumulator(a, b, a.shape[-1])
    return fp.to_integers(np.matmul(a.astype(dtype), b.astype(dtype)))


@operator("Gemm", "alpha", "beta", "transA", "transB")
def gemm(call: Call) -> FixedPoint:
    """alpha * A' @ B' + beta * C, A' and B' transposed on request; B has one scale per column."""
    transposed = call.integer("transB", 0) == 1
    a, weights = call.exact(0), call.weights(1, axis=0 if transposed else 1)
    left = a.mantissa.T if call.integer("transA", 0) else a.mantissa
    right = weights.integers.T if transposed else weights.integers
    product = FixedPoint(_exact_matmul(left, right), a.exponent, a.denominator)
    result = fp.multiply(product, weights.scale_along(1, 2))
    result = fp.multiply_by(result, call.number("alpha", Fraction(1)))
    if not call.has(2):
        return result
    return fp.add(result, fp.multiply_by(call.exact(2), call.number("beta", Fraction(1))))


@operator("MatMul")
def matmul(call: Call) -> FixedPoint:
    """NumPy's matmul; the second operand may be weights with one scale per column."""
    a = call.exact(0)
    right = call.inputs[1] if call.has(1) else None
    if isinstance(right, ScaledWeights) and right.axis == right.integers.ndim - 1:
        product = FixedPoint(_exact_matmul(a.mantissa, right.integers), a.exponent, a.denominator)
        return fp.multiply(product, right.scale_along(-1, product.mantissa.ndim))
    b = call.exact(1)
    return FixedPoint(
        np.asarray(_exact_matmul(a.mantissa, b.mantissa)),
        a.exponent + b.exponent,
        a.denominator * b.denominator,
    )
