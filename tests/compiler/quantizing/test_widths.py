"""Which layers get fewer bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.widths import narrowable, with_widths
from compiler.quantizing.widths import Option, least_loss, mixed, uniform
from compiler.quantizing.yardstick import Yardstick
from passes.errors import TargetViolation
from passes.imx500.memory import forecast_memory
from tests.calib.qat.small_graphs import everywhere, fixture, without_quantizers
from tests.compiler.quantizing.small import crops, silent

LOSSES = st.integers(0, 50).map(lambda loss: loss / 50)
LAYER = st.tuples(st.integers(1, 20), LOSSES, st.integers(1, 20), LOSSES)


@settings(max_examples=60, deadline=None)
@given(st.lists(LAYER, min_size=1, max_size=4), st.floats(0, 1))
def test_no_other_choice_saves_enough_and_loses_less(layers, share):
    options = []
    for number, (four, loss, more, worse) in enumerate(layers):
        options += [
            Option(str(number), 4, loss, 32 * four),
            Option(str(number), 2, worse, 32 * (four + more)),
        ]
    needed = int(share * sum(32 * (four + more) for four, _, more, _ in layers))
    chosen = least_loss(options, needed)
    assert len({one.layer for one in chosen}) == len(chosen)
    assert sum(one.saved for one in chosen) >= needed
    rows = [[None, *(one for one in options if one.layer == str(number))] for number in range(len(layers))]
    least = min(
        sum(one.loss for one in row if one)
        for row in itertools.product(*rows)
        if sum(one.saved for one in row if one) >= needed
    )
    assert sum(one.loss for one in chosen) <= least + 1e-4


def small() -> tuple:
    quantized = fixture("convolutions")
    yardstick = Yardstick(without_quantizers(quantized), [crops(4).pictures.astype(np.float32)])
    return quantized, yardstick, forecast_memory(quantized).total_bytes


def test_what_fits_stays_at_8_bits():
    quantized, yardstick, total = small()
    widths = mixed(quantized, yardstick, None, total, True, silent)
    assert widths.narrow == {}
    assert widths.uniform == 8


def test_the_target_is_met_by_the_forecast_of_the_narrow_graph():
    quantized, yardstick, total = small()
    least = forecast_memory(with_widths(quantized, dict.fromkeys(narrowable(quantized), 2))).total_bytes
    assert least < total
    for target in (total - 1, (total + least) // 2, least):
        widths = mixed(quantized, yardstick, None, target, True, silent)
        assert widths.narrow
        assert forecast_memory(with_widths(quantized, widths.bits)).total_bytes <= target
        assert {one.layer for one in widths.options} <= set(narrowable(quantized))
        assert all(one.saved > 0 for one in widths.options)
        assert widths.uniform is None
    assert {widths.bits[one.layer] for one in widths.options} == {2}


def test_a_target_that_cannot_be_met_says_what_could():
    quantized, yardstick, _ = small()
    least = forecast_memory(with_widths(quantized, dict.fromkeys(narrowable(quantized), 2))).total_bytes
    with pytest.raises(TargetViolation, match=rf"at least {least} bytes"):
        mixed(quantized, yardstick, None, least - 1, True, silent)


def test_one_width_for_all():
    quantized = fixture("convolutions")
    widths = uniform(quantized, 4, silent)
    assert set(widths.bits) == set(narrowable(quantized))
    assert set(widths.bits.values()) <= {8, 4}
    total = forecast_memory(quantized).total_bytes
    for layer, bits in widths.bits.items():
        saved = total - forecast_memory(with_widths(quantized, {layer: 4})).total_bytes
        assert bits == (4 if saved > 0 else 8)


@pytest.mark.parametrize("name", ["convolutions", "transposed"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_forecast_of_the_float_graph_knows_the_width(name, bits):
    quantized = fixture(name)
    real = without_quantizers(quantized)
    asked = forecast_memory(real, weight_bits=bits)
    narrow = everywhere(quantized, bits)
    assert asked.model_bytes == forecast_memory(narrow).model_bytes
