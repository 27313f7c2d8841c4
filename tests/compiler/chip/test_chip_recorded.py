"""The numbers predicted from an ONNX file against what the real converter wrote for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.chip import (
    ROUNDINGS,
    ChipLayer,
    activation_table,
    average_pool_record,
    chip_layer_constants,
    fused_convolution,
    read_compiled,
    requantize,
    static_data,
)
from compiler.chip.tables import FUNCTIONS
from compiler.dialect import quantized_weight
from compiler.simulator.reference import run_reference
from compiler.simulator.requantization import Rounding
from passes.errors import InputError
from passes.imx500.geometry import window
from tests.compiler.chip import recorded

FIELDS = ("weights", "multiplier", "shift", "bias")
REST = {
    "addition": [(512, True)],
    "average 3x3": [(1024, False)],
    "sigmoid 16": [(512, False)],
    "first 3x3 stride 2": [(96, True)],
    "depthwise 3x3, 4 bits": [(256, True)],
    "depthwise 3x3, 2 bits": [(256, True)],
    "depthwise 3x3 stride 2, 4 bits": [(256, True)],
}
"""What is in the file beside the convolutions: length in bytes, and whether it is all zero."""

OUTPUT_REORDERING = (32, True)
"""32 zero bytes where an output has fewer than 32 channels."""


@pytest.mark.parametrize("name", recorded.names())
def test_every_integer_is_predicted(name: str) -> None:
    model, static = recorded.model(name), recorded.static(name)
    predicted = chip_layer_constants(model)
    read = read_compiled(static, model)
    assert predicted.undecoded == ()
    assert read.missing == ()
    assert list(read.layers) == list(predicted.layers) != []
    for layer, expected in predicted.layers.items():
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(read.layers[layer], field), getattr(expected, field))
        assert read.layers[layer].padding_as_expected


@pytest.mark.parametrize("name", recorded.names())
def test_the_file_holds_nothing_else(name: str) -> None:
    read = read_compiled(recorded.static(name), recorded.model(name))
    rest = [(length, zero) for _, length, zero in read.remainder if (length, zero) != OUTPUT_REORDERING]
    assert rest == REST.get(name, [])
    assert read.size == len(recorded.static(name))


@pytest.mark.parametrize("field", ["weights", "multiplier", "shift", "bias"])
def test_the_reader_reports_the_file_not_the_prediction(field: str) -> None:
    """A byte changed in the file is read as it stands there."""
    model = recorded.model("depthwise 5x5")
    data = bytearray(recorded.static("depthwise 5x5"))
    (before,) = read_compiled(bytes(data), model).layers.values()
    kernel, scales, biases = before.offsets
    # A channel's first byte in each record; channels of a depthwise kernel stand side by side.
    data[{"weights": kernel, "multiplier": scales, "shift": scales + 32, "bias": biases}[field] + 5] ^= 1
    (after,) = read_compiled(bytes(data), model).layers.values()
    differing = {name for name in FIELDS if (getattr(before, name) != getattr(after, name)).any()}
    assert differing == {field}
    assert (getattr(before, field) != getattr(after, field)).sum() == 1


def test_a_changed_padding_is_noticed() -> None:
    model, data = recorded.model("pointwise"), bytearray(recorded.static("pointwise"))
    (layer,) = read_compiled(bytes(data), model).layers.values()
    data[layer.offsets[0] + 31] = 1  # input channel 31 of 8
    (layer,) = read_compiled(bytes(data), model).layers.values()
    assert not layer.padding_as_expected


def test_the_file_of_another_network_is_not_taken_for_this_one() -> None:
    read = read_compiled(recorded.static("depthwise 5x5"), recorded.model("multiplier ties"))
    assert read.layers == {}
    assert {record for _, record in read.missing} >= {"kernel", "multipliers and shifts"}


def test_the_signed_and_the_unsigned_network_differ_in_the_biases_alone() -> None:
    signed, unsigned = (
        next(iter(chip_layer_constants(recorded.model(name)).layers.values()))
        for name in ("pointwise", "pointwise unsigned")
    )
    np.testing.assert_array_equal(signed.weights, unsigned.weights)
    np.testing.assert_array_equal(signed.multiplier, unsigned.multiplier)
    np.testing.assert_array_equal(signed.shift, unsigned.shift)
    # Less 128 sum(w) it is the signed bias again, but for the 0 or 1 that the correction falls short.
    short = unsigned.accumulator_bias - signed.accumulator_bias
    assert set(np.abs(short)) <= {0, 1}
    sums = signed.weights.astype(np.int64).sum(axis=(1, 2, 3))
    assert (short * np.sign(sums) <= 0).all()


def test_ties_of_multipliers_go_up_and_stop_at_255() -> None:
    (layer,) = chip_layer_constants(recorded.model("multiplier ties")).layers.values()
    assert layer.multiplier[:6].tolist() == [129, 130, 131, 132, 133, 134]  # 128.5, 129.5, ...
    assert layer.multiplier[12:16].tolist() == [253, 254, 255, 255]  # 252.5 ... 255.5
    assert layer.multiplier[16:20].tolist() == [128, 129, 130, 131]  # a float32 below a tie
    assert len(set(layer.shift.tolist())) == 1


def test_ties_of_biases_go_up() -> None:
    (layer,) = chip_layer_constants(recorded.model("bias ties")).layers.values()
    assert layer.bias.tolist() == list(range(-15, 17))  # of -15.5, -14.5, ... 15.5


def test_relu6_clamps_at_six() -> None:
    (layer,) = chip_layer_constants(recorded.model("relu6")).layers.values()
    assert layer.highest == 96  # 6 / (16 / 256)
    (relu,) = chip_layer_constants(recorded.model("pointwise relu")).layers.values()
    assert relu.highest == 255


def test_the_gain_is_the_float_scale_within_an_eighth_bit() -> None:
    model = recorded.model("multiplier ties")
    (layer,) = chip_layer_constants(model).layers.values()
    quantizer = next(node for node in model.graph if node.op_type == "WeightsSymmetricQuantizer")
    floats = quantized_weight(quantizer).reshape(len(layer.bias), -1)
    integers = layer.weights.reshape(len(layer.bias), -1)
    at = np.abs(integers).argmax(axis=1)
    rows = np.arange(len(at))
    exact = floats[rows, at] / integers[rows, at] * layer.input_grid.step / layer.output_grid.step
    assert np.abs(layer.gain / exact - 1).max() < 0.0040


CONVOLUTIONS = [name for name in recorded.names() if name not in ("addition", "average 3x3", "sigmoid 16")]
"""Recorded networks of one convolution."""


def accumulators(node: ir.Node, layer: ChipLayer, x: np.ndarray) -> np.ndarray:
    """acc[c] over x [N, Cin, H, W], zero padding, int64."""
    found = window(node)
    (top, left), (bottom, right) = found.before, found.after
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    weights = layer.weights.astype(np.int64)
    taps = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[2:], axis=(2, 3))
    taps = taps[:, :, :: found.strides[0], :: found.strides[1]]
    if found.group > 1:
        return np.einsum("nchwyx,cyx->nchw", taps, weights[:, 0])
    return np.einsum("nchwyx,ocyx->nohw", taps, weights)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_rule_means_what_the_onnx_file_means(name: str, rounding: Rounding) -> None:
    """Against the exact reference: gains differ by 0.4 % at most, biases by 1: results by about one step."""
    model = recorded.model(name)
    (layer,) = chip_layer_constants(model).layers.values()
    (node,) = (node for node in model.graph if node.op_type == "Conv")
    shape = (2, *(int(side) for side in model.graph.inputs[0].shape[1:]))
    grid = layer.input_grid
    x = np.random.default_rng(0).integers(grid.lowest, grid.highest + 1, shape)
    model.graph.inputs[0].shape = ir.Shape(shape)
    (exact,) = run_reference(model, {"input": x}).values()
    found = requantize(accumulators(node, layer, x), layer, rounding)
    assert np.abs(found - exact.values.astype(np.int64)).max() <= (2 if rounding is Rounding.FLOOR else 1)
    inner = np.abs(exact.values.astype(np.int64)) < 20  # 0.4 % of 20 steps is less than a tenth
    if rounding is not Rounding.FLOOR:
        assert (found == exact.values)[inner].mean() > 0.85


def test_the_tables_of_the_file() -> None:
    assert average_pool_record() in recorded.static("average 3x3")
    sigmoid = activation_table(FUNCTIONS["Sigmoid"], 16.0, 1.0).astype("<i2").tobytes()
    assert sigmoid in recorded.static("sigmoid 16")
    assert sigmoid not in recorded.static("average 3x3")


def test_the_first_operand_without_activation_is_fused() -> None:
    """In the file it is the first one whose shifts stand behind the addition's 512 zero bytes."""
    model = recorded.model("addition")
    first, second = (node for node in model.graph if node.op_type == "Conv")
    (add,) = (node for node in model.graph if node.op_type == "Add")
    assert fused_convolution(add) is first
    read = read_compiled(recorded.static("addition"), model)
    ((start, length, _),) = read.remainder
    assert start + length == read.layers[first.name].offsets[1]
    assert start + length != read.layers[second.name].offsets[1]


def test_a_damaged_zip_is_refused() -> None:
    with pytest.raises(InputError, match=r"packerOut\.zip"):
        static_data(b"no zip")
