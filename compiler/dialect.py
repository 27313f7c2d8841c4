"""The vendor dialect as a float32 ONNX of standard operators, so that onnxruntime runs it natively.

`mct_quantizers` registers Python operators with onnxruntime, which takes 0.9 s for a 96x96 picture. Here
every weight quantizer becomes the constant it computes, and every activation quantizer becomes

    clip(round_half_even(x / step), lowest, highest) * step

in standard nodes (step is a power of two, so division and multiplication by it are exact). What onnxruntime
then computes differs from the exact simulator only by the float32 rounding of convolution sums.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from compiler.simulator.fixedpoint import Grid
from passes.errors import InputError
from passes.graph import const_array, constant, from_proto, is_quantizer, to_proto

WEIGHT_QUANTIZERS = ("WeightsSymmetricQuantizer", "WeightsPOTQuantizer")
ACTIVATION_QUANTIZERS = ("ActivationPOTQuantizer",)


def activation_grid(node: ir.Node) -> Grid:
    """The grid of an activation quantizer: step = threshold / 2^(bits - signed).

    Raises InputError for another kind of quantizer and for a threshold that is no positive number.
    """
    if node.op_type not in ACTIVATION_QUANTIZERS:
        raise InputError(
            f"quantizer {node.name}",
            node.op_type,
            f"one of {', '.join(ACTIVATION_QUANTIZERS)}",
            "quantize the activations with power-of-two thresholds",
        )
    try:
        bits, signed = node.attributes.get_int("num_bits", 8), node.attributes.get_int("signed", 1) == 1
        threshold = float(node.attributes["threshold"].as_float())
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"quantizer {node.name}",
            f"attribute {error}",
            "num_bits and signed as integers, threshold as one float",
            "export the quantized model again",
        ) from error
    if not (math.isfinite(threshold) and threshold > 0):
        raise InputError(
            f"quantizer {node.name}", f"threshold {threshold:g}", "a positive number", "quantize it again"
        )
    mantissa, exponent = math.frexp(threshold)
    # The converter silently rounds a threshold up to a power of two (the check warns): so does this.
    power = exponent - 1 if mantissa == 0.5 else exponent
    return Grid(power - (bits - int(signed)), bits, signed)


def output_grid(value: ir.Value) -> Grid | None:
    """The grid of the integers an output holds: of the quantizer behind it, None for indices.

    Shape operators (Reshape, Transpose, ...) between the quantizer and the output change no integer.
    """
    current: ir.Value | None = value
    while current is not None and (node := current.producer()) is not None:
        if is_quantizer(node):
            return activation_grid(node)
        if node.op_type == "ArgMax" or (node.op_type == "TopK" and current.index() == 1):
            return None
        current = node.inputs[0] if node.inputs else None
    return None


def quantized_weight(node: ir.Node) -> np.ndarray:
    """The float32 array a weight quantizer computes: clip(round(w / s), -2^(b-1), 2^(b-1) - 1) * s."""
    weight, threshold = const_array(node.inputs[0]), const_array(node.inputs[1])
    if node.op_type not in WEIGHT_QUANTIZERS or weight is None or threshold is None:
        raise InputError(
            f"quantizer {node.name}",
            node.op_type,
            f"one of {', '.join(WEIGHT_QUANTIZERS)} on constants",
            "quantize the weights symmetrically",
        )
    levels = 2 ** (node.attributes.get_int("num_bits", 8) - 1)
    shape = [1] * weight.ndim
    if node.attributes.get_int("per_channel", 0):
        shape[node.attributes.get_int("channel_axis", 0)] = -1
    step = threshold.astype(np.float32).reshape(shape) / np.float32(levels)
    integers = np.clip(np.round(weight.astype(np.float32) / step), -levels, levels - 1)
    return (integers * step).astype(np.float32)


def to_standard(model: ir.Model) -> ir.Model:
    """A copy of a vendor-dialect model in standard operators (float32)."""
    copy = from_proto(to_proto(model))
    graph = copy.graph
    for node in list(graph):
        if not is_quantizer(node):
            continue
        if node.op_type in WEIGHT_QUANTIZERS:
            new = constant(graph, f"{node.name}.value", quantized_weight(node))
            ir.convenience.replace_all_uses_with(node.outputs[0], new)
        else:
            _standard_activation(graph, node, activation_grid(node))
            continue
        graph.remove(node, safe=True)
    copy.opset_imports.pop("mct_quantizers", None)
    return copy


def _standard_activation(graph: ir.Graph, node: ir.Node, grid: Grid) -> None:
    def scalar(name: str, number: float) -> ir.Value:
        return constant(graph, f"{node.name}.{name}", np.array(number, dtype=np.float32))

    step = scalar("step", grid.step)
    scaled = ir.Node("", "Div", [node.inputs[0], step], name=f"{node.name}.scaled")
    rounded = ir.Node("", "Round", scaled.outputs, name=f"{node.name}.rounded")
    clipped = ir.Node(
        "",
        "Clip",
        [rounded.outputs[0], scalar("lowest", grid.lowest), scalar("highest", grid.highest)],
        name=f"{node.name}.clipped",
    )
    real = ir.Node("", "Mul", [clipped.outputs[0], step], name=f"{node.name}.real")
    for new, name in ((scaled, "scaled"), (rounded, "rounded"), (clipped, "clipped")):
        new.outputs[0].name = f"{node.name}.{name}_output"
    old, out = node.outputs[0], real.outputs[0]
    name = old.name or f"{node.name}_output"
    out.dtype, out.shape = old.dtype or ir.DataType.FLOAT, old.shape
    graph.insert_before(node, [scaled, rounded, clipped, real])
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    out.name = name
