"""The graph transforms in order, as a list of named steps, with their conditions checked around each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from passes import graph as graphs
from passes.explicit_pads import ExplicitPads
from passes.fix_batch import FixBatch
from passes.floor_pools import FloorPools
from passes.fold_batchnorm import FoldBatchNorm
from passes.fold_input import FoldInput
from passes.names import NameEverything
from passes.opset import RaiseOpset
from passes.remove_dead import RemoveDead
from passes.simplify import Simplify


@dataclass(frozen=True)
class Transform:
    """One graph pass: its name on the command line, what it does, and how to make it."""

    name: str
    purpose: str
    make: Callable[[], ir.passes.PassBase]


NAME = Transform("name", "every node and value gets a stable name", NameEverything)

FLOAT_TRANSFORMS = (
    Transform("raise-opset", "operators of old opsets are spelled as today", RaiseOpset),
    Transform("fix-batch", "a symbolic batch becomes 1", FixBatch),
    NAME,
    Transform("simplify", "constant folding and onnxsim's rewrites", Simplify),
    Transform("explicit-pads", "auto_pad is written out", ExplicitPads),
    Transform("floor-pools", "ceil_mode goes where it changes nothing", FloorPools),
    Transform("fold-batchnorm", "batch norms go into the weights before them", FoldBatchNorm),
    Transform("fold-input", "the input normalisation goes into the network", FoldInput),
    Transform("remove-dead", "what no output depends on is dropped", RemoveDead),
)
"""Float graph as loaded -> float graph as it is checked and quantized."""

QUANTIZED_TRANSFORMS = (NAME,)
"""A vendor-dialect graph is taken as it is; it only gets names."""


def apply(model: ir.Model, transform: Transform) -> tuple[ir.Model, bool]:
    """Run one transform between its conditions; the graph after it, and whether it changed anything.

    Raises ir.passes.InvariantError where a condition fails (a defect of ours), and the pass's own errors as
    they are (the library's own runner would wrap them and lose their kind).
    """
    graph_pass = transform.make()
    graph_pass.requires(model)
    result = graph_pass.call(model)
    graph_pass.ensures(result.model)
    if graphs.FILE_KEY in model.meta:  # a pass that makes a new model does not know of it
        result.model.meta[graphs.FILE_KEY] = model.meta[graphs.FILE_KEY]
    return result.model, result.modified


def apply_all(model: ir.Model, transforms: Iterable[Transform] = FLOAT_TRANSFORMS) -> ir.Model:
    for transform in transforms:
        model, _ = apply(model, transform)
    return model
