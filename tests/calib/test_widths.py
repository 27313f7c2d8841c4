"""Narrower weights: which layers, which thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calib.thresholds import WEIGHTS, representable, rounded, threshold_shape
from calib.widths import (
    BIASED,
    input_means,
    least_error,
    narrowable,
    stored_narrow,
    with_weight_bits,
    with_widths,
)
from passes.graph import const_array, to_bytes
from tests.calib.qat.small_graphs import fixture, pictures, without_quantizers


def test_least_error_is_no_worse_than_the_largest_weight():
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 3)).astype(np.float32)
    weight[2] = 0

    def error(thresholds: np.ndarray) -> np.ndarray:
        step = thresholds.reshape(-1, 1, 1, 1) / 8
        rounded = np.clip(np.round(weight / step), -8, 7) * step
        return np.square(rounded - weight).sum((1, 2, 3))

    chosen = least_error(weight, 4, (-1, 1, 1, 1))
    largest = np.abs(weight).max((1, 2, 3))
    largest[2] = 1
    assert (error(chosen) <= error(largest) + 1e-6).all()
    assert (error(chosen)[:2] < error(largest)[:2]).all()
    assert (chosen > 0).all()


def test_the_layer_that_reads_the_picture_keeps_its_bits():
    quantized = fixture("residual")
    narrow = with_weight_bits(quantized, 4)
    for node in narrow.graph:
        if node.op_type in WEIGHTS:
            reads_picture = const_array(node.inputs[0]).shape[1] == 3
            assert stored_narrow(node) != reads_picture
            assert node.attributes["num_bits"].as_int() == (8 if reads_picture else 4)


def test_only_the_named_layers_change():
    quantized = fixture("convolutions")
    names = narrowable(quantized)
    assert len(names) > 1
    narrow = with_widths(quantized, {names[0]: 2, names[1]: 8})
    bits = {
        node.name: node.attributes["num_bits"].as_int() for node in narrow.graph if node.op_type in WEIGHTS
    }
    assert bits == dict.fromkeys(bits, 8) | {names[0]: 2}
    before = {node.name: const_array(node.inputs[1]) for node in quantized.graph if node.op_type in WEIGHTS}
    for node in narrow.graph:
        if node.op_type in WEIGHTS and node.name != names[0]:
            np.testing.assert_array_equal(const_array(node.inputs[1]), before[node.name])


@pytest.mark.parametrize("bits", [4, 2])
def test_narrow_thresholds_are_representable_and_the_bytes_the_same_twice(bits):
    quantized = fixture("residual")
    narrow = with_weight_bits(quantized, bits)
    for node in narrow.graph:
        if node.op_type in WEIGHTS:
            thresholds = const_array(node.inputs[1])
            np.testing.assert_array_equal(representable(thresholds), thresholds)
    assert to_bytes(narrow) == to_bytes(with_weight_bits(quantized, bits))
    assert to_bytes(with_weight_bits(quantized, 8)) == to_bytes(quantized)


@pytest.mark.parametrize("name", ["convolutions", "transposed"])
def test_the_corrected_bias_takes_the_mean_error_out_of_each_layer(name):
    """Of layers whose input has the given mean everywhere, the output's mean is that of the wider weights."""
    quantized = fixture(name)
    real = without_quantizers(quantized)
    means = input_means(real, [pictures(8)])
    widths = dict.fromkeys(narrowable(quantized), 4)
    plain, corrected = (with_widths(quantized, widths, given) for given in (None, means))
    nodes = {node.name: node for node in quantized.graph}
    changed = 0
    for before, after in zip(plain.graph, corrected.graph, strict=True):
        if before.op_type not in BIASED or before.name not in means:
            continue
        narrow = after.inputs[1].producer()
        if narrow.op_type not in WEIGHTS:
            continue
        wide = nodes[narrow.name]
        weights = [
            rounded(
                const_array(one.inputs[0]),
                const_array(one.inputs[1]).reshape(threshold_shape(one, 4)),
                one.attributes["num_bits"].as_int(),
            )
            for one in (narrow, wide)
        ]
        shift = const_array(after.inputs[2]) - const_array(before.inputs[2])
        group = after.attributes.get_int("group", 1)
        x = np.broadcast_to(means[after.name][None, :, None, None], (1, len(means[after.name]), 16, 16))
        inner = [interior(after, weight, x, group) for weight in weights]
        np.testing.assert_allclose(inner[0] + shift, inner[1], atol=1e-4 * np.abs(inner[1]).max() + 1e-6)
        changed += bool(np.abs(shift).max() > 0)
    assert changed


def interior(node, weight: np.ndarray, x: np.ndarray, group: int) -> np.ndarray:
    """Mean of each output channel over the period of the strides, away from the borders."""
    data, kernel = torch.tensor(x, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
    stride = node.attributes.get_ints("strides", [1, 1])
    dilation = node.attributes.get_ints("dilations", [1, 1])
    if node.op_type == "ConvTranspose":
        found = torch.nn.functional.conv_transpose2d(data, kernel, stride=stride, groups=group)
        rows, columns = (4 * side for side in stride)
        found = found[:, :, rows : rows + 2 * stride[0], columns : columns + 2 * stride[1]]
    else:
        found = torch.nn.functional.conv2d(data, kernel, stride=stride, dilation=dilation, groups=group)
    return found.mean((0, 2, 3)).numpy()
