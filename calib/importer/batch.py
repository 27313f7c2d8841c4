"""Several pictures at once through a graph that has its batch of 1 built in.

Concatenation with a constant (the frame of a folded input normalisation, see passes/fold_input) is the usual
reason: torch's cat takes no broadcast. With the constant repeated for every picture, exactly `batch` pictures
run at once, which makes calibration several times as fast as one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor, fx

from passes.graph import const_array


def spread(module: fx.GraphModule, inputs: list[Tensor], batch: int) -> fx.GraphModule | None:
    """A copy of `module` for exactly `batch` pictures at once, None where that does not give the same.

    Args:
        module: runs one picture.
        inputs: an example of one picture, [1, ...] per input.
        batch: at least 2.
    """
    spread_module = copy.deepcopy(module)
    for name in set(_concatenated_constants(spread_module)):
        constant = getattr(spread_module, name)
        if constant.ndim and constant.shape[0] == 1:
            setattr(spread_module, name, constant.expand(batch, *constant.shape[1:]).clone())
    pictures = [[x if index % 2 else 1.0 - x for x in inputs] for index in range(batch)]
    with torch.no_grad():
        alone = [_flat(module(*picture)) for picture in pictures[:2]]
        try:
            together = _flat(fx.Interpreter(spread_module).run(*map(torch.cat, zip(*pictures, strict=True))))
        except RuntimeError:
            return None
    for outputs in zip(*alone, together, strict=True):
        *singles, joined = outputs
        expected = torch.cat([singles[index % 2] for index in range(batch)])
        scale = max(expected.double().abs().max().item(), 1e-6) if expected.numel() else 0.0
        if joined.shape != expected.shape or not torch.allclose(
            joined.double(), expected.double(), rtol=1e-3, atol=1e-3 * scale
        ):
            return None
    return spread_module


def gather(quantized: ir.Model, batch: int) -> None:
    """Undo `spread` in the exported graph: repeated constants become those of one picture again."""
    for node in quantized.graph:
        if node.op_type != "Concat":
            continue
        for value in node.inputs:
            array = const_array(value)
            producer = value.producer() if value is not None else None
            if array is None or producer is None or array.dtype.kind != "f":
                continue  # integers are sizes: the exporter joins the numbers of a Pad so
            if array.ndim and array.shape[0] == batch:
                producer.attributes["value"] = ir.AttrTensor("value", ir.tensor(array[:1]))


def _concatenated_constants(module: fx.GraphModule) -> Iterator[str]:
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is torch.cat:
            for part in node.args[0]:
                if part.op == "get_attr":
                    yield str(part.target)


def _flat(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
