"""Where the vendor's converter takes 16-bit activations and 4- and 2-bit weights, and what they cost.

    python -m benchmarks.widths [--record FILE] [NAME ...]

Each network is one run of the converter (7 s or more, memory report only); the table shows its verdict and
bytes beside the forecast's. `--record` writes the converter's figures as the fast tests read them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chip_numbers import Net
from compiler.converter import ConverterInstall, ConverterRejected, convert, find_converter
from passes.diagnostics import has_errors
from passes.graph import parse
from passes.imx500.check import check_operators
from passes.imx500.memory import forecast_memory

SIDE = 16
CHANNELS = 32

Operator = Callable[[Net, str], str]


def reads(operator: Operator, bits: int = 16, out: int = 8, *, signed: bool = True) -> bytes:
    """An operator behind a convolution whose result has `bits` bits; its own has `out`."""
    net = Net(1)
    value = net.random_conv(net.input(CHANNELS, side=SIDE), CHANNELS, CHANNELS)
    value = value if signed else net.node("Relu", value)
    value = net.quantize(value, 16.0, bits=bits, signed=signed)
    return net.bytes(net.quantize(operator(net, value), 16.0, bits=out))


def writes(operator: Operator, out: int = 16, *, signed: bool = True, side: int = SIDE) -> bytes:
    """An operator behind the input, with a result of `out` bits."""
    net = Net(1)
    made = operator(net, net.input(CHANNELS, side=side))
    return net.bytes(net.quantize(made, 16.0, bits=out, signed=signed))


def pair(
    operator: str,
    first: int,
    second: int,
    out: int,
    *,
    channels: int = CHANNELS,
    kernel: int = 1,
    **given: Any,
) -> bytes:
    """Two convolutions of the input with results of `first` and `second` bits, joined."""
    net = Net(1)
    value = net.input(CHANNELS, side=SIDE)
    made = [net.random_conv(value, CHANNELS, channels, kernel, pad=kernel // 2) for _ in range(2)]
    both = [net.quantize(one, 16.0, bits=bits) for one, bits in zip(made, (first, second), strict=True)]
    return net.bytes(net.quantize(net.node(operator, *both, **given), 16.0, bits=out))


def function(operator: str, **attributes: Any) -> Operator:
    return lambda net, value: net.node(operator, value, **attributes)


def with_integers(operator: str, *constants: list[int], **attributes: Any) -> Operator:
    return lambda net, value: net.node(operator, value, *map(net.constant, constants), **attributes)


def with_numbers(operator: str, *constants: object) -> Operator:
    return lambda net, value: net.node(operator, value, *map(net.constant, constants))


def conv(channels: int = CHANNELS, kernel: int = 1, **options: int) -> Operator:
    return lambda net, value: net.random_conv(value, CHANNELS, channels, kernel, pad=kernel // 2, **options)


def then(first: Operator, second: Operator) -> Operator:
    return lambda net, value: second(net, first(net, value))


def pool(kind: str) -> Operator:
    return function(kind, kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4, ceil_mode=0)


def resize(mode: str) -> Operator:
    transformation = "asymmetric" if mode == "nearest" else "half_pixel"
    return lambda net, value: net.node(
        "Resize", value, "", net.constant([1.0, 1.0, 2.0, 2.0]), mode=mode,
        coordinate_transformation_mode=transformation, nearest_mode="floor", cubic_coeff_a=-0.75,
    )  # fmt: skip


def narrowed(net: Net, value: str) -> str:
    """A second quantizer, of 8 bits."""
    return net.quantize(value, 16.0)


def residual(bits: int, *, unsigned: bool = False) -> bytes:
    """The input plus a convolution of it whose result has `bits` bits."""
    net = Net(1)
    value = net.input(CHANNELS, side=SIDE)
    if unsigned:
        value = net.quantize(net.node("Relu", net.random_conv(value, 32, 32)), 16.0, signed=False)
    made = net.quantize(net.random_conv(value, 32, 32), 16.0, bits=bits)
    return net.bytes(net.quantize(net.node("Add", made, value), 16.0))


def chain(bits: int) -> bytes:
    """Two additions one after the other; the sum between them has `bits` bits."""
    net = Net(1)
    value = net.input(CHANNELS, side=SIDE)
    first, second = (net.quantize(net.random_conv(value, 32, 32), 16.0) for _ in range(2))
    total = net.quantize(net.node("Add", first, second), 16.0, bits=bits)
    third = net.quantize(net.random_conv(value, 32, 32), 16.0)
    return net.bytes(net.quantize(net.node("Add", total, third), 16.0))


def u_shape(first: int, second: int, out: int = 8) -> bytes:
    """A convolution, a pool, two convolutions that are added, two more."""
    net = Net(1)
    top = net.node("Relu", net.random_conv(net.input(8, side=2 * SIDE), 8, 32, 3, pad=1))
    top = net.quantize(top, 16.0, signed=False)
    pooled = net.quantize(net.pool(top, 3), 16.0, signed=False)
    one = net.quantize(net.random_conv(pooled, 32, 32, 3, pad=1), 16.0, bits=first)
    two = net.quantize(net.random_conv(top, 32, 32), 16.0, bits=second)
    total = net.quantize(net.node("Add", one, two), 16.0)
    last = net.quantize(net.node("Relu", net.random_conv(total, 32, 16, 3, pad=1)), 16.0, signed=False)
    return net.bytes(net.quantize(net.random_conv(last, 16, 1), 16.0, bits=out))


def weights(
    inputs: int, outputs: int, kernel: int, bits: int, *, depthwise: bool = False, stride: int = 1
) -> bytes:
    """One convolution with weights of `bits` bits."""
    net = Net(0)
    made = net.random_conv(
        net.input(inputs), inputs, outputs, kernel,
        pad=kernel // 2, stride=stride, bits=bits, groups=inputs if depthwise else 1,
    )  # fmt: skip
    return net.bytes(net.quantize(made, 16.0))


HALF = np.full((1, CHANNELS, 1, 1), 0.5)

NETWORKS: dict[str, Callable[[], bytes]] = {
    # A 16-bit tensor and what reads it.
    "conv": lambda: reads(conv()),
    "depthwise conv": lambda: reads(conv(kernel=3, groups=CHANNELS)),
    "conv behind transpose": lambda: reads(then(function("Transpose", perm=[0, 1, 3, 2]), conv())),
    "conv behind an 8-bit quantizer": lambda: reads(then(narrowed, conv())),
    "max pool": lambda: reads(pool("MaxPool")),
    "average pool": lambda: reads(pool("AveragePool")),
    "global average pool": lambda: reads(function("GlobalAveragePool")),
    "resize nearest": lambda: reads(resize("nearest")),
    "resize linear": lambda: reads(resize("linear")),
    "softmax": lambda: reads(function("Softmax", axis=1)),
    "reduce mean": lambda: reads(with_integers("ReduceMean", [2, 3], keepdims=0)),
    "reduce sum": lambda: reads(with_integers("ReduceSum", [1], keepdims=1)),
    "reduce max": lambda: reads(with_integers("ReduceMax", [1], keepdims=1)),
    "sigmoid": lambda: reads(function("Sigmoid")),
    "tanh": lambda: reads(function("Tanh")),
    "gelu": lambda: reads(function("Gelu", approximate="none")),
    "sin": lambda: reads(function("Sin")),
    "relu": lambda: reads(function("Relu")),
    "leaky relu": lambda: reads(function("LeakyRelu", alpha=0.1)),
    "clip": lambda: reads(with_numbers("Clip", 0.0, 6.0)),
    "exp": lambda: reads(function("Exp")),
    "abs": lambda: reads(function("Abs")),
    "sqrt": lambda: reads(function("Sqrt")),
    "neg": lambda: reads(function("Neg")),
    "add constant": lambda: reads(with_numbers("Add", HALF)),
    "mul constant": lambda: reads(with_numbers("Mul", HALF)),
    "transpose to 16": lambda: reads(function("Transpose", perm=[0, 1, 3, 2]), out=16),
    "unsigned": lambda: reads(function("Sigmoid"), signed=False),
    # 16-bit results.
    "output": lambda: writes(conv()),
    "output of relu": lambda: writes(then(conv(), function("Relu"))),
    "output of relu, unsigned": lambda: writes(then(conv(), function("Relu")), signed=False),
    "output of a depthwise conv": lambda: writes(conv(kernel=3, groups=CHANNELS)),
    "output of 8 channels, 3x3": lambda: writes(conv(8, 3)),
    "output of 40 channels, leaky": lambda: writes(then(conv(40), function("LeakyRelu", alpha=0.1))),
    "output of 40 channels, sigmoid": lambda: writes(then(conv(40), function("Sigmoid"))),
    "sigmoid from 8 to 16": lambda: reads(function("Sigmoid"), 8, 16),
    "hard swish from 8 to 16": lambda: reads(function("HardSwish"), 8, 16),
    "gelu from 8 to 16": lambda: reads(function("Gelu", approximate="none"), 8, 16),
    "leaky relu from 8 to 16": lambda: reads(function("LeakyRelu", alpha=0.1), 8, 16),
    "resize from 8 to 16": lambda: reads(resize("nearest"), 8, 16),
    "max pool from 8 to 16": lambda: reads(pool("MaxPool"), 8, 16),
    "average pool from 8 to 16": lambda: reads(pool("AveragePool"), 8, 16),
    # Two operands.
    "add 8 8 to 8": lambda: pair("Add", 8, 8, 8),
    "add 16 8 to 8": lambda: pair("Add", 16, 8, 8),
    "add 8 16 to 8": lambda: pair("Add", 8, 16, 8),
    "add 16 16 to 8": lambda: pair("Add", 16, 16, 8),
    "add 8 8 to 16": lambda: pair("Add", 8, 8, 16),
    "add 16 16 to 16": lambda: pair("Add", 16, 16, 16),
    "add 16 16 to 8, 40 channels": lambda: pair("Add", 16, 16, 8, channels=40),
    "add 16 16 to 8, 8 channels, 3x3": lambda: pair("Add", 16, 16, 8, channels=8, kernel=3),
    "sub 16 8 to 8": lambda: pair("Sub", 16, 8, 8),
    "mul 16 16 to 8": lambda: pair("Mul", 16, 16, 8),
    "mul 8 8 to 16": lambda: pair("Mul", 8, 8, 16),
    "div 16 16 to 8": lambda: pair("Div", 16, 16, 8),
    "max 8 8 to 16": lambda: pair("Max", 8, 8, 16),
    "concat 16 16 to 8": lambda: pair("Concat", 16, 16, 8, axis=1),
    "concat 16 16 to 16": lambda: pair("Concat", 16, 16, 16, axis=1),
    "concat 16 8 to 8": lambda: pair("Concat", 16, 8, 8, axis=1),
    "concat 8 8 to 16": lambda: pair("Concat", 8, 8, 16, axis=1),
    "sum of 16 added again": lambda: chain(16),
    # Networks.
    "u, 8": lambda: u_shape(8, 8),
    "u, one of two operands": lambda: u_shape(8, 16),
    "u, both operands": lambda: u_shape(16, 16),
    "u, output": lambda: u_shape(8, 8, 16),
    # Narrow weights.
    **{
        f"weights {inputs} to {outputs}, {kernel}x{kernel}, {bits} bits": partial(
            weights, inputs, outputs, kernel, bits
        )
        for inputs, outputs, kernel, bits in [
            (40, 40, 1, 4), (40, 40, 1, 2), (40, 40, 3, 4), (40, 40, 3, 2), (8, 8, 1, 4), (8, 8, 1, 2),
            (3, 40, 3, 4), (3, 40, 3, 2), (24, 40, 1, 4), (32, 16, 1, 4), (16, 16, 3, 2), (32, 32, 3, 4),
            (32, 96, 1, 2), (4, 4, 5, 4),
        ]
    },
    **{
        f"depthwise weights {channels}, {kernel}x{kernel}, {bits} bits": partial(
            weights, channels, channels, kernel, bits, depthwise=True
        )
        for channels, kernel, bits in [
            (16, 3, 4), (32, 3, 4), (40, 3, 4), (40, 3, 2), (64, 3, 2), (96, 3, 4), (96, 3, 2), (128, 3, 2),
            (16, 5, 4),
        ]
    },
    "weights 16 to 40, 3x3 stride 2, 4 bits": lambda: weights(16, 40, 3, 4, stride=2),
    "weights 3 to 8, 3x3 stride 2, 4 bits": lambda: weights(3, 8, 3, 4, stride=2),
    "weights 40 to 40, 1x1 stride 2, 4 bits": lambda: weights(40, 40, 1, 4, stride=2),
}  # fmt: skip
"""Everything is named by what reads, or makes, the 16-bit tensor, or by the shape of the narrow kernel."""


def measured(name: str, install: ConverterInstall) -> tuple[int, int] | None:
    """(model, runtime) bytes as the converter reports them, None where it refuses the network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "n.onnx"
        path.write_bytes(NETWORKS[name]())
        try:
            memory = convert(path, install=install, memory_report_only=True).memory
        except ConverterRejected:
            return None
    return memory.model_bytes, memory.runtime_bytes


def forecast(name: str) -> tuple[int, int] | None:
    """(model, runtime) bytes, None where the check refuses the network."""
    model = parse(NETWORKS[name]())
    if has_errors(check_operators(model)):
        return None
    found = forecast_memory(model)
    return found.model_bytes, found.runtime_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to convert (default: all)")
    parser.add_argument("--record", type=Path, help="write the converter's figures here")
    given = parser.parse_args()
    install = find_converter()
    found: dict[str, tuple[int, int] | None] = {}
    print("| network | model | runtime | forecast |\n|---|---:|---:|---|")
    for name in given.names or NETWORKS:
        found[name] = measured(name, install)
        model, runtime = (f"{size:,}" for size in found[name] or ()) if found[name] else ("refused", "")
        print(f"| {name} | {model} | {runtime} | {_beside(forecast(name), found[name])} |", flush=True)
    if given.record is not None:
        given.record.write_text(json.dumps(found, indent=1) + "\n")


def _beside(ours: tuple[int, int] | None, theirs: tuple[int, int] | None) -> str:
    if ours == theirs:
        return "exact" if ours else "refused"
    return "another verdict" if None in (ours, theirs) else f"{ours}"


if __name__ == "__main__":
    main()
