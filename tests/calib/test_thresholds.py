"""Weight thresholds with 8-bit mantissas, and that the chip then computes what the dialect says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calib.qat.quantizers import RepresentableScaling, WeightQuantizer
from calib.thresholds import WEIGHTS, representable, threshold_shape, with_representable_thresholds
from compiler.chip import chip_layer_constants
from passes.graph import const_array, set_constant
from tests.calib.qat.small_graphs import fixture

POSITIVE = st.floats(2.0**-40, 2.0**40, width=32)


@given(POSITIVE)
def test_the_nearest_number_with_a_mantissa_of_8_bits(threshold):
    found = float(representable(np.array([threshold], np.float32))[0])
    mantissa = found
    while mantissa >= 256:
        mantissa /= 2
    while mantissa < 128:
        mantissa *= 2
    assert mantissa == int(mantissa)
    step = found / mantissa
    assert abs(found - threshold) <= step / 2
    assert representable(np.array([found], np.float32))[0] == np.float32(found)


@given(st.lists(POSITIVE, min_size=1, max_size=8))
def test_training_uses_the_same_rounding(thresholds):
    array = np.array(thresholds, np.float32)
    quantizer = WeightQuantizer(torch.from_numpy(array), 8)
    np.testing.assert_array_equal(quantizer.thresholds().detach().numpy(), representable(array))


def test_the_gradient_passes_the_rounding():
    scaling = RepresentableScaling(torch.tensor([0.7, 0.9]))
    (scaling(torch.ones(1)) * torch.tensor([1.0, 2.0])).sum().backward()
    assert scaling.value.grad.tolist() == [1.0, 2.0]


def test_threshold_shapes():
    node = next(node for node in fixture("transposed").graph if node.op_type in WEIGHTS)
    axis = node.attributes.get_int("channel_axis", 0)
    assert threshold_shape(node, 4) == tuple(-1 if i == axis else 1 for i in range(4))


def gains(model) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each decoded layer the chip's gain of each channel and the dialect's, float64 (exact)."""
    nodes = {node.name: node for node in model.graph}
    found = []
    for name, layer in chip_layer_constants(model).layers.items():
        quantizer = nodes[name].inputs[1].producer()
        step = const_array(quantizer.inputs[1]).astype(np.float64).ravel() / 128
        chip = layer.multiplier * 2.0 ** -layer.right_shift.astype(np.float64)
        exact = step * float(layer.input_grid.step) / float(layer.output_grid.step)
        found.append((chip, np.broadcast_to(exact, chip.shape)))
    return found


@pytest.mark.parametrize("name", ["convolutions", "residual"])
def test_the_chips_gain_is_the_threshold(name):
    model = fixture(name)
    assert gains(model)
    for chip, exact in gains(model):
        np.testing.assert_array_equal(chip, exact)


def test_other_thresholds_lose_up_to_a_255th():
    model = fixture("convolutions")
    for node in model.graph:
        if node.op_type in WEIGHTS:
            array = const_array(node.inputs[1]) * np.float32(1.003)
            set_constant(model.graph, node, 1, f"{node.name}/other", array)
    errors = np.concatenate([np.abs(chip / exact - 1) for chip, exact in gains(model)])
    assert 0.0005 < errors.max() <= 1 / 255
    for chip, exact in gains(with_representable_thresholds(model)):
        np.testing.assert_array_equal(chip, exact)
