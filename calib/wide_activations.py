"""16 bits for one activation of a quantized graph, where the converter takes them.

The threshold stays, the step becomes 2**8 times as fine (2**7 times where the quantizer was unsigned: 16 bits
are always signed). Which places are taken was measured, see docs/memory.md, "16-bit activations".
"""

from __future__ import annotations

import onnx_ir as ir

from passes.errors import InputError
from passes.graph import from_proto, is_activation_quantizer, to_proto
from passes.imx500.limits import ACTIVATION_BITS
from passes.imx500.rules.quantizers import reader_of_8_bits

NARROW, WIDE = min(ACTIVATION_BITS), max(ACTIVATION_BITS)


def candidates(model: ir.Model) -> tuple[str, ...]:
    """Names of the activation quantizers that may have 16 bits instead of 8, in graph order.

    These are what additions, other elementwise operators, functions, concatenations and outputs read, and no
    operator of `READS_8_BITS`. Quantizers of the network's inputs are left out: a sensor delivers 8 bits.
    """
    return tuple(node.name for node in model.graph if node.name and _refusal(node) is None)


def with_wide_activation(model: ir.Model, quantizer_name: str) -> ir.Model:
    """A copy of the model in which one activation quantizer has 16 bits, signed, and the same threshold.

    Args:
        model: vendor-dialect graph; it stays as it is.
        quantizer_name: the name of the quantizer's node, one of `candidates(model)`.

    Raises:
        InputError: there is no such quantizer, or the converter takes no 16 bits there.
    """
    copy = from_proto(to_proto(model))
    found = [node for node in copy.graph if node.name == quantizer_name and is_activation_quantizer(node)]
    why = _refusal(found[0]) if len(found) == 1 else f"{len(found)} activation quantizers have this name"
    if why is not None:
        places = ", ".join(candidates(model))
        raise InputError(
            f"quantizer {quantizer_name}",
            why,
            "the name of one 8-bit activation quantizer, of which every reader takes 16 bits",
            f"take one of {places}" if places else "take another model: this one has no place for 16 bits",
        )
    found[0].attributes["num_bits"] = ir.AttrInt64("num_bits", WIDE)
    found[0].attributes["signed"] = ir.AttrInt64("signed", 1)
    return copy


def _refusal(node: ir.Node) -> str | None:
    """Why a node is no candidate; None where it is one."""
    if not is_activation_quantizer(node) or node.attributes.get_int("num_bits") != NARROW:
        return f"no {NARROW}-bit activation quantizer"
    source = node.inputs[0]
    if source is None or source.is_graph_input():
        return "quantizes an input of the network"
    reader = reader_of_8_bits(node.outputs[0])
    return None if reader is None else f"read by {reader.name} ({reader.op_type}), which takes 8 bits"
