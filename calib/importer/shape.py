"""Operators that move, join and cut tensors."""

from __future__ import annotations

import operator as python
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import fx
from torch.nn import functional

from calib.importer.context import Context, integer, ints, real, text
from calib.importer.registry import Result, UnknownForm, operator
from passes.graph import const_array


@operator("Concat")
def concat(ctx: Context, node: ir.Node) -> fx.Node:
    parts: list[fx.Node] = []
    for index, value in enumerate(node.inputs):
        array = const_array(value)
        parts.append(ctx.activation(node, index) if array is None else ctx.buffer(array))
    return ctx.call(torch.cat, parts, ctx.axis(parts[0], integer(node, "axis", 0)))


@operator("Split")
def split(ctx: Context, node: ir.Node) -> Result:
    x = ctx.activation(node)
    axis = ctx.axis(x, integer(node, "axis", 0))
    sizes = ctx.either(node, 1, "split")
    if sizes is None:
        # Equal parts, the last one smaller where the axis does not divide.
        total, count = ctx.shape(x)[axis], len(node.outputs)
        part = -(-total // count)
        sizes = [part] * (count - 1) + [total - part * (count - 1)]
    return _pick(ctx, node, ctx.call(torch.split, x, sizes, axis))


def _pick(ctx: Context, node: ir.Node, results: fx.Node) -> Sequence[fx.Node | None]:
    """One fx node per output that is read; MCT's reader knows a tuple's parts through getitem only."""
    graph = node.graph
    kept = set(graph.outputs) if isinstance(graph, ir.Graph) else set()
    return [
        ctx.call(python.getitem, results, index) if output.uses() or output in kept else None
        for index, output in enumerate(node.outputs)
    ]


@operator("TopK")
def top_k(ctx: Context, node: ir.Node) -> Result:
    x, count = ctx.activation(node), ctx.either(node, 1, "k")
    if count is None:
        count = [integer(node, "k", 1)]
    results = ctx.call(
        torch.topk,
        x,
        count[0],
        ctx.axis(x, integer(node, "axis", -1)),
        bool(integer(node, "largest", 1)),
        bool(integer(node, "sorted", 1)),
    )
    return _pick(ctx, node, results)


@operator("Slice")
def slice_(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    shape = ctx.shape(x)
    starts, ends = ctx.either(node, 1, "starts"), ctx.either(node, 2, "ends")
    if starts is None or ends is None:
        raise UnknownForm("no starts or ends", "constant starts and ends", "export it again")
    axes = ctx.either(node, 3, "axes") or list(range(len(starts)))
    steps = ctx.either(node, 4, "steps") or [1] * len(starts)
    cuts = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise UnknownForm(
                f"steps = {steps}", "positive steps", "torch cannot slice backwards: use Gather"
            )
        axis = ctx.axis(x, axis)
        cut = slice(*slice(start, end, step).indices(shape[axis]))
        cuts[axis] = slice(None) if cut == slice(0, shape[axis], 1) else cut
    last = max((axis for axis, cut in enumerate(cuts) if cut != slice(None)), default=-1)
    return ctx.call(python.getitem, x, tuple(cuts[: last + 1])) if last >= 0 else x


@operator("Gather")
def gather(ctx: Context, node: ir.Node) -> fx.Node:
    x, indices = ctx.activation(node), ctx.required(node, 1)
    axis = ctx.axis(x, integer(node, "axis", 0))
    indices = indices % ctx.shape(x)[axis]
    if indices.ndim == 0:
        return ctx.call(python.getitem, x, (*[slice(None)] * axis, int(indices)))
    if indices.ndim > 1:
        raise UnknownForm(f"indices of rank {indices.ndim}", "a number or a list of them", "flatten them")
    return ctx.call(torch.index_select, x, axis, ctx.buffer(indices))


@operator("Pad")
def pad(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    rank = ctx.rank(x)
    pads, mode = ctx.either(node, 1, "pads"), text(node, "mode", "constant")
    if pads is None:
        raise UnknownForm("no pads", "constant pads", "export with fixed sizes")
    axes = [ctx.axis(x, a) for a in ctx.either(node, 3, "axes") or range(rank)]
    if mode not in ("constant", "reflect", "edge"):
        raise UnknownForm(f"mode = {mode}", "constant, reflect or edge", "pad with zeros")
    around = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        around[axis] = (pads[position], pads[position + len(axes)])
    # torch counts from the last axis, and from the first padded one on.
    first = next((axis for axis, sides in enumerate(around) if sides != (0, 0)), rank)
    if first == rank:
        return x
    flat = [side for sides in reversed(around[first:]) for side in sides]
    if mode != "constant":
        return ctx.call(functional.pad, x, flat, {"reflect": "reflect", "edge": "replicate"}[mode])
    constant = ctx.constant(node, 2)
    value = real(node, "value", 0.0) if constant is None else float(constant.reshape(-1)[0])
    return ctx.call(functional.pad, x, flat, "constant", value)


@operator("Transpose")
def transpose(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    return ctx.call(torch.permute, x, tuple(ints(node, "perm", range(ctx.rank(x))[::-1])))


@operator("Reshape")
def reshape(ctx: Context, node: ir.Node) -> fx.Node:
    x, wanted = ctx.activation(node), [int(size) for size in ctx.required(node, 1).reshape(-1)]
    shape = ctx.shape(x)
    if not integer(node, "allowzero", 0):
        wanted = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return reshape_to(ctx, x, tuple(ctx.example(x).reshape(wanted).shape))


def reshape_to(ctx: Context, x: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    """Reshape, given the shape at batch 1; a batch axis on both sides stays free."""
    if shape and shape[0] == 1 == ctx.shape(x)[0]:
        shape = (-1, *shape[1:])
    return ctx.call(torch.reshape, x, shape)


@operator("Flatten")
def flatten(ctx: Context, node: ir.Node) -> fx.Node:
    x, axis = ctx.activation(node), integer(node, "axis", 1)
    if axis == 1:
        return ctx.call(torch.flatten, x, 1)
    shape = ctx.shape(x)
    axis = axis % ctx.rank(x) if axis < 0 else axis
    return reshape_to(ctx, x, tuple(ctx.example(x).reshape(_product(shape[:axis]), -1).shape))


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


@operator("Squeeze")
def squeeze(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    axes = ctx.either(node, 1, "axes")
    if axes is None:
        axes = [axis for axis, size in enumerate(ctx.shape(x)) if size == 1]
    for axis in sorted((ctx.axis(x, a) for a in axes), reverse=True):
        x = ctx.call(torch.squeeze, x, axis)
    return x


@operator("Unsqueeze")
def unsqueeze(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    axes = ctx.either(node, 1, "axes") or []
    rank = ctx.rank(x) + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = ctx.call(torch.unsqueeze, x, axis)
    return x


@operator("Expand")
def expand(ctx: Context, node: ir.Node) -> fx.Node:
    x, wanted = ctx.activation(node), [int(size) for size in ctx.required(node, 1).reshape(-1)]
    shape = np.broadcast_shapes(ctx.shape(x), tuple(wanted))
    if shape == ctx.shape(x):
        return x
    if len(shape) == ctx.rank(x):
        # -1 keeps an axis as it is, the batch included.
        kept = tuple(-1 if new == old else new for new, old in zip(shape, ctx.shape(x), strict=True))
        return ctx.method("expand", x, *kept)
    return ctx.method("expand", x, *shape)


@operator("Identity", "Dropout")
def same(ctx: Context, node: ir.Node) -> Result:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise UnknownForm("the mask output is read", "the first output only", "export the model in eval mode")
    return [ctx.activation(node), *[None] * (len(node.outputs) - 1)]


@operator("Cast")
def cast(ctx: Context, node: ir.Node) -> fx.Node:
    """A cast between kinds of floats: everything is float32 here."""
    x, to = ctx.activation(node), ir.DataType(integer(node, "to", 1))
    if not (ctx.example(x).is_floating_point() and to.is_floating_point()):
        kind = str(ctx.example(x).dtype).removeprefix("torch.")
        raise UnknownForm(f"{kind} to {to.name}", "a cast between floats", "cast outside of the network")
    return x
