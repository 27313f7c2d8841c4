"""The slow, obviously right simulator: one ONNX node after the other, in exact arithmetic.

docs/numerics.md is its specification; every faster simulator has to equal it on every integer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.simulator import fixedpoint as fp
from compiler.simulator import linear, movement, pointwise, quantizers, spatial
from compiler.simulator.enclosures import UnsettledError
from compiler.simulator.fixedpoint import FixedPoint, Grid
from compiler.simulator.node import AnyValue, Call, execute, refusal
from passes.errors import InputError
from passes.graph import QUANTIZER_DOMAIN, STANDARD_DOMAINS, real_inputs

OPERATOR_MODULES = (linear, movement, pointwise, quantizers, spatial)
"""The modules whose import fills the table of operators."""

PRECISIONS = (64, 128, 256, 512, 1024)
"""Bits after the binary point for irrational values, tried in this order until every rounding is settled."""

MIN_OPSET = 13
"""Older opsets give Softmax and the axes of reductions another meaning."""


@dataclass(frozen=True, eq=False)
class IntegerTensor:
    """The integers a quantizer wrote: real value = values * 2**exponent.

    Attributes:
        values: int8 or uint8 for up to 8 bits, int16 or uint16 up to 16, int64 for indices (ArgMax, TopK).
        exponent: the quantizer's step is 2**exponent.
        signed, bits: the range is -2**(bits-1) .. 2**(bits-1)-1, or 0 .. 2**bits-1.
    """

    values: NDArray[Any]
    exponent: int
    signed: bool
    bits: int

    @property
    def step(self) -> Fraction:
        return fp.power_of_two(self.exponent)

    def real(self) -> NDArray[np.float64]:
        """The exact real values: integers of at most 16 bits times a power of two are float64 numbers."""
        return np.ldexp(self.values.astype(np.float64), self.exponent)


def quantized_values(model: ir.Model) -> tuple[str, ...]:
    """Names of the outputs of all activation quantizers, in graph order."""
    return tuple(
        output.name
        for node in model.graph
        if node.domain == QUANTIZER_DOMAIN and node.op_type.startswith("Activation")
        for output in node.outputs
        if output.name
    )


def run_reference(
    model: ir.Model, inputs: Mapping[str, NDArray[Any]], keep: Collection[str] = ()
) -> dict[str, IntegerTensor]:
    """Execute a vendor-dialect model exactly.

    Args:
        model: quantized graph (mct_quantizers nodes), opset 13 or later.
        inputs: one array per graph input, [N, ...]: integers (what the sensor delivers) or finite floats,
            both taken as the exact numbers they are; the graph's first quantizer quantizes them.
        keep: names of further quantized tensors to return, see `quantized_values`.

    Returns the graph's outputs and the kept tensors by name. Raises InputError, naming the node, for
    whatever is not simulated exactly, for an output that no quantizer made, and for unfitting inputs.
    """
    given = _inputs(model, inputs)
    wanted = dict.fromkeys([*(value.name or "" for value in model.graph.outputs), *keep])
    unknown = sorted(set(wanted) - {out.name for node in model.graph for out in node.outputs} - set(given))
    if unknown:
        raise InputError(
            "simulator",
            f"no tensor is named {unknown[0]!r}",
            "names of the graph's values",
            "correct the name",
        )
    for precision in PRECISIONS:
        try:
            return _run(model, given, list(wanted), precision)
        except _UnsettledNodeError as error:
            last = error
    raise refusal(
        last.node,
        f"a rounding is not settled with {PRECISIONS[-1]} bits: the exact value is a tie or a zero divisor",
        "values whose rounding can be decided",
        "insert a quantizer before the operators that feed this one",
    )


class _UnsettledNodeError(Exception):
    def __init__(self, node: ir.Node) -> None:
        super().__init__(node.name)
        self.node = node


def _run(
    model: ir.Model, given: Mapping[str, AnyValue], wanted: list[str], precision: int
) -> dict[str, IntegerTensor]:
    """One pass over the graph at one working precision; values are dropped after their last use."""
    values: dict[ir.Value, AnyValue] = {value: given[value.name or ""] for value in real_inputs(model.graph)}
    for initializer in model.graph.initializers.values():
        values[initializer] = initializer_value(initializer)
    uses = {value: len(value.uses()) for value in values}
    results: dict[str, IntegerTensor] = {}
    for value in list(values):
        if value.name in wanted:
            results[value.name] = _integer_tensor(value, values[value])
    for node in model.graph:
        call = Call(node, [None if v is None else values[v] for v in node.inputs], precision)
        try:
            outputs = execute(call)
        except UnsettledError as error:
            raise _UnsettledNodeError(node) from error
        for value, output in zip(node.outputs, outputs, strict=False):
            values[value] = output
            uses[value] = len(value.uses())
            if value.name in wanted:
                results[value.name] = _integer_tensor(value, output)
        for used in node.inputs:
            if used is not None:
                uses[used] -= 1
                if uses[used] == 0:
                    del values[used]
    return {name: results[name] for name in wanted}


def initializer_value(value: ir.Value) -> AnyValue:
    """An initializer as the exact constant it is. Raises InputError where it has no finite data."""
    tensor = value.const_value
    if tensor is None:
        raise InputError(
            f"weight {value.name}", "has no data", "a model with its weights", "export the model again"
        )
    try:
        return movement.constant_value(np.asarray(tensor.numpy()))
    except ValueError as error:
        raise InputError(
            f"weight {value.name}", f"{error}", "finite numbers", "train or export the model again"
        ) from error


def _inputs(model: ir.Model, inputs: Mapping[str, NDArray[Any]]) -> dict[str, AnyValue]:
    """The inputs as exact tensors, checked against the graph's names and shapes."""
    opset = next((v for d, v in model.graph.opset_imports.items() if d in STANDARD_DOMAINS), 0)
    if opset < MIN_OPSET:
        raise InputError("simulator", f"ONNX opset {opset}", f"{MIN_OPSET} or later", "export a newer opset")
    expected = {value.name or "": value for value in real_inputs(model.graph)}
    if set(inputs) != set(expected):
        raise InputError(
            "simulator inputs", f"{sorted(inputs)}", f"the graph's {sorted(expected)}", "give each input once"
        )
    given: dict[str, AnyValue] = {}
    for name, value in expected.items():
        array = np.asarray(inputs[name])
        dimensions = [] if value.shape is None else list(value.shape)
        fits = value.shape is None or (
            len(dimensions) == array.ndim
            and all(not isinstance(d, int) or d == n for d, n in zip(dimensions, array.shape, strict=True))
        )
        if not fits:
            raise InputError(
                f"simulator input {name}", f"shape {array.shape}", f"{value.shape}", "resize the picture"
            )
        if np.issubdtype(array.dtype, np.integer):
            given[name] = fp.from_integers(array)
        elif np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all():
            given[name] = fp.from_floats(array)
        else:
            raise InputError(
                f"simulator input {name}",
                f"dtype {array.dtype}, or values that are not finite",
                "integers or finite floats",
                "convert the picture",
            )
    return given


def _integer_tensor(value: ir.Value, result: AnyValue) -> IntegerTensor:
    """The integers of a tensor that a quantizer made, perhaps moved since; indices as they are."""
    if isinstance(result, np.ndarray) and np.issubdtype(result.dtype, np.integer):
        return IntegerTensor(result.astype(np.int64), 0, True, 64)
    if isinstance(result, FixedPoint) and result.grid is not None:
        grid = result.grid
        return IntegerTensor(result.mantissa.astype(_storage(grid)), grid.exponent, grid.signed, grid.bits)
    raise InputError(
        f"tensor {value.name}",
        "its values are not on a quantizer's grid",
        "an activation quantizer, or operators that only move its integers, before each tensor that is read",
        "insert an activation quantizer",
    )


def _storage(grid: Grid) -> np.dtype[Any]:
    width = 1 if grid.bits <= 8 else 2
    return np.dtype(f"{'i' if grid.signed else 'u'}{width}")
