"""Operators that exporters write as several ONNX nodes, and that torch, MCT and the chip have as one.

Quantizing such a group node by node would put an 8-bit rounding after each of its parts; as one module it is
rounded once. A group is taken only where nothing outside it reads its inner values.

Products are matched in normal form: a tree of Mul and Div nodes is a number times a set of factors, so that
one description covers every order an exporter may write it in.

    GELU        0.5 * x * (erf(x/sqrt(2)) + 1)                                       erf(s*x) with s = 2^-1/2
    GELU, tanh  0.5 * x * (tanh(sqrt(2/pi) * (x + 0.044715 x^3)) + 1)
    SiLU        x * sigmoid(x)
    HardSwish   x * hardsigmoid(x), or x * clip(x + 3, 0, 6) / 6
    LayerNorm   (x - mean) / sqrt(mean((x - mean)^2) + eps) [* weight] [+ bias], over the last axes
    L2 norm     x / max(||x||_2 over one axis, eps)
    Linear      x @ W + b; also reshape(reshape(x) @ W + b), which onnxsim makes of it at rank 3 and more
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from torch import fx, nn
from torch.nn import functional

from calib.importer.context import Context, integer, real, to_tensor
from passes.graph import const_array, static_shape


@dataclass(frozen=True)
class Group:
    """Several ONNX nodes that become one fx node.

    Attributes:
        input: the value the group reads.
        nodes: its nodes; the last one makes the group's output.
        make: builds the fx node from the fx node of `input`.
    """

    input: ir.Value
    nodes: tuple[ir.Node, ...]
    make: Callable[[Context, fx.Node], fx.Node]


def find(graph: ir.Graph) -> dict[ir.Node, Group]:
    """Every group, by its last node; no node is in two. Later nodes choose first, so groups are maximal."""
    found: dict[ir.Node, Group] = {}
    taken: set[ir.Node] = set()
    outputs = set(graph.outputs)
    for root in reversed(list(graph)):
        if root in taken:
            continue
        for match in (_layer_norm, _linear, _linear_by_rows, _l2_norm, _gated):
            group = match(root)
            if group and not taken.intersection(group.nodes) and _closed(group, outputs):
                found[root] = group
                taken.update(group.nodes)
                break
    return found


def _closed(group: Group, outputs: set[ir.Value]) -> bool:
    """Nothing outside reads what is inside."""
    inside = set(group.nodes)
    return all(
        value not in outputs and all(use.node in inside for use in value.uses())
        for node in group.nodes[:-1]
        for value in node.outputs
    )


# Small readers of the graph: each returns None where the node is not what is asked for.


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _number(value: ir.Value | None) -> float | None:
    """The number in a constant of one element."""
    array = const_array(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _is(value: ir.Value | None, number: float) -> bool:
    found = _number(value)
    return found is not None and math.isclose(found, number, rel_tol=1e-4)


def _operands(node: ir.Node) -> Iterable[tuple[ir.Value | None, ir.Value | None]]:
    """Both orders of a commutative node's two inputs."""
    if len(node.inputs) == 2:
        first, second = node.inputs
        yield first, second
        yield second, first


def _plus(value: ir.Value | None, number: float) -> tuple[ir.Value, ir.Node] | None:
    """`other + number`: the other operand and the Add."""
    add = _producer(value, "Add")
    for other, constant in _operands(add) if add else ():
        assert add is not None
        if other is not None and _is(constant, number):
            return other, add
    return None


@dataclass(frozen=True)
class _Product:
    """coefficient * product of factors, computed by `nodes`."""

    coefficient: float
    factors: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]


def _product(value: ir.Value, inner: bool = False) -> _Product:
    """Normal form of a tree of Mul and Div nodes; `inner` nodes must have one reader."""
    node = value.producer()
    if (
        node is None
        or node.op_type not in ("Mul", "Div")
        or len(node.inputs) != 2
        or (inner and len(value.uses()) != 1)
    ):
        return _Product(1.0, (value,), ())
    first, second = node.inputs
    assert first is not None
    assert second is not None
    divisor = _number(second)
    if node.op_type == "Div":
        if divisor is None or divisor == 0.0:
            return _Product(1.0, (value,), ())
        below = _product(first, inner=True)
        return _Product(below.coefficient / divisor, below.factors, (*below.nodes, node))
    coefficient = 1.0
    factors: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for operand in (first, second):
        number = _number(operand)
        if number is not None:
            coefficient *= number
            continue
        below = _product(operand, inner=True)
        coefficient *= below.coefficient
        factors += below.factors
        nodes += below.nodes
    return _Product(coefficient, tuple(factors), (*nodes, node))


def _scaled(value: ir.Value | None, coefficient: float) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """`coefficient * x` with one factor x: x and the nodes."""
    if value is None:
        return None
    product = _product(value)
    if len(product.factors) == 1 and math.isclose(product.coefficient, coefficient, rel_tol=1e-4):
        return product.factors[0], product.nodes
    return None


# Gated activations: x times a function of x.


def _gated(root: ir.Node) -> Group | None:
    if root.op_type not in ("Mul", "Div") or root.domain:
        return None
    product = _product(root.outputs[0])
    if len(product.factors) != 2:
        return None
    for gated, gate in (product.factors, product.factors[::-1]):
        for coefficient, match, module in _GATES:
            if not math.isclose(product.coefficient, coefficient, rel_tol=1e-4):
                continue
            inner = match(gate, gated)
            if inner is not None:
                nodes = (*inner, *(n for n in product.nodes if n is not root), root)
                return Group(gated, nodes, lambda ctx, x, module=module: ctx.module(module(), x))  # type: ignore[misc]
    return None


def _sigmoid(gate: ir.Value, x: ir.Value) -> tuple[ir.Node, ...] | None:
    node = _producer(gate, "Sigmoid")
    return (node,) if node and node.inputs[0] is x else None


def _hard_sigmoid(gate: ir.Value, x: ir.Value) -> tuple[ir.Node, ...] | None:
    node = _producer(gate, "HardSigmoid")
    return (node,) if node and node.inputs[0] is x and is_torch_hard_sigmoid(node) else None


def _relu6_of_plus_3(gate: ir.Value, x: ir.Value) -> tuple[ir.Node, ...] | None:
    clip = _producer(gate, "Clip")
    if clip is None or len(clip.inputs) != 3 or not (_is(clip.inputs[1], 0.0) and _is(clip.inputs[2], 6.0)):
        return None
    shifted = _plus(clip.inputs[0], 3.0)
    return (shifted[1], clip) if shifted and shifted[0] is x else None


def _erf_gate(gate: ir.Value, x: ir.Value) -> tuple[ir.Node, ...] | None:
    shifted = _plus(gate, 1.0)
    erf = _producer(shifted[0], "Erf") if shifted else None
    scaled = _scaled(erf.inputs[0], math.sqrt(0.5)) if erf else None
    if shifted is None or erf is None or scaled is None or scaled[0] is not x:
        return None
    return (*scaled[1], erf, shifted[1])


def _tanh_gate(gate: ir.Value, x: ir.Value) -> tuple[ir.Node, ...] | None:
    shifted = _plus(gate, 1.0)
    tanh = _producer(shifted[0], "Tanh") if shifted else None
    scaled = _scaled(tanh.inputs[0], math.sqrt(2 / math.pi)) if tanh else None
    add = _producer(scaled[0], "Add") if scaled else None
    if shifted is None or tanh is None or scaled is None or add is None:
        return None
    for plain, cube in _operands(add):
        cubic = _cube(cube, x) if plain is x else None
        if cubic is not None:
            return (*cubic, add, *scaled[1], tanh, shifted[1])
    return None


def _cube(value: ir.Value | None, x: ir.Value) -> tuple[ir.Node, ...] | None:
    """0.044715 * x^3, with the cube as a power or as a product: its nodes."""
    if value is None:
        return None
    product = _product(value)
    if not math.isclose(product.coefficient, 0.044715, rel_tol=1e-4):
        return None
    if product.factors == (x, x, x):
        return product.nodes
    power = _producer(product.factors[0], "Pow") if len(product.factors) == 1 else None
    if power is not None and power.inputs[0] is x and _is(power.inputs[1], 3.0):
        return (power, *product.nodes)
    return None


def is_torch_hard_sigmoid(node: ir.Node) -> bool:
    """The HardSigmoid torch has: clip(x/6 + 1/2, 0, 1)."""
    return math.isclose(real(node, "alpha", 0.2), 1 / 6, rel_tol=1e-4) and real(node, "beta", 0.5) == 0.5


_GATES: tuple[
    tuple[float, Callable[[ir.Value, ir.Value], tuple[ir.Node, ...] | None], Callable[[], nn.Module]], ...
] = (
    (1.0, _sigmoid, nn.SiLU),
    (1.0, _hard_sigmoid, nn.Hardswish),
    (1 / 6, _relu6_of_plus_3, nn.Hardswish),
    (0.5, _erf_gate, nn.GELU),
    (0.5, _tanh_gate, lambda: nn.GELU("tanh")),
)


# Normalisations


def _reduction(value: ir.Value | None, op_type: str) -> tuple[ir.Node, tuple[int, ...]] | None:
    """A reduction that keeps its axes, and the axes."""
    node = _producer(value, op_type)
    if node is None or ("keepdims" in node.attributes and node.attributes["keepdims"].as_int() != 1):
        return None
    constant = const_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if constant is not None:
        return node, tuple(int(a) for a in constant.reshape(-1))
    if "axes" in node.attributes:
        return node, tuple(int(a) for a in node.attributes["axes"].as_ints())
    return None


def _layer_norm(root: ir.Node) -> Group | None:
    bias, weight, tail = None, None, [root]
    node: ir.Node | None = root
    if root.op_type == "Add":
        for other, constant in _operands(root):
            if (array := const_array(constant)) is not None and (node := _producer(other, "Mul")) is not None:
                bias = array
                tail.insert(0, node)
                break
        else:
            return None
    if node is not None and node.op_type == "Mul":
        for other, constant in _operands(node):
            if (array := const_array(constant)) is not None and (div := _producer(other, "Div")) is not None:
                weight, node = array, div
                tail.insert(0, div)
                break
        else:
            return None
    if node is None or node.op_type != "Div":
        return None
    core = _standardised(node)
    if core is None:
        return None
    x, axes, eps, nodes = core
    return Group(x, (*nodes, *tail), _make_layer_norm(axes, eps, weight, bias))


def _standardised(div: ir.Node) -> tuple[ir.Value, tuple[int, ...], float, tuple[ir.Node, ...]] | None:
    """(x - mean) / sqrt(variance + eps): x, the axes, eps, and the nodes before the Div."""
    centred, root = div.inputs
    sub = _producer(centred, "Sub")
    sqrt = _producer(root, "Sqrt")
    shifted = _producer(sqrt.inputs[0], "Add") if sqrt else None
    if sub is None or sqrt is None or shifted is None:
        return None
    x, mean = sub.inputs[0], _reduction(sub.inputs[1], "ReduceMean")
    if x is None or mean is None or mean[0].inputs[0] is not x:
        return None
    for variance, constant in _operands(shifted):
        eps, reduced = _number(constant), _reduction(variance, "ReduceMean")
        if eps is None or reduced is None or reduced[1] != mean[1]:
            continue
        square = reduced[0].inputs[0]
        power = _producer(square, "Pow")
        if power is None:
            power = _producer(square, "Mul")
            squared = power is not None and power.inputs[0] is centred and power.inputs[1] is centred
        else:
            squared = power.inputs[0] is centred and _is(power.inputs[1], 2.0)
        rank = _rank(x)
        trailing = rank is not None and sorted(a % rank for a in mean[1]) == list(
            range(rank - len(mean[1]), rank)
        )
        if power is not None and squared and trailing:
            return x, mean[1], eps, (mean[0], sub, power, reduced[0], shifted, sqrt)
    return None


def _rank(value: ir.Value) -> int | None:
    shape = static_shape(value)
    return None if shape is None else len(shape)


def _make_layer_norm(
    axes: tuple[int, ...], eps: float, weight: np.ndarray | None, bias: np.ndarray | None
) -> Callable[[Context, fx.Node], fx.Node]:
    def make(ctx: Context, x: fx.Node) -> fx.Node:
        shape = ctx.shape(x)[-len(axes) :]
        return ctx.module(layer_norm(shape, eps, weight, bias), x)

    return make


def layer_norm(
    shape: tuple[int, ...], eps: float, weight: np.ndarray | None, bias: np.ndarray | None
) -> nn.LayerNorm:
    """nn.LayerNorm over the last axes; an absent weight is 1, an absent bias 0."""
    module = nn.LayerNorm(list(shape), eps=eps)
    if weight is not None:
        module.weight.data = to_tensor(np.broadcast_to(weight, shape))
    if bias is not None:
        module.bias.data = to_tensor(np.broadcast_to(bias, shape))
    return module


def _l2_norm(root: ir.Node) -> Group | None:
    if root.op_type != "Div" or root.domain:
        return None
    x, divisor = root.inputs
    nodes: list[ir.Node] = []
    if expand := _producer(divisor, "Expand"):
        nodes.insert(0, expand)
        divisor = expand.inputs[0]
    eps = None
    if clip := _producer(divisor, "Clip"):
        if len(clip.inputs) > 2 and clip.inputs[2] is not None:
            return None
        eps = _number(clip.inputs[1])
        nodes.insert(0, clip)
        divisor = clip.inputs[0]
    norm = _reduction(divisor, "ReduceL2")
    if x is None or eps is None or norm is None or len(norm[1]) != 1 or norm[0].inputs[0] is not x:
        return None
    axis = norm[1][0]
    return Group(
        x,
        (norm[0], *nodes, root),
        lambda ctx, x: ctx.call(functional.normalize, x, p=2.0, dim=axis, eps=eps),
    )


# Linear layers


def _linear(root: ir.Node) -> Group | None:
    """Add(MatMul(x, W), b): W constant [in, out], b constant [out]."""
    if root.op_type != "Add" or root.domain:
        return None
    for product, constant in _operands(root):
        matmul = _producer(product, "MatMul")
        bias = const_array(constant)
        if matmul is None or bias is None:
            continue
        x, weight = matmul.inputs[0], const_array(matmul.inputs[1])
        if x is None or weight is None or weight.ndim != 2 or bias.shape != weight.shape[1:]:
            continue
        if const_array(x) is not None:
            continue
        return Group(x, (matmul, root), _make_linear(weight.T, bias))
    return None


def _linear_by_rows(root: ir.Node) -> Group | None:
    """Reshape(Gemm(Reshape(x))) that keeps all axes of x but the last, whatever number of rows is between."""
    gemm = _producer(root.inputs[0], "Gemm") if root.op_type == "Reshape" and not root.domain else None
    rows = _producer(gemm.inputs[0], "Reshape") if gemm else None
    if gemm is None or rows is None or rows.inputs[0] is None or integer(gemm, "transA", 0):
        return None
    x, weight = rows.inputs[0], const_array(gemm.inputs[1])
    bias = const_array(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
    shapes = [static_shape(value) for value in (x, rows.outputs[0], root.outputs[0])]
    if weight is None or (bias is None and len(gemm.inputs) > 2) or None in shapes:
        return None
    before, between, after = (shape or () for shape in shapes)
    weight, bias = gemm_parameters(gemm, weight, bias)
    if (
        before[:-1] != after[:-1]
        or (before[-1], after[-1]) != weight.shape[::-1]
        or between[-1] != before[-1]
    ):
        return None
    return Group(x, (rows, gemm, root), _make_linear(weight, bias))


def gemm_parameters(
    gemm: ir.Node, weight: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight [out, in] and bias [out] of a Gemm with constant B and C, its factors multiplied in."""
    weight = weight if integer(gemm, "transB", 0) else weight.T
    weight = weight * np.float32(real(gemm, "alpha", 1.0))
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(real(gemm, "beta", 1.0)), weight.shape[:1])
    return weight, bias


def _make_linear(weight: np.ndarray, bias: np.ndarray | None) -> Callable[[Context, fx.Node], fx.Node]:
    return lambda ctx, x: ctx.module(linear(weight, bias), x)


def linear(weight: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    """nn.Linear with weight [out, in]."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    module.weight.data = to_tensor(weight)
    if bias is not None:
        module.bias.data = to_tensor(bias)
    return module
