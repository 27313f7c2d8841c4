"""A vendor-dialect model in onnxruntime, one segment at a time, with a bound on its float32 errors.

A segment is what lies between activation quantizers: it is fed with the simulator's own exact integers, so a
difference in one segment cannot come from an earlier one. Inside it onnxruntime computes in float32; its
quantizer operators (mct_quantizers' own, in NumPy) then divide by a power of two and round half to even,
which is exact. So the integers may differ only where the exact value lies closer to a rounding tie than the
float32 error of the segment.

Error bounds (u = 2**-24): a sum of n products is off by at most n u / (1 - n u) times the sum of the
products' magnitudes, in any order of summation (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1); a sum, product or quotient by u of its magnitude. onnxruntime states no accuracy for its
functions: FUNCTION_ERROR is an allowance, not a proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.simulator import enclosures
from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import Enclosure
from compiler.simulator.fixedpoint import FixedPoint
from compiler.simulator.movement import constant_value
from compiler.simulator.node import AnyValue, Call, ScaledWeights, execute
from compiler.simulator.reference import IntegerTensor, quantized_values, run_reference

Floats = NDArray[np.float64]

U = 2.0**-24
FUNCTION_ERROR = 2.0**-20
PRECISION = 128


@dataclass(frozen=True)
class Difference:
    """One integer that onnxruntime rounds otherwise than the simulator.

    Attributes:
        distance: of the exact value from the nearest rounding tie, in steps.
        bound: on the float32 error, in steps.
    """

    tensor: str
    ours: int
    theirs: int
    distance: float
    bound: float

    @property
    def explained(self) -> bool:
        return self.distance <= self.bound and abs(self.ours - self.theirs) <= 1 + 2 * self.bound


@dataclass(frozen=True)
class Comparison:
    compared: int
    differences: list[Difference]


def compare(proto: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> Comparison:
    """Every segment of the model in both programs.

    Raises AssertionError where a tensor that is only moved, or an index, differs at all.
    """
    model = ir.serde.deserialize_model(proto)
    outputs = [value.name or "" for value in model.graph.outputs]
    results = run_reference(model, inputs, keep=quantized_values(model))
    known: dict[str, Any] = {name: np.asarray(array) for name, array in inputs.items()}
    known |= {name: results[name] for name in quantized_values(model)}
    compared = 0
    differences: list[Difference] = []
    for name in dict.fromkeys([*quantized_values(model), *outputs]):
        segment = _Segment(model, name, known)
        theirs = segment.in_onnxruntime(proto)
        ours = results[name]
        compared += ours.values.size
        assert theirs.shape == ours.values.shape, name
        integers = theirs.astype(np.float64) / float(ours.step)
        where = np.argwhere(integers != ours.values)
        if not len(where):
            continue
        assert name in quantized_values(model), f"{name} is only moved and differs"
        differences += segment.explain(ours, integers, where)
    return Comparison(compared, differences)


class _Segment:
    """The nodes from the nearest known tensors to one target."""

    def __init__(self, model: ir.Model, target: str, known: Mapping[str, Any]) -> None:
        wanted = {target}
        self.nodes: list[ir.Node] = []
        self.feeds: dict[str, Any] = {}
        self.target = target
        for node in reversed(list(model.graph)):
            names = {out.name for out in node.outputs}
            if not names & wanted:
                continue
            self.nodes.insert(0, node)
            for value in node.inputs:
                if value is None or value.name is None or value.is_initializer():
                    continue
                if value.name in known:
                    self.feeds[value.name] = known[value.name]
                else:
                    wanted.add(value.name)
        self.values = self._exact_values(model)
        self.floats: dict[str, Floats] = {}

    def _exact_values(self, model: ir.Model) -> dict[str, AnyValue]:
        """Every tensor of the segment as the simulator computes it."""
        values: dict[str, AnyValue] = {
            name: constant_value(np.asarray(value.const_value.numpy()))
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }
        values |= {name: _exact(fed) for name, fed in self.feeds.items()}
        for node in self.nodes:
            inputs = [None if v is None else values[v.name or ""] for v in node.inputs]
            outputs = execute(Call(node, inputs, PRECISION))
            values |= {v.name or "": out for v, out in zip(node.outputs, outputs, strict=False)}
        return values

    def in_onnxruntime(self, proto: onnx.ModelProto) -> NDArray[Any]:
        """The target; the float tensors on the way are kept in `floats`.

        Weight quantizers are replaced by their exact result rounded to float32: they are compared on
        their own.
        """
        import mct_quantizers
        import onnxruntime

        names = {node.name for node in self.nodes}
        nodes = [n for n in proto.graph.node if n.name in names and not n.op_type.startswith("Weights")]
        initializers = list(proto.graph.initializer)
        for node in self.nodes:
            if node.op_type.startswith("Weights"):
                weights = _floats(self.values[node.outputs[0].name or ""]).astype(np.float32)
                initializers.append(numpy_helper.from_array(weights, node.outputs[0].name))
        made = {name for node in nodes for name in node.output}
        feeds = {name: _floats(fed).astype(np.float32) for name, fed in self.feeds.items()}
        used = {name for node in nodes for name in node.input}
        keep = [n for n in made if n and isinstance(self.values.get(n), FixedPoint | Enclosure)]
        requested = list(dict.fromkeys([self.target, *sorted(keep)]))
        kinds = {
            name: TensorProto.INT64 if isinstance(self.values[name], np.ndarray) else TensorProto.FLOAT
            for name in requested
        }
        graph = helper.make_graph(
            nodes,
            "segment",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in sorted(feeds)],
            [helper.make_tensor_value_info(n, kinds[n], None) for n in requested],
            [i for i in initializers if i.name in used],
        )
        part = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        options = mct_quantizers.get_ort_session_options()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(part.SerializeToString(), options)
        results = dict(zip(requested, session.run(requested, feeds), strict=True))
        self.floats = {n: r.astype(np.float64) for n, r in results.items()}
        self.floats |= {n: f.astype(np.float64) for n, f in feeds.items()}
        return np.asarray(results[self.target])

    def explain(self, ours: IntegerTensor, theirs: Floats, where: NDArray[Any]) -> list[Difference]:
        quantizer = self.nodes[-1]
        source = (quantizer.inputs[0].name if quantizer.inputs[0] else "") or ""
        exact = enclosures.lower(self._real(source)).to_fractions()
        bounds = np.broadcast_to(self._error(source), exact.shape)
        found = []
        for index in map(tuple, where):
            quotient = Fraction(exact[index]) / ours.step
            distance = abs(quotient - math.floor(quotient) - Fraction(1, 2))
            found.append(
                Difference(
                    self.target,
                    int(ours.values[index]),
                    int(theirs[index]),
                    float(distance),
                    float(bounds[index]) / float(ours.step),
                )
            )
        return found

    def _real(self, name: str) -> enclosures.Value:
        value = self.values[name]
        assert isinstance(value, FixedPoint | Enclosure)
        return value

    # Error bounds

    def _error(self, name: str) -> Floats:
        """A bound on |float32 - exact| per element (or one for all)."""
        node = next((n for n in self.nodes if name in [o.name for o in n.outputs]), None)
        if node is None or node.op_type.startswith("Weights"):
            return np.float64(0) * np.ones(())
        inputs = [v.name or "" for v in node.inputs if v is not None]
        reals = [i for i in inputs if isinstance(self.values[i], FixedPoint | Enclosure | ScaledWeights)]
        errors = [self._error(i) for i in reals]
        rule = _RULES.get(node.op_type)
        if rule is not None:
            operands = [_floats(self.values[i]) for i in reals]
            return rule(node, operands, errors, np.abs(_floats(self.values[name])))
        if node.op_type in _SUMS:
            assert all((e == 0).all() for e in errors), f"{node.op_type} of a rounded tensor"
            magnitudes = [_absolute(None if v is None else self.values[v.name or ""]) for v in node.inputs]
            (total, *_) = execute(Call(node, magnitudes, PRECISION))
            terms = _SUMS[node.op_type](node, [self.values[i] for i in reals])
            return terms * U / (1 - terms * U) * _floats(total)
        assert node.op_type in _MOVES, f"no error bound for {node.op_type}"
        return np.asarray(max((float(e.max()) for e in errors), default=0.0))


def _exact(fed: Any) -> FixedPoint:
    if isinstance(fed, IntegerTensor):
        grid = fp.Grid(fed.exponent, fed.bits, fed.signed)
        return FixedPoint(fed.values.astype(np.int64), fed.exponent, 1, grid)
    return fp.from_integers(fed) if np.issubdtype(fed.dtype, np.integer) else fp.from_floats(fed)


def _floats(value: Any) -> Floats:
    if isinstance(value, IntegerTensor):
        return value.real()
    if isinstance(value, np.ndarray):
        return value.astype(np.float64)
    if isinstance(value, ScaledWeights):
        value = value.to_fixed_point()
    exact = enclosures.lower(value)
    numerator, denominator = exact.unit.numerator, exact.unit.denominator
    return np.array(
        [int(m) * numerator / denominator for m in exact.mantissa.reshape(-1)], dtype=np.float64
    ).reshape(exact.shape)


def _absolute(value: AnyValue | None) -> AnyValue | None:
    if isinstance(value, ScaledWeights):
        return ScaledWeights(np.abs(value.integers), value.scale, value.axis)
    return fp.absolute(value) if isinstance(value, FixedPoint) else value


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


# Terms in the longest sum, with the scaling and the rounding of the weights to float32 added.
_SUMS: dict[str, Callable[[ir.Node, list[Any]], int]] = {
    "Conv": lambda node, v: math.prod(v[1].shape[1:]) + 3,
    "ConvTranspose": lambda node, v: v[1].shape[0] * math.prod(v[1].shape[2:]) + 3,
    "Gemm": lambda node, v: v[0].shape[-1] + 3,
    "MatMul": lambda node, v: v[0].shape[-1] + 3,
    "AveragePool": lambda node, v: math.prod(_ints(node, "kernel_shape", ())) + 2,
    "GlobalAveragePool": lambda node, v: math.prod(v[0].shape[2:]) + 2,
    "ReduceMean": lambda node, v: math.prod(v[0].shape) + 2,
    "ReduceSum": lambda node, v: math.prod(v[0].shape) + 2,
    "ReduceL2": lambda node, v: math.prod(v[0].shape) + 4,
}

_MOVES = {
    *("Relu", "Clip", "Max", "Min", "Abs", "Neg", "MaxPool", "ReduceMax", "Identity", "Concat", "Expand"),
    *(
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Gather",
        "GatherElements",
    ),
    *("Pad", "Constant"),
}
"""Operators that compute nothing, or select or bend without making an error larger."""

Rule = Callable[[ir.Node, list[Floats], list[Floats], Floats], Floats]


def _resize(node: ir.Node, x: list[Floats], e: list[Floats], y: Floats) -> Floats:
    mode = node.attributes["mode"].as_string()
    if mode == "nearest":
        return np.asarray(e[0].max())
    # A coordinate below `size` is off by a few units; the slope is at most the range of the tensor.
    return np.asarray((16 + 8 * max(x[0].shape)) * U * 2 * np.abs(x[0]).max())


def _power(node: ir.Node, x: list[Floats], e: list[Floats], y: Floats) -> Floats:
    exponent = float(x[1].reshape(-1)[0])
    return exponent * np.abs(x[0]) ** (exponent - 1) * e[0] + FUNCTION_ERROR * y


def _normalised(node: ir.Node, x: list[Floats], e: list[Floats], y: Floats) -> Floats:
    gain = np.abs(x[1]).max()
    return np.asarray(8 * FUNCTION_ERROR * (1 + gain) * (1 + y))


def _batch_normalised(node: ir.Node, x: list[Floats], e: list[Floats], y: Floats) -> Floats:
    shape = (1, -1) + (1,) * (x[0].ndim - 2)
    gain, bias, mean, variance = (np.abs(v).reshape(shape) for v in x[1:])
    deviation = np.sqrt(variance + node.attributes["epsilon"].as_float())
    return 8 * U * ((np.abs(x[0]) + mean) * gain / deviation + bias)


_RULES: dict[str, Rule] = {
    "Add": lambda node, x, e, y: e[0] + e[1] + U * (y + e[0] + e[1]),
    "Sub": lambda node, x, e, y: e[0] + e[1] + U * (y + e[0] + e[1]),
    "Mul": lambda node, x, e, y: np.abs(x[0]) * e[1] + np.abs(x[1]) * e[0] + e[0] * e[1] + 2 * U * y,
    "Div": lambda node, x, e, y: (e[0] + y * e[1]) / (np.abs(x[1]) - e[1]) + 2 * U * y,
    "LeakyRelu": lambda node, x, e, y: e[0] + 2 * U * y,
    "HardSigmoid": lambda node, x, e, y: e[0] + 4 * U * (np.abs(x[0]) + 1),
    "HardSwish": lambda node, x, e, y: 1.5 * e[0] + 8 * U * np.abs(x[0]) * (np.abs(x[0]) / 6 + 0.5),
    "Sigmoid": lambda node, x, e, y: np.minimum(0.25, np.exp(e[0] - np.abs(x[0]))) * e[0] + FUNCTION_ERROR,
    "Tanh": lambda node, x, e, y: (
        np.minimum(1, 4 * np.exp(2 * (e[0] - np.abs(x[0])))) * e[0] + FUNCTION_ERROR
    ),
    "Sin": lambda node, x, e, y: e[0] + FUNCTION_ERROR,
    "Exp": lambda node, x, e, y: y * (2 * e[0] + FUNCTION_ERROR),
    "Gelu": lambda node, x, e, y: 1.13 * e[0] + FUNCTION_ERROR * (1 + np.abs(x[0])),
    "Sqrt": lambda node, x, e, y: e[0] / np.maximum(y, 1e-30) + 2 * U * y,
    "Softmax": lambda node, x, e, y: np.asarray(2 * e[0].max() + FUNCTION_ERROR),
    "Pow": _power,
    "Resize": _resize,
    "LayerNormalization": _normalised,
    "BatchNormalization": _batch_normalised,
}
