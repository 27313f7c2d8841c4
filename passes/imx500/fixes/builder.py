"""Making the nodes of a rewrite: named after the node they replace, with its module, every shape inferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from passes.graph import const_array, static_shape, unique_name

AXES_AS_INPUT = {"ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13}
"""Operator set from which the axes are an input; 18 for the other reductions."""

SHAPE_LIKE = 64
"""Largest constant whose numbers shape inference may need: shapes, pads, bounds, scales."""

Operand = ir.Value | np.ndarray


class Builder:
    """Nodes that will replace `node`, in the order they are made.

    Attributes:
        nodes: the nodes so far; they belong to no graph yet.
        constants: the initializers they read.
        opset: version of the standard operator set.
    """

    def __init__(self, node: ir.Node, opset: int, taken: set[str]) -> None:
        """`taken` holds the names of all nodes and values of the graph; the new ones are added to it."""
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.opset = opset
        self._stem = node.name or node.op_type
        self._metadata = node.metadata_props
        self._taken = taken

    def constant(self, array: np.ndarray, role: str = "constant") -> ir.Value:
        """A new initializer, float64 as float32."""
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        name = unique_name(f"{self._stem}/{role}", self._taken)
        value = ir.val(name, const_value=ir.tensor(np.array(array, order="C"), name=name))
        self.constants.append(value)
        return value

    def op(self, op_type: str, *operands: Operand | None, **attributes: Any) -> ir.Value:
        """Add a node with one output; arrays become constants, None an input left out."""
        return self.outputs(op_type, 1, *operands, **attributes)[0]

    def outputs(
        self, op_type: str, count: int, *operands: Operand | None, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node with `count` outputs, their types and shapes inferred."""
        inputs = [self.constant(one) if isinstance(one, np.ndarray) else one for one in operands]
        name = unique_name(f"{self._stem}/{op_type}", self._taken)
        node = ir.node(
            op_type, inputs, attributes, num_outputs=count, name=name, metadata_props=dict(self._metadata)
        )
        for index, output in enumerate(node.outputs):
            output.name = unique_name(f"{name}_output_{index}", self._taken)
        _infer(node, self.opset)
        self.nodes.append(node)
        return node.outputs

    # Operators that newer operator sets spell differently, and the ones nearly every rewrite needs

    def reduce(self, op_type: str, x: ir.Value, axes: Sequence[int], keepdims: bool = True) -> ir.Value:
        """A reduction over `axes`."""
        keep = int(keepdims)
        if self.opset >= AXES_AS_INPUT.get(op_type, 18):
            return self.op(op_type, x, np.array(axes, np.int64), keepdims=keep)
        return self.op(op_type, x, axes=list(axes), keepdims=keep)

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.op("Reshape", x, np.array(shape, np.int64))

    def transpose(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        return self.op("Transpose", x, perm=list(order))

    def slice(self, x: ir.Value, axis: int, start: int, end: int, step: int = 1) -> ir.Value:
        """x[start:end:step] along one axis, 0 <= start; x itself where that is all of it."""
        if start == 0 and step == 1 and end >= shape_of(x)[axis]:
            return x
        bounds = (np.array([number], np.int64) for number in (start, end, axis, step))
        return self.op("Slice", x, *bounds)

    def pad(self, x: ir.Value, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> ir.Value:
        """Constant padding, one number an axis (batch included); x itself where all are 0."""
        if not any((*before, *after)):
            return x
        return self.op("Pad", x, np.array([*before, *after], np.int64), np.array(value, np.float32))

    def take(self, x: ir.Value, axis: int, indices: Sequence[int]) -> ir.Value:
        """x[indices] along one axis, indices counted from the front: a Slice where their steps are even and
        positive, else a Gather."""
        steps = set(np.diff(indices).tolist())
        if len(steps) == 1 and (step := steps.copy().pop()) > 0:
            return self.slice(x, axis, indices[0], indices[-1] + 1, step)
        if len(indices) == 1:
            return self.slice(x, axis, indices[0], indices[0] + 1)
        return self.op("Gather", x, np.array(indices, np.int64), axis=axis)


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """The fixed shape of a value; raises UnknownShape where a length is not known."""
    shape = static_shape(value)
    if shape is None or any(side is None for side in shape):
        raise UnknownShape
    return tuple(side for side in shape if side is not None)


class UnknownShape(Exception):
    """A rewrite needs lengths that the graph does not tell."""


def _infer(node: ir.Node, opset: int) -> None:
    """Types and shapes of the node's outputs, by ONNX's own inference of this one node."""
    types, data = {}, {}
    for value in node.inputs:
        if value is None:
            continue
        assert value.name is not None
        if (array := const_array(value)) is not None:
            types[value.name] = onnx.helper.make_tensor_type_proto(
                onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            if array.size <= SHAPE_LIKE:
                data[value.name] = onnx.numpy_helper.from_array(array, value.name)
        else:
            kind = int(value.dtype) if value.dtype is not None else onnx.TensorProto.FLOAT
            types[value.name] = onnx.helper.make_tensor_type_proto(kind, shape_of(value))
    inferred = onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, opset, ""),
        ir.serde.serialize_node(node),
        types,
        data,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    for output in node.outputs:
        found = inferred[output.name or ""].tensor_type
        output.dtype = ir.DataType(found.elem_type)
        output.shape = ir.Shape([dim.dim_value for dim in found.shape.dim])
