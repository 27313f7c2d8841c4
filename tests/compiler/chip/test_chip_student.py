"""All integers of the shipped student's compiled file, with the vendor's real converter."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compiler import cli
from compiler.chip import (
    addition_shifts,
    chip_layer_constants,
    fused_convolution,
    read_compiled,
    static_data,
)
from compiler.dialect import output_grid
from passes.graph import load

CHECKPOINT = Path(__file__).parents[3] / "student" / "checkpoints" / "picosam2.pt"

CONVOLUTIONS = 27
INTEGERS = 1_267_983
"""1,257,171 weights, and a multiplier, a shift and a bias for each of 3,604 channels."""

ADDITIONS, DEPTHWISE_AND_OUTPUTS = 4, 10
"""Fused additions keep 512 zero bytes each; the nine depthwise layers and the output 32 each."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, compiled with nothing cached (about 90 s on 2 cores)."""
    work = tmp_path_factory.mktemp("student")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICOSAM2_CACHE", str(work / "cache"))
        assert cli.run(["compile", str(CHECKPOINT), "--out", str(work / "package"), "-q"]) == 0
    return work / "package"


def test_the_predicted_integers_are_the_integers_of_the_compiled_file(package: Path) -> None:
    model = load(package / "model_quant.onnx")
    predicted = chip_layer_constants(model)
    read = read_compiled(static_data((package / "packerOut.zip").read_bytes()), model)
    assert predicted.undecoded == ()
    assert read.missing == ()
    assert len(predicted.layers) == CONVOLUTIONS == len(read.layers)
    integers = 0
    for name, layer in predicted.layers.items():
        for field in ("weights", "multiplier", "shift", "bias"):
            expected, found = getattr(layer, field), getattr(read.layers[name], field)
            assert np.array_equal(found, expected), f"{name}: {int((found != expected).sum())} {field} differ"
            integers += expected.size
        assert read.layers[name].padding_as_expected, name
    assert integers == INTEGERS


def test_nothing_else_in_the_file_has_a_value(package: Path) -> None:
    model = load(package / "model_quant.onnx")
    read = read_compiled(static_data((package / "packerOut.zip").read_bytes()), model)
    assert all(zero for _, _, zero in read.remainder)
    lengths = sorted(length for _, length, _ in read.remainder)
    assert lengths == [32] * DEPTHWISE_AND_OUTPUTS + [512] * ADDITIONS


def test_the_registers_of_the_four_additions(package: Path) -> None:
    """cfgA.bin sets a register again only where its value changes from one addition to the next."""
    model = load(package / "model_quant.onnx")
    predicted = []
    for node in model.graph:
        if node.op_type == "Add":
            stored, convolution = (output_grid(value) for value in node.inputs)
            assert fused_convolution(node).outputs[0].consumers()[0].outputs[0] is node.inputs[1]
            (quantizer,) = node.outputs[0].consumers()
            predicted.append(addition_shifts(convolution, stored, output_grid(quantizer.outputs[0])))
    assert len(predicted) == ADDITIONS
    with zipfile.ZipFile(io.BytesIO((package / "packerOut.zip").read_bytes())) as archive:
        words = list(struct.iter_unpack("<hH", archive.read("cfgA.bin")))
    # The registers follow each other: shift of the convolution, clip, buffer, shift of the stored operand,
    # its unsigned flag, shift of the result, flag, 16 bits to drop.
    (stored,) = {
        number
        for (value, number), following in itertools.pairwise(words)
        if value == predicted[0].stored and following == (3, number + 1) and (-16, number + 4) in words
    }
    for register, field in ((stored - 3, "convolution"), (stored, "stored"), (stored + 2, "result")):
        written = [value for value, number in words if number == register]
        expected = [value for value, _ in itertools.groupby(getattr(shifts, field) for shifts in predicted)]
        assert written == expected, field
