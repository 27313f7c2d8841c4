"""Fold batch norms into the convolution, transposed convolution or Gemm before them.

    BN(y) = g * (y - mean) / sqrt(var + eps) + beta = k * y + (beta - k * mean),   k = g / sqrt(var + eps)

With y = W x + b the fold is W' = k W (per output channel) and b' = k b + beta - k mean, computed in float64
and stored in the weight's dtype. Weights shared with other nodes are copied, never changed in place. A batch
norm stays where its producer's output is read by somebody else too, where the producer's weights are not
constant, and in training mode: the target takes it as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.graph import const_array, set_constant

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")


class FoldBatchNorm(ir.passes.InPlacePass):
    """W' = k W, b' = k b + beta - k mean; the batch norm's output name moves to the producer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = 0
        for node in list(model.graph):
            if can_fold(node):
                _fold(model.graph, node)
                folded += 1
        return ir.passes.PassResult(model, modified=folded > 0)

    def ensures(self, model: ir.Model) -> None:
        left = [node.name for node in model.graph if can_fold(node)]
        if left:
            raise ir.passes.PostconditionError(f"batch norms that could have been folded: {left}")


def can_fold(node: ir.Node) -> bool:
    """The node is an inference batch norm, alone behind a producer with constant weights."""
    if node.op_type != "BatchNormalization" or node.attributes.get_int("training_mode", 0) == 1:
        return False
    if sum(1 for output in node.outputs if output.uses() or output.is_graph_output()) > 1:
        return False
    if not all(map(_is_constant, node.inputs[1:5])):
        return False
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is None or value is None or producer.op_type not in FOLDABLE:
        return False
    if len(value.uses()) != 1 or value.is_graph_output():
        return False
    weight, bias = producer.inputs[1], producer.inputs[2] if len(producer.inputs) > 2 else None
    return _is_constant(weight) and (bias is None or _is_constant(bias))


def _is_constant(value: ir.Value | None) -> bool:
    """The value's numbers are known; they are not read."""
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    value = norm.inputs[0]
    producer = value.producer() if value is not None else None
    assert producer is not None  # can_fold has seen it
    gain, beta, mean, variance = (
        np.asarray(const_array(value), dtype=np.float64) for value in norm.inputs[1:5]
    )
    k = gain / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    weight = const_array(producer.inputs[1])
    assert weight is not None
    bias = const_array(producer.inputs[2]) if len(producer.inputs) > 2 else None
    old = np.zeros_like(k) if bias is None else bias.astype(np.float64)
    if producer.op_type == "Gemm":
        # Y = alpha A B + beta C; C may be a scalar or a row, so it becomes a row of its own.
        old = np.broadcast_to(producer.attributes.get_float("beta", 1.0) * old.reshape(-1), k.shape)
        producer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    new_weight = (weight.astype(np.float64) * _per_output(producer, weight, k)).astype(weight.dtype)
    new_bias = (k * old + beta - k * mean).astype(weight.dtype)
    set_constant(graph, producer, 1, f"{producer.name}.weight", new_weight)
    set_constant(graph, producer, 2, f"{producer.name}.bias", new_bias)
    ir.convenience.replace_all_uses_with(norm.outputs[0], producer.outputs[0], replace_graph_outputs=True)
    name = norm.outputs[0].name
    graph.remove(norm, safe=True)
    producer.outputs[0].name = name


def _per_output(producer: ir.Node, weight: np.ndarray, k: np.ndarray) -> np.ndarray:
    """k shaped to multiply the producer's weight along its output channels."""
    if producer.op_type == "Conv":
        return k.reshape(-1, *(1,) * (weight.ndim - 1))
    if producer.op_type == "Gemm":
        return k.reshape(-1, 1) if producer.attributes.get_int("transB", 0) else k.reshape(1, -1)
    # ConvTranspose weights are [Cin, Cout/groups, ...]: input channel i belongs to group i // (Cin/groups).
    groups = producer.attributes.get_int("group", 1)
    per_group = k.reshape(groups, 1, -1)
    spread = np.broadcast_to(per_group, (groups, weight.shape[0] // groups, weight.shape[1]))
    return spread.reshape(weight.shape[0], weight.shape[1], *(1,) * (weight.ndim - 2))
