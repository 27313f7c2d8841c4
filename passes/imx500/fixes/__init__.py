"""Rewrites that make a refused graph acceptable: one file an idea, each answering rules of the target.

Importing this package registers every fix; `fix_graph` applies them.

Without a faithful rewrite, so that the rules' own advice stays: Log, LogSoftmax, LogSumExp (no finite
expression in the target's operators), data-dependent indexing, recurrent layers, comparisons, and anything
on the batch axis.
"""

from passes.imx500.fixes import (
    activations,
    arithmetic,
    convolution,
    indexing,
    linear,
    norms,
    padding,
    pooling,
    reduce,
    resize,
    shuffle,
    transposed,
)
from passes.imx500.fixes.apply import AppliedFix, FixResult, fix_graph, fixable
from passes.imx500.fixes.registry import FIXES, Exactness

__all__ = [
    "FIXES",
    "AppliedFix",
    "Exactness",
    "FixResult",
    "activations",
    "arithmetic",
    "convolution",
    "fix_graph",
    "fixable",
    "indexing",
    "linear",
    "norms",
    "padding",
    "pooling",
    "reduce",
    "resize",
    "shuffle",
    "transposed",
]
