"""Normalisations."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx, nn

from calib.importer.context import Context, integer, real, to_tensor
from calib.importer.patterns import layer_norm
from calib.importer.registry import UnknownForm, operator


@operator("BatchNormalization")
def batch_normalization(ctx: Context, node: ir.Node) -> fx.Node:
    x = ctx.activation(node)
    if integer(node, "training_mode", 0):
        raise UnknownForm("training_mode = 1", "stored mean and variance", "export the model in eval mode")
    scale, bias, mean, variance = (ctx.required(node, index) for index in range(1, 5))
    kinds: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d]] = {
        2: nn.BatchNorm1d,
        3: nn.BatchNorm1d,
        4: nn.BatchNorm2d,
    }
    if ctx.rank(x) not in kinds:
        raise UnknownForm(f"rank {ctx.rank(x)}", "rank 2, 3 or 4", "reshape it to rank 4 before the node")
    module = kinds[ctx.rank(x)](scale.size, eps=real(node, "epsilon", 1e-5))
    module.weight.data, module.bias.data = to_tensor(scale), to_tensor(bias)
    module.running_mean, module.running_var = to_tensor(mean), to_tensor(variance)
    return ctx.module(module, x)


@operator("LayerNormalization")
def layer_normalization(ctx: Context, node: ir.Node) -> fx.Node:
    x, weight, bias = ctx.activation(node), ctx.required(node, 1), ctx.constant(node, 2)
    if any(output.uses() for output in node.outputs[1:]):
        raise UnknownForm(
            "the mean or deviation output is read", "the normalised output only", "recompute it"
        )
    shape = ctx.shape(x)[ctx.axis(x, integer(node, "axis", -1)) :]
    return ctx.module(layer_norm(shape, real(node, "epsilon", 1e-5), weight, bias), x)
