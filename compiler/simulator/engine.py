"""The fast simulator: a vendor-dialect graph as a flat program of integer steps, exact on every bit.

`run_reference` is its judge. Nothing is approximated: see `lowering` for how each tensor is computed and why
it is exact. `Program.in_reference` names the tensors that only the slow reference can compute.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.simulator.array_steps import ArrayStep
from compiler.simulator.enclosures import UnsettledError
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.lowering import Step, lower
from compiler.simulator.native.build import Variant
from compiler.simulator.native.program import NativeProgram
from compiler.simulator.native_steps import NativeStep
from compiler.simulator.numerics import DIALECT, Numerics
from compiler.simulator.pointwise import NegativeRootError
from compiler.simulator.reference import IntegerTensor
from compiler.simulator.segments import INDEX, Segmented, segment
from passes.errors import InputError

CHUNK = 32
"""Pictures at a time: memory does not grow with the number of pictures."""


@dataclass(frozen=True, eq=False)
class _Block:
    """Native steps that follow each other."""

    program: NativeProgram
    outputs: frozenset[str]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.program.inputs


class Program:
    """A compiled graph. Made by `compile_program`; safe to use from several threads."""

    def __init__(
        self,
        graph: Segmented,
        blocks: Sequence[_Block | ArrayStep],
        steps: Sequence[Step],
        in_reference: Sequence[tuple[str, str]],
        threads: int,
    ) -> None:
        self._blocks = tuple(blocks)
        self._last_reader = {name: number for number, block in enumerate(blocks) for name in block.inputs}
        self._graph = graph
        self.steps = tuple(steps)
        self.in_reference = tuple(in_reference)
        self.threads = threads
        self.inputs = tuple(value.name or "" for value in graph.inputs)
        self.outputs = tuple(value.name or "" for value in graph.outputs)
        self._grids: dict[str, Grid] = {value.name or "": grid for value, grid in graph.grids.items()}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor of integers, in the order of the graph; any of them can be kept."""
        return tuple(self._grids)

    def run(self, inputs: Mapping[str, NDArray[Any]], keep: Collection[str] = ()) -> dict[str, IntegerTensor]:
        """The graph's outputs and the kept tensors, as `run_reference` gives them.

        Args:
            inputs: one array per graph input, [N, ...]: integers (what the sensor delivers) or finite
                floats. Any N; every picture is computed on its own, whatever batch the file was made for.
            keep: names among `tensors`.

        Raises InputError for unfitting inputs and names, and for values the reference refuses (a division by
        zero), naming the node.
        """
        wanted = list(dict.fromkeys([*self.outputs, *keep]))
        self._check(inputs, wanted)
        count = len(next(iter(inputs.values())))
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
        for start in range(0, count, CHUNK):
            chunk = {name: np.asarray(array)[start : start + CHUNK] for name, array in inputs.items()}
            for name, array in self._run(chunk, wanted).items():
                parts[name].append(array)
        return {name: self._tensor(name, arrays) for name, arrays in parts.items()}

    def _tensor(self, name: str, arrays: Sequence[NDArray[Any]]) -> IntegerTensor:
        grid = self._grids[name]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if grid == INDEX:
            return IntegerTensor(whole.astype(np.int64, copy=False), 0, True, 64)
        return IntegerTensor(whole, grid.exponent, grid.signed, grid.bits)

    def _run(self, inputs: Mapping[str, NDArray[Any]], wanted: Collection[str]) -> dict[str, NDArray[Any]]:
        values: dict[str, NDArray[Any]] = dict(inputs)
        for number, block in enumerate(self._blocks):
            if isinstance(block, _Block):
                asked = block.outputs | (frozenset(wanted) & frozenset(block.program.images))
                values.update(block.program.run(values, asked - frozenset(values), self.threads))
            else:
                values[block.output] = block.run(values)
            for name in block.inputs:
                if self._last_reader[name] == number and name not in wanted:
                    values.pop(name, None)  # a sum may read one tensor twice
        return {name: values[name] for name in wanted}

    def _check(self, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str]) -> None:
        unknown = sorted(set(wanted) - set(self._grids))
        if unknown:
            raise InputError(
                "simulator",
                f"no tensor of integers is named {unknown[0]!r}",
                "names of quantized tensors of the graph",
                "correct the name",
            )
        if set(inputs) != set(self.inputs):
            raise InputError(
                "simulator inputs",
                f"{sorted(inputs)}",
                f"the graph's {sorted(self.inputs)}",
                "give each input once",
            )
        counts = {len(array) if np.ndim(array) else 0 for array in inputs.values()}
        for value in self._graph.inputs:
            name = value.name or ""
            array, shape = np.asarray(inputs[name]), None if value.shape is None else tuple(value.shape)
            sizes = zip((shape or ())[1:], array.shape[1:], strict=False)
            fits = shape is None or len(shape) == array.ndim
            fits = fits and all(size == given for size, given in sizes if isinstance(size, int))
            if not fits or not array.shape:
                raise InputError(
                    f"simulator input {name}",
                    f"shape {array.shape}",
                    f"[{', '.join(['N', *map(str, (shape or ('N', '...'))[1:])])}]",
                    "resize the picture",
                )
            integers = np.issubdtype(array.dtype, np.integer)
            if not integers and not (np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
                raise InputError(
                    f"simulator input {name}",
                    f"dtype {array.dtype}, or values that are not finite",
                    "integers or finite floats",
                    "convert the picture",
                )
        if len(counts) != 1 or 0 in counts:
            raise InputError(
                "simulator inputs",
                f"{sorted(counts)} pictures",
                "the same number for every input, at least one",
                "give as many of each",
            )


def compile_program(
    model: ir.Model,
    *,
    numerics: Numerics = DIALECT,
    threads: int | None = None,
    variant: Variant = "native",
    graph: Segmented | None = None,
) -> Program:
    """Compile a vendor-dialect graph.

    Args:
        model: quantized graph (mct_quantizers nodes), opset 13 or later, one picture per batch entry.
        numerics: the file's exact meaning, or the compiled file's numbers (`compiler.simulator.numerics`).
        threads: of the kernels; None for all cores this process may use.
        variant: of the kernels; all compute the same integers.
        graph: `segment(model)`, where one model is compiled for several numerics; None cuts it here.

    Raises InputError, naming the node, for whatever the simulator does not execute, before the first picture
    (under `imx500` also for layers whose numbers in the compiled file are not known);
    EnvironmentFault where the kernels cannot be built.
    """
    graph = segment(model) if graph is None else graph
    lowered = lower(graph, model, numerics)
    used = len(os.sched_getaffinity(0)) if threads is None else threads
    program = Program(
        graph, _blocks(lowered.steps, graph, variant), lowered.steps, lowered.in_reference, used
    )
    if lowered.in_reference:
        _try(program, graph)
    return program


def _blocks(steps: Sequence[Step], graph: Segmented, variant: Variant) -> list[_Block | ArrayStep]:
    """Native steps that follow each other as one block; array steps one by one."""
    blocks: list[_Block | ArrayStep] = []
    native: list[NativeStep] = []
    outputs = {value.name or "" for value in graph.outputs}

    def close(later: Sequence[Step]) -> None:
        if not native:
            return
        made = {step.output.name for step in native}
        read = {name for step in later for name in _reads(step)}
        blocks.append(_Block(NativeProgram(native, variant), frozenset(made & (read | outputs))))
        native.clear()

    for number, step in enumerate(steps):
        if isinstance(step, NativeStep):
            native.append(step)
        else:
            close(steps[number:])
            blocks.append(step)
    close(())
    return blocks


def _reads(step: Step) -> tuple[str, ...]:
    return tuple(image.name for image in step.inputs) if isinstance(step, NativeStep) else step.inputs


def _try(program: Program, graph: Segmented) -> None:
    """Run one picture, so that what the reference refuses is refused now.

    What depends on the picture's values (a divisor that is zero in it, a root of a negative number, a
    rounding that stays undecided) is left to the pictures themselves.
    """
    shapes = [graph.shapes.get(name) for name in program.inputs]
    if any(shape is None for shape in shapes):
        return
    numbers = np.random.default_rng(0)
    picture = {
        name: numbers.integers(0, 128, shape)
        for name, shape in zip(program.inputs, shapes, strict=True)
        if shape is not None
    }
    try:
        program.run(picture)
    except InputError as error:
        if not isinstance(error.__cause__, ZeroDivisionError | NegativeRootError | UnsettledError):
            raise
