"""Random networks out of operator forms: those the target takes, and those it refuses.

A form is one function that adds a node or a small group of them to a network. It draws its sizes from the
network's own random numbers and says whether it could: a pool, for instance, needs a picture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.graphs import model, node

Shape = tuple[int, ...]


class Network:
    """A graph under construction: `values` holds the shape of every float tensor of batch 1 so far."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shape = shape
        self.values: dict[str, Shape] = {"x": shape}
        self.indices: list[str] = []
        self.read: set[str] = set()
        self._numbers = np.random.default_rng(seed)

    def constant(self, array: Any, kind: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, kind)
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self._numbers.uniform(0.05, 0.5, shape))

    def ints(self, *numbers: int) -> str:
        return self.constant(numbers, np.int64)

    def add(self, op: str, *inputs: str, shape: Shape, **attributes: Any) -> str:
        """One node with one float output of this shape."""
        return self.add_several(op, *inputs, shapes=(shape,), **attributes)[0]

    def add_several(self, op: str, *inputs: str, shapes: tuple[Shape, ...], **attributes: Any) -> list[str]:
        names = [f"v{len(self.nodes)}_{index}" for index in range(len(shapes))]
        self.nodes.append(node(op, list(inputs), names, name=f"n{len(self.nodes)}", **attributes))
        self.values.update(zip(names, shapes, strict=True))
        self.read.update(inputs)
        return names

    def pick(self, rank: int | None = None, least: int = 1) -> str | None:
        """A tensor of this rank whose height and width are at least `least`; recent ones are more likely."""
        fitting = [
            name
            for name, shape in self.values.items()
            if rank in (None, len(shape)) and (rank != 4 or min(shape[2:]) >= least)
        ]
        if not fitting:
            return None
        return fitting[-1] if self.random.random() < 0.7 else self.random.choice(fitting)

    def build(self) -> ir.Model:
        """Every tensor that nothing reads is an output."""
        outputs = [name for name in (*self.values, *self.indices) if name not in self.read and name != "x"]
        return model(self.nodes, {"x": list(self.shape)}, outputs, self.constants)


Form = Callable[[Network], bool]
"""Adds its nodes and says whether it could."""

LEGAL: dict[str, Form] = {}
ILLEGAL: dict[str, Form] = {}


def legal(name: str) -> Callable[[Form], Form]:
    return lambda form: LEGAL.setdefault(name, form)


def illegal(name: str) -> Callable[[Form], Form]:
    return lambda form: ILLEGAL.setdefault(name, form)


# Convolutions


def _conv(
    net: Network,
    kernel: Shape,
    stride: int = 1,
    dilation: int = 1,
    pads: Shape = (0, 0, 0, 0),
    group: int = 1,
    depthwise: bool = False,
) -> bool:
    extents = [(k - 1) * dilation + 1 for k in kernel]
    x = net.pick(4, max(1, max(extents) - min(pads)))
    if x is None:
        return False
    channels = net.values[x][1]
    group = channels if depthwise else group
    if channels % group or (depthwise and channels < 2):
        return False
    made = group * (1 if depthwise else net.random.randint(1, 4))
    sizes = [
        (size + pads[axis] + pads[axis + 2] - extents[axis]) // stride + 1
        for axis, size in enumerate(net.values[x][2:])
    ]
    bias = [net.weight(made)] if net.random.random() < 0.5 else []
    net.add(
        "Conv",
        x,
        net.weight(made, channels // group, *kernel),
        *bias,
        shape=(1, made, *sizes),
        strides=[stride] * 2,
        dilations=[dilation] * 2,
        pads=list(pads),
        group=group,
    )
    return True


@legal("Conv")
def conv(net: Network) -> bool:
    kernel = (net.random.choice((1, 2, 3, 5)), net.random.choice((1, 3, 4)))
    down, right = (net.random.randint(0, k - 1) for k in kernel)
    return _conv(net, kernel, stride=net.random.choice((1, 2)), pads=(down, right, down, right))


@legal("Conv, dilated")
def conv_dilated(net: Network) -> bool:
    return _conv(net, (3, 3), dilation=2, pads=(2, 2, 2, 2))


@legal("Conv, uneven padding")
def conv_uneven(net: Network) -> bool:
    return _conv(net, (2, 3), stride=2, pads=(0, 3, 4, 1))


@legal("Conv, groups")
def conv_groups(net: Network) -> bool:
    return _conv(net, (3, 3), pads=(1, 1, 1, 1), group=2)


@legal("Conv, depthwise")
def conv_depthwise(net: Network) -> bool:
    return _conv(net, (3, 3), stride=net.random.choice((1, 2)), pads=(1, 1, 1, 1), depthwise=True)


@legal("Conv, SAME")
def conv_same(net: Network) -> bool:
    x = net.pick(4)
    shape = net.values[x or "x"]
    if x is None:
        return False
    mode = net.random.choice(("SAME_UPPER", "SAME_LOWER"))
    net.add("Conv", x, net.weight(3, shape[1], 3, 3), shape=(1, 3, *shape[2:]), auto_pad=mode)
    return True


@illegal("Conv, padding not below the kernel")
def conv_padded(net: Network) -> bool:
    return _conv(net, (3, 3), pads=(3, 3, 3, 3))


@illegal("Conv, stride and dilation")
def conv_stride_dilation(net: Network) -> bool:
    return _conv(net, (3, 3), stride=2, dilation=2, pads=(2, 2, 2, 2))


@illegal("Conv, large depthwise kernel")
def conv_large_depthwise(net: Network) -> bool:
    return _conv(net, (13, 13), pads=(12, 12, 12, 12), depthwise=True)


@illegal("Conv, 1-D")
def conv_1d(net: Network) -> bool:
    x = net.pick(3)
    if x is None:
        return False
    _, channels, length = net.values[x]
    net.add("Conv", x, net.weight(2, channels, 1), shape=(1, 2, length))
    return True


def _transposed(
    net: Network, kernel: int, stride: int, dilation: int = 1, pad: int = 0, group: int = 1
) -> bool:
    x = net.pick(4)
    if x is None or net.values[x][1] % group:
        return False
    _, channels, *sizes = net.values[x]
    made = [(size - 1) * stride + (kernel - 1) * dilation + 1 - 2 * pad for size in sizes]
    if min(made) < 1 or max(made) > 64:
        return False
    net.add(
        "ConvTranspose",
        x,
        net.weight(channels, 2, kernel, kernel),
        shape=(1, 2 * group, *made),
        strides=[stride] * 2,
        dilations=[dilation] * 2,
        pads=[pad] * 4,
        group=group,
    )
    return True


@legal("ConvTranspose")
def transposed(net: Network) -> bool:
    stride = net.random.choice((1, 2))
    return _transposed(net, stride + net.random.randint(0, 1), stride)


@illegal("ConvTranspose, padding")
def transposed_padding(net: Network) -> bool:
    return _transposed(net, 4, 2, pad=1)


@illegal("ConvTranspose, groups")
def transposed_groups(net: Network) -> bool:
    return _transposed(net, 2, 2, group=2)


@illegal("ConvTranspose, dilation")
def transposed_dilation(net: Network) -> bool:
    return _transposed(net, 2, 1, dilation=2)


@illegal("ConvTranspose, stride above kernel")
def transposed_stride(net: Network) -> bool:
    return _transposed(net, 2, 3)


# Linear layers


def _tokens(net: Network) -> str | None:
    """A tensor of rank 3, made out of a picture where there is none."""
    x = net.pick(3)
    picture = net.pick(4)
    if x is not None or picture is None:
        return x
    _, channels, height, width = net.values[picture]
    return net.add("Reshape", picture, net.ints(1, channels, -1), shape=(1, channels, height * width))


@legal("Gemm")
def gemm(net: Network) -> bool:
    x = net.pick(2)
    if x is None:
        return False
    features = net.values[x][1]
    transposed = net.random.randint(0, 1)
    weight = net.weight(5, features) if transposed else net.weight(features, 5)
    net.add("Gemm", x, weight, net.weight(5), shape=(1, 5), transB=transposed)
    return True


@legal("MatMul with a constant")
def matmul_constant(net: Network) -> bool:
    x = net.pick(net.random.choice((2, 4)))
    if x is None:
        return False
    *front, last = net.values[x]
    net.add("MatMul", x, net.weight(last, 6), shape=(*front, 6))
    return True


@legal("MatMul of two")
def matmul_two(net: Network) -> bool:
    x = _tokens(net)
    if x is None:
        return False
    _, rows, columns = net.values[x]
    turned = net.add("Transpose", x, shape=(1, columns, rows), perm=[0, 2, 1])
    net.add("MatMul", x, turned, shape=(1, rows, rows))
    return True


@illegal("MatMul with a constant, rank 3")
def matmul_tokens(net: Network) -> bool:
    x = _tokens(net)
    if x is None:
        return False
    _, rows, columns = net.values[x]
    net.add("MatMul", x, net.weight(columns, 4), shape=(1, rows, 4))
    return True


@illegal("Gemm, alpha")
def gemm_alpha(net: Network) -> bool:
    x = net.pick(2)
    if x is None:
        return False
    net.add("Gemm", x, net.weight(net.values[x][1], 5), shape=(1, 5), alpha=0.5)
    return True


# Pooling and resizing


def _pool(
    net: Network, op: str, kernel: int, stride: int, pads: Shape = (0, 0, 0, 0), **attributes: Any
) -> bool:
    x = net.pick(4, kernel + 1)
    if x is None:
        return False
    _, channels, *sizes = net.values[x]
    extent = (kernel - 1) * attributes.get("dilations", [1])[0] + 1
    spans = [size + pads[axis] + pads[axis + 2] - extent for axis, size in enumerate(sizes)]
    if min(spans) < 0 or (attributes.get("ceil_mode") and all(span % stride == 0 for span in spans)):
        return False
    rounded = [math.ceil(s / stride) if attributes.get("ceil_mode") else s // stride for s in spans]
    made = [size + 1 for size in rounded]
    net.add(
        op,
        x,
        shape=(1, channels, *made),
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=list(pads),
        **attributes,
    )
    return True


@legal("MaxPool")
def max_pool(net: Network) -> bool:
    pad = net.random.randint(0, 1)
    return _pool(net, "MaxPool", net.random.choice((2, 3)), net.random.choice((1, 2)), (pad,) * 4)


@legal("AveragePool")
def average_pool(net: Network) -> bool:
    pad, counted = net.random.randint(0, 1), net.random.randint(0, 1)
    return _pool(net, "AveragePool", net.random.choice((2, 3)), 2, (pad,) * 4, count_include_pad=counted)


@legal("AveragePool, uneven padding that counts")
def average_pool_uneven(net: Network) -> bool:
    return _pool(net, "AveragePool", 3, 2, (0, 0, 1, 1), count_include_pad=1)


@illegal("MaxPool, uneven padding")
def max_pool_uneven(net: Network) -> bool:
    return _pool(net, "MaxPool", 3, 2, (0, 0, 1, 1))


@illegal("AveragePool, uneven padding that does not count")
def average_pool_uneven_uncounted(net: Network) -> bool:
    return _pool(net, "AveragePool", 3, 2, (0, 0, 1, 1))


@illegal("pool, ceil_mode")
def pool_ceil(net: Network) -> bool:
    return _pool(net, net.random.choice(("MaxPool", "AveragePool")), 2, 2, ceil_mode=1)


@illegal("MaxPool, dilation")
def pool_dilation(net: Network) -> bool:
    return _pool(net, "MaxPool", 2, 1, dilations=[2, 2])


@illegal("pool, 1-D")
def pool_1d(net: Network) -> bool:
    x = _tokens(net)
    if x is None or net.values[x][2] < 2:
        return False
    net.add("MaxPool", x, shape=(*net.values[x][:2], net.values[x][2] - 1), kernel_shape=[2])
    return True


@legal("global pool")
def global_pool(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    op = net.random.choice(("GlobalAveragePool", "GlobalMaxPool"))
    net.add(op, x, shape=(1, net.values[x][1], 1, 1))
    return True


def _resize(net: Network, factor: float, **attributes: Any) -> bool:
    x = net.pick(4, 2)
    if x is None or max(net.values[x][2:]) > 32:
        return False
    _, channels, *sizes = net.values[x]
    made = tuple(int(size * factor) for size in sizes)
    scales = net.constant([1, 1, factor, factor])
    net.add("Resize", x, "", scales, shape=(1, channels, *made), **attributes)
    return True


@legal("Resize, nearest")
def resize_nearest(net: Network) -> bool:
    form = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(net, net.random.choice((1.5, 2.0, 3.0)), mode="nearest", **form)


@legal("Resize, linear")
def resize_linear(net: Network) -> bool:
    form = net.random.choice(("half_pixel", "pytorch_half_pixel"))
    return _resize(net, net.random.choice((1.5, 2.0)), mode="linear", coordinate_transformation_mode=form)


@illegal("Resize, cubic")
def resize_cubic(net: Network) -> bool:
    return _resize(net, 2.0, mode="cubic")


@illegal("Resize, align_corners")
def resize_corners(net: Network) -> bool:
    return _resize(net, 2.0, mode="linear", coordinate_transformation_mode="align_corners")


@illegal("Resize, linear to one pixel")
def resize_to_one(net: Network) -> bool:
    x = net.pick(4, 2)
    if x is None:
        return False
    sizes = net.ints(1, net.values[x][1], 1, 1)
    form = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    net.add("Resize", x, "", "", sizes, shape=(1, net.values[x][1], 1, 1), **form)
    return True


# Functions of one tensor


def _function(op: str, **attributes: Any) -> Form:
    def form(net: Network) -> bool:
        x = net.pick()
        if x is None:
            return False
        net.add(op, x, shape=net.values[x], **attributes)
        return True

    return form


def _same(op: str) -> Form:
    """The result stands for the tensor from here on: no two outputs are the same."""

    def form(net: Network) -> bool:
        x = net.pick()
        if x is None:
            return False
        net.add(op, x, shape=net.values[x])
        del net.values[x]
        return True

    return form


LEGAL["Identity"], LEGAL["Dropout"] = _same("Identity"), _same("Dropout")


def _of_positive(op: str) -> Form:
    """Of numbers in 0..1, where the function is defined and its result is small."""

    def form(net: Network) -> bool:
        x = net.pick()
        if x is None:
            return False
        net.add(op, net.add("Sigmoid", x, shape=net.values[x]), shape=net.values[x])
        return True

    return form


LEGAL["Exp"], LEGAL["Sqrt"] = _of_positive("Exp"), _of_positive("Sqrt")
for _op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Neg", "Abs", "Sin", "Cos"):
    LEGAL[_op] = _function(_op)
LEGAL["LeakyRelu"] = _function("LeakyRelu", alpha=0.1)
LEGAL["HardSigmoid"] = _function("HardSigmoid", alpha=1 / 6)
LEGAL["Softmax"] = _function("Softmax", axis=-1)
ILLEGAL["HardSigmoid, other slope"] = _function("HardSigmoid")
ILLEGAL["Softmax over the batch"] = _function("Softmax", axis=0)
for _op in (
    "Elu",
    "Celu",
    "Selu",
    "Softplus",
    "Softsign",
    "LogSoftmax",
    "Log",
    "Reciprocal",
    "Sign",
    "Floor",
    "Erf",
):
    ILLEGAL[_op] = _function(_op)


@legal("Clip")
def clip(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    bounds = net.random.choice(((0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 2.0)))
    names = ["" if bound is None else net.constant(bound) for bound in bounds]
    net.add("Clip", x, *names, shape=net.values[x])
    return True


@legal("Pow")
def power(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    shape = net.values[x]
    exponent = net.constant(net.random.choice((0.5, 1.0, 2.0)))
    net.add("Pow", net.add("Sigmoid", x, shape=shape), exponent, shape=shape)
    return True


@illegal("Pow, 3")
def power_3(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    net.add("Pow", x, net.constant(3.0), shape=net.values[x])
    return True


def _gelu(net: Network, factor: float | None) -> bool:
    x = net.pick()
    if x is None:
        return False
    shape = net.values[x]
    scaled = net.add("Div", x, net.constant(math.sqrt(2.0)), shape=shape)
    erf = net.add("Erf", scaled, shape=shape)
    gate = net.add("Add", erf, net.constant(1.0), shape=shape)
    inner = [scaled, erf, gate]
    half = net.random.choice(("x", "gate", "product")) if factor is not None else ""
    if half == "gate":
        inner.append(gate := net.add("Mul", gate, net.constant(factor), shape=shape))
    if half == "x":
        inner.append(x := net.add("Mul", net.constant(factor), x, shape=shape))
    product = net.add("Mul", x, gate, shape=shape)
    if half == "product":
        inner.append(product)
        net.add("Mul", product, net.constant(factor), shape=shape)
    for name in inner:  # read by nothing else
        del net.values[name]
    return True


@legal("GELU")
def gelu(net: Network) -> bool:
    return _gelu(net, 0.5)


@illegal("GELU without its half")
def gelu_twice(net: Network) -> bool:
    return _gelu(net, None)


@legal("SiLU")
def silu(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    shape = net.values[x]
    net.add("Mul", x, net.add("Sigmoid", x, shape=shape), shape=shape)
    return True


@legal("BatchNormalization")
def batch_norm(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    channels = net.values[x][1]
    net.add("BatchNormalization", x, *(net.weight(channels) for _ in range(4)), shape=net.values[x])
    return True


@legal("LayerNormalization")
def layer_norm(net: Network) -> bool:
    x = net.pick(net.random.choice((3, 4)))
    if x is None:
        return False
    last = net.values[x][-1]
    net.add("LayerNormalization", x, net.weight(last), net.weight(last), shape=net.values[x], axis=-1)
    return True


@illegal("LayerNormalization, two axes")
def layer_norm_two(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    net.add("LayerNormalization", x, net.weight(*net.values[x][2:]), shape=net.values[x], axis=2)
    return True


@illegal("InstanceNormalization")
def instance_norm(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    channels = net.values[x][1]
    net.add("InstanceNormalization", x, net.weight(channels), net.weight(channels), shape=net.values[x])
    return True


@illegal("PRelu")
def prelu(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    net.add("PRelu", x, net.weight(1), shape=net.values[x])
    return True


# Functions of two tensors

ARITHMETIC = ("Add", "Sub", "Mul", "Max", "Min", "Div")


@legal("arithmetic with a constant")
def arithmetic_constant(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    shape = net.values[x]
    constant = net.weight(*((1,) * net.random.randint(0, len(shape) - 1)), shape[-1])
    constant = net.weight() if net.random.random() < 0.3 else constant
    op = net.random.choice(ARITHMETIC)
    if op != "Div" and net.random.random() < 0.3:
        net.add(op, constant, x, shape=shape)
    else:
        net.add(op, x, constant, shape=shape)
    return True


@legal("skip")
def skip(net: Network) -> bool:
    """Two tensors of one shape: the network branches and joins here."""
    x = net.pick()
    if x is None:
        return False
    shape, op = net.values[x], net.random.choice(ARITHMETIC)
    other = net.random.choice([name for name, size in net.values.items() if size == shape])
    if op in ("Mul", "Div"):  # nothing grows without bound
        other = net.add("Exp", net.add("Sigmoid", other, shape=shape), shape=shape)
    net.add(op, x, other, shape=shape)
    return True


@legal("broadcast")
def broadcast(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    shape = net.values[x]
    gate = net.add("GlobalAveragePool", x, shape=(1, shape[1], 1, 1))
    gate = net.add("Sigmoid", gate, shape=(1, shape[1], 1, 1))
    net.add(net.random.choice(ARITHMETIC[:3]), x, gate, shape=shape)
    return True


@legal("Concat")
def concat(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    shape = net.values[x]
    others = [
        n for n, s in net.values.items() if len(s) == 4 and s[2:] == shape[2:] and s[1] + shape[1] <= 32
    ]
    if not others:
        return False
    other = net.random.choice(others)
    net.add("Concat", x, other, shape=(1, shape[1] + net.values[other][1], *shape[2:]), axis=1)
    return True


@illegal("Max of three")
def max_three(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    net.add("Max", x, net.weight(1), net.weight(1), shape=net.values[x])
    return True


# Shapes


@legal("Split")
def split(net: Network) -> bool:
    x = net.pick(4)
    if x is None or net.values[x][1] < 2:
        return False
    _, channels, *sizes = net.values[x]
    first = net.random.randint(1, channels - 1)
    shapes = ((1, first, *sizes), (1, channels - first, *sizes))
    net.add_several("Split", x, net.ints(first, channels - first), shapes=shapes, axis=1)
    return True


@legal("Slice")
def slice_(net: Network) -> bool:
    x = net.pick(4, 3)
    if x is None:
        return False
    step = net.random.choice((1, 2))
    shape = list(net.values[x])
    axis = net.random.choice((2, 3))
    shape[axis] = math.ceil((shape[axis] - 1) / step)
    numbers = (net.ints(1), net.ints(2**31), net.ints(axis), net.ints(step))
    net.add("Slice", x, *numbers, shape=tuple(shape))
    return True


@illegal("Slice, backwards")
def slice_backwards(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    net.add("Slice", x, net.ints(-1), net.ints(-(2**31)), net.ints(3), net.ints(-1), shape=net.values[x])
    return True


def _pad(net: Network, *pads: int, mode: str = "constant") -> bool:
    x = net.pick(4, 3)
    if x is None:
        return False
    shape = tuple(s + pads[axis] + pads[axis + 4] for axis, s in enumerate(net.values[x]))
    net.add("Pad", x, net.ints(*pads), shape=shape, mode=mode)
    return True


@legal("Pad")
def pad(net: Network) -> bool:
    return _pad(net, 0, net.random.randint(0, 2), 1, 0, 0, 0, 0, 2)


@illegal("Pad, reflect")
def pad_reflect(net: Network) -> bool:
    return _pad(net, 0, 0, 1, 1, 0, 0, 1, 1, mode="reflect")


@illegal("Pad, negative")
def pad_negative(net: Network) -> bool:
    return _pad(net, 0, 0, -1, 0, 0, 0, 0, 0)


@legal("Transpose")
def transpose(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    order = (0, *net.random.sample((1, 2, 3), 3))
    net.add("Transpose", x, shape=tuple(net.values[x][axis] for axis in order), perm=list(order))
    return True


@illegal("Transpose of the batch")
def transpose_batch(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    n, c, h, w = net.values[x]
    net.add("Transpose", x, shape=(c, n, h, w), perm=[1, 0, 2, 3])
    net.values.popitem()  # nothing else knows a batch
    net.indices.append(net.nodes[-1].output[0])
    return True


@legal("Flatten")
def flatten(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    net.add("Flatten", x, shape=(1, math.prod(net.values[x])))
    return True


@legal("Reshape")
def reshape(net: Network) -> bool:
    return _tokens(net) is not None


@legal("Unsqueeze and Squeeze")
def unsqueeze(net: Network) -> bool:
    x = net.pick()
    if x is None:
        return False
    shape = net.values[x]
    wider = net.add("Unsqueeze", x, net.ints(1), shape=(1, 1, *shape[1:]))
    net.add("Squeeze", wider, net.ints(1), shape=shape)
    return True


@legal("Expand")
def expand(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    n, c, h, w = net.values[x]
    top = net.add("ReduceMax", x, shape=(n, c, 1, w), axes=[2])
    net.add("Expand", top, net.ints(n, c, h, w), shape=(n, c, h, w))
    return True


@legal("Gather")
def gather(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    _, channels, *sizes = net.values[x]
    chosen = [net.random.randrange(channels) for _ in range(3)]
    net.add("Gather", x, net.ints(*chosen), shape=(1, 3, *sizes), axis=1)
    return True


@illegal("Gather, from behind")
def gather_behind(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    net.add("Gather", x, net.ints(0, -1), shape=(1, 2, *net.values[x][2:]), axis=1)
    return True


@illegal("Tile")
def tile(net: Network) -> bool:
    x = net.pick(4)
    if x is None or net.values[x][1] > 16:
        return False
    n, c, h, w = net.values[x]
    net.add("Tile", x, net.ints(1, 2, 1, 1), shape=(n, 2 * c, h, w))
    return True


@illegal("DepthToSpace")
def depth_to_space(net: Network) -> bool:
    x = net.pick(4)
    if x is None or net.values[x][1] % 4 or max(net.values[x][2:]) > 32:
        return False
    n, c, h, w = net.values[x]
    net.add("DepthToSpace", x, shape=(n, c // 4, 2 * h, 2 * w), blocksize=2)
    return True


# Reductions and selections


@legal("reduction")
def reduction(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    n, c, h, w = net.values[x]
    if net.random.random() < 0.3:
        keep = net.random.randint(0, 1)
        shape = (n, c, 1, w) if keep else (n, c, w)
        net.add("ReduceSum", x, net.ints(2), shape=shape, keepdims=keep)
    else:
        op = net.random.choice(("ReduceMean", "ReduceMax", "ReduceL2"))
        net.add(op, x, shape=(n, 1, h, w), axes=[1])
    return True


@illegal("ReduceMin")
def reduce_min(net: Network) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    n, c, _, w = net.values[x]
    net.add("ReduceMin", x, shape=(n, c, 1, w), axes=[2])
    return True


def _indices(net: Network, op: str, **attributes: Any) -> bool:
    x = net.pick(4)
    if x is None:
        return False
    name = net.add(op, x, shape=(), axis=1, **attributes)
    del net.values[name]  # integers only leave the network
    net.indices.append(name)
    return True


@legal("ArgMax")
def argmax(net: Network) -> bool:
    return _indices(net, "ArgMax")


@illegal("ArgMin")
def argmin(net: Network) -> bool:
    return _indices(net, "ArgMin")


def _topk(net: Network, largest: int) -> bool:
    x = net.pick(4, 2)
    if x is None:
        return False
    shape = (*net.values[x][:3], 2)
    names = net.add_several("TopK", x, net.ints(2), shapes=(shape, ()), largest=largest)
    del net.values[names[1]]
    net.indices.append(names[1])
    return True


@legal("TopK")
def topk(net: Network) -> bool:
    return _topk(net, 1)


@illegal("TopK, smallest")
def topk_smallest(net: Network) -> bool:
    return _topk(net, 0)


@illegal("Cast")
def cast(net: Network) -> bool:
    """Integers on the data path."""
    x = net.pick()
    if x is None:
        return False
    name = net.add("Cast", x, shape=(), to=7)
    del net.values[name]
    net.indices.append(name)
    return True


def grow(names: list[str], seed: int, shape: Shape = (1, 4, 8, 8)) -> tuple[Network, list[str]]:
    """A network of these forms, in order, and the forms that could be placed."""
    net = Network(shape, seed)
    table = LEGAL | ILLEGAL
    return net, [name for name in names if table[name](net)]
