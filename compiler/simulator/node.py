"""One ONNX node with the values of its inputs, as the operators see it, and the table of operators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import Value
from compiler.simulator.fixedpoint import FixedPoint, IntArray
from passes.errors import InputError
from passes.graph import QUANTIZER_DOMAIN, STANDARD_DOMAINS, module_of


@dataclass(frozen=True, eq=False)
class ScaledWeights:
    """Weights kept as integers and one exact scale per index of one axis: integers[.., c, ..] * scale[c]."""

    integers: IntArray
    scale: FixedPoint
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.integers.shape

    def scale_along(self, axis: int, rank: int) -> FixedPoint:
        """The scale shaped to broadcast along `axis` of a tensor of `rank` dimensions."""
        shape = [1] * rank
        shape[axis] = -1
        return fp.move(self.scale, lambda m: m.reshape(shape))

    def to_fixed_point(self) -> FixedPoint:
        scale = self.scale_along(self.axis, self.integers.ndim)
        return fp.multiply(FixedPoint(self.integers), scale)


AnyValue = Value | ScaledWeights | NDArray[Any]
"""What flows along an edge: real numbers, quantized weights, or integers that describe shapes (ndarray)."""


def refusal(node: ir.Node, found: str, limit: str, fix: str) -> InputError:
    """The error for a node the simulator does not execute."""
    name = node.name or next((out.name for out in node.outputs if out.name), None) or "without a name"
    module = module_of(node)
    return InputError(
        f"node {name} ({node.op_type}{', module ' + module if module else ''})", found, limit, fix
    )


@dataclass(frozen=True, eq=False)
class Call:
    """One node about to be executed.

    Attributes:
        inputs: as the node lists them; None for an input left out.
        precision: working precision of enclosures, in bits after the binary point.
    """

    node: ir.Node
    inputs: Sequence[AnyValue | None]
    precision: int

    def refuse(self, found: str, limit: str, fix: str) -> InputError:
        return refusal(self.node, found, limit, fix)

    # Inputs

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def are_integers(self) -> bool:
        """Every input that is there describes shapes."""
        return all(isinstance(value, np.ndarray) for value in self.inputs if value is not None)

    def value(self, index: int) -> Value:
        """An input of real numbers."""
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, ScaledWeights):
            return value.to_fixed_point()
        if value is None or isinstance(value, np.ndarray):
            raise self.refuse(
                f"input {index} holds {'nothing' if value is None else 'integers'}",
                "the operator computes with real numbers",
                "quantize the tensor that feeds it",
            )
        return value

    def exact(self, index: int) -> FixedPoint:
        """An input of real numbers that are known exactly, as every quantized tensor is."""
        value = self.value(index)
        if not isinstance(value, FixedPoint):
            raise self.refuse(
                f"input {index} comes from a function without a quantizer in between",
                "the operator takes quantized or exactly known inputs",
                "quantize the tensor that feeds it",
            )
        return value

    def weights(self, index: int, axis: int) -> ScaledWeights:
        """Weights as integers with one scale per index of `axis`.

        One scale for the whole tensor serves any axis. Float weights without a quantizer (MCT writes them
        for a module that is called twice) are the dyadic rationals they are: integers times one power of two.
        """
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, ScaledWeights):
            if value.axis == axis:
                return value
            if (value.scale.mantissa == value.scale.mantissa[0]).all():
                shared = fp.move(value.scale, lambda m: np.broadcast_to(m[0], (value.shape[axis],)))
                return ScaledWeights(value.integers, shared, axis)
            raise self.refuse(
                f"weights scaled along axis {value.axis}",
                f"one scale per output channel, axis {axis}",
                f"quantize the weights with channel_axis = {axis}",
            )
        real = self.exact(index)
        ones = FixedPoint(np.ones(real.shape[axis], dtype=np.int64), real.exponent, real.denominator)
        return ScaledWeights(real.mantissa, ones, axis)

    def integers(self, index: int) -> NDArray[Any]:
        """An input of integers that describes shapes, axes or indices."""
        value = self.inputs[index] if self.has(index) else None
        if not isinstance(value, np.ndarray):
            raise self.refuse(
                f"input {index} is {'missing' if value is None else 'computed from activations'}",
                "integers known before the picture is",
                "make it a constant",
            )
        return value

    # Attributes

    def integer(self, name: str, default: int) -> int:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else int(attribute.as_int())

    def integer_list(self, name: str, default: Iterable[int] | None = None) -> tuple[int, ...]:
        attribute = self.node.attributes.get(name)
        if attribute is not None:
            return tuple(int(i) for i in attribute.as_ints())
        if default is None:
            raise self.refuse(f"no attribute {name}", "the attribute is needed", "export the model again")
        return tuple(default)

    def number(self, name: str, default: Fraction) -> Fraction:
        """A float attribute as the dyadic rational it is."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else Fraction(attribute.as_float())

    def string(self, name: str, default: str) -> str:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def only(self, name: str, found: object, accepted: object) -> None:
        """Refuse any value of an attribute but one."""
        if found != accepted:
            raise self.refuse(f"{name} = {found}", f"{name} = {accepted}", f"set {name} to {accepted}")

    def axes(self, index: int, rank: int) -> tuple[int, ...]:
        """Axes as an input (newer opsets) or an attribute (older ones); all axes where neither is given."""
        if self.has(index):
            given = tuple(int(axis) for axis in self.integers(index).reshape(-1))
        else:
            given = self.integer_list("axes", range(rank))
        return tuple(sorted(axis % rank for axis in given))


Operator = Callable[[Call], Sequence[AnyValue]]


@dataclass(frozen=True)
class Entry:
    """An operator and the attributes it understands; a node with any other attribute is refused."""

    run: Operator
    attributes: frozenset[str]


OPERATORS: dict[tuple[str, str], Entry] = {}
"""(domain, operator type) -> how to execute it."""


def operator(
    op_type: str, *attributes: str, domain: str = ""
) -> Callable[[Callable[[Call], AnyValue]], Operator]:
    """Register an operator with one output."""

    def register(function: Callable[[Call], AnyValue]) -> Operator:
        return _register(op_type, attributes, domain, lambda call: (function(call),))

    return register


def operator_with_many_outputs(op_type: str, *attributes: str) -> Callable[[Operator], Operator]:
    """Register an operator that returns a sequence of outputs."""

    def register(function: Operator) -> Operator:
        return _register(op_type, attributes, "", function)

    return register


def _register(op_type: str, attributes: Collection[str], domain: str, run: Operator) -> Operator:
    OPERATORS[domain, op_type] = Entry(run, frozenset(attributes))
    return run


def known(node: ir.Node) -> Entry:
    """How the node is executed. Raises InputError, naming it, for what the simulator does not execute."""
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    entry = OPERATORS.get((domain, node.op_type))
    if entry is None:
        kind = "quantizer" if domain == QUANTIZER_DOMAIN else "operator"
        raise refusal(
            node,
            f"{kind} {domain + '::' if domain else ''}{node.op_type}",
            "the simulator executes exactly the operators listed in docs/numerics.md",
            "replace the operator",
        )
    unknown = sorted(set(node.attributes) - entry.attributes)
    if unknown:
        raise refusal(
            node,
            f"attribute {unknown[0]}",
            f"the simulator knows {', '.join(sorted(entry.attributes)) or 'no attribute'} here",
            "remove the attribute",
        )
    return entry


def execute(call: Call) -> Sequence[AnyValue]:
    """Run one node.

    Raises InputError, naming the node, for an operator or attribute that is not simulated and for inputs
    that do not fit together; UnsettledError where the working precision does not suffice.
    """
    node = call.node
    entry = known(node)
    try:
        outputs = entry.run(call)
    except (ValueError, IndexError) as error:  # NumPy's complaints about shapes and indices
        raise call.refuse(
            f"{error}", "inputs whose shapes fit the operator", "export the model again"
        ) from error
    except ZeroDivisionError as error:
        raise call.refuse(
            "division by zero", "divisors that are not zero", "keep the divisor away from 0"
        ) from error
    if len(outputs) < len(node.outputs):
        raise call.refuse(
            f"{len(node.outputs)} outputs",
            f"{len(outputs)} here",
            "drop the optional outputs of the operator",
        )
    return outputs
