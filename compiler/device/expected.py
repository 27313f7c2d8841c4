"""The integers a chip should give for a few inputs: the exact meaning of the file, and the compiled file's
numbers under each answer to what the file cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.simulator.engine import compile_program
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.numerics import ALL_NUMERICS, DIALECT, Numerics
from compiler.simulator.segments import segment
from passes.errors import InputError

Integers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ExpectedOutputs:
    """Integers [N, ...] by output name, and the numerics that give just these for these inputs."""

    numerics: tuple[Numerics, ...]
    outputs: Mapping[str, Integers]


@dataclass(frozen=True)
class AllExpected:
    """Every different answer; `missing` says why the chip's own numerics are not among them."""

    answers: tuple[ExpectedOutputs, ...]
    missing: str | None


def all_expected(
    model: ir.Model,
    name: str,
    integers: Integers,
    grid: Grid,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> AllExpected:
    """Simulate under `dialect` and every `UNKNOWNS`; numerics that give the same integers become one answer.

    Args:
        model: vendor dialect.
        name: of its input.
        integers: [N, C, H, W] on the input's `grid`; the network reads integer * step.

    Raises:
        InputError: a network that the simulator does not execute.
        EnvironmentFault: there is no C compiler for the simulator's kernels.
    """
    pictures = {name: np.ldexp(integers.astype(np.float64), grid.exponent)}
    graph = segment(model)
    answers: list[ExpectedOutputs] = []
    for number, numerics in enumerate(ALL_NUMERICS):
        progress("expected integers for the chip", number / len(ALL_NUMERICS))
        try:
            program = compile_program(model, numerics=numerics, graph=graph)
        except InputError as error:
            if numerics == DIALECT:
                raise
            return AllExpected(tuple(answers), f"{error.thing}: {error.found}")
        outputs = {key: tensor.values for key, tensor in program.run(pictures).items()}
        _put(answers, numerics, outputs)
    return AllExpected(tuple(answers), None)


def _put(answers: list[ExpectedOutputs], numerics: Numerics, outputs: Mapping[str, Integers]) -> None:
    for place, known in enumerate(answers):
        if all(np.array_equal(known.outputs[key], values) for key, values in outputs.items()):
            answers[place] = ExpectedOutputs((*known.numerics, numerics), known.outputs)
            return
    answers.append(ExpectedOutputs((numerics,), outputs))
