"""What an operator's importer works with: the fx graph under construction and the values it has so far.

Every fx node that is created is run at once on an example input of batch 1. That gives each importer the
shapes it needs as plain numbers, whether or not the ONNX file has them, and finds a wrong call where it is
made.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from calib.importer.registry import UnknownForm
from passes.graph import const_array

RESERVED = (
    frozenset(dir(fx.GraphModule))
    | frozenset(dir(torch.Tensor))
    | frozenset(vars(nn.Module()))
    | {"graph", "node_sort", "wrapper", "append2output", "return_float_outputs", "reuse_groups"}
)
"""Names no submodule may have: attributes of nn.Module, of MCT's rebuilt model, and tensor methods.

MCT's reader looks a node's target up among the submodule names before it looks at the node's kind, so a
submodule called like a called tensor method would be taken for it.
"""


class Context:
    """The module under construction.

    Attributes:
        graph, root: the fx graph and the module that owns its submodules and constants.
        opset: version of the ONNX standard operator set the graph is written in.
        origin: fx node -> the ONNX node it stands for.
    """

    def __init__(self, opset: int) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.opset = opset
        self.origin: dict[fx.Node, ir.Node] = {}
        self._values: dict[ir.Value, fx.Node] = {}
        self._examples: dict[fx.Node, Any] = {}
        self._names: set[str] = set()
        self._current: ir.Node | None = None

    # Values

    def define(self, value: ir.Value, node: fx.Node) -> None:
        self._values[value] = node

    def knows(self, value: ir.Value) -> bool:
        return value in self._values

    def lookup(self, value: ir.Value) -> fx.Node:
        return self._values[value]

    def enter(self, node: ir.Node) -> None:
        """The fx nodes made from now on stand for `node`."""
        self._current = node

    def add_input(self, value: ir.Value, example: Tensor) -> None:
        placeholder = self.graph.placeholder(self._identifier(value.name or "input"))
        self._examples[placeholder] = example
        self.define(value, placeholder)

    # Reading a node

    def activation(self, node: ir.Node, index: int = 0) -> fx.Node:
        """The input as an fx node; raises UnknownForm where it is absent or constant."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value not in self._values:
            raise UnknownForm(
                f"input {index} is constant or absent",
                "an input computed from the network's inputs",
                "let onnxsim fold the constant part of the graph",
            )
        return self._values[value]

    def constant(self, node: ir.Node, index: int) -> np.ndarray | None:
        """The constant at an input, None where it is absent; raises UnknownForm where it is computed."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        array = const_array(value)
        if array is None:
            raise UnknownForm(
                f"input {index} ({value.name}) is computed",
                "a constant (initializer)",
                "export with fixed sizes, so that onnxsim folds it",
            )
        return array

    def required(self, node: ir.Node, index: int) -> np.ndarray:
        """As `constant`, but the input has to be there."""
        array = self.constant(node, index)
        if array is None:
            raise UnknownForm(f"input {index} is absent", "the operator's required inputs", "export it again")
        return array

    def either(self, node: ir.Node, index: int, attribute: str) -> list[int] | None:
        """Integers that newer operator sets pass as an input and older ones as an attribute."""
        array = self.constant(node, index)
        if array is not None:
            return [int(number) for number in array.reshape(-1)]
        if attribute in node.attributes:
            return [int(number) for number in node.attributes[attribute].as_ints()]
        return None

    def example(self, node: fx.Node) -> Tensor:
        """Value of the fx node for the example input."""
        value = self._examples[node]
        if not isinstance(value, Tensor):
            raise TypeError(f"{node} has several outputs")
        return value

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the fx node's value at batch 1."""
        return tuple(self.example(node).shape)

    def rank(self, node: fx.Node) -> int:
        return self.example(node).ndim

    def axis(self, node: fx.Node, axis: int) -> int:
        """A possibly negative axis as a number from 0."""
        rank = self.rank(node)
        if not -rank <= axis < rank:
            raise UnknownForm(f"axis = {axis}", f"an axis of a rank-{rank} tensor", "correct the axis")
        return axis % rank

    # Making fx nodes

    def module(self, module: nn.Module, *arguments: fx.Node, suffix: str = "") -> fx.Node:
        """Add a submodule, named after the ONNX node, and call it."""
        assert self._current is not None
        name = self._identifier((self._current.name or self._current.op_type) + suffix)
        self.root.add_module(name, module.eval())
        node = self.graph.call_module(name, arguments)
        return self._run(node, module, arguments, {})

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> fx.Node:
        """Call a torch function; fx nodes may stand anywhere in the arguments."""
        node = self.graph.call_function(function, arguments, keywords)
        return self._run(node, function, arguments, keywords)

    def method(self, name: str, *arguments: Any) -> fx.Node:
        """Call a tensor method."""
        node = self.graph.call_method(name, arguments)
        return self._run(node, getattr(Tensor, name), arguments, {})

    def buffer(self, array: np.ndarray) -> fx.Node:
        """A constant tensor; floats become float32, integers int64."""
        assert self._current is not None
        name = self._identifier(f"{self._current.name or self._current.op_type}_constant")
        tensor = to_tensor(array)
        self.root.register_buffer(name, tensor)
        node = self.graph.get_attr(name)
        self._examples[node] = tensor
        return node

    def stand_in(self, value: ir.Value, shape: Sequence[int]) -> None:
        """Take `value` for a tensor of zeros, so that the nodes behind an unknown one are examined too."""
        node = self.graph.placeholder(self._identifier(value.name or "value"))
        self._examples[node] = torch.zeros(tuple(shape))
        self.define(value, node)

    def _run(
        self,
        node: fx.Node,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        keywords: dict[str, Any],
    ) -> fx.Node:
        assert self._current is not None
        self.origin[node] = self._current
        positional: Any = fx.node.map_arg(tuple(arguments), self._examples.__getitem__)
        named: Any = fx.node.map_arg(keywords, self._examples.__getitem__)
        with torch.no_grad():
            self._examples[node] = function(*positional, **named)
        return node

    def _identifier(self, name: str) -> str:
        """A Python identifier for the name, unlike all earlier ones and unlike what MCT reserves."""
        base = re.sub(r"\W+", "_", name).strip("_") or "node"
        if base[0].isdigit() or keyword.iskeyword(base) or base in RESERVED:
            base = f"node_{base}"
        candidate, count = base, 0
        while candidate in self._names:
            count += 1
            candidate = f"{base}_{count}"
        self._names.add(candidate)
        return candidate


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of its own memory: float32 for floats, int64 for integers."""
    kind = np.float32 if array.dtype.kind not in "iub" else np.int64
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))


def ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """An attribute that is a list of integers."""
    return [int(i) for i in node.attributes[name].as_ints()] if name in node.attributes else list(default)


def integer(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def real(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes[name].as_float()) if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    return str(node.attributes[name].as_string()) if name in node.attributes else default
