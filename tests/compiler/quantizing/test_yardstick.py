"""How far a graph is from the float network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.quantizing.yardstick import Yardstick
from compiler.simulator.engine import compile_program
from student.crops import mask_iou
from tests.calib.qat.small_graphs import everywhere, fixture, without_quantizers
from tests.compiler.quantizing.small import crops


@pytest.mark.parametrize("name", ["residual", "linear"])
def test_fewer_bits_are_farther_away(name):
    quantized = fixture(name)
    yardstick = Yardstick(without_quantizers(quantized), [crops(8).pictures.astype(np.float32)])
    assert len(yardstick) == 8
    distances = [yardstick.distance(everywhere(quantized, bits)) for bits in (8, 4, 2)]
    assert 0 <= distances[0] < distances[1] < distances[2]
    agreements = [
        yardstick.agreement(yardstick.quantized(everywhere(quantized, bits)))[0].mean() for bits in (8, 2)
    ]
    assert 1 >= agreements[0] > agreements[1]


def test_a_network_agrees_with_itself():
    quantized = fixture("residual")
    yardstick = Yardstick(without_quantizers(quantized), [crops(4).pictures.astype(np.float32)])
    program = compile_program(quantized)
    own = program.run({program.inputs[0]: yardstick.pictures[0]})
    yardstick.real = {name: own[name].real().astype(np.float32) for name in yardstick.real}
    assert yardstick.distance(quantized) < 1e-7
    agreement, bounds = yardstick.agreement(yardstick.quantized(quantized))
    assert (agreement == 1).all()
    assert bounds


masks = st.lists(st.booleans(), min_size=6, max_size=6).map(np.array)


@given(masks, masks, masks)
def test_agreement_bounds_the_change_of_iou_against_any_truth(real, quantized, truth):
    change = abs(mask_iou(real, truth) - mask_iou(quantized, truth))
    assert change <= 1 - mask_iou(real, quantized) + 1e-12
