"""GELU written as several nodes is found in every order of its factors, and nothing else is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir
import pytest

from passes.gelu import gelu_around
from tests.graphs import model, node

SHAPE = [1, 3, 4]


def written(
    half: str = "product",
    scale: tuple[str, float] = ("Div", math.sqrt(2.0)),
    swapped: bool = False,
    one: float = 1.0,
    factor: float = 0.5,
    halving: str = "Mul",
) -> ir.Model:
    """0.5 * x * (1 + erf(x / sqrt 2)), the factor `half` on x, on the gate or on the product."""

    def product(a: str, b: str, result: str) -> object:
        return node("Mul", [b, a] if swapped else [a, b], [result])

    nodes = [
        node(scale[0], ["x", "scale"], ["s"]),
        node("Erf", ["s"], ["e"]),
        node("Add", ["one", "e"] if swapped else ["e", "one"], ["a"]),
    ]
    x, gate, result = "x", "a", "y"
    if half == "x":
        nodes.append(node(halving, ["x", "half"], ["h"]))
        x = "h"
    if half == "gate":
        nodes.append(node(halving, ["a", "half"], ["h"]))
        gate = "h"
    if half == "product":
        result = "p"
    nodes.append(product(x, gate, result))
    if half == "product":
        nodes.append(node(halving, ["p", "half"], ["y"]))
    numbers = {"scale": scale[1], "one": one, "half": factor}
    return model(nodes, {"x": SHAPE}, ["y"], {name: np.float32(number) for name, number in numbers.items()})


def erf_of(built: ir.Model) -> ir.Node:
    return next(node for node in built.graph if node.op_type == "Erf")


@pytest.mark.parametrize(
    ("half", "swapped", "scale"),
    itertools.product(
        ("x", "gate", "product"), (False, True), (("Div", math.sqrt(2.0)), ("Mul", math.sqrt(0.5)))
    ),
)
def test_every_order_is_found(half: str, swapped: bool, scale: tuple[str, float]) -> None:
    built = written(half, scale, swapped)
    found = gelu_around(erf_of(built))
    assert found is not None
    assert found.x.name == "x"
    assert set(found.nodes) == set(built.graph)


def test_halving_by_a_division_is_found() -> None:
    assert gelu_around(erf_of(written(factor=2.0, halving="Div"))) is not None


def test_what_follows_is_not_part_of_it() -> None:
    built = written()
    last = list(built.graph)[-1]
    tail = ir.Node("", "Mul", [last.outputs[0], built.graph.initializers["half"]], name="tail")
    tail.outputs[0].name = "z"
    built.graph.append(tail)
    built.graph.outputs[0] = tail.outputs[0]
    found = gelu_around(erf_of(built))
    assert found is not None
    assert tail not in found.nodes


@pytest.mark.parametrize(
    "built",
    [
        written(scale=("Div", 1.0)),
        written(one=2.0),
        written(factor=0.25),
        written(half="none"),
        written(factor=0.0, halving="Div"),
    ],
)
def test_other_formulas_are_not_found(built: ir.Model) -> None:
    assert gelu_around(erf_of(built)) is None


@pytest.mark.parametrize("inner", ["s", "e", "a", "p"])
def test_a_value_inside_that_others_read_is_no_gelu(inner: str) -> None:
    built = written()
    value = next(value for node in built.graph for value in node.outputs if value.name == inner)
    built.graph.outputs.append(value)
    assert gelu_around(erf_of(built)) is None
