"""16-bit activations and narrow weights: the check and the forecast against what the converter said.

fixtures/widths.json holds the converter's figures; `python -m benchmarks.widths --record FILE` measures them.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from benchmarks.widths import NETWORKS, forecast, measured, reads
from compiler.converter import find_converter
from passes.errors import EnvironmentFault
from passes.graph import parse
from passes.imx500.layers import layers_of
from passes.imx500.schedule import Layout, bytes_of
from passes.imx500.stage import float_view
from passes.imx500.widths import wide_values

RECORDED = Path(__file__).parent / "fixtures" / "widths.json"
FIGURES: dict[str, list[int] | None] = json.loads(RECORDED.read_text())

RUNTIME_OFF = {
    "add constant": -64,
    "mul constant": -64,
    "weights 16 to 40, 3x3 stride 2, 4 bits": 3_072,
}
"""Forecast less measured: of a constant's own buffer, and of a split stride (docs/memory.md)."""


def test_every_network_was_measured() -> None:
    assert list(FIGURES) == list(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_verdict_and_bytes_are_the_converters(name: str) -> None:
    found, figures = forecast(name), FIGURES[name]
    if figures is None or found is None:
        assert found is figures
        return
    assert found == (figures[0], figures[1] + RUNTIME_OFF.get(name, 0))


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (Layout.CHANNELS, 96 * 20 * 30),
        (Layout.ROWS, 40 * 64 * 30),
        (Layout.COLUMNS, 40 * 20 * 64),
        (Layout.WIDE, 40 * 20 * 64),
        (Layout.PACKED, 40 * 20 * 30 * 2),
    ],
)
def test_bytes_are_rounded_up_to_32_not_numbers(layout: Layout, size: int) -> None:
    """40 channels of two bytes take 96 bytes a pixel (seen in add 16 16 to 8, 40 channels)."""
    assert bytes_of((40, 20, 30), layout, 2) == size


def wide_names(data: bytes) -> set[str]:
    view = float_view(parse(data))
    return {_operator(value) for value in wide_values(view)}


def _operator(value: ir.Value) -> str:
    producer = value.producer()
    return "input" if producer is None else producer.op_type


def test_what_moves_numbers_keeps_their_width() -> None:
    assert wide_names(NETWORKS["conv behind transpose"]()) == {"Conv", "Transpose"}
    assert wide_names(NETWORKS["sigmoid"]()) == {"Conv"}
    assert wide_names(NETWORKS["add 8 8 to 8"]()) == set()


def test_a_table_with_a_16_bit_result_widens_what_it_reads() -> None:
    assert wide_names(NETWORKS["sigmoid from 8 to 16"]()) == {"Conv", "Sigmoid"}
    swish = reads(lambda net, value: net.node("Mul", value, net.node("Sigmoid", value)), 8, 16)
    assert wide_names(swish) == {"Conv", "Mul"}


@pytest.mark.parametrize(
    ("name", "fused"),
    [("add 16 8 to 8", True), ("add 8 16 to 8", True), ("add 16 16 to 8", False), ("add 8 8 to 16", False)],
)
def test_a_stored_operand_or_a_sum_of_16_bits_is_not_fused(name: str, fused: bool) -> None:
    view = float_view(parse(NETWORKS[name]()))
    assert any(layer.adds for layer in layers_of(view.model.graph, wide_values(view))) is fused


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["add 16 16 to 8", "conv", "unsigned", "sigmoid from 8 to 16", "u, both operands"]
)
def test_the_converter_says_so_still(name: str) -> None:
    try:
        install = find_converter()
    except EnvironmentFault as fault:
        pytest.skip(str(fault))
    found = measured(name, install)
    assert (None if found is None else list(found)) == FIGURES[name]
