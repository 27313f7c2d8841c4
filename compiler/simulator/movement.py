"""Operators that move, select or repeat elements, and the integer arithmetic on shapes beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.simulator import enclosures
from compiler.simulator import fixedpoint as fp
from compiler.simulator.fixedpoint import FixedPoint
from compiler.simulator.node import (
    AnyValue,
    Call,
    ScaledWeights,
    operator,
    operator_with_many_outputs,
)

Array = NDArray[Any]


def constant_value(array: Array) -> AnyValue:
    """A constant of the file: floats as exact rationals, integers and booleans as they are."""
    if np.issubdtype(array.dtype, np.floating):
        return fp.from_floats(array)
    return array


def _move(call: Call, rearrange: Callable[[Array], Array]) -> AnyValue:
    """Apply to input 0, whether it holds real numbers or integers that describe shapes."""
    value = call.inputs[0] if call.has(0) else None
    if isinstance(value, np.ndarray):
        return np.asarray(rearrange(value))
    return enclosures.move(call.value(0), rearrange)


def _shape_of(call: Call) -> tuple[int, ...]:
    value = call.inputs[0] if call.has(0) else None
    if value is None:
        raise call.refuse("no input", "one input", "export the model again")
    return tuple(value.shape)


@operator("Constant", "value", "value_float", "value_floats", "value_int", "value_ints")
def constant(call: Call) -> AnyValue:
    attributes = call.node.attributes
    if len(attributes) != 1:
        raise call.refuse(f"{len(attributes)} values", "one value", "export the model again")
    (name,) = attributes
    attribute = attributes[name]
    if name == "value":
        return constant_value(np.asarray(attribute.as_tensor().numpy()))
    integers = name in ("value_int", "value_ints")
    return constant_value(np.array(attribute.value, dtype=np.int64 if integers else np.float32))


@operator("Identity")
def identity(call: Call) -> AnyValue:
    value = call.inputs[0] if call.has(0) else None
    return value if isinstance(value, ScaledWeights) else _move(call, lambda m: m)


@operator("Shape", "start", "end")
def shape(call: Call) -> AnyValue:
    dimensions = _shape_of(call)
    end = call.integer("end", len(dimensions))
    return np.array(dimensions[call.integer("start", 0) : end], dtype=np.int64)


@operator("ConstantOfShape", "value")
def constant_of_shape(call: Call) -> AnyValue:
    attribute = call.node.attributes.get("value")
    fill = np.zeros(1, dtype=np.float32) if attribute is None else attribute.as_tensor().numpy()
    return constant_value(np.full(tuple(call.integers(0)), fill.reshape(-1)[0], dtype=fill.dtype))


@operator("Cast", "to", "saturate")
def cast(call: Call) -> AnyValue:
    """Integers that describe shapes to another integer type; real numbers to float, which they stay."""
    value = call.inputs[0] if call.has(0) else None
    target = ir.DataType(call.integer("to", 0))
    if isinstance(value, np.ndarray) and target.is_integer():
        return value.astype(target.numpy())
    if not isinstance(value, np.ndarray) and target == ir.DataType.FLOAT:
        return call.value(0)
    raise call.refuse(
        f"a cast to {target.name}", "integers to integers, real numbers to FLOAT", "drop the cast"
    )


@operator("Reshape", "allowzero")
def reshape(call: Call) -> AnyValue:
    """0 copies the input's dimension (unless allowzero), -1 takes the rest."""
    dimensions = _shape_of(call)
    target = [int(size) for size in call.integers(1)]
    if not call.integer("allowzero", 0):
        target = [dimensions[i] if size == 0 else size for i, size in enumerate(target)]
    return _move(call, lambda m: m.reshape(target))


@operator("Flatten", "axis")
def flatten(call: Call) -> AnyValue:
    dimensions = _shape_of(call)
    axis = call.integer("axis", 1)
    axis = axis + len(dimensions) if axis < 0 else axis
    rows = int(np.prod(dimensions[:axis], dtype=np.int64))
    columns = int(np.prod(dimensions[axis:], dtype=np.int64))
    return _move(call, lambda m: m.reshape(rows, columns))


@operator("Squeeze", "axes")
def squeeze(call: Call) -> AnyValue:
    dimensions = _shape_of(call)
    if call.has(1) or "axes" in call.node.attributes:
        axes = call.axes(1, len(dimensions))
    else:
        axes = tuple(axis for axis, size in enumerate(dimensions) if size == 1)
    return _move(call, lambda m: np.squeeze(m, axis=axes))


@operator("Unsqueeze", "axes")
def unsqueeze(call: Call) -> AnyValue:
    given = call.integers(1).reshape(-1) if call.has(1) else call.integer_list("axes")
    axes = call.axes(1, len(_shape_of(call)) + len(given))
    return _move(call, lambda m: np.expand_dims(m, axes))


@operator("Transpose", "perm")
def transpose(call: Call) -> AnyValue:
    order = call.integer_list("perm", reversed(range(len(_shape_of(call)))))
    value = call.inputs[0]
    if isinstance(value, ScaledWeights):
        return ScaledWeights(value.integers.transpose(order), value.scale, order.index(value.axis))
    return _move(call, lambda m: m.transpose(order))


@operator("Expand")
def expand(call: Call) -> AnyValue:
    target = np.broadcast_shapes(_shape_of(call), tuple(int(size) for size in call.integers(1)))
    return _move(call, lambda m: np.broadcast_to(m, target))


@operator("Slice")
def slice_(call: Call) -> AnyValue:
    """Negative starts and ends count from the end; both are clamped to the tensor; steps may be negative."""
    dimensions = _shape_of(call)
    starts, ends = call.integers(1).reshape(-1), call.integers(2).reshape(-1)
    axes = call.integers(3).reshape(-1) if call.has(3) else np.arange(len(starts))
    steps = call.integers(4).reshape(-1) if call.has(4) else np.ones(len(starts), dtype=np.int64)
    result = _move(call, lambda m: m)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = _slice_indices(int(start), int(end), int(step), dimensions[int(axis)])
        result = _take(result, kept, int(axis))
    return result


def _slice_indices(start: int, end: int, step: int, size: int) -> list[int]:
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return list(range(min(max(start, 0), size), min(max(end, 0), size), step))
    return list(range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step))


def _take(value: AnyValue, indices: Sequence[int] | Array, axis: int) -> AnyValue:
    positions = np.asarray(indices, dtype=np.int64)
    if isinstance(value, np.ndarray):
        return np.take(value, positions, axis=axis)
    if isinstance(value, ScaledWeights):
        value = value.to_fixed_point()
    return enclosures.move(value, lambda m: np.take(m, positions, axis=axis))


@operator("Gather", "axis")
def gather(call: Call) -> AnyValue:
    indices = call.integers(1)
    return _move(call, lambda m: np.take(m, indices, axis=call.integer("axis", 0)))


@operator("GatherElements", "axis")
def gather_elements(call: Call) -> AnyValue:
    """out[i, j, k] = in[index[i, j, k], j, k] for axis 0, and alike; the index may be the smaller tensor."""
    dimensions = _shape_of(call)
    indices = call.integers(1)
    axis = call.integer("axis", 0) % len(dimensions)
    region = tuple(slice(None) if i == axis else slice(0, indices.shape[i]) for i in range(len(dimensions)))
    positions = np.where(indices < 0, indices + dimensions[axis], indices)
    return _move(call, lambda m: np.take_along_axis(m[region], positions, axis=axis))


@operator("Concat", "axis")
def concat(call: Call) -> AnyValue:
    axis = call.integer("axis", 0)
    if call.are_integers():
        return np.concatenate([call.integers(i) for i in range(len(call.inputs))], axis=axis)
    values = [call.value(i) for i in range(len(call.inputs))]
    return enclosures.increasing(lambda *parts: fp.concatenate(parts, axis), *values)


@operator_with_many_outputs("Split", "axis", "num_outputs", "split")
def split(call: Call) -> Sequence[AnyValue]:
    """Parts of the given sizes, or as many equal parts as outputs with a smaller last one."""
    axis = call.integer("axis", 0)
    size = _shape_of(call)[axis]
    count = len(call.node.outputs)
    if call.has(1):
        parts = [int(part) for part in call.integers(1).reshape(-1)]
    else:
        each = -(-size // count)
        parts = list(call.integer_list("split", [min(each, size - i * each) for i in range(count)]))
    if sum(parts) != size or len(parts) != count or min(parts) < 0:
        raise call.refuse(f"parts {parts}", f"{count} parts that sum to {size}", "correct the sizes")
    whole = _move(call, lambda m: m)
    first = np.concatenate(([0], np.cumsum(parts)))
    return [_take(whole, np.arange(first[i], first[i + 1]), axis) for i in range(count)]


@operator("Pad", "mode")
def pad(call: Call) -> AnyValue:
    """Constant padding with non-negative widths; the constant is 0 where it is left out."""
    call.only("mode", call.string("mode", "constant"), "constant")
    x = call.value(0)
    rank = len(x.shape)
    widths = call.integers(1).reshape(2, -1)
    axes = call.integers(3).reshape(-1) if call.has(3) else np.arange(rank)
    if len(axes) != widths.shape[1]:
        raise call.refuse(
            f"{widths.size} pads", f"two for each of {len(axes)} axes", "export the model again"
        )
    if (widths < 0).any():
        raise call.refuse(f"pads {widths.reshape(-1).tolist()}", "widths of 0 or more", "slice instead")
    around = [(0, 0)] * rank
    for axis, before, after in zip(axes, *widths, strict=True):
        around[int(axis)] = (int(before), int(after))
    padded = enclosures.move(x, lambda m: np.pad(m, around))
    fill = call.exact(2) if call.has(2) else fp.from_fraction(Fraction(0))
    if not fill.mantissa.any():
        return padded
    border = np.pad(np.zeros(x.shape, dtype=np.int64), around, constant_values=1)
    return enclosures.add(padded, fp.multiply(FixedPoint(border), fp.move(fill, lambda m: m.reshape(()))))


@operator_with_many_outputs("TopK", "axis", "largest", "sorted")
def top_k(call: Call) -> Sequence[AnyValue]:
    """The k largest along an axis, falling, and their indices; equal elements by rising index."""
    x = call.exact(0)
    call.only("largest", call.integer("largest", 1), 1)
    call.only("sorted", call.integer("sorted", 1), 1)
    axis = call.integer("axis", -1) % len(x.shape)
    (count,) = call.integers(1).reshape(-1)
    order = np.argsort(-x.mantissa, axis=axis, kind="stable")
    kept = np.take(order, np.arange(int(count)), axis=axis)
    return fp.move(x, lambda m: np.take_along_axis(m, kept, axis=axis)), kept


@operator("Equal")
def equal(call: Call) -> AnyValue:
    return np.asarray(call.integers(0) == call.integers(1))


@operator("Where")
def where(call: Call) -> AnyValue:
    return np.where(call.integers(0), call.integers(1), call.integers(2))
