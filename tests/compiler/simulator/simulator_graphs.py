"""Small vendor-dialect graphs built by hand, for the simulator's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.simulator.reference import IntegerTensor, run_reference

QUANTIZERS = "mct_quantizers"


class Dialect:
    """A graph under construction; every method returns the name of the value it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def input(self, shape: Sequence[int | str], name: str = "input") -> str:
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def constant(self, array: Any) -> str:
        """Python floats become float32, integers int64."""
        data = np.asarray(array)
        data = data.astype(np.int64 if np.issubdtype(data.dtype, np.integer) else np.float32)
        name = f"constant{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(data, name))
        return name

    def nodes(
        self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        number = len(self._nodes)
        names = [f"{op_type}{number}.{i}" for i in range(outputs)]
        self._nodes.append(
            helper.make_node(op_type, list(inputs), names, f"node{number}", domain=domain, **attributes)
        )
        return names

    def node(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.nodes(op_type, *inputs, domain=domain, **attributes)[0]

    def quantize(self, value: str, threshold: float, *, signed: bool = True, bits: int = 8) -> str:
        return self.node(
            "ActivationPOTQuantizer",
            value,
            domain=QUANTIZERS,
            threshold=float(threshold),
            signed=int(signed),
            num_bits=bits,
        )

    def weights(self, integers: Any, scale: Any = 1.0, *, axis: int = 0, bits: int = 8) -> str:
        """Weights a WeightsSymmetricQuantizer turns into `integers` times `scale` (one, or per channel)."""
        scale = np.asarray(scale, dtype=np.float32)
        integers = np.asarray(integers)
        shape = [1] * integers.ndim
        shape[axis] = -1
        floats = integers * scale.reshape(shape if scale.ndim else ())
        return self.quantized_weights(floats, 2 ** (bits - 1) * scale, axis=axis, bits=bits)

    def quantized_weights(self, floats: Any, thresholds: Any, *, axis: int = 0, bits: int = 8) -> str:
        thresholds = np.asarray(thresholds, dtype=np.float32)
        return self.node(
            "WeightsSymmetricQuantizer",
            self.constant(np.asarray(floats, dtype=np.float32)),
            self.constant(np.atleast_1d(thresholds)),
            domain=QUANTIZERS,
            num_bits=bits,
            per_channel=int(thresholds.ndim > 0),
            channel_axis=axis,
            signed=1,
        )

    def proto(self, *outputs: str, opset: int = 20) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "dialect", self._inputs, infos, self._initializers)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(QUANTIZERS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def model(self, *outputs: str, opset: int = 20) -> ir.Model:
        return ir.serde.deserialize_model(self.proto(*outputs, opset=opset))


def run(model: ir.Model, **inputs: Any) -> list[IntegerTensor]:
    """The outputs in the graph's order, for integer inputs."""
    results = run_reference(model, {name: np.asarray(value) for name, value in inputs.items()})
    return [results[value.name or ""] for value in model.graph.outputs]


def apply(
    build: Callable[..., str],
    *inputs: Any,
    threshold: float = 128.0,
    signed: bool = True,
    in_threshold: float = 128.0,
) -> NDArray[Any]:
    """The integers of quantize(build(graph, x, ...)) for inputs given as integers of a signed 8-bit grid.

    With the default thresholds of 128 both steps are 1: the result is the operator's exact real result
    rounded half to even and saturated to -128..127.
    """
    graph = Dialect()
    names = []
    feeds = {}
    for number, integers in enumerate(inputs):
        data = np.asarray(integers)
        name = graph.input(data.shape, f"x{number}")
        feeds[name] = data * (in_threshold / 128.0)
        names.append(graph.quantize(name, in_threshold))
    (result,) = run(graph.model(graph.quantize(build(graph, *names), threshold, signed=signed)), **feeds)
    return result.values.astype(np.int64)
