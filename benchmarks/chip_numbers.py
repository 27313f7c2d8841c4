"""What the converter puts into packerOut.zip: small networks, one change each, and the bytes that change.

    python -m benchmarks.chip_numbers [--only NAME ...] [--record FILE] [--cache DIR]

Prints the Markdown table of docs/numerics.md, "The numbers in the compiled file". Each network is one run of
the vendor's converter (about 10 s; 77 of them, kept in `--cache`). `--record` writes the networks that the
fast tests read, each as its ONNX and its l2staticData.bin. Everything is seeded.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from compiler.cache import Cache
from compiler.chip import (
    activation_table,
    addition_shifts,
    average_pool_record,
    chip_layer_constants,
    read_compiled,
)
from compiler.chip.tables import FUNCTIONS
from compiler.converter import convert, find_converter
from compiler.simulator.fixedpoint import Grid
from passes.graph import QUANTIZER_DOMAIN, parse

SIDE = 8
STATIC, REGISTERS = "l2staticData.bin", "cfgA.bin"
RECORDED = (
    "pointwise", "pointwise unsigned", "pointwise relu", "relu6", "depthwise 3x3", "depthwise 3x3 unsigned",
    "depthwise 3x3 stride 2", "depthwise 5x5", "dense 3x3 unsigned", "first 3x3 stride 2", "dense 5x5 few",
    "multiplier ties", "bias ties", "correction order", "addition", "average 3x3", "sigmoid 16",
    "pointwise, 4 bits", "pointwise, 2 bits", "dense 3x3 unsigned, 4 bits", "dense 3x3 unsigned, 2 bits",
    "depthwise 3x3, 4 bits", "depthwise 3x3, 2 bits", "depthwise 3x3 stride 2, 4 bits",
)  # fmt: skip
"""Networks whose files the fast tests read."""


class Net:
    """A vendor-dialect network under construction; every method returns the name of the value it made."""

    def __init__(self, seed: int = 0) -> None:
        self.numbers = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._input: list[onnx.ValueInfoProto] = []

    def input(self, channels: int, *, signed: bool = True, threshold: float = 128.0, side: int = SIDE) -> str:
        """An input [1, channels, side, side], quantized; its step is the same whether signed or not."""
        shape = [1, channels, side, side]
        self._input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
        return self.quantize("input", threshold if signed else 2 * threshold, signed=signed)

    def constant(self, values: Any) -> str:
        """Integers become int64, other numbers float32."""
        name = f"/constant{len(self._constants)}"
        array = np.asarray(values)
        kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
        self._constants.append(numpy_helper.from_array(array.astype(kind), name))
        return name

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"/n{len(self._nodes):03d}/{operator}"
        output = f"{name}_output_0"
        self._nodes.append(
            helper.make_node(operator, list(inputs), [output], name, domain=domain, **attributes)
        )
        return output

    def quantize(self, value: str, threshold: float, *, signed: bool = True, bits: int = 8) -> str:
        return self.node(
            "ActivationPOTQuantizer",
            value,
            domain=QUANTIZER_DOMAIN,
            threshold=float(threshold),
            signed=int(signed),
            num_bits=bits,
            mctq_version="1.6.0",
        )

    def conv(
        self,
        value: str,
        weights: NDArray[np.int64],
        steps: NDArray[np.float32],
        bias: NDArray[np.float64],
        *,
        stride: int = 1,
        pad: int = 0,
        groups: int = 1,
        bits: int = 8,
    ) -> str:
        """A convolution with the given integers [Cout, Cin / groups, kh, kw] and one step per channel."""
        floats = weights * steps.reshape(-1, 1, 1, 1)
        quantized = self.node(
            "WeightsSymmetricQuantizer",
            self.constant(floats),
            self.constant(steps * 2 ** (bits - 1)),
            domain=QUANTIZER_DOMAIN,
            num_bits=bits,
            per_channel=1,
            channel_axis=0,
            signed=1,
            mctq_version="1.6.0",
        )
        return self.node(
            "Conv",
            value,
            quantized,
            self.constant(bias),
            kernel_shape=list(weights.shape[2:]),
            pads=[pad] * 4,
            strides=[stride] * 2,
            dilations=[1, 1],
            group=groups,
        )

    def random_conv(self, value: str, inputs: int, outputs: int, kernel: int = 1, **options: int) -> str:
        groups = options.get("groups", 1)
        highest = 2 ** (options.get("bits", 8) - 1) - 1
        weights = self.numbers.integers(-highest, highest + 1, (outputs, inputs // groups, kernel, kernel))
        steps = np.exp(self.numbers.uniform(-9, -3, outputs)).astype(np.float32)
        return self.conv(value, weights, steps, self.numbers.normal(size=outputs) * 3, **options)

    def pool(self, value: str, kernel: int) -> str:
        """A max pool that keeps the size: something that is no convolution."""
        return self.node(
            "MaxPool",
            value,
            kernel_shape=[kernel] * 2,
            pads=[kernel // 2] * 4,
            strides=[1, 1],
            dilations=[1, 1],
            ceil_mode=0,
        )

    def bytes(self, output: str) -> bytes:
        """The file, with the shape of every value, which the converter wants."""
        graph = helper.make_graph(
            self._nodes,
            "chip_numbers",
            self._input,
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self._constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(QUANTIZER_DOMAIN, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=9, producer_name="pytorch", producer_version="2.6.0"
        )
        plain = onnx.ModelProto()
        plain.CopyFrom(model)
        for node in plain.graph.node:
            if node.domain == QUANTIZER_DOMAIN:
                node.domain, node.op_type = "", "Identity"
                del node.attribute[:], node.input[1:]
        plain = shape_inference.infer_shapes(plain, strict_mode=True, data_prop=True)
        stored = {tensor.name for tensor in model.graph.initializer}
        model.graph.value_info.extend(v for v in plain.graph.value_info if v.name not in stored)
        model.graph.output[0].CopyFrom(plain.graph.output[0])
        return bytes(model.SerializeToString(deterministic=True))


def layer(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    depthwise: bool = False,
    signed: bool = True,
    activation: str = "",
    input_threshold: float = 128.0,
    threshold: float = 16.0,
    bits: int = 8,
    change: Callable[[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]], None] | None = None,
) -> bytes:
    """One convolution with random numbers; `change` may edit its integers, steps and biases in place."""
    net = Net()
    groups = inputs if depthwise else 1
    highest = 2 ** (bits - 1) - 1
    weights = net.numbers.integers(-highest, highest + 1, (outputs, inputs // groups, kernel, kernel))
    steps = np.exp(net.numbers.uniform(-9, -3, outputs)).astype(np.float32)
    bias = net.numbers.normal(size=outputs) * 3
    if change is not None:
        change(weights, steps, bias)
    value = net.input(inputs, signed=signed, threshold=input_threshold)
    value = net.conv(value, weights, steps, bias, stride=stride, pad=kernel // 2, groups=groups, bits=bits)
    if activation == "Relu":
        value = net.node("Relu", value)
    elif activation == "Clip":
        value = net.node("Clip", value, net.constant(0.0), net.constant(6.0))
    return net.bytes(net.quantize(value, threshold, signed=not activation))


def _one_weight(weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
    weights[2, 3] += 1 if weights[2, 3, 0, 0] < 0 else -1


def _one_step(weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
    steps[2] *= 3


def _one_bias(weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
    bias[2] += 1


def _multiplier_ties(
    weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]
) -> None:
    """Mantissas m + 1/2 in channels 0 to 15, a float32 below in 16 to 23 and above in 24 to 31."""
    ties = np.array([128, 129, 130, 131, 132, 133, 150, 151, 190, 191, 200, 201, 252, 253, 254, 255]) + 0.5
    near = np.concatenate([ties[:8] * (1 - 2**-23), ties[8:] * (1 + 2**-23)])
    steps[:] = np.concatenate([ties, near]) * 2.0**-14


def _bias_ties(weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
    steps[:] = 2.0**-10
    bias[:] = (np.arange(-16, 16) + 0.5) * 2.0**-10


def _large_bias(weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
    steps[:] = 2.0**-10
    bias[:] = 0
    bias[2] = 2.0 ** (33 - 10)


def _shifts(weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]) -> None:
    steps[:] = 1.3 * 2.0 ** np.arange(-26, 6)
    bias[:] = 0


def _extreme_shifts(
    weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]
) -> None:
    steps[:] = 1.3 * 2.0 ** np.arange(-44, 52, 3)
    bias[:] = 0


SUM_ORDERS = {
    "row, column, channel": (0, 2, 3, 1),
    "channel, row, column": (0, 1, 2, 3),
    "column, row, channel": (0, 3, 2, 1),
}


def correction_in_order(
    weights: NDArray[np.int64], steps: NDArray[np.float32], axes: tuple[int, ...]
) -> NDArray[np.float64]:
    """The correction for unsigned inputs, summed in another order of the axes."""
    floats = (weights.astype(np.float32) * steps.reshape(-1, 1, 1, 1)).astype(np.float64)
    ordered = floats.transpose(axes).reshape(len(steps), -1) * (1 / steps.astype(np.float64))[:, None]
    return np.asarray(np.trunc(np.cumsum(ordered, axis=1)[:, -1] * 128), dtype=np.float64)


def _correction_order(
    weights: NDArray[np.int64], steps: NDArray[np.float32], bias: NDArray[np.float64]
) -> None:
    """Channels in which the orders of summation give different corrections."""
    numbers = np.random.default_rng(3)
    found = 0
    bias[:] = 0
    while found < len(steps):
        tried = numbers.integers(-127, 128, (400, *weights.shape[1:]))
        scales = np.exp(numbers.uniform(-9, -3, 400)).astype(np.float32)
        first, *others = (correction_in_order(tried, scales, axes) for axes in SUM_ORDERS.values())
        for index in np.flatnonzero(np.any([first != other for other in others], axis=0)):
            if found < len(steps):
                weights[found], steps[found] = tried[index], scales[index]
                found += 1


def two(
    join: Callable[[Net, str, str], str],
    thresholds: tuple[float, float] = (16.0, 16.0),
    threshold: float = 16.0,
    relus: tuple[bool, bool] = (False, False),
) -> bytes:
    """Two pointwise convolutions of one input, joined."""
    net = Net(1)
    value = net.input(32)
    made = []
    for own, relu in zip(thresholds, relus, strict=True):
        branch = net.random_conv(value, 32, 32)
        branch = net.node("Relu", branch) if relu else branch
        made.append(net.quantize(branch, own, signed=not relu))
    return net.bytes(net.quantize(join(net, *made), threshold))


def behind(
    operator: Callable[[Net, str], str],
    *,
    before: float | None = 16.0,
    threshold: float = 16.0,
    signed: bool = True,
) -> bytes:
    """An operator behind a pointwise convolution; `before` is the threshold between them, or None."""
    net = Net(1)
    value = net.random_conv(net.input(32), 32, 32)
    value = value if before is None else net.quantize(value, before)
    return net.bytes(net.quantize(operator(net, value), threshold, signed=signed))


def _add(net: Net, a: str, b: str) -> str:
    return net.node("Add", a, b)


def _pooled_add(net: Net, a: str, b: str) -> str:
    return net.node("Add", net.pool(a, 3), net.pool(b, 3))


def _concat(net: Net, a: str, b: str) -> str:
    return net.node("Concat", a, b, axis=1)


def _nearest(net: Net, value: str) -> str:
    return net.node(
        "Resize",
        value,
        "",
        net.constant([1.0, 1.0, 2.0, 2.0]),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        cubic_coeff_a=-0.75,
    )


def _average(kernel: int) -> Callable[[Net, str], str]:
    return lambda net, value: net.node(
        "AveragePool",
        value,
        kernel_shape=[kernel] * 2,
        pads=[kernel // 2 if kernel % 2 else 0] * 4,
        strides=[2, 2],
        ceil_mode=0,
        count_include_pad=1,
    )


def _function(operator: str, **attributes: Any) -> Callable[[Net, str], str]:
    return lambda net, value: net.node(operator, value, **attributes)


NETWORKS: dict[str, Callable[[], bytes]] = {
    "pointwise": lambda: layer(8, 8),
    "pointwise unsigned": lambda: layer(8, 8, signed=False),
    "pointwise relu": lambda: layer(8, 8, activation="Relu"),
    "relu6": lambda: layer(8, 8, activation="Clip"),
    "relu6, threshold 8": lambda: layer(8, 8, activation="Clip", threshold=8.0),
    "one weight": lambda: layer(8, 8, change=_one_weight),
    "one weight unsigned": lambda: layer(8, 8, signed=False, change=_one_weight),
    "one step": lambda: layer(8, 8, change=_one_step),
    "one bias": lambda: layer(8, 8, change=_one_bias),
    "input threshold": lambda: layer(8, 8, input_threshold=64.0),
    "output threshold": lambda: layer(8, 8, threshold=32.0),
    "pointwise 40": lambda: layer(40, 40),
    "pointwise stride 2": lambda: layer(40, 40, stride=2),
    "depthwise 3x3": lambda: layer(16, 16, 3, depthwise=True),
    "depthwise 3x3 unsigned": lambda: layer(16, 16, 3, depthwise=True, signed=False),
    "depthwise 3x3 relu": lambda: layer(16, 16, 3, depthwise=True, activation="Relu"),
    "depthwise 3x3 stride 2": lambda: layer(16, 16, 3, stride=2, depthwise=True),
    "depthwise 3x3 stride 3": lambda: layer(16, 16, 3, stride=3, depthwise=True),
    "depthwise 4x4 stride 4": lambda: layer(16, 16, 4, stride=4, depthwise=True),
    "depthwise 5x5": lambda: layer(16, 16, 5, depthwise=True),
    "depthwise 5x5 stride 2": lambda: layer(40, 40, 5, stride=2, depthwise=True),
    "depthwise 7x7": lambda: layer(32, 32, 7, depthwise=True),
    "dense 3x3": lambda: layer(40, 40, 3),
    "dense 3x3 unsigned": lambda: layer(6, 6, 3, signed=False),
    "dense 3x3 stride 2": lambda: layer(40, 40, 3, stride=2),
    "dense 3x3 stride 2 few": lambda: layer(16, 40, 3, stride=2),
    "dense 3x3 stride 2, 32 to 40": lambda: layer(32, 40, 3, stride=2),
    "dense 5x5": lambda: layer(40, 40, 5),
    "dense 5x5 few": lambda: layer(4, 4, 5),
    "first 3x3": lambda: layer(3, 40, 3),
    "first 3x3 stride 2": lambda: layer(3, 8, 3, stride=2),
    "multiplier ties": lambda: layer(8, 32, change=_multiplier_ties),
    "bias ties": lambda: layer(8, 32, change=_bias_ties),
    "correction order": lambda: layer(24, 32, 3, signed=False, change=_correction_order),
    "shifts": lambda: layer(8, 32, change=_shifts),
    "extreme shifts": lambda: layer(8, 32, change=_extreme_shifts),
    "large bias": lambda: layer(8, 8, change=_large_bias),
    "pointwise, 4 bits": lambda: layer(40, 40, bits=4),
    "pointwise, 2 bits": lambda: layer(40, 40, bits=2),
    "pointwise few, 4 bits": lambda: layer(8, 8, bits=4),
    "pointwise stride 2, 4 bits": lambda: layer(40, 40, stride=2, bits=4),
    "dense 3x3, 4 bits": lambda: layer(40, 40, 3, bits=4),
    "dense 3x3, 2 bits": lambda: layer(40, 40, 3, bits=2),
    "dense 3x3 unsigned, 4 bits": lambda: layer(32, 8, 3, signed=False, bits=4),
    "dense 3x3 unsigned, 2 bits": lambda: layer(32, 8, 3, signed=False, bits=2),
    "dense 3x3 stride 2 few, 4 bits": lambda: layer(16, 40, 3, stride=2, bits=4),
    "first 3x3, 4 bits": lambda: layer(3, 40, 3, bits=4),
    "first 3x3, 2 bits": lambda: layer(3, 40, 3, bits=2),
    "depthwise 3x3, 4 bits": lambda: layer(16, 16, 3, depthwise=True, bits=4),
    "depthwise 3x3 unsigned, 4 bits": lambda: layer(40, 40, 3, depthwise=True, signed=False, bits=4),
    "depthwise 3x3, 2 bits": lambda: layer(40, 40, 3, depthwise=True, bits=2),
    "depthwise 3x3 stride 2, 4 bits": lambda: layer(16, 16, 3, stride=2, depthwise=True, bits=4),
    "depthwise 5x5 stride 2, 2 bits": lambda: layer(40, 40, 5, stride=2, depthwise=True, bits=2),
    "addition": lambda: two(_add),
    "addition, first 8": lambda: two(_add, (8.0, 16.0)),
    "addition, second 8": lambda: two(_add, (16.0, 8.0)),
    "addition, first 32": lambda: two(_add, (32.0, 16.0)),
    "addition, 4 and 32 to 8": lambda: two(_add, (4.0, 32.0), 8.0),
    "addition, result 32": lambda: two(_add, threshold=32.0),
    "addition, first relu": lambda: two(_add, relus=(True, False)),
    "addition alone": lambda: two(_pooled_add),
    "addition alone, first 8": lambda: two(_pooled_add, (8.0, 16.0)),
    "addition alone, second 4": lambda: two(_pooled_add, (16.0, 4.0)),
    "addition alone, result 32": lambda: two(_pooled_add, threshold=32.0),
    "concat": lambda: two(_concat),
    "concat, second 8": lambda: two(_concat, (16.0, 8.0)),
    "concat, result 32": lambda: two(_concat, threshold=32.0),
    "nearest": lambda: behind(_nearest),
    "nearest, result 32": lambda: behind(_nearest, threshold=32.0),
    "average 2x2": lambda: behind(_average(2)),
    "average 3x3": lambda: behind(_average(3)),
    "average 2x2, result 8": lambda: behind(_average(2), threshold=8.0),
    "sigmoid 16": lambda: behind(_function("Sigmoid"), threshold=1.0, signed=False),
    "sigmoid 4": lambda: behind(_function("Sigmoid"), before=4.0, threshold=1.0, signed=False),
    "sigmoid fused": lambda: behind(_function("Sigmoid"), before=None, threshold=1.0, signed=False),
    "tanh fused": lambda: behind(_function("Tanh"), before=None, threshold=1.0),
    "hardswish fused": lambda: behind(_function("HardSwish"), before=None),
    "leaky 0.1": lambda: behind(_function("LeakyRelu", alpha=0.1), before=None),
}


@dataclass(frozen=True)
class Compiled:
    """A network and what the converter made of it."""

    onnx: bytes
    members: Mapping[str, bytes]

    @property
    def model(self) -> ir.Model:
        return parse(self.onnx)

    @property
    def static(self) -> bytes:
        return self.members[STATIC]


@dataclass(frozen=True)
class Finding:
    """One row: what was done, what the bytes say, and how many of the numbers agree with the rule."""

    what: str
    says: str
    agree: int
    of: int


class Converter:
    """Runs the vendor's converter, once for each network."""

    def __init__(self, folder: Path | None) -> None:
        self._install, self._folder = find_converter(), folder
        self.compiled = cache(self._compiled)

    def _compiled(self, name: str) -> Compiled:
        data = NETWORKS[name]()
        # A cache folder keeps 32 entries, fewer than there are networks: each has its own.
        kept = None if self._folder is None else Cache(self._folder / name.replace(" ", "-"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "n.onnx"
            path.write_bytes(data)
            done = convert(path, install=self._install, cache=kept)
        with zipfile.ZipFile(io.BytesIO(done.files["packerOut.zip"])) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        print(f"{name}: {len(members[STATIC])} bytes of constants", file=sys.stderr, flush=True)
        return Compiled(data, members)


def agreement(compiled: Compiled) -> tuple[int, int]:
    """Integers of the file that equal the predicted ones, and how many there are."""
    model = compiled.model
    read = read_compiled(compiled.static, model).layers
    agree = total = 0
    for name, expected in chip_layer_constants(model).layers.items():
        for field in ("weights", "multiplier", "shift", "bias"):
            predicted = getattr(expected, field)
            total += predicted.size
            agree += int((getattr(read[name], field) == predicted).sum()) if name in read else 0
    return agree, total


def changed_records(base: Compiled, other: Compiled) -> str:
    """Bytes that differ, by the record of `base` that they stand in."""
    (found,) = read_compiled(base.static, base.model).layers.values()
    starts = dict(zip(("kernel", "multipliers and shifts", "biases"), found.offsets, strict=True))
    bounds = sorted([*starts.values(), len(base.static)])
    differing = [at for at, (x, y) in enumerate(zip(base.static, other.static, strict=True)) if x != y]
    parts = []
    for name, start in starts.items():
        end = bounds[bounds.index(start) + 1]
        count = sum(start <= at < end for at in differing)
        if count:
            parts.append(f"{name} {count}")
    return ", ".join(parts) or "none"


def changed_registers(base: Compiled, other: Compiled) -> str:
    """Words of cfgA.bin that differ: the upper 16 bits number a register, the lower ones are its value."""
    before, after = (c.members[REGISTERS] for c in (base, other))
    if base.static != other.static and len(base.static) == len(other.static):
        note = "; constants differ in the shifts of the changed layer"
    else:
        note = "; no constant differs" if base.static == other.static else ""
    if len(before) != len(after):
        return f"{abs(len(after) - len(before)) // 4} registers more{note}"
    words = [
        (old, new)
        for old, new in zip(struct.iter_unpack("<hH", before), struct.iter_unpack("<hH", after), strict=True)
        if old != new
    ]
    return ", ".join(f"{old[0]} becomes {new[0]}" for old, new in words) + note


def layouts(converter: Converter) -> Iterator[Finding]:
    """Every network with a decoded form: all integers of the file against the predicted ones."""
    for name in NETWORKS:
        compiled = converter.compiled(name)
        constants = chip_layer_constants(compiled.model)
        if constants.layers and not constants.undecoded:
            rest = [
                f"{length} bytes {'zero' if zero else 'of a table'}"
                for _, length, zero in read_compiled(compiled.static, compiled.model).remainder
            ]
            yield Finding(name, "; ".join(rest) or "nothing else in the file", *agreement(compiled))
        else:
            why = "; ".join(unknown.why for unknown in constants.undecoded)
            yield Finding(name, f"not decoded: {why}", 0, 0)


def one_change(converter: Converter) -> Iterator[Finding]:
    """One number changed: the bytes that change with it."""
    for base, changed in [
        ("pointwise", "one weight"),
        ("pointwise unsigned", "one weight unsigned"),
        ("pointwise", "one step"),
        ("pointwise", "one bias"),
        ("pointwise", "input threshold"),
        ("pointwise", "output threshold"),
    ]:
        before, after = converter.compiled(base), converter.compiled(changed)
        yield Finding(
            f"{base}: {changed}", f"bytes that change: {changed_records(before, after)}", *agreement(after)
        )


def rounding(converter: Converter) -> Iterator[Finding]:
    """Ties of multipliers and biases, and the order in which the correction is summed."""
    for name in ("multiplier ties", "bias ties", "shifts"):
        yield Finding(name, "the rule of compiler/chip/constants.py", *agreement(converter.compiled(name)))
    compiled = converter.compiled("correction order")
    (expected,) = chip_layer_constants(compiled.model).layers.values()
    (read,) = read_compiled(compiled.static, compiled.model).layers.values()
    steps = _steps(compiled.model)
    for order, axes in SUM_ORDERS.items():
        correction = correction_in_order(expected.weights.astype(np.int64), steps, axes)
        yield Finding(
            f"correction summed {order}",
            "agrees" if order == next(iter(SUM_ORDERS)) else "does not",
            int((read.bias == correction).sum()),
            len(read.bias),
        )


def _steps(model: ir.Model) -> NDArray[np.float32]:
    (quantizer,) = (node for node in model.graph if node.op_type == "WeightsSymmetricQuantizer")
    threshold = quantizer.inputs[1]
    assert threshold is not None
    assert threshold.const_value is not None
    return np.asarray(threshold.const_value.numpy() / 128, dtype=np.float32)


GRID = {4.0: -5, 8.0: -4, 16.0: -3, 32.0: -2}
"""Threshold of a signed 8-bit grid -> exponent of its step."""


def fused_addition_registers(compiled: Compiled) -> tuple[int, int, int] | None:
    """(shift of the convolution, of the stored operand, of the result) of the one fused addition.

    They stand in a run of registers: ..., convolution, clip, buffer, stored, flag, result, flag, -16.
    """
    words = list(struct.iter_unpack("<hH", compiled.members[REGISTERS]))
    found = None
    for at in range(len(words) - 12):
        values, numbers = zip(*words[at : at + 13], strict=True)
        consecutive = all(number == numbers[0] + i for i, number in enumerate(numbers))
        if consecutive and values[:4] == (1, 8, 8, 8) and values[12] == -16 and values[4] < 0 > values[7]:
            found = (values[5], values[8], values[10])
    return found


def additions(converter: Converter) -> Iterator[Finding]:
    """The shifts of a fused addition against `addition_shifts`."""
    for name, own, other, result, relu in [
        ("addition", 16.0, 16.0, 16.0, False),
        ("addition, first 8", 8.0, 16.0, 16.0, False),
        ("addition, second 8", 16.0, 8.0, 16.0, False),
        ("addition, first 32", 32.0, 16.0, 16.0, False),
        ("addition, 4 and 32 to 8", 4.0, 32.0, 8.0, False),
        ("addition, result 32", 16.0, 16.0, 32.0, False),
        ("addition, first relu", 16.0, 16.0, 16.0, True),
    ]:
        stored = Grid(GRID[other] - int(relu), 8, not relu)
        shifts = addition_shifts(Grid(GRID[own], 8, True), stored, Grid(GRID[result], 8, True))
        expected = (shifts.convolution, shifts.stored, shifts.result)
        read = fused_addition_registers(converter.compiled(name))
        says = f"registers {read}"
        yield Finding(name, says, sum(map(int.__eq__, read or (), expected)), 3)
    for base, changed in [
        ("addition alone", "addition alone, first 8"),
        ("addition alone", "addition alone, second 4"),
        ("addition alone", "addition alone, result 32"),
        ("concat", "concat, second 8"),
        ("concat", "concat, result 32"),
        ("nearest", "nearest, result 32"),
        ("average 2x2", "average 2x2, result 8"),
        ("relu6", "relu6, threshold 8"),
    ]:
        before, after = converter.compiled(base), converter.compiled(changed)
        yield Finding(f"{base} against {changed}", changed_registers(before, after), 0, 0)


def tables(converter: Converter) -> Iterator[Finding]:
    """Look-up tables entry by entry."""
    for name, operator, before, after in [
        ("sigmoid 16", "Sigmoid", 16.0, 1.0),
        ("sigmoid 4", "Sigmoid", 4.0, 1.0),
        ("sigmoid fused", "Sigmoid", 8.0, 1.0),
        ("tanh fused", "Tanh", 4.0, 1.0),
        ("hardswish fused", "HardSwish", 16.0, 16.0),
    ]:
        expected = activation_table(FUNCTIONS[operator], before, after).astype("<i2").tobytes()
        at = converter.compiled(name).static.find(expected)
        says = f"floor(f(x) 2^15 / {after:g}), x from -{before:g}" if at >= 0 else "another table"
        yield Finding(name, says, 256 if at >= 0 else 0, 256)
    for name in ("average 2x2", "average 3x3"):
        at = converter.compiled(name).static.find(average_pool_record())
        yield Finding(name, "2^16 / n, n from 128 to 255 and 0 to 127, twice", 512 if at >= 0 else 0, 512)
    x = np.arange(-128, 128) * 256
    leaky = np.where(x < 0, np.floor(x * 204 / 2048), x).astype("<i2").tobytes()
    at = converter.compiled("leaky 0.1").static.find(leaky)
    yield Finding("leaky 0.1", "slope 204 / 2048, floor", 256 if at >= 0 else 0, 256)


EXPERIMENTS: dict[str, Callable[[Converter], Iterator[Finding]]] = {
    "one-change": one_change,
    "layouts": layouts,
    "rounding": rounding,
    "additions": additions,
    "tables": tables,
}


def record(converter: Converter, path: Path) -> None:
    """Write NAME.onnx and NAME.bin of every network in RECORDED; the same networks give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in RECORDED:
            compiled = converter.compiled(name)
            for ending, data in (("onnx", compiled.onnx), ("bin", compiled.static)):
                info = zipfile.ZipInfo(f"{name}.{ending}")
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, data)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--record", type=Path, help="write the networks of the fast tests to this zip")
    parser.add_argument("--cache", type=Path, help="keep and reuse conversions here")
    given = parser.parse_args(arguments)
    converter = Converter(given.cache)
    for name in given.only:
        print(f"\n{EXPERIMENTS[name].__doc__}\n\n| network | in the file | agree | of |\n|---|---|---|---|")
        for finding in EXPERIMENTS[name](converter):
            numbers = f"{finding.agree} | {finding.of}" if finding.of else " | "
            print(f"| {finding.what} | {finding.says} | {numbers} |", flush=True)
    if given.record is not None:
        record(converter, given.record)


if __name__ == "__main__":
    main()
