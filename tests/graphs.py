"""Small graphs for tests, and running them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx_ir as ir
import onnxruntime

from passes import graph as graphs
from passes.contract import InputContract

OPSET = 17


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    contract: InputContract | None = None,
    kind: int = onnx.TensorProto.FLOAT,
) -> ir.Model:
    """A float model with inferred shapes."""
    graph = oh.make_graph(
        nodes,
        "test",
        [oh.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [oh.make_empty_tensor_value_info(name) for name in outputs],
        [onh.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", OPSET)], ir_version=9)
    built = graphs.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    if contract is not None:
        graphs.write_contract(built, contract)
    return built


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return oh.make_node(op, inputs, outputs, **attributes)


def run(built: ir.Model, *arrays: np.ndarray) -> list[np.ndarray]:
    """Outputs of the model, by onnxruntime without its own rewrites."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graphs.to_bytes(built), options, providers=["CPUExecutionProvider"]
    )
    return session.run(
        None, {given.name: array for given, array in zip(session.get_inputs(), arrays, strict=True)}
    )


def op_types(built: ir.Model) -> list[str]:
    return [n.op_type for n in built.graph]


def relative_error(reference: np.ndarray, other: np.ndarray) -> float:
    """Largest difference as a share of the reference's range."""
    span = float(reference.max() - reference.min()) or 1.0
    return float(np.abs(reference.astype(np.float64) - other).max()) / span
