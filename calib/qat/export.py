"""A trained network back into the vendor dialect: the same nodes, other weights and thresholds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from calib.qat.network import Layer, Network
from passes.graph import all_values, from_proto, set_constant, to_proto, unique_name


def export(network: Network, quantized: ir.Model) -> ir.Model:
    """A copy of `quantized` (the graph the network was made from) with what the network holds now.

    A weight is written as integer * step, rounded to float32: within 2^-24 of its size of the integer, where
    the nearest tie is half an integer away, so the node's own rounding gives Brevitas' integer back.
    """
    copy = from_proto(to_proto(quantized))
    nodes = {node.name: node for node in copy.graph}
    names: dict[ir.Value, str] = {}

    def put(node: ir.Node, index: int, array: np.ndarray) -> None:
        """Give the node numbers of its own; another layer may share the old ones."""
        old = node.inputs[index]
        shape = () if old is None or old.shape is None else old.shape.numpy()
        name = "" if old is None else old.name or ""
        numbers = np.ascontiguousarray(array.reshape(shape), np.float32)
        set_constant(copy.graph, node, index, f"{name}/trained", numbers)
        new = node.inputs[index]
        assert new is not None
        names[new] = name

    for layer in network.layers:
        node = nodes[layer.quantizer]
        integers, thresholds = held(layer)
        step = thresholds / np.float32(2 ** (node.attributes.get_int("num_bits", 8) - 1))
        put(node, 0, integers * step)
        put(node, 1, thresholds)
        if layer.bias is not None and layer.module.bias is not None:
            name, index = layer.bias
            put(nodes[name], index, layer.module.bias.detach().numpy())
    common.RemoveUnusedNodesPass()(copy)
    taken = {value.name or "" for value in all_values(copy.graph)} - {value.name for value in names}
    for value, name in names.items():
        value.name = unique_name(name, taken)
    return copy


def held(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Brevitas' integers and thresholds of a layer, float32, oriented as in the graph; they broadcast."""
    with torch.no_grad():
        integers, thresholds = layer.weights.integers(layer.trained), layer.weights.thresholds()
    if layer.transposed:
        integers, thresholds = integers.T, thresholds.T
    return integers.numpy().copy(), thresholds.numpy().copy()
