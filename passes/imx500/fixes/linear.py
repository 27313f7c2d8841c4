"""Linear layers on tokens: the target takes them at rank 2 and 4, so the others get axes of length 1."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from passes.graph import consumers
from passes.imx500.fixes.builder import Builder, shape_of
from passes.imx500.fixes.registry import Exactness, Rewrite, fix
from passes.imx500.geometry import constant, float_attribute, input_at, int_attribute

POINTWISE = frozenset({"Relu", "Clip", "LeakyRelu", "Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
"""Operators that do the same at every rank."""


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = consumers(value)
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _bias_behind(node: ir.Node) -> tuple[ir.Node, np.ndarray] | None:
    """The Add of one number per output that alone reads a MatMul's result, and its constant."""
    add = _only_reader(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    bias = constant(other)
    if bias is None or bias.shape != shape_of(node.outputs[0])[-1:]:
        return None
    return add, bias


@fix("linear-rank", "MatMul")
def tokens(node: ir.Node, build: Builder) -> Rewrite | None:
    """Rank 4, [1, rows, 1, width], the layer, and the shape it had.

    The rows stand on the channels' axis: what is rounded up to 32 is their number, and not an axis of 1.
    """
    x, weight = node.inputs[0], constant(input_at(node, 1))
    if x is None or weight is None or weight.ndim != 2:
        return None
    shape = shape_of(x)
    if len(shape) < 3 or shape[0] != 1:
        return None
    rows = (1, math.prod(shape[:-1]), 1, shape[-1])
    y = build.op("MatMul", build.reshape(x, rows), build.constant(weight, "weight"))
    nodes, last = [node], node
    if found := _bias_behind(node):
        last, bias = found
        y = build.op("Add", y, build.constant(bias, "bias"))
        nodes.append(last)
    y = build.reshape(y, shape_of(last.outputs[0]))
    done = f"the linear layer on rank {len(shape)} became one on rank 4, {list(rows)}"
    return Rewrite((y,), done, Exactness.EXACT, tuple(nodes))


@fix("linear-weight", "MatMul")
def constant_first(node: ir.Node, build: Builder) -> Rewrite | None:
    """A constant first operand: K @ X = (X^T @ K^T)^T. Leading axes of length 1 go from the constant."""
    first, second = constant(input_at(node, 0)), constant(input_at(node, 1))
    matrix = first if second is None else second
    if matrix is None or matrix.ndim < 2 or math.prod(matrix.shape[:-2]) != 1:
        return None
    shape = shape_of(node.outputs[0])
    matrix = matrix.reshape(matrix.shape[-2:])
    if second is not None:
        x = node.inputs[0]
        if x is None or len(shape_of(x)) != len(shape):
            return None
        y = build.op("MatMul", x, build.constant(matrix, "weight"))
        return Rewrite((y,), "the constant lost its axes of length 1", Exactness.EXACT)
    x = node.inputs[1]
    if x is None or len(shape_of(x)) != len(shape) or len(shape) < 3:
        return None
    order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    y = build.op("MatMul", build.transpose(x, order), build.constant(matrix.T, "weight"))
    done = "the product with a constant on the left became the transposed product"
    return Rewrite((build.transpose(y, order),), done, Exactness.EXACT)


@fix("gemm-form", "Gemm")
def gemm(node: ir.Node, build: Builder) -> Rewrite | None:
    """alpha and beta go into the weights and the bias."""
    x, weight, bias = node.inputs[0], constant(input_at(node, 1)), constant(input_at(node, 2))
    if x is None or weight is None or int_attribute(node, "transA", 0):
        return None
    if bias is None and input_at(node, 2) is not None:
        return None
    scaled = weight * np.float32(float_attribute(node, "alpha", 1.0))
    shift = None if bias is None else bias * np.float32(float_attribute(node, "beta", 1.0))
    y = build.op(
        "Gemm",
        x,
        build.constant(scaled, "weight"),
        None if shift is None else build.constant(shift, "bias"),
        transB=int_attribute(node, "transB", 0),
    )
    return Rewrite((y,), "alpha and beta went into weights and bias", Exactness.FLOAT)


@fix("reshape-batch", "Reshape", "Flatten")
def rows_of_tokens(node: ir.Node, build: Builder) -> Rewrite | None:
    """Tokens flattened into the batch axis for linear layers, then reshaped back: the chain at rank 4."""
    x = node.inputs[0]
    if x is None or len(shape_of(node.outputs[0])) != 2 or shape_of(x)[0] != 1:
        return None
    chain = _chain(node)
    if chain is None:
        return None
    count, width = shape_of(node.outputs[0])
    y = build.reshape(x, (1, count, 1, width))
    for inner in chain[1:-1]:
        y = _at_rank_4(inner, y, build)
    y = build.reshape(y, shape_of(chain[-1].outputs[0]))
    done = f"linear layers on {count} rows in the batch axis became ones on rank 4, [1, {count}, 1, {width}]"
    return Rewrite((y,), done, Exactness.EXACT, tuple(chain))


def _chain(node: ir.Node) -> list[ir.Node] | None:
    """From the Reshape to the one that makes the first axis 1 again, None where something else is between."""
    chain = [node]
    while True:
        reader = _only_reader(chain[-1].outputs[0])
        if reader is None or reader.inputs[0] is not chain[-1].outputs[0]:
            return None
        chain.append(reader)
        if reader.op_type == "Reshape":
            return chain if shape_of(reader.outputs[0])[0] == 1 and len(chain) > 2 else None
        if not _takes_rank_4(reader):
            return None


def _takes_rank_4(node: ir.Node) -> bool:
    if node.op_type in POINTWISE:
        return all(value is None or constant(value) is not None for value in node.inputs[1:])
    weight = constant(input_at(node, 1))
    if weight is None or (input_at(node, 2) is not None and constant(input_at(node, 2)) is None):
        return False
    if node.op_type == "Gemm":
        bias, width = constant(input_at(node, 2)), shape_of(node.outputs[0])[-1]
        one_row = bias is None or bias.shape in ((), (1,), (1, 1), (width,), (1, width))
        return one_row and not int_attribute(node, "transA", 0)
    return (node.op_type == "MatMul" and weight.ndim == 2) or (node.op_type == "Add" and weight.ndim < 2)


def _at_rank_4(node: ir.Node, x: ir.Value, build: Builder) -> ir.Value:
    if node.op_type != "Gemm":
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return build.op(node.op_type, x, *map(constant, node.inputs[1:]), **attributes)
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    assert weight is not None
    weight = weight.T if int_attribute(node, "transB", 0) else weight
    y = build.op(
        "MatMul", x, build.constant(weight * np.float32(float_attribute(node, "alpha", 1.0)), "weight")
    )
    if bias is None:
        return y
    shift = np.broadcast_to(bias * np.float32(float_attribute(node, "beta", 1.0)), (1, weight.shape[1]))
    return build.op("Add", y, build.constant(shift[0], "bias"))
