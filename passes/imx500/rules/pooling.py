"""Pooling."""

from __future__ import annotations

import onnx_ir as ir

from passes.imx500.geometry import input_at, int_attribute, padding_layer, rank_of, text_attribute, window
from passes.imx500.rules.registry import Found, rule

POOLS = ("MaxPool", "AveragePool")


@rule("pool-rank", *POOLS, "GlobalAveragePool", "GlobalMaxPool")
def pool_is_2d(node: ir.Node) -> Found | None:
    """Pooling is two-dimensional: the input is batch x channels x height x width.

    Fix: reshape to (batch, channels, height, width) and pool there.
    """
    rank = rank_of(input_at(node, 0))
    if rank is None or rank == 4:
        return None
    return Found(f"input of rank {rank}")


@rule("pool-ceil-mode", *POOLS)
def no_ceil_mode(node: ir.Node) -> Found | None:
    """ceil_mode is 0.

    Fix: set ceil_mode=False; where the size does not divide, put nn.ZeroPad2d((0, 1, 0, 1)) before the
    pool (after a ReLU zeros never win a maximum).
    """
    if int_attribute(node, "ceil_mode", 0) == 0:
        return None
    return Found("ceil_mode = 1")


@rule("pool-dilation", *POOLS)
def no_dilation(node: ir.Node) -> Found | None:
    """Pools have dilation 1.

    Fix: use dilation=1 with a larger kernel.
    """
    found = window(node)
    if found is None or max(found.dilations, default=1) == 1:
        return None
    return Found(f"dilations = {list(found.dilations)}")


@rule("pool-padding", *POOLS)
def pool_padding(node: ir.Node) -> Found | None:
    """Padding is given as numbers (no auto_pad), at most half the kernel (PyTorch's own limit).

    Fix: write the padding as numbers, kernel_size // 2 at most.
    """
    found, auto_pad = window(node), text_attribute(node, "auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return Found(f"auto_pad = {auto_pad}", "write the padding as numbers")
    if found is None or all(
        2 * max(before, after) <= k
        for before, after, k in zip(found.before, found.after, found.kernel, strict=True)
    ):
        return None
    return Found(
        f"pads = {[*found.before, *found.after]} with kernel_shape = {list(found.kernel)}",
        "use padding=kernel_size // 2 at most",
    )


@rule("pool-uneven-padding", *POOLS)
def pool_padding_is_even(node: ir.Node) -> Found | None:
    """Padding is the same at both ends of an axis, except for an average pool with count_include_pad = 1.

    Fix: put nn.ZeroPad2d before the pool and give it padding=0 (after a ReLU zeros never win a maximum).
    """
    found = window(node)
    if found is None or found.before == found.after:
        return None
    if node.op_type == "AveragePool" and int_attribute(node, "count_include_pad", 0):
        return None
    layer = padding_layer(found)
    return Found(
        f"pads = {[*found.before, *found.after]}",
        f"after a ReLU put {layer} before the pool and give the pool padding=0: zeros never win a maximum"
        if node.op_type == "MaxPool"
        else f"pad alike at both ends, or put {layer} before the pool, where the zeros count",
    )


@rule("pool-indices", "MaxPool")
def no_indices(node: ir.Node) -> Found | None:
    """MaxPool returns values only, in row-major order.

    Fix: set return_indices=False and use nn.Upsample instead of MaxUnpool2d.
    """
    if int_attribute(node, "storage_order", 0) != 0:
        return Found("storage_order = 1", "use storage_order 0 (PyTorch writes no other)")
    if len(node.outputs) < 2 or not (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return None
    return Found("return_indices = True")
