"""The quantized graph as a torch module that can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from calib.importer import OPERATORS, to_torch
from calib.importer.context import Context
from calib.qat.quantizers import WeightQuantizer, activation_quantizer
from calib.thresholds import WEIGHTS, threshold_shape
from passes.errors import InputError
from passes.graph import const_array, constant, consumers, from_proto, is_quantizer, to_proto

ACTIVATIONS = "ActivationPOTQuantizer"


@dataclass(frozen=True)
class Layer:
    """A trained layer.

    Attributes:
        quantizer: name of the graph's weight quantizer node.
        module: the layer; its weight is parametrized with a WeightQuantizer.
        transposed: the module's weight is the transpose of the graph's.
        bias: name of the node that adds the bias, and which of its inputs it is; None without a bias.
    """

    quantizer: str
    module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    transposed: bool
    bias: tuple[str, int] | None

    @property
    def weights(self) -> WeightQuantizer:
        quantizer: WeightQuantizer = self._parametrization[0]
        return quantizer

    @property
    def trained(self) -> nn.Parameter:
        """The weight in units (`WeightQuantizer`), before it is rounded."""
        parameter: nn.Parameter = self._parametrization.original
        return parameter

    @property
    def _parametrization(self) -> Any:
        held: Any = self.module.parametrizations
        return held.weight


@dataclass(frozen=True)
class Network:
    """A quantized graph as a module.

    Attributes:
        module: takes and gives what the graph does, float32; every quantizer rounds with a straight-through
            gradient.
        layers: those that are trained. The weights of others (a module that is called twice has no quantizer
            in the graph) and all other constants stay as they are.
        quantizers: name of the graph's activation quantizer node -> name of its submodule.
        batch_free: see calib.importer.Imported.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    quantizers: dict[str, str]
    batch_free: bool

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: weights, their thresholds, biases; the order is that of the graph."""
        found = []
        for layer in self.layers:
            found += [layer.trained, layer.weights.quantizer.scaling_impl.value]
            found += [layer.module.bias] if layer.bias is not None and layer.module.bias is not None else []
        return found


def to_network(quantized: ir.Model) -> Network:
    """Import a vendor-dialect graph; its weight thresholds become `calib.thresholds.representable`.

    Raises:
        TargetViolation: an operator the importer does not know.
        InputError: a quantizer other than symmetric weights and power-of-two activations.
    """
    nodes = {node.name or "": node for node in quantized.graph}
    unknown = next(
        (n for n in nodes.values() if is_quantizer(n) and n.op_type not in (ACTIVATIONS, *WEIGHTS)), None
    )
    if unknown is not None:
        raise InputError(
            f"quantizer {unknown.name}",
            unknown.op_type,
            f"{ACTIVATIONS} or {', '.join(WEIGHTS)}",
            "quantize with mct-ptq",
        )
    imported = to_torch(_with_constant_weights(quantized), {**OPERATORS, ACTIVATIONS: _place})
    module = imported.module.requires_grad_(False)
    places: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            places.setdefault(imported.names[node.name], []).append(node.target)
    quantizers = {name: places[name][-1] for name, node in nodes.items() if node.op_type == ACTIVATIONS}
    for name, target in quantizers.items():
        setattr(module, target, _activation(nodes[name]))
    found = (_layer(node, module, places) for node in nodes.values() if node.op_type in WEIGHTS)
    layers = tuple(layer for layer in found if layer is not None)
    network = Network(module, layers, quantizers, imported.batch_free)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def _place(ctx: Context, node: ir.Node) -> fx.Node:
    """An activation quantizer, for the time of the import a module that does nothing."""
    return ctx.module(nn.Identity(), ctx.activation(node))


class _Quantize(nn.Module):
    """An activation quantizer: the quantized tensor alone, of the four things Brevitas returns."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        quantized: Tensor = self.quantizer(x)[0]
        return quantized


def _activation(node: ir.Node) -> nn.Module:
    bits, signed = node.attributes.get_int("num_bits", 8), bool(node.attributes.get_int("signed", 1))
    return _Quantize(activation_quantizer(node.attributes["threshold"].as_float(), bits, signed))


def _with_constant_weights(quantized: ir.Model) -> ir.Model:
    """A copy whose weight quantizers are replaced by the weights they read, not yet rounded."""
    copy = from_proto(to_proto(quantized))
    for node in list(copy.graph):
        if node.op_type in WEIGHTS:
            weight = const_array(node.inputs[0])
            assert weight is not None  # the check demands it
            value = constant(copy.graph, f"{node.name}/unrounded", weight)
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            copy.graph.remove(node, safe=True)
            for turn in [reader for reader in consumers(value) if reader.op_type == "Transpose"]:
                turned = constant(copy.graph, f"{turn.name}/folded", weight.T)  # only matrices are turned
                ir.convenience.replace_all_uses_with(turn.outputs[0], turned)
                copy.graph.remove(turn, safe=True)
    return copy


def _layer(node: ir.Node, module: nn.Module, places: dict[str, list[str]]) -> Layer | None:
    """Quantize the weight of the module that the node's readers became."""
    weight, thresholds = const_array(node.inputs[0]), const_array(node.inputs[1])
    assert weight is not None
    assert thresholds is not None
    reader = consumers(node.outputs[0])[0]
    turned = reader.op_type == "Transpose"
    if turned:
        reader = consumers(reader.outputs[0])[0]
    # A product and the addition behind it became one module, named after the addition.
    behind = [reader, *consumers(reader.outputs[0])]
    target = next((places[n.name or ""][-1] for n in behind if n.name in places), None)
    layer = None if target is None else module.get_submodule(target)
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        raise _unread(node)
    # torch's is [out, in]; by the numbers alone it could not be told of a symmetric matrix.
    transposed = isinstance(layer, nn.Linear) and turned == bool(reader.attributes.get_int("transB", 0))
    if not np.array_equal(layer.weight.detach().numpy(), weight.T if transposed else weight):
        raise _unread(node)
    limits = torch.from_numpy(np.array(thresholds, np.float32).reshape(threshold_shape(node, weight.ndim)))
    bits = node.attributes.get_int("num_bits", 8)
    quantizer = WeightQuantizer(limits.T if transposed else limits, bits)
    parametrize.register_parametrization(layer, "weight", quantizer)
    return Layer(node.name or "", layer, transposed, _bias(layer, behind))


def _bias(layer: nn.Module, nodes: Sequence[ir.Node]) -> tuple[str, int] | None:
    """The node among these, and its input, that holds the layer's bias."""
    if not isinstance(layer.bias, Tensor):
        return None
    wanted = layer.bias.detach().numpy()
    for node in nodes:
        for index, value in enumerate(node.inputs):
            array = const_array(value)
            if array is not None and array.shape == wanted.shape and np.array_equal(array, wanted):
                return node.name or "", index
    return None


def _unread(node: ir.Node) -> InputError:
    return InputError(
        f"quantizer {node.name}",
        "its weight is no weight of a convolution or linear layer",
        "weights of Conv, ConvTranspose, Gemm and MatMul",
        "quantize with mct-ptq alone",
    )
