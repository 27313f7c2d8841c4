"""What the network takes and gives."""

from __future__ import annotations

import onnx_ir as ir

from passes.graph import static_shape
from passes.imx500.geometry import behind, is_static
from passes.imx500.limits import MAX_RANK, MIN_RANK
from passes.imx500.rules.registry import Found, input_rule, output_rule


@input_rule("input-rank")
def input_rank(value: ir.Value) -> Found | None:
    """Inputs have {MIN_RANK} to {MAX_RANK} axes, the batch included.

    Fix: export with an example input that has the batch axis, for instance (1, 3, 96, 96).
    """
    shape = static_shape(value)
    if shape is not None and MIN_RANK <= len(shape) <= MAX_RANK:
        return None
    rank = "unknown" if shape is None else str(len(shape))
    return Found(f"input {value.name}: rank {rank}")


@input_rule("input-batch")
def input_batch(value: ir.Value) -> Found | None:
    """The batch of an input is 1, or symbolic.

    Fix: export with an example input of batch 1.
    """
    shape = static_shape(value)
    if not shape or shape[0] in (None, 1):
        return None
    return Found(f"input {value.name}: batch {shape[0]}")


@input_rule("input-dynamic")
def input_dynamic(value: ir.Value) -> Found | None:
    """Every axis of an input but the batch is a fixed number.

    Fix: export without dynamic_axes for channels, height and width, or give --input-size HxW.
    """
    shape = static_shape(value)
    if shape is None or None not in shape[1:]:
        return None
    return Found(f"input {value.name}: shape {[dim if dim is not None else '?' for dim in shape]}")


@input_rule("input-type")
def input_type(value: ir.Value) -> Found | None:
    """Inputs are float32: the sensor's integers are handed over as floats.

    Fix: export with a float32 example input.
    """
    if value.dtype in (None, ir.DataType.FLOAT):
        return None
    return Found(f"input {value.name}: type {value.dtype}")


@output_rule("output-constant")
def output_constant(value: ir.Value) -> Found | None:
    """Every output depends on the input.

    Fix: leave it out of the network: the host knows it.
    """
    if not is_static(value):
        return None
    return Found(f"output {value.name} is a constant")


@output_rule("output-twice")
def output_twice(value: ir.Value) -> Found | None:
    """No two outputs are the same tensor.

    Fix: return it once: the host can use it twice.
    """
    producer = value.producer()
    graph = value.graph if producer is None else producer.graph
    if not isinstance(graph, ir.Graph):
        return None
    outputs, source = list(graph.outputs), behind(value)
    earlier = [other for other in outputs[: outputs.index(value)] if behind(other) is source]
    if not earlier and outputs.count(value) == 1:
        return None
    same = f"is the same tensor as output {earlier[0].name}" if earlier else "is given twice"
    return Found(f"output {value.name} {same}")
