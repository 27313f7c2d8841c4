"""Small ONNX graphs, and the two ways to run them: onnxruntime and the imported torch module."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from calib.importer import to_torch
from passes.graph import from_proto, to_bytes
from passes.names import NameEverything
from passes.simplify import Simplify


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 20,
) -> ir.Model:
    """A named graph with inferred shapes, as our passes leave it."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    domains = {"": opset} | {node.domain: 1 for node in nodes if node.domain}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=9)
    model = from_proto(onnx.shape_inference.infer_shapes(proto))
    NameEverything()(model)
    return model


def one_node(
    op_type: str,
    shapes: Sequence[Sequence[int | str]],
    constants: Sequence[np.ndarray | None] = (),
    outputs: int = 1,
    opset: int = 20,
    first: int = 0,
    **attributes: object,
) -> ir.Model:
    """One node whose inputs are activations of `shapes`, then `constants` (None: absent).

    With `first` = n the first n constants come before the activations.
    """
    named = {f"constant_{i}": array for i, array in enumerate(constants) if array is not None}
    held = ["" if array is None else f"constant_{i}" for i, array in enumerate(constants)]
    inputs: dict[str, Sequence[int | str]] = {f"x{i}": shape for i, shape in enumerate(shapes)}
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(
        op_type, [*held[:first], *inputs, *held[first:]], results, name="the_node", **attributes
    )
    return model_of([node], inputs, results, named, opset)


def exported(
    network: torch.nn.Module, shape: Sequence[int], opset: int = 17, dynamic: bool = False
) -> ir.Model:
    """A torch network as a named and simplified graph with input `input`."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            torch.zeros(1, *shape),
            buffer,
            opset_version=opset,
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "batch"}} if dynamic else None,
        )
    model = from_proto(onnx.load_from_string(buffer.getvalue()))
    NameEverything()(model)
    return Simplify()(model).model


def random_inputs(model: ir.Model, low: float = -3.0, high: float = 3.0, batch: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [[d if isinstance(d, int) else 1 for d in value.shape or ()] for value in model.graph.inputs]
    return [random.uniform(low, high, (batch * s[0], *s[1:])).astype(np.float32) for s in shapes]


def run_onnx(model: ir.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [np.asarray(y) for y in session.run(None, dict(zip(names, inputs, strict=True)))]


def run_torch(module: torch.nn.Module, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        results = module(*(torch.from_numpy(x) for x in inputs))
    return [y.numpy() for y in ([results] if isinstance(results, torch.Tensor) else results)]


def assert_agrees(model: ir.Model, tolerance: float = 2e-6, low: float = -3.0, high: float = 3.0) -> None:
    """Imported and original agree to `tolerance` of the output's range, for batch 1 and 3."""
    imported = to_torch(model)
    inputs = random_inputs(model, low, high)
    expected = run_onnx(model, inputs)
    check(run_torch(imported.module, inputs), expected, tolerance)
    if imported.batch_free:
        several = random_inputs(model, low, high, batch=3)
        singles = [run_onnx(model, [x[i : i + 1] for x in several]) for i in range(3)]
        expected = [np.concatenate([one[k] for one in singles]) for k in range(len(singles[0]))]
        check(run_torch(imported.module, several), expected, tolerance)


def check(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        scale = max(float(np.abs(theirs).max()), 1.0) if theirs.size else 1.0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)
