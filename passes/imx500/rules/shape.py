"""Reshaping, cutting and joining: the batch axis stays first and untouched."""

from __future__ import annotations

import onnx_ir as ir

from passes.diagnostics import Severity
from passes.imx500.geometry import (
    constant_ints,
    input_at,
    int_attribute,
    ints_attribute,
    is_constant,
    rank_of,
    shape_behind,
    window,
)
from passes.imx500.limits import MAX_RANK, MIN_RANK
from passes.imx500.rules.registry import Found, rule

KEEP_BATCH = "keep the batch axis as it is and work on the other axes"


@rule("rank")
def rank_limits(node: ir.Node) -> Found | None:
    """Activations have {MIN_RANK} to {MAX_RANK} axes, the batch included.

    Fix: keep an axis with keepdim=True or torch.flatten(x, 1); work in two steps with fewer axes each.
    """
    ranks = [rank for rank in map(rank_of, node.outputs) if rank is not None]
    if all(MIN_RANK <= rank <= MAX_RANK for rank in ranks):
        return None
    few = min(ranks) < MIN_RANK
    return Found(
        f"output of rank {min(ranks) if few else max(ranks)}",
        "keep an axis: set keepdim=True, or flatten with torch.flatten(x, 1)"
        if few
        else "do it in two steps with fewer axes each",
    )


@rule("empty")
def nothing_is_empty(node: ir.Node) -> Found | None:
    """No tensor is empty, and no window is larger than its padded input.

    Fix: give a larger input, or a smaller kernel, stride or slice.
    """
    shapes = [shape_behind(value) for value in node.outputs]
    for shape in shapes:
        if shape is not None and any(side is not None and side <= 0 for side in shape):
            return Found(f"output shape {list(shape)}")
    found = window(node) if node.op_type in ("Conv", "MaxPool", "AveragePool") else None
    sides = (shape_behind(input_at(node, 0)) or ())[2:]
    if found is None or len(sides) != len(found.kernel):
        return None
    for side, before, after, extent in zip(sides, found.before, found.after, found.effective, strict=True):
        if side is not None and side + before + after < extent:
            return Found(f"a kernel of {extent} pixels over {side + before + after}, padding included")
    return None


@rule("batch-axis", "Concat", "Softmax", "Split", "TopK", "ArgMax", "Gather")
def axis_is_not_batch(node: ir.Node) -> Found | None:
    """The axis is not the batch axis.

    Fix: keep the batch axis as it is and work on the other axes.
    """
    default = {"Softmax": -1, "TopK": -1}.get(node.op_type, 0)
    axis = int_attribute(node, "axis", default)
    rank = rank_of(input_at(node, 0))
    if rank is None or rank == 0 or axis % rank != 0:
        return None
    return Found(f"axis = {axis} of an input of rank {rank}")


@rule("reshape-batch", "Reshape", "Flatten", "Expand")
def reshape_keeps_batch(node: ir.Node) -> Found | None:
    """Reshaping and expanding keep the batch axis: the first axis of the result has length 1.

    Fix: keep the batch axis as it is and work on the other axes.
    """
    shape = shape_behind(node.outputs[0])
    if not shape or shape[0] in (None, 1):
        return None
    return Found(f"result of shape {list(shape)}")


@rule("broadcast-batch", "Add", "Sub", "Mul", "Div", "Max", "Min")
def broadcast_keeps_batch(node: ir.Node) -> Found | None:
    """Broadcasting leaves the batch axis at length 1.

    Fix: keep the batch axis as it is and work on the other axes.
    """
    shape = shape_behind(node.outputs[0])
    shapes = [shape_behind(value) for value in node.inputs]
    if not shape or shape[0] in (None, 1) or any(other is None for other in shapes):
        return None
    if any(
        other == shape for value, other in zip(node.inputs, shapes, strict=True) if not is_constant(value)
    ):
        return None
    return Found(f"result of shape {list(shape)}")


@rule("transpose-batch", "Transpose")
def transpose_keeps_batch(node: ir.Node) -> Found | None:
    """Transpositions keep the batch axis first.

    Fix: keep the batch axis as it is and work on the other axes.
    """
    order, rank = ints_attribute(node, "perm"), rank_of(input_at(node, 0))
    if order is None and rank is not None:
        order = tuple(reversed(range(rank)))
    if not order or order[0] == 0:
        return None
    return Found(f"perm = {list(order)}")


@rule("squeeze-batch", "Squeeze", "Unsqueeze")
def squeeze_keeps_batch(node: ir.Node) -> Found | None:
    """Axes are squeezed and added behind the batch axis, which is never squeezed itself.

    Fix: name the axes to squeeze, none of them the batch: x.squeeze(1).
    """
    wider = node.outputs[0] if node.op_type == "Unsqueeze" else input_at(node, 0)
    rank, shape = rank_of(wider), shape_behind(wider)
    axes = constant_ints(input_at(node, 1)) or ints_attribute(node, "axes")
    if axes is None and node.op_type == "Squeeze" and shape is not None and shape[0] == 1:
        return Found("every axis of length 1 squeezed, the batch too", "name the axes: x.squeeze(1)")
    if axes is None or not rank or all(axis % rank for axis in axes):
        return None
    return Found(f"axes = {list(axes)}", KEEP_BATCH)


@rule("slice", "Slice")
def slice_form(node: ir.Node) -> Found | None:
    """Slices have constant bounds and positive steps and leave the batch axis whole.

    Fix: slice with fixed numbers; flip with a constant list of indices, x[:, :, :, [3, 2, 1, 0]].
    """
    given = [input_at(node, index) for index in range(1, len(node.inputs))]
    if any(value is not None and not is_constant(value) for value in given):
        return Found("bounds computed by the network", "slice with fixed numbers")
    steps = constant_ints(input_at(node, 4))
    if steps is not None and any(step < 1 for step in steps):
        return Found(
            f"steps = {list(steps)}",
            "flip the picture on the host; inside, index with a constant list: x[:, :, :, [3, 2, 1, 0]]",
        )
    axes, rank = constant_ints(input_at(node, 3)), rank_of(input_at(node, 0))
    starts = constant_ints(input_at(node, 1)) or ()
    axes = tuple(range(len(starts))) if axes is None else axes
    whole = shape_behind(node.outputs[0]) or (None,)
    if rank and any(axis % rank == 0 for axis in axes) and whole[0] not in (None, 1):
        return Found(f"axes = {list(axes)}", KEEP_BATCH)
    return None


@rule("gather-indices", "Gather")
def gather_indices(node: ir.Node) -> Found | None:
    """Gather takes one constant list of indices, counted from the front.

    Fix: index with one constant list of positions, x[:, [0, 2]], or select on the host.
    """
    indices = constant_ints(input_at(node, 1))
    if indices is None:
        return Found("indices computed by the network", "index with a constant list, or select on the host")
    rank = rank_of(input_at(node, 1))
    if rank is not None and rank > 1:
        return Found(f"indices of rank {rank}", "use one list of indices, then reshape")
    if any(index < 0 for index in indices):
        return Found(f"indices = {list(indices)}", "count from the front")
    shape = shape_behind(input_at(node, 0))
    length = shape[int_attribute(node, "axis", 0) % len(shape)] if shape else None
    if length is not None and any(index >= length for index in indices):
        return Found(f"index {max(indices)} on an axis of length {length}", f"use 0 to {length - 1}")
    return None


@rule("reduce-batch", "ReduceMean", "ReduceSum", "ReduceMax", severity=Severity.WARNING)
def reduce_over_batch(node: ir.Node) -> Found | None:
    """Reducing over the batch axis is accepted, but the batch on the chip is 1.

    Fix: leave axis 0 out: the result is the same for one picture.
    """
    if not _reduces_batch(node):
        return None
    return Found("the batch axis is reduced")


@rule("reduce-axes", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
def reduce_has_axes(node: ir.Node) -> Found | None:
    """A reduction reduces something (noop_with_empty_axes is 0 where it names no axes).

    Fix: leave the operator out: it does nothing.
    """
    axes = ints_attribute(node, "axes") or constant_ints(input_at(node, 1))
    if axes or int_attribute(node, "noop_with_empty_axes", 0) == 0:
        return None
    return Found("noop_with_empty_axes = 1 without axes")


@rule("norm-batch", "ReduceL2")
def norm_keeps_batch(node: ir.Node) -> Found | None:
    """A norm is not taken over the batch axis.

    Fix: leave axis 0 out.
    """
    return Found("the batch axis is reduced") if _reduces_batch(node) else None


def _reduces_batch(node: ir.Node) -> bool:
    rank = rank_of(input_at(node, 0))
    axes = ints_attribute(node, "axes") or constant_ints(input_at(node, 1))
    if rank is None:
        return False
    if not axes:
        return int_attribute(node, "noop_with_empty_axes", 0) == 0
    return any(axis % rank == 0 for axis in axes)


@rule("topk", "TopK")
def topk_form(node: ir.Node) -> Found | None:
    """TopK finds the largest, sorted, with a constant k.

    Fix: use torch.topk with a fixed k, largest=True and sorted=True.
    """
    if not is_constant(input_at(node, 1)):
        return Found("k computed by the network", "use a fixed k")
    if int_attribute(node, "largest", 1) == 0:
        return Found("largest = 0", "use torch.topk(-x, k) and negate the values on the host")
    if int_attribute(node, "sorted", 1) == 0:
        return Found("sorted = 0", "set sorted=True")
    return None


@rule("argmax", "ArgMax")
def argmax_form(node: ir.Node) -> Found | None:
    """ArgMax takes the first of equal values (select_last_index = 0).

    Fix: use torch.argmax, which takes the first.
    """
    if int_attribute(node, "select_last_index", 0) == 0:
        return None
    return Found("select_last_index = 1")
