"""Steps of a program that run on whole arrays: tables, movement, functions of accumulators, exact segments.

Each takes integer arrays [N, ...] by tensor name and returns the array of its output. They are exact: a table
is filled by the reference, movement is an index array that the reference made, and what float64 cannot decide
is decided by the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.chip.additions import add_fused
from compiler.chip.layer import ChipLayer, requantize, round_shift
from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import UnsettledError
from compiler.simulator.fixedpoint import FixedPoint, Grid
from compiler.simulator.node import AnyValue, Call, execute, refusal
from compiler.simulator.reference import PRECISIONS
from compiler.simulator.requantization import Affine, Rounding
from compiler.simulator.segments import INDEX, Segment, exact_integers

Integers = NDArray[Any]

FLOAT64_INTEGERS = 1 << 53
"""Below this every integer is a float64."""

_NEAR_TIE = 2.0**-30
"""Float64 results nearer to a tie than this, in output steps beyond their own error bound, are settled
exactly."""


def storage(grid: Grid) -> np.dtype[Any]:
    """int64 for indices, else the smallest integer type that holds the grid: int8, uint8, int16 or uint16."""
    if grid == INDEX:
        return np.dtype(np.int64)
    return np.dtype(f"{'i' if grid.signed else 'u'}{1 if grid.bits <= 8 else 2}")


def run_nodes(
    nodes: Sequence[ir.Node],
    given: Mapping[ir.Value, AnyValue],
    output: ir.Value,
    precisions: Sequence[int] = PRECISIONS,
) -> AnyValue:
    """Execute nodes in exact arithmetic, with more precision until every rounding is settled.

    Raises InputError, naming the node, for what is refused or never settled.
    """
    last, cause = nodes[-1], UnsettledError()
    for precision in precisions:
        values = dict(given)
        try:
            for node in nodes:
                last = node
                call = Call(node, [None if v is None else values[v] for v in node.inputs], precision)
                values.update(zip(node.outputs, execute(call), strict=False))
            return values[output]
        except UnsettledError as error:
            cause = error
    raise refusal(
        last,
        f"a rounding is not settled with {precisions[-1]} bits: the exact value is a tie or a zero divisor",
        "values whose rounding can be decided",
        "insert a quantizer before the operators that feed this one",
    ) from cause


@dataclass(frozen=True, eq=False)
class Quantize:
    """A graph input onto its grid: exact, because dividing a float by a power of two is."""

    inputs: tuple[str, ...]
    output: str
    grid: Grid

    def run(self, values: Mapping[str, Integers]) -> Integers:
        given = values[self.inputs[0]]
        low, high = self.grid.lowest, self.grid.highest
        if np.issubdtype(given.dtype, np.integer):
            if self.grid.exponent == 0:
                return np.clip(given, low, high).astype(storage(self.grid))
            if fp.magnitude(given) >= FLOAT64_INTEGERS:
                exact = fp.quantize(fp.from_integers(given), fp.power_of_two(self.grid.exponent), low, high)
                return exact.astype(storage(self.grid))
        scaled = np.ldexp(given.astype(np.float64), -self.grid.exponent)
        return np.clip(np.rint(scaled), low, high).astype(storage(self.grid))


@dataclass(frozen=True, eq=False)
class Gather:
    """Elements moved, with a table for each source: out[p] = table of the source[element that comes to p].

    Attributes:
        tables: for each input the outputs of its lowest .. highest integer.
        lowest: of each input.
        fixed: outputs that come from no input: of zero padding, then of constants that are concatenated.
        index: for each element of the output (one picture, flat) its place in `fixed` and the inputs laid one
            after the other.
        shape: of the output without the batch.
    """

    inputs: tuple[str, ...]
    output: str
    tables: tuple[Integers, ...]
    lowest: tuple[int, ...]
    fixed: Integers
    index: NDArray[np.int64]
    shape: tuple[int, ...]

    def run(self, values: Mapping[str, Integers]) -> Integers:
        sources = [values[name] for name in self.inputs]
        count = len(sources[0])
        parts = [np.broadcast_to(self.fixed, (count, self.fixed.size))]
        for source, table, lowest in zip(sources, self.tables, self.lowest, strict=True):
            parts.append(table[source.reshape(count, -1).astype(np.int64) - lowest])
        return np.take(np.concatenate(parts, axis=1), self.index, axis=1).reshape(count, *self.shape)


@dataclass(frozen=True, eq=False)
class PairTable:
    """An elementwise function of two 8-bit tensors (broadcast): one entry for every pair of integers."""

    inputs: tuple[str, str]
    output: str
    table: Integers
    lowest: tuple[int, int]

    def run(self, values: Mapping[str, Integers]) -> Integers:
        first, second = (
            values[name].astype(np.int64) - lowest
            for name, lowest in zip(self.inputs, self.lowest, strict=True)
        )
        rank = max(first.ndim, second.ndim)
        first, second = (
            v.reshape(v.shape[:1] + (1,) * (rank - v.ndim) + v.shape[1:]) for v in (first, second)
        )
        return np.asarray(self.table[first, second])


@dataclass(frozen=True, eq=False)
class ShiftedPair:
    """Sum, difference, product, maximum or minimum of two tensors (broadcast, of one rank), in int64.

    Attributes:
        function: np.add, np.subtract, np.multiply, np.maximum or np.minimum.
        shift: left shifts of both, right shift of the result, which is then rounded and saturated.
    """

    inputs: tuple[str, str]
    output: str
    grid: Grid
    function: np.ufunc
    shift: tuple[int, int, int]
    low: int
    high: int
    rounding: Rounding

    def run(self, values: Mapping[str, Integers]) -> Integers:
        first, second = (values[name].astype(np.int64) for name in self.inputs)
        result = self.function(first << self.shift[0], second << self.shift[1])
        rounded = round_shift(result, np.int64(self.shift[2]), self.rounding)
        return np.clip(rounded, self.low, self.high).astype(storage(self.grid))


@dataclass(frozen=True, eq=False)
class FusedAddition:
    """A convolution's result, not rounded, plus a stored tensor: what the chip does for such a pair.

    Attributes:
        inputs: the accumulators of the convolution, int32 [N, C, H, W], and the stored tensor.
        low, high: saturation of the sum (its grid, or above 0 behind a ReLU).
    """

    inputs: tuple[str, str]
    output: str
    layer: ChipLayer
    stored: Grid
    grid: Grid
    low: int
    high: int
    rounding: Rounding
    saturate: bool

    def run(self, values: Mapping[str, Integers]) -> Integers:
        accumulators, stored = (values[name].astype(np.int64) for name in self.inputs)
        total = add_fused(
            accumulators, self.layer, stored, self.stored, self.grid, self.rounding, saturate=self.saturate
        )
        return np.clip(total, self.low, self.high).astype(storage(self.grid))


@dataclass(frozen=True, eq=False)
class Requantize:
    """Accumulators, int32 [N, C, H, W], as integers of more than 8 bits, by the compiled file's numbers.

    On the chip such a tensor is not stored: it goes into the addition that the convolution is fused with.
    """

    inputs: tuple[str]
    output: str
    layer: ChipLayer
    rounding: Rounding

    def run(self, values: Mapping[str, Integers]) -> Integers:
        integers = requantize(values[self.inputs[0]].astype(np.int64), self.layer, self.rounding)
        return integers.astype(storage(self.layer.output_grid))


@dataclass(frozen=True, eq=False)
class Finish:
    """The function behind a convolution, of its exact accumulators, or of a tensor of integers.

    Float64 with an error bound decides nearly all; elements near a tie are settled by the reference.

    Attributes:
        inputs: the integers, [N, C, ...]: int32 accumulators, or a quantized tensor.
        affine: integer -> real number of `source`, per channel.
        nodes: from `source` (the convolution's output, the quantized tensor) to the quantizer, elementwise.
    """

    inputs: tuple[str, ...]
    output: str
    affine: Affine
    nodes: tuple[ir.Node, ...]
    source: ir.Value
    constants: Mapping[ir.Value, AnyValue]
    grid: Grid

    def run(self, values: Mapping[str, Integers]) -> Integers:
        accumulators = values[self.inputs[0]]
        channels = accumulators.shape[1]
        result = np.empty(accumulators.shape, dtype=storage(self.grid))
        for c in range(channels):
            result[:, c] = self._channel(accumulators[:, c], c)
        return result

    def _channel(self, accumulators: Integers, channel: int) -> Integers:
        distinct, where = np.unique(accumulators, return_inverse=True)
        gain, offset = int(self.affine.gain[channel]), int(self.affine.offset[channel])
        slope, start = gain / self.affine.divisor, offset / self.affine.divisor
        real = distinct * slope + start
        error = 4 * _ULP * (np.abs(distinct * slope) + abs(start))
        env: dict[ir.Value, _Approximate] = {self.source: (real, error)}
        for node in self.nodes[:-1]:
            arguments = [None if v is None else env.get(v) or _number(self.constants[v]) for v in node.inputs]
            env[node.outputs[0]] = APPROXIMATIONS[node.op_type](node, arguments)
        value, error = env[self.nodes[-1].inputs[0]]  # type: ignore[index]
        scaled, error = np.ldexp(value, -self.grid.exponent), np.ldexp(error, -self.grid.exponent)
        nearest = np.rint(scaled)
        doubtful = 0.5 - np.abs(scaled - nearest) <= error + _NEAR_TIE
        inside = (scaled + error > self.grid.lowest - 1) & (scaled - error < self.grid.highest + 1)
        integers = np.clip(nearest, self.grid.lowest, self.grid.highest).astype(np.int64)
        asked = np.flatnonzero(doubtful & inside | ~np.isfinite(scaled + error))
        if asked.size:
            exact = fp.add(
                fp.multiply(
                    FixedPoint(distinct[asked].astype(object)), FixedPoint(np.array(gain, dtype=object))
                ),
                FixedPoint(np.array(offset, dtype=object)),
            )
            exact = fp.multiply_by(exact, Fraction(1, self.affine.divisor))
            settled = run_nodes(self.nodes, {**self.constants, self.source: exact}, self.nodes[-1].outputs[0])
            integers[asked] = settled.mantissa  # type: ignore[union-attr]
        return np.asarray(integers[where.reshape(-1)].reshape(accumulators.shape))


@dataclass(frozen=True, eq=False)
class Exact:
    """A segment in the exact reference, picture by picture (shapes in the file are those of one picture)."""

    inputs: tuple[str, ...]
    output: str
    segment: Segment
    grids: Mapping[str, Grid | None]
    constants: Mapping[ir.Value, AnyValue]

    def run(self, values: Mapping[str, Integers]) -> Integers:
        count = len(values[self.inputs[0]])
        results = [self._one({name: values[name][n : n + 1] for name in self.inputs}) for n in range(count)]
        return np.concatenate(results).astype(storage(self.segment.grid), copy=False)

    def _one(self, arrays: Mapping[str, Integers]) -> Integers:
        given: dict[ir.Value, AnyValue] = dict(self.constants)
        for value in self.segment.inputs:
            name = value.name or ""
            array, grid = arrays[name], self.grids[name]
            if grid is None:
                integer = np.issubdtype(array.dtype, np.integer)
                given[value] = fp.from_integers(array) if integer else fp.from_floats(array)
            elif grid == INDEX:
                given[value] = array
            else:
                given[value] = exact_integers(array, grid)
        result = run_nodes(self.segment.nodes, given, self.segment.output)
        return np.asarray(
            result if isinstance(result, np.ndarray) else result.mantissa  # type: ignore[union-attr]
        )


ArrayStep = Quantize | Gather | PairTable | ShiftedPair | FusedAddition | Requantize | Finish | Exact

# Float64 with error bounds -------------------------------------------------------------------------------

_Approximate = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values and bounds of their absolute errors."""

_ULP = 2.0**-52

_FUNCTION_ULPS = 16
"""Allowance for the C library's exp and tanh, which state errors below 1 unit in the last place."""


def _number(value: AnyValue) -> _Approximate:
    if not isinstance(value, FixedPoint) or value.mantissa.size != 1:
        raise TypeError("a scalar constant")
    number = float(value.to_fractions().reshape(-1)[0])
    return np.array(number), np.array(abs(number) * _ULP)


def _rounded(value: Any, error: Any) -> _Approximate:
    return np.asarray(value), np.asarray(error + 2 * _ULP * np.abs(value))


def _add(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    (a, ea), (b, eb) = arguments
    return _rounded(a + b, ea + eb)


def _subtract(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    (a, ea), (b, eb) = arguments
    return _rounded(a - b, ea + eb)


def _multiply(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    (a, ea), (b, eb) = arguments
    return _rounded(a * b, np.abs(a) * eb + np.abs(b) * ea + ea * eb)


def _relu(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    return np.maximum(value, 0.0), error


def _clip(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    if len(arguments) > 1 and arguments[1] is not None:
        value, error = np.maximum(value, arguments[1][0]), error + arguments[1][1]
    if len(arguments) > 2 and arguments[2] is not None:
        value, error = np.minimum(value, arguments[2][0]), error + arguments[2][1]
    return value, error


def _leaky_relu(node: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    attribute = node.attributes.get("alpha")
    alpha = 0.01 if attribute is None else attribute.as_float()
    return _rounded(np.where(value >= 0, value, alpha * value), max(1.0, abs(alpha)) * error)


def _unit_ramp(value: Any, error: Any, slope: float, offset: float) -> _Approximate:
    ramp, bound = _rounded(
        value * slope + offset, abs(slope) * error + 2 * _ULP * (np.abs(value * slope) + 1)
    )
    return np.clip(ramp, 0.0, 1.0), bound


def _hard_sigmoid(node: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
    slope = float(np.float32(0.2)) if alpha is None else alpha.as_float()
    return _unit_ramp(value, error, slope, 0.5 if beta is None else beta.as_float())


def _hard_swish(node: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    return _multiply(node, [(value, error), _unit_ramp(value, error, 1 / 6, 0.5)])


def _sigmoid(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    with np.errstate(over="ignore"):
        result = 1.0 / (1.0 + np.exp(-value))
    return result, 0.25 * error + _FUNCTION_ULPS * _ULP * (1.0 + np.abs(value))


def _tanh(_: ir.Node, arguments: Sequence[Any]) -> _Approximate:
    value, error = arguments[0]
    return np.tanh(value), np.asarray(error + _FUNCTION_ULPS * _ULP)


APPROXIMATIONS: dict[str, Callable[[ir.Node, Sequence[Any]], _Approximate]] = {
    "Add": _add,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": lambda _, arguments: arguments[0],
    "LeakyRelu": _leaky_relu,
    "Mul": _multiply,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Sub": _subtract,
    "Tanh": _tanh,
}
"""Elementwise operators that may stand between a convolution and its quantizer."""
