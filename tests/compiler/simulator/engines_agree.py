"""The fast engine beside the exact reference on one graph: every tensor, every bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.simulator.engine import Program, compile_program
from compiler.simulator.reference import run_reference


def mismatches(
    model: ir.Model, inputs: Mapping[str, Any], program: Program, *, one_by_one: bool = False
) -> dict[str, int]:
    """Differing integers by tensor, only tensors with any; the exact reference is the judge.

    Args:
        one_by_one: the reference sees one picture at a time (graphs that fix the batch to 1).
    """
    count = len(next(iter(inputs.values())))
    fast = program.run(inputs, keep=program.tensors)
    step = 1 if one_by_one else count
    found: dict[str, int] = {}
    for start in range(0, count, step):
        part = {name: np.asarray(array)[start : start + step] for name, array in inputs.items()}
        for name, exact in run_reference(model, part, keep=program.tensors).items():
            ours = fast[name]
            assert (ours.exponent, ours.signed, ours.bits) == (exact.exponent, exact.signed, exact.bits), name
            values = ours.values[start : start + step]
            assert values.shape == exact.values.shape, (name, values.shape, exact.values.shape)
            assert values.dtype == exact.values.dtype, (name, values.dtype, exact.values.dtype)
            different = int(np.count_nonzero(values != exact.values))
            if different:
                found[name] = found.get(name, 0) + different
    return found


def programs(model: ir.Model) -> list[Program]:
    """What has to agree: every build of the kernels, and any number of threads."""
    return [
        compile_program(model, threads=1),
        compile_program(model, threads=3),
        compile_program(model, threads=2, variant="without-vnni"),
        compile_program(model, threads=1, variant="portable"),
    ]
