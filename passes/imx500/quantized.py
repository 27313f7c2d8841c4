"""What a graph in the vendor dialect has to be: quantizers in their places, of kinds and widths that pass."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from passes.diagnostics import Diagnostic, Severity
from passes.graph import is_quantized, is_quantizer, module_of
from passes.imx500.geometry import is_constant, static_nodes
from passes.imx500.limits import (
    ACTIVATION_BITS,
    ACTIVATION_QUANTIZERS,
    SOURCE,
    WEIGHT_BITS,
    WEIGHT_QUANTIZERS,
)

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight when it is a constant."""

PRESERVING = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand",
    "Concat", "Pad", "MaxPool", "ArgMax", "TopK", "Identity", "Dropout",
)  # fmt: skip
"""Operators that hand on the numbers they get (or their places), so that a quantizer before them suffices."""


def check_quantized(model: ir.Model) -> tuple[Diagnostic, ...]:
    """All violations of the quantized stage: kinds and widths of quantizers, thresholds, missing quantizers.

    A graph without any quantizer is one violation, not one for each tensor.
    """
    if not is_quantized(model):
        return (
            Diagnostic(
                "imx500/not-quantized",
                Severity.ERROR,
                "",
                "",
                "a float graph: no quantizer node",
                "the converter takes graphs in the vendor dialect (mct_quantizers)",
                "quantize it first: picosam2 compile MODEL does",
                SOURCE,
            ),
        )
    found: list[Diagnostic] = []
    for node in model.graph:
        if is_quantizer(node):
            found.extend(_check_quantizer(node))
    found.extend(_missing_on_weights(model.graph))
    found.extend(_missing_on_activations(model.graph))
    return tuple(found)


def _finding(
    rule: str, node: ir.Node, found: str, limit: str, fix: str, severity: Severity = Severity.ERROR
) -> Diagnostic:
    return Diagnostic(f"imx500/{rule}", severity, node.name or "", module_of(node), found, limit, fix, SOURCE)


def _check_quantizer(node: ir.Node) -> Iterator[Diagnostic]:
    on_weights = node.op_type.startswith("Weights")
    kinds = WEIGHT_QUANTIZERS if on_weights else ACTIVATION_QUANTIZERS
    widths = WEIGHT_BITS if on_weights else ACTIVATION_BITS
    what = "weights" if on_weights else "activations"
    if node.op_type not in kinds:
        yield _finding(
            f"quantizer-{what}",
            node,
            f"quantizer {node.op_type}",
            f"{what} take {', '.join(kinds)}",
            "quantize with MCT's imx500 capabilities",
        )
    bits = node.attributes.get("num_bits")
    if bits is not None and bits.as_int() not in widths:
        yield _finding(
            f"bits-{what}",
            node,
            f"num_bits = {bits.as_int()}",
            f"{what} take {', '.join(map(str, widths))} bits",
            f"quantize to {8 if 8 in widths else widths[0]} bits",
        )
    threshold = node.attributes.get("threshold")
    if on_weights:
        return
    if threshold is None or threshold.type is not ir.AttributeType.FLOAT:
        yield _finding(
            "threshold",
            node,
            "no threshold" if threshold is None else f"threshold of type {threshold.type.name}",
            "activation quantizers have one threshold, a float",
            "export the quantized model again",
        )
    else:
        yield from _check_threshold(node, threshold.as_float())


def _check_threshold(node: ir.Node, threshold: float) -> Iterator[Diagnostic]:
    if not (math.isfinite(threshold) and threshold > 0):
        yield _finding(
            "threshold",
            node,
            f"threshold = {threshold:g}",
            "activation thresholds are positive and finite",
            "quantize again with pictures that reach this tensor",
        )
    elif math.frexp(threshold)[0] != 0.5:
        above = 2.0 ** math.ceil(math.log2(threshold))
        yield _finding(
            "threshold-power-of-two",
            node,
            f"threshold = {threshold:g}",
            f"activation thresholds are powers of two; the converter silently takes {above:g}",
            f"set the threshold to {above:g}, so that what is simulated is what is shipped",
            Severity.WARNING,
        )


def _missing_on_weights(graph: ir.Graph) -> Iterator[Diagnostic]:
    """MCT writes the weights of a layer used twice as quantized constants without a quantizer."""
    for node in graph:
        if node.op_type in WEIGHTED and len(node.inputs) > 1 and _is_bare_constant(node.inputs[1]):
            yield _finding(
                "quantizer-weights-missing",
                node,
                "weights without a quantizer",
                "the converter takes them and chooses their scale itself",
                "put a WeightsSymmetricQuantizer before them, so that their scale is the simulated one",
                Severity.NOTE,
            )


def _is_bare_constant(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return is_constant(value) and not (producer is not None and is_quantizer(producer))


def _missing_on_activations(graph: ir.Graph) -> Iterator[Diagnostic]:
    """Where a convolution or linear layer reads, and where the network ends, the numbers are quantized."""
    static, told = static_nodes(graph), set[ir.Value]()
    reads = [(node.inputs[0], f"read by {node.name}") for node in graph if node.op_type in WEIGHTED]
    reads += [(output, "an output of the network") for output in graph.outputs]
    for value, where in reads:
        for origin in _unquantized(value, static):
            if origin in told:
                continue
            told.add(origin)
            producer = origin.producer()
            yield Diagnostic(
                "imx500/quantizer-missing",
                Severity.ERROR,
                "" if producer is None else producer.name or "",
                "" if producer is None else module_of(producer),
                f"tensor {origin.name} without a quantizer, {where}",
                "what convolutions and linear layers read, and every output, goes through a quantizer node",
                "quantize the whole model with MCT's imx500 capabilities",
                SOURCE,
            )


def _unquantized(value: ir.Value | None, static: set[ir.Node]) -> list[ir.Value]:
    """Where the numbers of `value` come from without a quantizer on the way."""
    found, seen, pending = [], set[ir.Value](), [value]
    while pending:
        current = pending.pop()
        if current is None or current in seen or is_constant(current):
            continue
        seen.add(current)
        producer = current.producer()
        if producer is None:
            found.append(current)
        elif is_quantizer(producer) or producer in static:
            continue
        elif producer.op_type in PRESERVING:
            pending.extend(producer.inputs if producer.op_type == "Concat" else producer.inputs[:1])
        else:
            found.append(current)
    return found
