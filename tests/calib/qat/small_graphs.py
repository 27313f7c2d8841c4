"""Small quantized graphs that MCT exported, and their float versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from calib.restore import _infer_shapes, _is_arithmetic
from calib.thresholds import WEIGHTS, with_representable_thresholds
from calib.widths import with_widths
from passes.graph import from_proto, is_quantizer, load, to_proto

FIXTURES = sorted((Path(__file__).parents[2] / "compiler" / "simulator" / "fixtures").glob("*.onnx"))
SHAPE = (3, 8, 8)


def fixture(name: str) -> ir.Model:
    """With batch 1, the exporter's arithmetic on sizes folded, and thresholds the chip represents."""
    model = load(next(path for path in FIXTURES if path.stem == name))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([1, *value.shape.dims[1:]])
    for _ in range(2):  # a resize by a computed size has a shape only when that is folded
        _infer_shapes(model)
        optimizer.fold_constants(model, should_fold=_is_arithmetic)
        common.RemoveUnusedNodesPass()(model)
    return with_representable_thresholds(model)


def everywhere(model: ir.Model, bits: int) -> ir.Model:
    """With weights of `bits` bits, also where the chip would store 8."""
    return with_widths(model, {node.name or "": bits for node in model.graph if node.op_type in WEIGHTS})


def without_quantizers(model: ir.Model) -> ir.Model:
    """The float graph: quantizers pass on what they get."""
    copy = from_proto(to_proto(model))
    for node in [node for node in copy.graph if is_quantizer(node)]:
        value, name = node.inputs[0], node.outputs[0].name
        assert value is not None
        was_output = node.outputs[0] in copy.graph.outputs
        ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
        copy.graph.remove(node, safe=True)
        if was_output:
            value.name = name
    copy.opset_imports.pop("mct_quantizers", None)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """float32 [count, 3, 8, 8], whole numbers in 0..255."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.float32)
