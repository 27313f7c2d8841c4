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
)
from passes.imx500.limits import MAX_RANK, MIN_RANK
from passes.imx500.rules.registry import Found, rule

KEEP_BATCH = "keep the batch axis as it is and work on the other axes"


@rule("rank")
def rank_limits(node: ir.Node) -> Found | None:
    """Activations have {MIN_RANK} to {MAX_RANK} axes, the batch included."""
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


@rule("batch-axis", "Concat", "Softmax", "Split", "TopK", "ArgMax", "Gather")
def axis_is_not_batch(node: ir.Node) -> Found | None:
    """The axis is not the batch axis."""
    default = {"Softmax": -1, "TopK": -1}.get(node.op_type, 0)
    axis = int_attribute(node, "axis", default)
    rank = rank_of(input_at(node, 0))
    if rank is None or rank == 0 or axis % rank != 0:
        return None
    return Found(f"axis = {axis} of an input of rank {rank}", KEEP_BATCH)


@rule("reshape-batch", "Reshape", "Flatten", "Expand")
def reshape_keeps_batch(node: ir.Node) -> Found | None:
    """Reshaping and expanding keep the batch axis: the first axis of the result has length 1."""
    shape = shape_behind(node.outputs[0])
    if not shape or shape[0] in (None, 1):
        return None
    return Found(f"result of shape {list(shape)}", KEEP_BATCH)


@rule("broadcast-batch", "Add", "Sub", "Mul", "Div", "Max", "Min")
def broadcast_keeps_batch(node: ir.Node) -> Found | None:
    """Broadcasting leaves the batch axis at length 1."""
    shape = shape_behind(node.outputs[0])
    shapes = [shape_behind(value) for value in node.inputs]
    if not shape or shape[0] in (None, 1) or any(other is None for other in shapes):
        return None
    if any(
        other == shape for value, other in zip(node.inputs, shapes, strict=True) if not is_constant(value)
    ):
        return None
    return Found(f"result of shape {list(shape)}", KEEP_BATCH)


@rule("transpose-batch", "Transpose")
def transpose_keeps_batch(node: ir.Node) -> Found | None:
    """Transpositions keep the batch axis first."""
    order, rank = ints_attribute(node, "perm"), rank_of(input_at(node, 0))
    if order is None and rank is not None:
        order = tuple(reversed(range(rank)))
    if not order or order[0] == 0:
        return None
    return Found(f"perm = {list(order)}", KEEP_BATCH)


@rule("squeeze-batch", "Squeeze", "Unsqueeze")
def squeeze_keeps_batch(node: ir.Node) -> Found | None:
    """Axes are squeezed and added behind the batch axis, which is never squeezed itself."""
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
    """Slices have constant bounds and positive steps and leave the batch axis whole."""
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
    """Gather takes one constant list of indices, counted from the front."""
    indices = constant_ints(input_at(node, 1))
    if indices is None:
        return Found("indices computed by the network", "index with a constant list, or select on the host")
    rank = rank_of(input_at(node, 1))
    if rank is not None and rank > 1:
        return Found(f"indices of rank {rank}", "use one list of indices, then reshape")
    if any(index < 0 for index in indices):
        return Found(f"indices = {list(indices)}", "count from the front")
    return None


@rule("reduce-batch", "ReduceMean", "ReduceSum", "ReduceMax", severity=Severity.WARNING)
def reduce_over_batch(node: ir.Node) -> Found | None:
    """Reducing over the batch axis is accepted, but the batch on the chip is 1."""
    if not _reduces_batch(node):
        return None
    return Found("the batch axis is reduced", "leave axis 0 out: the result is the same for one picture")


@rule("norm-batch", "ReduceL2")
def norm_keeps_batch(node: ir.Node) -> Found | None:
    """A norm is not taken over the batch axis."""
    return Found("the batch axis is reduced", "leave axis 0 out") if _reduces_batch(node) else None


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
    """TopK finds the largest, sorted, with a constant k."""
    if not is_constant(input_at(node, 1)):
        return Found("k computed by the network", "use a fixed k")
    if int_attribute(node, "largest", 1) == 0:
        return Found("largest = 0", "use torch.topk(-x, k) and negate the values on the host")
    if int_attribute(node, "sorted", 1) == 0:
        return Found("sorted = 0", "set sorted=True")
    return None


@rule("argmax", "ArgMax")
def argmax_form(node: ir.Node) -> Found | None:
    """ArgMax takes the first of equal values (select_last_index = 0)."""
    if int_attribute(node, "select_last_index", 0) == 0:
        return None
    return Found("select_last_index = 1", "use torch.argmax, which takes the first")
