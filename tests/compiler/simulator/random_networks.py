"""Random small networks in the vendor dialect: every simulated operator, odd sizes, extreme numbers, exact
ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.compiler.simulator.simulator_graphs import Dialect

LARGEST_SIDE = 13


@dataclass(frozen=True)
class Tensor:
    """A quantized tensor under construction: name, shape of one picture, threshold and sign of its grid."""

    name: str
    shape: tuple[int, ...]
    threshold: float
    signed: bool


class Network:
    """A graph that grows by random layers on random earlier tensors.

    Args:
        wide: share of the tensors that get 16 bits, chosen apart from everything else.
    """

    def __init__(self, seed: int, wide: float = 0.0) -> None:
        self.numbers = np.random.default_rng(seed)
        self.widths, self.wide = np.random.default_rng(seed + 1), wide
        self.graph = Dialect()
        channels = self.pick(1, 3, 5, 17, 33)
        shape = (channels, self.size(), self.size())
        self.input_shape = shape
        name = self.graph.input([1, *shape])
        self.tensors = [self.quantized(name, shape, threshold=float(self.pick(128, 256)))]

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.numbers.integers(len(choices)))]

    def size(self) -> int:
        return int(self.numbers.integers(1, LARGEST_SIDE + 1))

    def threshold(self) -> float:
        return float(2.0 ** self.numbers.integers(-4, 9))

    def quantized(self, value: str, shape: tuple[int, ...], threshold: float | None = None) -> Tensor:
        limit, signed = threshold or self.threshold(), bool(self.pick(True, True, False))
        bits = 16 if self.widths.random() < self.wide else 8
        return Tensor(self.graph.quantize(value, limit, signed=signed, bits=bits), shape, limit, signed)

    def source(self, rank: int | None = None) -> Tensor | None:
        fitting = [t for t in self.tensors if rank is None or len(t.shape) == rank]
        return fitting[int(self.numbers.integers(len(fitting)))] if fitting else None

    def constant(self, *values: float) -> str:
        return self.graph.constant(list(values) if len(values) > 1 else float(values[0]))

    def integers(self, shape: tuple[int, ...]) -> np.ndarray:
        """Weights: random, saturated to one sign, sparse, or small."""
        kind = self.pick("random", "random", "largest", "least", "sparse", "small")
        if kind == "largest":
            return np.full(shape, 127)
        if kind == "least":
            return np.full(shape, -128)
        if kind == "small":
            return self.numbers.integers(-2, 3, shape)
        values = self.numbers.integers(-128, 128, shape)
        return values * (self.numbers.random(shape) < 0.2) if kind == "sparse" else values

    def scales(self, count: int) -> np.ndarray:
        """Weight scales: any float32, powers of two and their halves (exact ties), or far apart."""
        kind = self.pick("any", "power", "tie", "wide")
        exponents = self.numbers.integers(-9, 0, count)
        if kind == "power":
            return 2.0**exponents
        if kind == "tie":
            return 1.5 * 2.0 ** float(exponents[0]) * np.ones(count)
        spread = (
            self.numbers.uniform(-12, 2, count) if kind == "wide" else self.numbers.uniform(-8, -4, count)
        )
        return np.exp2(spread).astype(np.float32).astype(np.float64)

    def biases(self, count: int) -> str:
        kind = self.pick("zero", "normal", "tie", "huge")
        values = {
            "zero": np.zeros(count),
            "normal": self.numbers.normal(0, 20, count),
            "tie": self.numbers.integers(-20, 21, count) + 0.5,
            "huge": self.numbers.normal(0, 3e5, count),
        }[kind]
        return self.graph.constant(values.astype(np.float32))

    # Layers; each returns the new tensor, None where it does not fit -----------------------------------

    def activated(self, value: str) -> str:
        """A function between the operator and its quantizer."""
        kind = self.pick(
            "none", "none", "Relu", "Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "Tanh", "SiLU"
        )
        if kind == "none":
            return value
        if kind == "Clip":
            return self.graph.node("Clip", value, self.constant(0.0), self.constant(6.0))
        if kind == "LeakyRelu":
            return self.graph.node("LeakyRelu", value, alpha=float(self.pick(0.01, 0.25)))
        if kind == "SiLU":
            return self.graph.node("Mul", value, self.graph.node("Sigmoid", value))
        return self.graph.node(kind, value)

    def conv(self) -> Tensor | None:
        x = self.source(3)
        if x is None:
            return None
        channels, height, width = x.shape
        kind = self.pick("dense", "dense", "depthwise", "depthwise", "grouped", "multiplied")
        divisors = [g for g in range(1, channels + 1) if channels % g == 0]
        groups = {"dense": 1, "depthwise": channels, "multiplied": channels}.get(kind, self.pick(*divisors))
        each = {"depthwise": 1, "multiplied": 2}.get(kind, int(self.numbers.integers(1, 6)))
        outputs = self.pick(1, 3, 16, 21, 40, 70) if kind == "dense" else groups * each
        kernel = [self.pick(1, 2, 3, 3, 5), self.pick(1, 2, 3, 3, 5)] if self.pick(True, False) else [3, 3]
        stride = [self.pick(1, 1, 1, 2, 3), self.pick(1, 1, 1, 2, 3)] if self.pick(True, False) else [1, 1]
        dilation = [1, 1] if stride != [1, 1] else [self.pick(1, 1, 1, 2), self.pick(1, 1, 1, 2)]
        pads = [int(self.numbers.integers(0, k)) for k in (*kernel, *kernel)]
        out = [
            (side + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
            for i, side in enumerate((height, width))
        ]
        if min(out) < 1:
            return None
        weights = self.graph.weights(
            self.integers((outputs, channels // groups, *kernel)), self.scales(outputs)
        )
        inputs = [x.name, weights, self.biases(outputs)][: self.pick(2, 3, 3)]
        value = self.graph.node(
            "Conv", *inputs, group=groups, kernel_shape=kernel, strides=stride, dilations=dilation, pads=pads
        )
        return self.quantized(self.activated(value), (outputs, *out))

    def conv_transpose(self) -> Tensor | None:
        x = self.source(3)
        if x is None or max(x.shape[1:]) > 6:
            return None
        kernel, stride, outputs = self.pick(1, 2, 3, 4), self.pick(1, 2, 3), self.pick(1, 4, 18)
        extra = self.pick(0, stride - 1)
        weights = self.graph.weights(
            self.integers((x.shape[0], outputs, kernel, kernel)), self.scales(outputs), axis=1
        )
        pad = int(self.numbers.integers(0, kernel))
        out = [(side - 1) * stride + kernel + extra - 2 * pad for side in x.shape[1:]]
        if min(out) < 1:
            return None
        value = self.graph.node(
            "ConvTranspose", x.name, weights, self.biases(outputs),
            strides=[stride] * 2, output_padding=[extra] * 2, pads=[pad] * 4,
        )  # fmt: skip
        return self.quantized(self.activated(value), (outputs, *out))

    def pair(self) -> Tensor | None:
        """An elementwise operator of two tensors: the same shape, or one broadcast."""
        a = self.source()
        assert a is not None
        others = [t for t in self.tensors if len(t.shape) == len(a.shape) and t.shape[0] == a.shape[0]]
        b = others[int(self.numbers.integers(len(others)))]
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            return None
        value = self.graph.node(self.pick("Add", "Add", "Add", "Sub", "Mul", "Max", "Min"), a.name, b.name)
        return self.quantized(self.activated(value), shape)

    def unary(self) -> Tensor | None:
        x = self.source()
        assert x is not None
        kind = self.pick(
            "none", "Neg", "Abs", "scale", "shift", "per channel", "Exp", "Gelu", "Pow", "activated"
        )
        value = x.name
        if kind in ("Neg", "Abs", "Exp", "Gelu"):
            value = self.graph.node(kind, value)
        elif kind == "scale":
            value = self.graph.node("Mul", value, self.constant(self.pick(0.5, 1.5, 0.1, -3.0)))
        elif kind == "shift":
            value = self.graph.node("Add", value, self.constant(self.pick(0.5, -1.25, 100.1)))
        elif kind == "per channel":
            gains = self.numbers.normal(0, 1, (x.shape[0], *([1] * (len(x.shape) - 1))))
            value = self.graph.node("Mul", value, self.graph.constant(gains))
        elif kind == "Pow":
            value = self.graph.node("Pow", value, self.constant(2.0))
        elif kind == "activated":
            value = self.activated(value)
        return self.quantized(value, x.shape)

    def concat(self) -> Tensor | None:
        x = self.source(3)
        if x is None:
            return None
        axis = self.pick(0, 0, 1, 2)
        fitting = [
            t for t in self.tensors
            if len(t.shape) == 3 and all(t.shape[i] == x.shape[i] for i in range(3) if i != axis)
        ]  # fmt: skip
        parts = [x, *(self.pick(*fitting) for _ in range(self.pick(1, 2)))]
        total = sum(part.shape[axis] for part in parts)
        names = [part.name for part in parts]
        if axis == 1 and self.pick(True, False):
            frame = self.numbers.normal(0, 10, (1, x.shape[0], 1, x.shape[2]))
            names.append(self.graph.constant(frame))
            total += 1
        shape = tuple(total if i == axis else side for i, side in enumerate(x.shape))
        return self.quantized(self.graph.node("Concat", *names, axis=axis + 1), shape)

    def pool(self) -> Tensor | None:
        x = self.source(3)
        if x is None:
            return None
        kind = self.pick("MaxPool", "MaxPool", "AveragePool", "counted", "GlobalAveragePool", "ReduceMean")
        if kind == "GlobalAveragePool":
            return self.quantized(self.graph.node(kind, x.name), (x.shape[0], 1, 1))
        if kind == "ReduceMean":
            axes = self.graph.constant([2, 3])
            return self.quantized(self.graph.node(kind, x.name, axes, keepdims=0), x.shape[:1])
        kernel, stride = self.pick(1, 2, 3), self.pick(1, 2)
        pads = [int(self.numbers.integers(0, kernel)) for _ in range(4)]
        out = [(side + pads[i] + pads[i + 2] - kernel) // stride + 1 for i, side in enumerate(x.shape[1:])]
        if min(out) < 1:
            return None
        options: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        if kind == "MaxPool":
            value = self.graph.node(kind, x.name, **options)
            if self.pick(True, False):
                return Tensor(value, (x.shape[0], *out), x.threshold, x.signed)
        else:
            value = self.graph.node(
                "AveragePool", x.name, **options, count_include_pad=int(kind == "counted")
            )
        return self.quantized(value, (x.shape[0], *out))

    def resize(self) -> Tensor | None:
        x = self.source(3)
        if x is None:
            return None
        linear = self.pick(False, True)
        sizes = [self.size(), self.size()] if linear else [min(13, 2 * side) for side in x.shape[1:]]
        value = self.graph.node(
            "Resize", x.name, "", "", self.graph.constant([1, x.shape[0], *sizes]),
            mode="linear" if linear else "nearest",
            coordinate_transformation_mode="half_pixel" if linear else "asymmetric", nearest_mode="floor",
        )  # fmt: skip
        shape = (x.shape[0], *sizes)
        return self.quantized(value, shape)

    def moved(self) -> Tensor | None:
        """Operators that only move integers, with or without a quantizer behind."""
        x = self.source(3)
        if x is None:
            return None
        channels, height, width = x.shape
        kind = self.pick("Transpose", "Slice", "Split", "Pad", "filled", "flat", "shuffle")
        g = self.graph
        if kind == "Transpose":
            value, shape = g.node("Transpose", x.name, perm=[0, 1, 3, 2]), (channels, width, height)
        elif kind == "Slice":
            start, end = sorted(int(v) for v in self.numbers.choice(channels + 1, 2, replace=False))
            value = g.node("Slice", x.name, g.constant([start]), g.constant([end]), g.constant([1]))
            shape = (end - start, height, width)
        elif kind == "Split":
            if channels < 2:
                return None
            first = int(self.numbers.integers(1, channels))
            sizes = g.constant([first, channels - first])
            which = self.pick(0, 1)
            value = g.nodes("Split", x.name, sizes, outputs=2, axis=1)[which]
            shape = ((first, channels - first)[which], height, width)
        elif kind in ("Pad", "filled"):
            fill = self.constant(0.0 if kind == "Pad" else 3.25)
            value = g.node("Pad", x.name, g.constant([0, 0, 1, 0, 0, 1, 0, 2]), fill)
            shape = (channels + 1, height + 1, width + 2)
        elif kind == "flat":
            value, shape = g.node("Flatten", x.name), (channels * height * width,)
        else:
            turned = g.node("Transpose", x.name, perm=[0, 2, 3, 1])
            value, shape = g.node("Reshape", turned, g.constant([1, channels, height, width])), x.shape
        if kind != "filled" and self.pick(True, False):
            return Tensor(value, shape, x.threshold, x.signed)
        return self.quantized(value, shape)

    def linear(self) -> Tensor | None:
        x = self.source(1)
        if x is None:
            return None
        outputs, transposed = self.pick(1, 5, 20), self.pick(0, 1)
        shape = (outputs, x.shape[0]) if transposed else (x.shape[0], outputs)
        weights = self.graph.weights(self.integers(shape), self.scales(outputs), axis=0 if transposed else 1)
        value = self.graph.node("Gemm", x.name, weights, self.biases(outputs), transB=transposed)
        return self.quantized(self.activated(value), (outputs,))

    def softmax(self) -> Tensor | None:
        x = self.source()
        assert x is not None
        if np.prod(x.shape) > 600:
            return None
        return self.quantized(self.graph.node("Softmax", x.name, axis=1), x.shape)

    def grow(self, layers: int) -> None:
        choices: tuple[Callable[[], Tensor | None], ...] = (
            self.conv, self.conv, self.conv, self.conv, self.conv_transpose, self.pair, self.pair, self.unary,
            self.concat, self.pool, self.resize, self.moved, self.linear, self.softmax,
        )  # fmt: skip
        while layers:
            made = self.pick(*choices)()
            if made is not None and np.prod(made.shape) <= 6000:
                self.tensors.append(made)
                layers -= 1

    def model(self) -> ir.Model:
        return self.graph.model(self.tensors[-1].name)


def random_network(seed: int, wide: float = 0.0) -> tuple[ir.Model, tuple[int, ...]]:
    """A network of 1 to 7 random layers, `wide` of their tensors of 16 bits, and the shape of its picture."""
    network = Network(seed, wide)
    network.grow(1 + seed % 7)
    return network.model(), network.input_shape


def pictures(seed: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random, black, saturated and two-valued pictures."""
    numbers = np.random.default_rng(seed)
    made = numbers.integers(-140, 270, (count, *shape))
    made[1::4] = numbers.integers(0, 2, made[1::4].shape) * 255
    made[2::4] = -128
    return made
