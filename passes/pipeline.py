"""The graph transforms in order, as a list of named steps, with their conditions checked around each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from passes.fix_batch import FixBatch
from passes.floor_pools import FloorPools
from passes.fold_batchnorm import FoldBatchNorm
from passes.fold_input import FoldInput
from passes.names import NameEverything
from passes.remove_dead import RemoveDead
from passes.simplify import Simplify


@dataclass(frozen=True)
class Transform:
    """One graph pass: its name on the command line, what it does, and how to make it."""

    name: str
    purpose: str
    make: Callable[[], ir.passes.PassBase]


FLOAT_TRANSFORMS = (
    Transform("fix-batch", "a symbolic batch becomes 1", FixBatch),
    Transform("name", "every node and value gets a stable name", NameEverything),
    Transform("simplify", "constant folding and onnxsim's rewrites", Simplify),
    Transform("floor-pools", "ceil_mode goes where it changes nothing", FloorPools),
    Transform("fold-batchnorm", "batch norms go into the weights before them", FoldBatchNorm),
    Transform("fold-input", "the input normalisation goes into the network", FoldInput),
    Transform("remove-dead", "what no output depends on is dropped", RemoveDead),
)
"""Float graph as loaded -> float graph as it is checked and quantized."""

QUANTIZED_TRANSFORMS = (FLOAT_TRANSFORMS[1],)
"""A vendor-dialect graph is taken as it is; it only gets names."""


@dataclass(frozen=True)
class PassTime:
    name: str
    seconds: float
    modified: bool


def apply(model: ir.Model, transform: Transform) -> tuple[ir.Model, PassTime]:
    """Run one transform between its conditions.

    Raises ir.passes.InvariantError where a condition fails (a defect of ours), and the pass's own errors as
    they are (the library's own runner would wrap them and lose their kind).
    """
    started = time.perf_counter()
    graph_pass = transform.make()
    graph_pass.requires(model)
    result = graph_pass.call(model)
    graph_pass.ensures(result.model)
    return result.model, PassTime(transform.name, time.perf_counter() - started, result.modified)


def apply_all(model: ir.Model, transforms: Iterable[Transform] = FLOAT_TRANSFORMS) -> ir.Model:
    for transform in transforms:
        model, _ = apply(model, transform)
    return model
