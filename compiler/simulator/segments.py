"""A vendor-dialect graph cut at its quantized tensors: constants, shapes, and one segment for each tensor.

A segment is what lies between tensors that hold integers of a grid: the nodes that compute one such tensor
from others. Operators that only move or select integers (Reshape, Slice, MaxPool, ...) keep the grid and end
a segment too, so that the tensor behind them is again one of integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from compiler.simulator import fixedpoint as fp
from compiler.simulator import quantizers
from compiler.simulator.enclosures import Enclosure
from compiler.simulator.fixedpoint import FixedPoint, Grid
from compiler.simulator.node import AnyValue, Call, execute, known, refusal
from compiler.simulator.reference import MIN_OPSET, initializer_value
from compiler.simulator.spatial import intended_scale
from passes.errors import InputError
from passes.graph import (
    QUANTIZER_DOMAIN,
    STANDARD_DOMAINS,
    const_array,
    is_activation_quantizer,
    real_inputs,
    to_proto,
)

# fmt: off
MOVES = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Pad", "Reshape",
    "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})
# fmt: on
"""Operators that put elements elsewhere, drop or repeat them, or (Pad) add constant ones; Resize: nearest.
"""

INDEX = Grid(0, 64, True)
"""Stands for indices (ArgMax, TopK): integers without a step."""


@dataclass(frozen=True, eq=False)
class Segment:
    """The nodes that compute one tensor of integers.

    Attributes:
        output: the tensor.
        grid: its grid; INDEX for indices.
        nodes: in graph order; the last one makes `output`.
        inputs: the integer tensors read, each once, in order of first use. Graph inputs are among them.
    """

    output: ir.Value
    grid: Grid
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]


@dataclass(frozen=True, eq=False)
class Segmented:
    """A graph in segments.

    Attributes:
        inputs: the graph's inputs: real numbers.
        constants: everything that is known before the picture, exact.
        shapes: of every tensor with the batch as 1, where shape inference finds it.
        grids: of the tensors that segments make.
    """

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    segments: tuple[Segment, ...]
    constants: Mapping[ir.Value, AnyValue]
    shapes: Mapping[str, tuple[int, ...]]
    grids: Mapping[ir.Value, Grid]


def segment(model: ir.Model) -> Segmented:
    """Cut the graph. Raises InputError, naming the node, for what the simulator does not execute at all."""
    opset = next((v for d, v in model.graph.opset_imports.items() if d in STANDARD_DOMAINS), 0)
    if opset < MIN_OPSET:
        raise InputError("simulator", f"ONNX opset {opset}", f"{MIN_OPSET} or later", "export a newer opset")
    shapes = _shapes(model)
    inputs = tuple(real_inputs(model.graph))
    constants: dict[ir.Value, AnyValue] = {
        value: initializer_value(value) for value in model.graph.initializers.values() if value not in inputs
    }
    grids: dict[ir.Value, Grid] = {}
    order = {node: index for index, node in enumerate(model.graph)}
    segments: list[Segment] = []
    for node in model.graph:
        known(node)
        if _is_constant(node, constants, shapes):
            _execute_constant(node, constants, shapes)
            continue
        for output, grid in _grids(node, grids, constants):
            grids[output] = grid
            nodes, sources = _behind(node, constants, grids, inputs, output)
            ordered = tuple(sorted(nodes, key=order.__getitem__))
            segments.append(Segment(output, grid, ordered, tuple(sources)))
    for value in model.graph.outputs:
        if value not in grids:
            raise InputError(
                f"tensor {value.name}",
                "its values are not on a quantizer's grid",
                "an activation quantizer, or operators that only move its integers, before each output",
                "insert an activation quantizer",
            )
    return Segmented(inputs, tuple(model.graph.outputs), tuple(segments), constants, shapes, grids)


def _shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Static shapes by name with the first dimension of every input as 1; quantizers change no shape."""
    proto = to_proto(model)
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        if node.domain == QUANTIZER_DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    names = {value.name for value in real_inputs(model.graph)}
    for info in proto.graph.input:
        if info.name in names and info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_value = 1
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}  # without shapes every segment runs in the exact reference
    found: dict[str, tuple[int, ...]] = {}
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dimensions = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dimensions):
            found[info.name] = tuple(d.dim_value for d in dimensions)
    return found if all(_resized_alike(node, found) for node in model.graph) else {}


def _resized_alike(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Shape inference multiplies a scale of Resize in float32: 7 * 31/7 is 30 there, 31 in the reference."""
    scales = node.inputs[2] if node.op_type == "Resize" and len(node.inputs) > 2 else None
    if scales is None or node.inputs[0] is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return True
    before, after = (shapes.get(value.name or "") for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None:
        return True
    factors = const_array(scales)
    return factors is not None and after == tuple(
        math.floor(intended_scale(factor) * size)
        for factor, size in zip(factors.tolist(), before, strict=False)
    )


def _is_constant(
    node: ir.Node, constants: Mapping[ir.Value, AnyValue], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    if node.op_type == "Shape" and node.inputs[0] is not None and node.inputs[0].name in shapes:
        return True
    return all(value is None or value in constants for value in node.inputs)


def _execute_constant(
    node: ir.Node, constants: dict[ir.Value, AnyValue], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    values = [None if value is None else constants.get(value) for value in node.inputs]
    if node.op_type == "Shape" and values[0] is None and node.inputs[0] is not None:
        values[0] = np.empty(shapes[node.inputs[0].name or ""], dtype=np.int8)
    for output, result in zip(node.outputs, execute(Call(node, values, 64)), strict=False):
        if isinstance(result, Enclosure):
            raise refusal(
                node,
                "computes an irrational number from constants",
                "constants that are known exactly",
                "fold the constants before quantization",
            )
        constants[output] = result


def _grids(
    node: ir.Node, grids: Mapping[ir.Value, Grid], constants: Mapping[ir.Value, AnyValue]
) -> list[tuple[ir.Value, Grid]]:
    """The outputs of the node that are integers of a grid, as the reference would find them."""
    if is_activation_quantizer(node):
        return [(node.outputs[0], quantizers.grid_of(Call(node, [None], 64)))]
    data = [value for value in node.inputs if value is not None and value not in constants]
    if not data or any(value not in grids for value in data):
        return []
    grid = grids[data[0]]
    if node.op_type == "ArgMax":
        return [(node.outputs[0], INDEX)]
    if node.op_type == "TopK":
        return list(zip(node.outputs, (grid, INDEX), strict=False))
    if node.op_type in ("MaxPool", "ReduceMax"):
        return [(node.outputs[0], grid)]
    if node.inputs[0] not in grids or not moves_only(node, constants):
        return []
    if node.op_type == "Concat" and any(
        grids.get(value) != grid for value in node.inputs if value is not None
    ):
        return []  # parts of several grids, or constants: real numbers
    return [(output, grid) for output in node.outputs]


def moves_only(node: ir.Node, constants: Mapping[ir.Value, AnyValue]) -> bool:
    """The node keeps the integers it moves: any of MOVES, Resize nearest, Pad with zeros."""
    if node.op_type not in MOVES:
        return False
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "Pad" and len(node.inputs) > 2 and node.inputs[2] is not None:
        fill = constants.get(node.inputs[2])
        return isinstance(fill, FixedPoint) and not fill.mantissa.any()
    return True


def _behind(
    last: ir.Node,
    constants: Mapping[ir.Value, AnyValue],
    grids: Mapping[ir.Value, Grid],
    inputs: tuple[ir.Value, ...],
    output: ir.Value,
) -> tuple[set[ir.Node], dict[ir.Value, None]]:
    """The nodes from the integer tensors to `last`, and those tensors."""
    nodes: set[ir.Node] = set()
    sources: dict[ir.Value, None] = {}
    pending = [last]
    while pending:
        node = pending.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for value in node.inputs:
            if value is None or value in constants:
                continue
            if (value in grids and value is not output) or value in inputs:
                sources[value] = None
                continue
            producer = value.producer()
            if producer is None:
                raise refusal(node, f"input {value.name} comes from nowhere", "a graph value", "export again")
            pending.append(producer)
    return nodes, sources


def exact_integers(integers: np.ndarray, grid: Grid) -> FixedPoint:
    """A tensor of a grid's integers as the reference carries it."""
    return FixedPoint(fp.with_room(integers.astype(np.int64), 1), grid.exponent, 1, grid)
