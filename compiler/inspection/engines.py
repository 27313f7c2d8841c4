"""The simulator's engines under one signature: integers by tensor name, for a batch of any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.simulator.numerics import DIALECT, Imx500, Numerics
from compiler.simulator.reference import IntegerTensor, run_reference
from passes.errors import InputError

Engine = Callable[[Mapping[str, NDArray[Any]], Collection[str]], dict[str, IntegerTensor]]
"""Inputs [N, ...] by name, and further tensors to keep, to integers by name; `run_reference` defines them."""


def reference_engine(model: ir.Model) -> Engine:
    """The exact reference, one picture after the other: seconds a picture, and beyond doubt."""

    def run(inputs: Mapping[str, NDArray[Any]], keep: Collection[str] = ()) -> dict[str, IntegerTensor]:
        count = len(next(iter(inputs.values())))
        parts = [
            run_reference(model, {name: values[index : index + 1] for name, values in inputs.items()}, keep)
            for index in range(count)
        ]
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}

    return run


def fast_engine(model: ir.Model, numerics: Numerics = DIALECT) -> Engine:
    """The compiled integer program: fast, in `dialect` with the reference's integers.

    Raises InputError for what it cannot run, under `imx500` also for layers whose numbers in the compiled
    file are not known.
    """
    from compiler.simulator.engine import compile_program

    program = compile_program(model, numerics=numerics)
    return lambda inputs, keep: program.run(inputs, keep)


ENGINES: dict[str, Callable[[ir.Model], Engine]] = {
    "fast": fast_engine,
    "imx500": partial(fast_engine, numerics=Imx500()),
    "reference": reference_engine,
}
"""By name; `fast` and `reference` compute the same integers."""


def numerics_of(engine: str) -> str:
    """What an engine computes: `dialect` or `imx500` (docs/numerics.md)."""
    return "imx500" if engine == "imx500" else "dialect"


def open_engine(name: str, model: ir.Model) -> Engine:
    """Raises InputError for another name, and for a graph that the engine refuses."""
    if name not in ENGINES:
        raise InputError("--engine", repr(name), f"one of {', '.join(ENGINES)}", "correct the name")
    return ENGINES[name](model)


def _joined(parts: list[IntegerTensor]) -> IntegerTensor:
    first = parts[0]
    values = np.concatenate([part.values for part in parts])
    return IntegerTensor(values, first.exponent, first.signed, first.bits)
