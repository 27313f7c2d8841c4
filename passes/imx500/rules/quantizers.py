"""What a graph in the vendor dialect has to be: quantizers in their places, of kinds and widths that pass."""

from __future__ import annotations

import math

import onnx_ir as ir

from passes.diagnostics import Severity
from passes.graph import is_activation_quantizer, is_quantizer
from passes.imx500.geometry import is_constant
from passes.imx500.limits import (
    ACTIVATION_BITS,
    ACTIVATION_QUANTIZERS,
    READS_8_BITS,
    WEIGHT_BITS,
    WEIGHT_QUANTIZERS,
)
from passes.imx500.rules.registry import Found, quantized_rule, tensor_rule
from passes.imx500.widths import CARRYING

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight when it is a constant."""

PRESERVING = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand",
    "Concat", "Pad", "MaxPool", "ArgMax", "TopK", "Identity", "Dropout",
)  # fmt: skip
"""Operators that hand on the numbers they get (or their places), so that a quantizer before them suffices."""


def _on_weights(node: ir.Node) -> bool:
    return is_quantizer(node) and node.op_type.startswith("Weights")


@quantized_rule("quantizer-weights")
def weight_quantizer(node: ir.Node) -> Found | None:
    """Quantizers of weights are {WEIGHT_QUANTIZERS}.

    Fix: quantize the float model with `picosam2 compile`, which uses MCT's imx500 capabilities.
    """
    return _unlisted(node, WEIGHT_QUANTIZERS) if _on_weights(node) else None


@quantized_rule("quantizer-activations")
def activation_quantizer(node: ir.Node) -> Found | None:
    """Quantizers of activations are {ACTIVATION_QUANTIZERS}.

    Fix: quantize the float model with `picosam2 compile`, which uses MCT's imx500 capabilities.
    """
    return _unlisted(node, ACTIVATION_QUANTIZERS) if is_activation_quantizer(node) else None


def _unlisted(quantizer: ir.Node, taken: tuple[str, ...]) -> Found | None:
    """The quantizer is of none of the kinds that are taken."""
    return None if quantizer.op_type in taken else Found(f"quantizer {quantizer.op_type}")


@quantized_rule("bits-weights")
def weight_bits(node: ir.Node) -> Found | None:
    """Weights have {WEIGHT_BITS} bits.

    Fix: quantize the weights to 8 bits.
    """
    fix = f"quantize the weights to {max(WEIGHT_BITS)} bits"
    return _other_width(node, WEIGHT_BITS, fix) if _on_weights(node) else None


@quantized_rule("bits-activations")
def activation_bits(node: ir.Node) -> Found | None:
    """Activations have {ACTIVATION_BITS} bits.

    Fix: quantize the activations to 8 bits.
    """
    fix = f"quantize the activations to {min(ACTIVATION_BITS)} bits"
    return _other_width(node, ACTIVATION_BITS, fix) if is_activation_quantizer(node) else None


@quantized_rule("signed-16-bit")
def wide_activations_are_signed(node: ir.Node) -> Found | None:
    """Activations of 16 bits are signed.

    Fix: quantize the tensor signed, or to 8 bits.
    """
    bits, signed = (node.attributes.get_int(name) for name in ("num_bits", "signed"))
    return Found(f"num_bits = {bits}, signed = 0") if _is_wide(node) and signed == 0 else None


@quantized_rule("reads-8-bit")
def wide_activations_are_read_by(node: ir.Node) -> Found | None:
    """Tensors of 16 bits are not read by {READS_8_BITS}.

    Fix: quantize the tensor to 8 bits, or put the 16 bits on what only additions, other elementwise
    operators, functions, concatenations and outputs read.
    """
    if not _is_wide(node):
        return None
    reader = reader_of_8_bits(node.outputs[0])
    bits = node.attributes.get_int("num_bits")
    return None if reader is None else Found(f"num_bits = {bits}, read by {reader.name} ({reader.op_type})")


def _is_wide(node: ir.Node) -> bool:
    """A quantizer of activations to more than 8 bits, of a width that exists."""
    bits = node.attributes.get_int("num_bits") if is_activation_quantizer(node) else None
    return bits in ACTIVATION_BITS and bits != min(ACTIVATION_BITS)


def reader_of_8_bits(value: ir.Value) -> ir.Node | None:
    """The first operator that takes 8 bits only and gets the numbers of `value` as they are, or None."""
    seen, pending = set[ir.Value](), [value]
    while pending:
        current = pending.pop(0)
        if current in seen:
            continue
        seen.add(current)
        for node, index in current.uses():
            if node.op_type in READS_8_BITS and (index == 0 or node.op_type == "MatMul"):
                return node
            if node.op_type in CARRYING and index == 0:
                pending.extend(node.outputs)
    return None


def _other_width(quantizer: ir.Node, taken: tuple[int, ...], fix: str) -> Found | None:
    """The quantizer says a number of bits, and it is none of those that are taken."""
    bits = quantizer.attributes.get_int("num_bits")
    return None if bits is None or bits in taken else Found(f"num_bits = {bits}", fix)


def _threshold(node: ir.Node) -> float | None:
    """The threshold of a quantizer of activations; None where there is none, or it is no float."""
    attribute = node.attributes.get("threshold")
    return None if attribute is None or attribute.type is not ir.AttributeType.FLOAT else attribute.as_float()


@quantized_rule("threshold")
def threshold_is_positive(node: ir.Node) -> Found | None:
    """A quantizer of activations has one threshold, a float that is positive and finite.

    Fix: quantize again with pictures that reach this tensor.
    """
    if not is_activation_quantizer(node):
        return None
    threshold = _threshold(node)
    if threshold is None:
        attribute = node.attributes.get("threshold")
        kind = "no threshold" if attribute is None else f"threshold of type {attribute.type.name}"
        return Found(kind, "export the quantized model again")
    if math.isfinite(threshold) and threshold > 0:
        return None
    return Found(f"threshold = {threshold:g}")


@quantized_rule("threshold-power-of-two", severity=Severity.WARNING)
def threshold_is_power_of_two(node: ir.Node) -> Found | None:
    """Thresholds of activations are powers of two; the converter silently takes the next one above.

    Fix: set the threshold to that power of two, so that what is simulated is what is shipped.
    """
    threshold = _threshold(node) if is_activation_quantizer(node) else None
    if threshold is None or not (math.isfinite(threshold) and threshold > 0):
        return None
    if math.frexp(threshold)[0] == 0.5:
        return None
    above = 2.0 ** math.ceil(math.log2(threshold))
    return Found(
        f"threshold = {threshold:g}",
        f"set the threshold to {above:g}, so that what is simulated is what is shipped",
    )


@quantized_rule("quantizer-weights-missing", *WEIGHTED, severity=Severity.NOTE)
def weights_are_quantized(node: ir.Node) -> Found | None:
    """Weights without a quantizer are accepted, and the converter chooses their scale itself.

    Fix: put a WeightsSymmetricQuantizer before them, so that their scale is the simulated one.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    producer = None if weight is None else weight.producer()
    if not is_constant(weight) or (producer is not None and is_quantizer(producer)):
        return None
    return Found(  # MCT writes the weights of a layer that is used twice so
        "weights without a quantizer",
    )


@tensor_rule("quantizer-missing")
def activations_are_quantized(value: ir.Value) -> Found | None:
    """What convolutions and linear layers read, and every output, goes through a quantizer node.

    Fix: quantize the float model with `picosam2 compile`, which uses MCT's imx500 capabilities.
    """
    reader = _reads_unquantized(value)
    if reader is None:
        return None
    return Found(f"tensor {value.name} without a quantizer, {reader}")


def _reads_unquantized(value: ir.Value) -> str | None:
    """Who gets the numbers of `value` without a quantizer on the way; None where nobody does."""
    seen, pending = set[ir.Value](), [value]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.is_graph_output():
            return "an output of the network"
        for node, index in current.uses():
            if node.op_type in WEIGHTED and index == 0:
                return f"read by {node.name}"
            if node.op_type in PRESERVING and (index == 0 or node.op_type == "Concat"):
                pending.extend(node.outputs)
    return None
