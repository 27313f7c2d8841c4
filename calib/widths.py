"""Other weight widths for a quantized graph: the chip holds twice as many weights of 4 bits, 4 times of 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from calib.activation_ranges import per_channel_means
from calib.thresholds import WEIGHTS, representable, rounded, squared_error, threshold_shape
from passes.graph import const_array, consumers, from_proto, set_constant, to_proto
from passes.imx500.weights import INPUT_CHANNELS

THRESHOLDS = np.linspace(0.2, 2.0, 181, dtype=np.float32)
"""Thresholds tried for a channel, as shares of its largest absolute weight.

Above 1, because the largest integer is one less than the threshold: 7/8 of it with 4 bits, 1/2 with 2.
"""


BIASED = ("Conv", "ConvTranspose")
"""Layers whose bias is an input of their own node."""


def stored_narrow(quantizer: ir.Node) -> bool:
    """Whether the chip stores fewer bits for narrower weights here: in all but the first layer."""
    weight = const_array(quantizer.inputs[0])
    assert weight is not None
    if weight.ndim != 4:
        return True
    reader = consumers(quantizer.outputs[0])[0]
    inputs = int(weight.shape[1]) * reader.attributes.get_int("group", 1)
    if reader.op_type == "ConvTranspose":
        inputs = int(weight.shape[0])
    return bool(inputs > INPUT_CHANNELS)


def narrowable(quantized: ir.Model) -> tuple[str, ...]:
    """Names of the weight quantizers whose layers the chip stores in fewer bits, in the graph's order."""
    return tuple(
        node.name or "" for node in quantized.graph if node.op_type in WEIGHTS and stored_narrow(node)
    )


Means = Mapping[str, NDArray[np.float64]]
"""Name of a layer's node -> mean of each channel of its input over representative pictures, float64 [Cin]."""


def input_means(float_model: ir.Model, pictures: Sequence[NDArray[np.float32]]) -> Means:
    """Of every layer that has a bias to correct; `pictures` as `calib.activation_ranges` takes them."""
    inputs = {
        node.name or "": node.inputs[0].name
        for node in float_model.graph
        if node.op_type in BIASED and node.inputs[0] is not None and node.inputs[0].producer() is not None
    }
    names = list(dict.fromkeys(name for name in inputs.values() if name is not None))
    means = per_channel_means(float_model, pictures, names)
    return {layer: means[name] for layer, name in inputs.items() if name is not None}


def with_weight_bits(quantized: ir.Model, bits: int, means: Means | None = None) -> ir.Model:
    """`with_widths` of the same number of bits wherever the chip stores it so."""
    return with_widths(quantized, dict.fromkeys(narrowable(quantized), bits), means)


def with_widths(quantized: ir.Model, widths: Mapping[str, int], means: Means | None = None) -> ir.Model:
    """A copy in which the named weight quantizers have 8, 4 or 2 bits; the others stay.

    Each channel of a narrower one gets the threshold of the least squared rounding error among THRESHOLDS.
    With `means` (`input_means`) the bias takes back what the new rounding adds to the mean of the layer's
    output (Nagel et al. 2019, arXiv 1906.04721, section 4.2); without them biases stay.

    The weights have to be there unrounded, as calib.ptq leaves them.
    """
    copy = from_proto(to_proto(quantized))
    for node in copy.graph:
        bits = widths.get(node.name or "", 0) if node.op_type in WEIGHTS else 0
        before = node.attributes.get_int("num_bits", 8)
        if bits and bits != before:
            weight, old = const_array(node.inputs[0]), const_array(node.inputs[1])
            assert weight is not None
            assert old is not None
            shape = threshold_shape(node, weight.ndim)
            thresholds = least_error(weight, bits, shape)
            node.attributes["num_bits"] = ir.AttrInt64("num_bits", bits)
            set_constant(copy.graph, node, 1, f"{node.name}/threshold_{bits}_bits", thresholds)
            added = rounded(weight, thresholds.reshape(shape), bits) - rounded(
                weight, old.reshape(shape), before
            )
            for layer in consumers(node.outputs[0]):
                if means is not None and (layer.name or "") in means:
                    _correct(copy.graph, layer, added, means[layer.name or ""])
    common.RemoveUnusedNodesPass()(copy)  # the converter refuses constants that nothing reads
    return copy


def _correct(graph: ir.Graph, layer: ir.Node, added: NDArray[np.float32], mean: NDArray[np.float64]) -> None:
    """Take the mean of what `added` to the weights adds to the output out of the layer's bias."""
    bias = const_array(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if bias is None:
        return
    groups = layer.attributes.get_int("group", 1)
    taps = added.sum(axis=tuple(range(2, added.ndim)), dtype=np.float64)
    if layer.op_type == "ConvTranspose":  # [Cin, Cout / groups]; a pixel sees one in stride^2 of the taps
        strides = layer.attributes.get_ints("strides", [1, 1])
        blocks = [block.T / np.prod(strides) for block in np.split(taps, groups)]
    else:  # [Cout, Cin / groups]
        blocks = np.split(taps, groups)
    inputs = np.split(mean, groups)
    shift = np.concatenate([block @ part for block, part in zip(blocks, inputs, strict=True)])
    set_constant(graph, layer, 2, f"{layer.name}/corrected", (bias - shift).astype(np.float32))


def least_error(weight: NDArray[np.float32], bits: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Representable thresholds [channels] of the least squared error; `shape`: the one they broadcast in."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    largest = np.where(largest > 0, largest, np.float32(1))
    best, least = largest, np.full(largest.shape, np.inf)
    for share in THRESHOLDS:
        tried = representable(largest * share)
        error = squared_error(weight, tried, bits)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best.astype(np.float32).reshape(-1)
