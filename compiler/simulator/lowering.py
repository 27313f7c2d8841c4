"""From segments to steps: each tensor of integers by the fastest means that is proved exact.

1. Convolutions and linear layers become an integer accumulation in a compiled kernel and a requantization,
   fused with ReLU and Clip; other functions behind them are computed from the exact accumulators.
2. Sums of two tensors with power-of-two steps are shifts.
3. What only moves integers is an index array, in a kernel where it keeps channels and is separable.
4. Elementwise functions of one or two 8-bit tensors are tables that the reference fills.
5. 16-bit tensors: sums, differences, products, maxima and minima of two are integers and shifts; functions of
   one are computed in float64 with an error bound, as behind a convolution.
6. Everything else runs in the reference itself, picture by picture: slow, and the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.chip.additions import fused_convolution
from compiler.chip.constants import ChipConstants, chip_layer_constants, layer_name
from compiler.chip.layer import ChipLayer, round_shift
from compiler.simulator import fixedpoint as fp
from compiler.simulator import quantizers
from compiler.simulator.array_steps import (
    APPROXIMATIONS,
    ArrayStep,
    Exact,
    Finish,
    FusedAddition,
    Gather,
    PairTable,
    Quantize,
    Requantize,
    ShiftedPair,
    run_nodes,
    storage,
)
from compiler.simulator.fixedpoint import FixedPoint, Grid
from compiler.simulator.native_steps import Image, Kind, NativeStep, Window
from compiler.simulator.node import AnyValue, Call, ScaledWeights, refusal
from compiler.simulator.numerics import DIALECT, Imx500, Numerics
from compiler.simulator.reference import PRECISIONS
from compiler.simulator.requantization import INT32, Affine, Requantization, Rounding, requantization
from compiler.simulator.segments import (
    INDEX,
    MOVES,
    Segment,
    Segmented,
    moves_only,
)
from passes.errors import InputError
from passes.graph import is_activation_quantizer

Step = NativeStep | ArrayStep

# fmt: off
ELEMENTWISE = frozenset({
    "Abs", "Add", "Clip", "Div", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh",
})
# fmt: on
"""Operators whose output element depends on the same element of each input only."""

CLAMPS = frozenset({"Relu", "Clip", "Identity"})

SELECTIONS = MOVES | {"ArgMax", "MaxPool", "ReduceMax", "TopK"}
"""Operators whose results are integers of their input."""

TABLE_PRECISIONS = PRECISIONS[:2]
"""A table that these do not settle is left to the reference, which may never meet the entry in question."""

MAX_SHIFT = 16
"""Left shifts up to this keep a sum of two bytes far inside int32."""

WIDE_SHIFT = 30
"""Left shifts up to this keep a product of two 16-bit numbers inside int64."""

MAX_KERNEL = 64
"""Taps per axis that the kernels hold offsets for."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """The steps in order, and where the exact reference had to be taken: (tensor, operators)."""

    steps: tuple[Step, ...]
    in_reference: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class _Chip:
    """The integers of the compiled file and what it leaves open."""

    numerics: Imx500
    constants: ChipConstants


@dataclass(frozen=True, eq=False)
class _Context:
    graph: Segmented
    segment: Segment
    chip: _Chip | None

    @property
    def name(self) -> str:
        return self.segment.output.name or ""

    @property
    def grid(self) -> Grid:
        return self.segment.grid

    def image(self, value: ir.Value) -> Image | None:
        """The tensor as the kernels hold it; None where they cannot."""
        grid, shape = self.graph.grids.get(value), self.graph.shapes.get(value.name or "")
        if grid is None or grid.bits > 8 or shape is None or len(shape) not in (2, 4) or shape[0] != 1:
            return None
        return Image(value.name or "", shape[1:], grid) if min(shape) > 0 else None

    def constant(self, value: ir.Value | None) -> AnyValue | None:
        return None if value is None else self.graph.constants.get(value)


def lower(graph: Segmented, model: ir.Model, numerics: Numerics = DIALECT) -> Lowered:
    """Steps for every segment.

    Raises InputError, naming the node, for what the reference refuses too, and under `imx500` for layers
    whose numbers in the compiled file are not known.
    """
    chip = _Chip(numerics, chip_layer_constants(model)) if isinstance(numerics, Imx500) else None
    ways = _DIALECT_WAYS if chip is None else _CHIP_WAYS
    steps: list[Step] = []
    in_reference: list[tuple[str, str]] = []
    for segment in graph.segments:
        context = _Context(graph, segment, chip)
        made = next((found for way in ways if (found := way(context)) is not None), None)
        if made is None:
            if chip is not None:
                _require_selection(segment)
            made = [_exact(context)]
            operators = [node.op_type for node in segment.nodes if not is_activation_quantizer(node)]
            in_reference.append((context.name, ", ".join(operators)))
        steps += made
    return Lowered(tuple(steps), tuple(in_reference))


def _require_selection(segment: Segment) -> None:
    """Under `imx500`: operators that select integers are the same on every hardware, others are not known."""
    for node in segment.nodes:
        if node.op_type not in SELECTIONS:
            raise _not_decoded(node, "how the chip computes it was not found in compiled files")


def _not_decoded(node: ir.Node, why: str) -> InputError:
    return refusal(
        node, f"numerics imx500: {why}", "layers listed in docs/numerics.md", "use the numerics `dialect`"
    )


def _input(context: _Context) -> list[Step] | None:
    """A graph input that is quantized at once."""
    segment = context.segment
    if len(segment.nodes) == 1 and is_activation_quantizer(segment.nodes[0]):
        (source,) = segment.inputs
        if source in context.graph.inputs:
            return [Quantize((source.name or "",), context.name, context.grid)]
    return None


def _exact(context: _Context) -> Step:
    segment = context.segment
    names = tuple(value.name or "" for value in segment.inputs)
    grids = {value.name or "": context.graph.grids.get(value) for value in segment.inputs}
    return Exact(names, context.name, segment, grids, context.graph.constants)


# Convolutions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Accumulation:
    """A convolution up to its accumulators: the kernel step still without an output.

    Attributes:
        before: what spreads the pixels of a transposed convolution.
        real: acc -> real number of the convolution's output.
        shape: of the output without the batch.
        largest: bound of |acc|.
    """

    before: tuple[NativeStep, ...]
    data: Image
    layer: _Layer
    weights: NDArray[np.int8]
    real: Affine
    shape: tuple[int, ...]
    largest: int

    def to(self, output: Image, requantized: Requantization | None) -> NativeStep:
        layer = self.layer
        return NativeStep(
            layer.kind, (self.data,), output, layer.window, layer.groups, self.weights, requantized
        )


def _accumulation(context: _Context, node: ir.Node) -> _Accumulation | None:
    source = node.inputs[0]
    image = None if source is None or source not in context.graph.grids else context.image(source)
    shape = context.graph.shapes.get(node.outputs[0].name or "")
    if image is None or shape is None or len(shape) not in (2, 4) or min(shape) < 1:
        return None
    call = Call(node, [None, *(context.constant(value) for value in node.inputs[1:])], 64)
    layer = _GEOMETRY[node.op_type](call, image) if call.has(1) else None  # else two activations
    if layer is None:
        return None
    if fp.magnitude(layer.weights.integers) > 128 or int(layer.weights.integers.max(initial=0)) > 127:
        return None  # float weights without a quantizer
    weights = layer.weights.integers.astype(np.int8)
    largest = _largest_sum(weights)
    if largest >= INT32 // 2:
        return None
    bias = call.exact(2) if call.has(2) else None
    if bias is not None and bias.shape not in ((), (1,), (len(weights),), (1, len(weights))):
        return None  # broadcast to another shape, or refused by the reference
    real = _affine(layer.weights, image.grid, bias)
    prepared = layer.before(image, context.name)
    before = () if prepared is None else (prepared,)
    data = image if prepared is None else prepared.output
    return _Accumulation(before, data, layer, weights, real, shape[1:], largest)


def _largest_sum(weights: NDArray[np.int8]) -> int:
    """A bound of |acc| for 8-bit inputs."""
    sums = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1)
    return 255 * int(sums.max(initial=0))


def _convolution(context: _Context) -> list[Step] | None:
    nodes = context.segment.nodes
    if nodes[0].op_type not in _GEOMETRY or not is_activation_quantizer(nodes[-1]):
        return None
    if len(context.segment.inputs) != 1:
        return None
    sums, rest = _accumulation(context, nodes[0]), nodes[1:-1]
    if sums is None or not _scalar_constants(context, rest, len(sums.shape) + 1):
        return None
    made = {output for node in nodes for output in node.outputs}
    if not all(v is None or v in made or v in context.graph.constants for node in rest for v in node.inputs):
        return None  # a function of the convolution's input too
    if all(other.op_type in CLAMPS for other in rest) and context.grid.bits <= 8:
        output = Image(context.name, sums.shape, context.grid)
        limits = _clamped(context, rest)
        if limits is not None:
            steps = _in_steps(sums.real, context.grid)
            requantized = requantization(steps, *limits, output.zero, sums.largest)
            if requantized is not None:
                return [*sums.before, sums.to(output, requantized)]
    if all(other.op_type in APPROXIMATIONS for other in rest):
        raw = Image(f"{context.name} accumulators", sums.shape, context.grid)
        finish = Finish(
            (raw.name,),
            context.name,
            sums.real,
            nodes[1:],
            nodes[0].outputs[0],
            context.graph.constants,
            context.grid,
        )
        return [*sums.before, sums.to(raw, None), finish]
    return None


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution as the kernels take it: weights [Cout, Cin / groups, kh, kw], scale along axis 0."""

    kind: Kind
    weights: ScaledWeights
    window: Window
    groups: int = 1
    spread: tuple[int, int] = (1, 1)

    def before(self, image: Image, output: str) -> NativeStep | None:
        """Zeros between the pixels of a transposed convolution with a stride, for the one tensor `output`."""
        if self.spread == (1, 1):
            return None
        height, width = (
            (s - 1) * f + 1 for s, f in zip((image.height, image.width), self.spread, strict=True)
        )
        spread = Image(f"{output} input spread", (image.channels, height, width), image.grid)
        return NativeStep(Kind.ZERO_INSERT, (image,), spread, Window(stride=self.spread))


def _conv(call: Call, image: Image) -> _Layer | None:
    weights, groups = call.weights(1, axis=0), call.integer("group", 1)
    window = _window(call, weights.shape[2:])
    if len(weights.shape) != 4 or window is None or call.string("auto_pad", "NOTSET") != "NOTSET":
        return None
    outputs, in_group = weights.shape[:2]
    if in_group * groups != image.channels or outputs % groups:
        return None
    depthwise = groups == image.channels == outputs and groups > 1
    kind = Kind.DEPTHWISE if depthwise else Kind.DENSE if groups == 1 else Kind.GROUPED
    return _Layer(kind, weights, window, groups)


def _window(call: Call, kernel: tuple[int, ...]) -> Window | None:
    if len(kernel) != 2 or max(kernel) > MAX_KERNEL or call.integer_list("kernel_shape", kernel) != kernel:
        return None
    stride, dilation = call.integer_list("strides", (1, 1)), call.integer_list("dilations", (1, 1))
    pads = call.integer_list("pads", (0, 0, 0, 0))
    if min(pads) < 0:
        return None
    return Window(
        (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1]), (pads[0], pads[1])
    )


def _conv_transpose(call: Call, image: Image) -> _Layer | None:
    """Zeros between the pixels, then a convolution with the kernel turned by 180 degrees."""
    weights = call.weights(1, axis=1)
    window = _window(call, weights.shape[2:])
    if window is None or call.integer("group", 1) != 1 or weights.shape[0] != image.channels:
        return None
    pads = [(k - 1) * d - p for k, d, p in zip(window.kernel, window.dilation, window.pad, strict=True)]
    if min(pads) < 0 or call.string("auto_pad", "NOTSET") != "NOTSET":
        return None
    turned = weights.integers[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return _Layer(
        Kind.DENSE,
        ScaledWeights(np.ascontiguousarray(turned), weights.scale, 0),
        Window(window.kernel, (1, 1), window.dilation, (pads[0], pads[1])),
        spread=window.stride,
    )


def _gemm(call: Call, image: Image) -> _Layer | None:
    """[N, K] times constant weights: a 1x1 convolution of one pixel."""
    if len(image.shape) != 1 or call.integer("transA", 0) or call.integer("transB", 0) not in (0, 1):
        return None
    if call.number("alpha", Fraction(1)) != 1 or call.number("beta", Fraction(1)) != 1:
        return None
    transposed = call.integer("transB", 0) == 1
    return _linear(call.weights(1, axis=0 if transposed else 1), transposed, image)


def _matmul(call: Call, image: Image) -> _Layer | None:
    weights = call.inputs[1]
    if len(image.shape) != 1 or not isinstance(weights, ScaledWeights) or len(weights.shape) != 2:
        return None
    if weights.axis != 1 and (weights.scale.mantissa != weights.scale.mantissa[0]).any():
        return None  # a scale for each input: exact in the reference only
    return _linear(call.weights(1, axis=1), False, image)


def _linear(weights: ScaledWeights, transposed: bool, image: Image) -> _Layer | None:
    rows = weights.integers if transposed else weights.integers.T
    if rows.ndim != 2 or rows.shape[1] != image.channels:
        return None
    return _Layer(
        Kind.DENSE, ScaledWeights(np.ascontiguousarray(rows)[:, :, None, None], weights.scale, 0), Window()
    )


_GEOMETRY: dict[str, Callable[[Call, Image], _Layer | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _affine(weights: ScaledWeights, grid: Grid, bias: FixedPoint | None) -> Affine:
    """The real number of an accumulator: acc * s_w[c] * s_x + bias[c], over a common positive divisor."""
    scale = weights.scale
    channels = len(weights.integers)
    exponent = scale.exponent + grid.exponent
    offset = np.zeros(channels, dtype=object)
    offset_exponent, offset_divisor = exponent, 1
    if bias is not None:
        offset = np.broadcast_to(bias.mantissa.reshape(-1).astype(object), (channels,))
        offset_exponent, offset_divisor = bias.exponent, bias.denominator
    lowest = min(exponent, offset_exponent, 0)
    gain = scale.mantissa.reshape(-1).astype(object) * (offset_divisor << (exponent - lowest))
    return Affine(
        gain,
        offset * (scale.denominator << (offset_exponent - lowest)),
        (scale.denominator * offset_divisor) << -lowest,
    )


def _in_steps(real: Affine, grid: Grid) -> Affine:
    """The same number in steps of the output's grid."""
    if grid.exponent >= 0:
        return Affine(real.gain, real.offset, real.divisor << grid.exponent)
    return Affine(real.gain << -grid.exponent, real.offset << -grid.exponent, real.divisor)


def _clamped(context: _Context, nodes: tuple[ir.Node, ...]) -> tuple[int, int] | None:
    """The least and the greatest output integer behind ReLU and Clip.

    Rounding never falls, so it can be exchanged with a clamp: round(max(x, a)) = max(round(x), round(a)).
    """
    low, high = context.grid.lowest, context.grid.highest

    def integer(value: ir.Value) -> int | None:
        bound = context.constant(value)
        if not isinstance(bound, FixedPoint) or bound.mantissa.size != 1:
            return None
        step = fp.power_of_two(context.grid.exponent)
        return int(fp.quantize(bound, step, context.grid.lowest, context.grid.highest).reshape(-1)[0])

    for node in nodes:
        bounds: list[int | None] = [None, None]
        if node.op_type == "Relu":
            bounds[0] = max(0, context.grid.lowest)
        elif node.op_type == "Clip":
            for index, value in enumerate(node.inputs[1:3]):
                if value is not None:
                    bounds[index] = integer(value)
                    if bounds[index] is None:
                        return None
        if bounds[0] is not None:
            low, high = max(low, bounds[0]), max(high, bounds[0])
        if bounds[1] is not None:
            low, high = min(low, bounds[1]), min(high, bounds[1])
    return (low, high)


def _scalar_constants(context: _Context, nodes: tuple[ir.Node, ...], rank: int) -> bool:
    """Every constant is one number, of no more dimensions than the data: it leaves the shape as it is."""
    constants = [context.constant(value) for node in nodes for value in node.inputs if value is not None]
    return all(
        value is None
        or (isinstance(value, FixedPoint) and value.mantissa.size == 1 and value.mantissa.ndim <= rank)
        for value in constants
    )


# The compiled file's numbers ------------------------------------------------------------------------------


def _chip_accumulation(context: _Context, node: ir.Node) -> tuple[_Accumulation, ChipLayer]:
    """The convolution with the weights of the compiled file. Raises InputError where they are not known."""
    assert context.chip is not None
    constants = context.chip.constants
    layer = constants.layers.get(layer_name(node))
    if layer is None:
        why = next((one.why for one in constants.undecoded if one.name == layer_name(node)), "not decoded")
        raise _not_decoded(node, why)
    sums = _accumulation(context, node)
    if sums is None:
        raise _not_decoded(node, "not a convolution of 8-bit pictures")
    # Weights of 4 and 2 bits are the upper bits of a byte here, so their sums are larger.
    largest = _largest_sum(layer.weights)
    if largest >= INT32 // 2:
        raise _not_decoded(node, "accumulators beyond 30 bits")
    return replace(sums, weights=layer.weights, largest=largest), layer


def _chip_convolution(context: _Context) -> list[Step] | None:
    nodes = context.segment.nodes
    if nodes[0].op_type not in _GEOMETRY or not is_activation_quantizer(nodes[-1]):
        return None
    assert context.chip is not None
    sums, layer = _chip_accumulation(context, nodes[0])
    if not all(node.op_type in CLAMPS for node in nodes[1:-1]):
        raise _not_decoded(nodes[0], "a function is fused with it")
    if context.grid.bits > 8:
        raw = Image(f"{context.name} accumulators", sums.shape, layer.output_grid)
        wide = replace(layer, output_grid=context.grid, highest=context.grid.highest)
        requantize = Requantize((raw.name,), context.name, wide, context.chip.numerics.rounding)
        return [*sums.before, sums.to(raw, None), requantize]
    shift = layer.right_shift
    finest = max(0, int(shift.max()))
    gain = layer.multiplier.astype(object) << (finest - shift).astype(object)
    steps = Affine(gain, layer.accumulator_bias.astype(object) * gain, 1 << finest)
    output = Image(context.name, sums.shape, context.grid)
    requantized = requantization(
        steps, context.grid.lowest, layer.highest, output.zero, sums.largest, context.chip.numerics.rounding
    )
    if requantized is None:
        raise _not_decoded(nodes[0], "a bias far beyond the range of its output")
    return [*sums.before, sums.to(output, requantized)]


def _chip_addition(context: _Context) -> list[Step] | None:
    """A sum that is fused with one of its convolutions, or stands alone."""
    nodes = context.segment.nodes
    if nodes[0].op_type != "Add" or not is_activation_quantizer(nodes[-1]) or not _is_chain(nodes):
        return None
    assert context.chip is not None
    numerics, limits = context.chip.numerics, _clamped(context, nodes[1:-1])
    plain = all(node.op_type in CLAMPS for node in nodes[1:-1])
    fused = fused_convolution(nodes[0])
    read = [value for value in nodes[0].inputs if value is not None]
    images = [context.image(value) for value in read if fused is None or not _made_by(value, fused)]
    known = [image for image in images if image is not None]
    if not plain or limits is None or not known or len(known) != len(images) or context.grid.bits > 8:
        return None
    if not _scalar_constants(context, nodes[1:-1], len(known[0].shape) + 1):
        return None
    if fused is None:
        if len(known) != 2 or known[0].shape != known[1].shape:
            return None
        return _sum(context, known[0], known[1], limits, numerics.rounding)
    sums, layer = _chip_accumulation(context, fused)
    (stored,) = known
    if stored.shape != sums.shape:
        return None
    raw = Image(f"{context.name} accumulators", sums.shape, context.grid)
    addition = FusedAddition(
        (raw.name, stored.name),
        context.name,
        layer,
        stored.grid,
        context.grid,
        *limits,
        numerics.rounding,
        numerics.saturate,
    )
    return [*sums.before, sums.to(raw, None), addition]


def _made_by(value: ir.Value, convolution: ir.Node) -> bool:
    """The value is the quantized output of the convolution."""
    quantizer = value.producer()
    return quantizer is not None and quantizer.inputs[0] is convolution.outputs[0]


# Sums ----------------------------------------------------------------------------------------------------


def _addition(context: _Context) -> list[Step] | None:
    """a + b of two 8-bit tensors of one shape, then ReLU or Clip: integers and shifts."""
    nodes = context.segment.nodes
    if nodes[0].op_type != "Add" or not is_activation_quantizer(nodes[-1]) or context.grid.bits > 8:
        return None
    images = [context.image(value) for value in nodes[0].inputs if value is not None]
    a, b = images if len(images) == 2 else (None, None)
    if a is None or b is None or a.shape != b.shape:
        return None
    if not all(node.op_type in CLAMPS for node in nodes[1:-1]) or not _is_chain(nodes):
        return None
    if not _scalar_constants(context, nodes[1:-1], len(a.shape) + 1):
        return None
    limits = _clamped(context, nodes[1:-1])
    return None if limits is None else _sum(context, a, b, limits, Rounding.HALF_EVEN)


def _sum(
    context: _Context, a: Image, b: Image, limits: tuple[int, int], rounding: Rounding
) -> list[Step] | None:
    lowest = min(a.grid.exponent, b.grid.exponent)
    shifts = (a.grid.exponent - lowest, b.grid.exponent - lowest)
    right = context.grid.exponent - lowest
    if right < 0:  # the output is finer: shift the inputs further instead
        shifts, right = (shifts[0] - right, shifts[1] - right), 0
    if max(*shifts, right) > MAX_SHIFT:
        return None
    if rounding is not Rounding.HALF_EVEN:
        shift = (*shifts, right)
        names = (a.name, b.name)
        return [ShiftedPair(names, context.name, context.grid, np.add, shift, *limits, rounding)]
    output = Image(context.name, a.shape, context.grid)
    low, high = (limit + output.zero for limit in limits)
    return [NativeStep(Kind.ADD, (a, b), output, low=low, high=high, shift=(*shifts, right))]


PAIRS: Mapping[str, np.ufunc] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Max": np.maximum,
    "Min": np.minimum,
}
"""Operators of two tensors that integers with power-of-two steps compute exactly."""


def _wide_pair(context: _Context) -> list[Step] | None:
    """Two tensors, one of them or the result of more than 8 bits, then ReLU or Clip: integers and shifts."""
    nodes = context.segment.nodes
    function = PAIRS.get(nodes[0].op_type)
    if function is None or not is_activation_quantizer(nodes[-1]) or not _is_chain(nodes):
        return None
    operands = [value for value in nodes[0].inputs if value is not None and value in context.graph.grids]
    if len(operands) != 2 or len(nodes[0].inputs) != 2:
        return None
    grids = [context.graph.grids[value] for value in operands]
    shapes = [context.graph.shapes.get(value.name or "") for value in operands]
    if INDEX in grids or any(shape is None or shape[:1] != (1,) for shape in shapes):
        return None
    ranks = {len(shape) for shape in shapes if shape is not None}
    if len(ranks) != 1 or not all(node.op_type in CLAMPS for node in nodes[1:-1]):
        return None
    limits = _clamped(context, nodes[1:-1])
    if limits is None or not _scalar_constants(context, nodes[1:-1], ranks.pop()):
        return None
    exponents = [grid.exponent for grid in grids]
    # A product has the product of both steps; for the others both operands get the finer step.
    finest = sum(exponents) if function is np.multiply else min(exponents)
    shifts = [0, 0] if function is np.multiply else [exponent - finest for exponent in exponents]
    right = context.grid.exponent - finest
    if right < 0:  # the output is finer: shift further instead
        shifts = [shifts[0] - right, shifts[1] if function is np.multiply else shifts[1] - right]
        right = 0
    if max(*shifts, right) > WIDE_SHIFT:
        return None
    first, second = (value.name or "" for value in operands)
    shift = (shifts[0], shifts[1], right)
    return [
        ShiftedPair((first, second), context.name, context.grid, function, shift, *limits, Rounding.HALF_EVEN)
    ]


def _wide_function(context: _Context) -> list[Step] | None:
    """A function of one tensor of more than 8 bits: as behind a convolution."""
    segment = context.segment
    nodes = segment.nodes
    if len(segment.inputs) != 1 or not is_activation_quantizer(nodes[-1]):
        return None
    (source,) = segment.inputs
    grid, shape = context.graph.grids.get(source), context.graph.shapes.get(source.name or "")
    if grid is None or grid == INDEX or grid.bits <= 8 or shape is None or len(shape) < 2:
        return None
    if not all(node.op_type in APPROXIMATIONS for node in nodes[:-1]):
        return None
    if not _scalar_constants(context, nodes[:-1], len(shape)):
        return None
    step = fp.power_of_two(grid.exponent)
    real = Affine(
        np.full(shape[1], step.numerator, dtype=object), np.zeros(shape[1], dtype=object), step.denominator
    )
    finish = Finish(
        (source.name or "",), context.name, real, nodes, source, context.graph.constants, context.grid
    )
    return [finish]


def _is_chain(nodes: tuple[ir.Node, ...]) -> bool:
    """Every node reads the one before it as its first input."""
    return all(later.inputs[0] is node.outputs[0] for node, later in pairwise(nodes))


# Tables and movement -------------------------------------------------------------------------------------


def _integers_of(grid: Grid) -> np.ndarray:
    return np.arange(grid.lowest, grid.highest + 1, dtype=np.int64)


def _table(context: _Context, nodes: tuple[ir.Node, ...], source: ir.Value, grid: Grid) -> np.ndarray | None:
    """Output integers for every integer of `grid`, [levels], through elementwise nodes up to the quantizer.

    None where the reference refuses some integer (a division by zero, a root of a negative number).
    """
    integers = _integers_of(grid)
    if not nodes:
        return integers
    if context.chip is not None:
        return _shifted(context, nodes, integers, grid)
    return _evaluated(context, nodes, {source: _on(grid, integers)})


def _shifted(context: _Context, nodes: tuple[ir.Node, ...], integers: np.ndarray, grid: Grid) -> np.ndarray:
    """Another power-of-two step, under `imx500`: a shift whose rounding is a parameter."""
    assert context.chip is not None
    limits = _clamped(context, nodes[:-1])
    if limits is None or any(node.op_type not in CLAMPS for node in nodes[:-1]):
        raise _not_decoded(nodes[0], "how the chip computes it was not found in compiled files")
    # More than 16 bits leave nothing of a byte, or saturate it.
    bits = min(max(context.grid.exponent - grid.exponent, -MAX_SHIFT), MAX_SHIFT)
    moved = integers << max(0, -bits)
    return np.clip(round_shift(moved, np.array(max(bits, 0)), context.chip.numerics.rounding), *limits)


def _on(grid: Grid, integers: np.ndarray) -> FixedPoint:
    return FixedPoint(integers, grid.exponent, 1, grid)


def _evaluated(
    context: _Context, nodes: tuple[ir.Node, ...], arrays: Mapping[ir.Value, FixedPoint]
) -> np.ndarray | None:
    """Output integers of an elementwise chain up to the quantizer; None where the reference refuses."""
    try:
        given = {**context.graph.constants, **arrays}
        result = run_nodes(nodes, given, nodes[-1].outputs[0], TABLE_PRECISIONS)
    except InputError:
        return None
    if not isinstance(result, FixedPoint):
        return None
    shape = np.broadcast_shapes(*(array.shape for array in arrays.values()))
    return result.mantissa.reshape(shape)  # scalar constants may have added dimensions of 1


def _byte_table(table: np.ndarray, source: Image, output: Image) -> np.ndarray | None:
    """A table from bytes to bytes; None where every byte stays what it is."""
    full = np.zeros(256, dtype=np.uint8)
    positions = _integers_of(source.grid) + source.zero
    full[positions] = (table + output.zero).astype(np.uint8)
    return None if np.array_equal(full[positions], positions) else full


def _max_pool(context: _Context) -> list[Step] | None:
    nodes = context.segment.nodes
    if nodes[0].op_type != "MaxPool" or len(nodes) != 1 or len(nodes[0].outputs) != 1:
        return None
    image, shape = context.image(context.segment.inputs[0]), context.graph.shapes.get(context.name)
    call = Call(nodes[0], [], 64)
    window = _window(call, call.integer_list("kernel_shape"))
    if image is None or shape is None or window is None or len(shape) != 4:
        return None
    pads = call.integer_list("pads", (0, 0, 0, 0))
    plain = call.integer("ceil_mode", 0) == 0 and call.string("auto_pad", "NOTSET") == "NOTSET"
    inside = max(pads[0], pads[2]) < window.kernel[0] and max(pads[1], pads[3]) < window.kernel[1]
    if not plain or not inside or window.dilation != (1, 1):
        return None  # the reference names what it does not execute
    return [NativeStep(Kind.MAX_POOL, (image,), Image(context.name, shape[1:], context.grid), window)]


def _movement(context: _Context) -> list[Step] | None:
    """Nodes that only move integers, then perhaps an elementwise chain and a quantizer."""
    segment = context.segment
    constants = context.graph.constants
    count = next(
        (i for i, node in enumerate(segment.nodes) if not moves_only(node, constants)), len(segment.nodes)
    )
    moves, rest = segment.nodes[:count], segment.nodes[count:]
    grids = [context.graph.grids.get(value) for value in segment.inputs]
    if any(grid is None or grid == INDEX for grid in grids) or not segment.inputs:
        return None
    known = [grid for grid in grids if grid is not None]
    if rest and (
        not is_activation_quantizer(rest[-1]) or not all(node.op_type in ELEMENTWISE for node in rest[:-1])
    ):
        return None
    made = {output for node in rest for output in node.outputs}
    read = {value for node in rest for value in node.inputs if value is not None} - made - constants.keys()
    if len(read) > 1:
        return None  # the chain reads another tensor too
    entry = read.pop() if rest else segment.output
    wide = any(grid.bits > 8 for grid in known)
    if wide and not all(node.op_type in CLAMPS for node in rest[:-1]):
        return None  # a table of 65,536 values of a function
    if rest and context.chip is not None and (wide or context.grid.bits > 8):
        return None  # what the chip rounds there was not found
    if not moves and len(segment.inputs) != 1:
        return None
    moved = _moved(context, moves, segment.inputs, entry)
    if moved is None:
        return None
    index, fixed = moved
    if not _scalar_constants(context, rest, index.ndim):
        return None
    tables = [_table(context, rest, entry, grid) for grid in known]
    if any(table is None for table in tables):
        return None
    found = [table for table in tables if table is not None]
    native = _native_movement(context, index - fixed.mantissa.size, found)
    if native is not None:
        return native
    if rest:
        outputs = _evaluated(context, rest, {entry: fixed})
    else:
        outputs = fixed.mantissa if fixed.mantissa.size == 1 else None
    if outputs is None:
        return None
    kind = storage(context.grid)
    return [
        Gather(
            tuple(value.name or "" for value in segment.inputs),
            context.name,
            tuple(table.astype(kind) for table in found),
            tuple(grid.lowest for grid in known),
            outputs.astype(kind),
            index.reshape(-1),
            index.shape[1:],
        )
    ]


def _moved(
    context: _Context, moves: tuple[ir.Node, ...], inputs: tuple[ir.Value, ...], entry: ir.Value
) -> tuple[np.ndarray, FixedPoint] | None:
    """For each element of the moved tensor [1, ...] where it comes from, and the numbers that come from no
    input.

    0 is padding, then the elements of concatenated constants, then those of the inputs.
    """
    given: dict[ir.Value, AnyValue] = dict(context.graph.constants)
    fixed = [FixedPoint(np.zeros(1, dtype=np.int64))]
    start = 1

    def number(value: ir.Value, shape: tuple[int, ...]) -> int:
        size = int(np.prod(shape))
        given[value] = FixedPoint(np.arange(start, start + size, dtype=np.int64).reshape(shape))
        return start + size

    for node in moves:
        for value in node.inputs if node.op_type == "Concat" else ():
            constant = context.constant(value)
            if value is not None and isinstance(constant, FixedPoint):
                fixed.append(fp.move(constant, np.ravel))
                start = number(value, constant.shape)
    for value in inputs:
        shape = context.graph.shapes.get(value.name or "")
        if shape is None or shape[:1] != (1,):
            return None
        start = number(value, shape)
    result = run_nodes(moves, given, entry) if moves else given[entry]
    if not isinstance(result, FixedPoint) or result.mantissa.shape[:1] != (1,):
        return None
    return result.mantissa, fp.concatenate(fixed, 0)


def _native_movement(context: _Context, index: np.ndarray, tables: list[np.ndarray]) -> list[Step] | None:
    """The movement as a kernel: rows and columns of one image, or images one after the other by channel."""
    images = [context.image(value) for value in context.segment.inputs]
    known = [image for image in images if image is not None]
    if len(known) != len(images) or index.ndim not in (2, 4) or context.grid.bits > 8:
        return None
    output = Image(context.name, index.shape[1:], context.grid)
    place = index.reshape(output.channels, output.height, output.width)
    bytes_ = [_byte_table(t, i, output) for t, i in zip(tables, known, strict=True)]
    if len(known) == 1:
        image = known[0]
        if output.channels != image.channels or (place < 0).any():
            return None
        rows, columns = place[0, :, 0] // image.width, place[0, 0, :] % image.width
        channels = np.arange(image.channels)[:, None, None] * (image.height * image.width)
        if not np.array_equal(place, channels + (rows * image.width)[:, None] + columns):
            return None
        return [
            NativeStep(
                Kind.NEAREST,
                (image,),
                output,
                rows=rows.astype(np.int32),
                columns=columns.astype(np.int32),
                tables=None if bytes_[0] is None else bytes_[0][None],
            )
        ]
    whole = np.arange(place.size).reshape(place.shape)
    sizes = {(image.height, image.width) for image in known}
    if sizes != {(output.height, output.width)} or not np.array_equal(place, whole):
        return None
    stay = np.arange(256, dtype=np.uint8)
    return [
        NativeStep(
            Kind.CONCAT, tuple(known), output, tables=np.stack([stay if b is None else b for b in bytes_])
        )
    ]


def _elementwise(context: _Context) -> list[Step] | None:
    """An elementwise function of two 8-bit tensors."""
    segment = context.segment
    nodes = segment.nodes
    if len(segment.inputs) != 2 or context.grid.bits > 8 or not is_activation_quantizer(nodes[-1]):
        return None
    grids = [context.graph.grids.get(value) for value in segment.inputs]
    first, second = grids
    if first is None or second is None or INDEX in grids or max(first.bits, second.bits) > 8:
        return None
    a, b = segment.inputs
    shapes = [context.graph.shapes.get(value.name or "") for value in (a, b)]
    rank = max(0 if shape is None else len(shape) for shape in shapes)
    if None in shapes or not _scalar_constants(context, nodes[:-1], rank):
        return None
    if not all(node.op_type in ELEMENTWISE for node in nodes[:-1]):
        return None
    table = _evaluated(
        context,
        nodes,
        {a: _on(first, _integers_of(first)[:, None]), b: _on(second, _integers_of(second)[None, :])},
    )
    if table is None:
        return None
    pair = quantizers.grid_of(Call(nodes[-1], [None], 64))
    return [
        PairTable(
            (a.name or "", b.name or ""),
            context.name,
            table.astype(storage(pair)),
            (first.lowest, second.lowest),
        )
    ]


_Way = Callable[[_Context], list[Step] | None]

_DIALECT_WAYS: tuple[_Way, ...] = (
    _input, _convolution, _addition, _max_pool, _movement, _elementwise, _wide_pair, _wide_function,
)  # fmt: skip
_CHIP_WAYS: tuple[_Way, ...] = (_input, _chip_convolution, _chip_addition, _max_pool, _movement)
