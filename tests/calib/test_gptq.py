"""Gradient-based post-training quantization through MCT: the places of mct-ptq, better rounding."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from calib.gptq import PHASE, mct_gptq
from calib.ptq import mct_ptq
from calib.widths import stored_narrow, with_weight_bits
from passes.contract import raw
from passes.errors import InputError, TargetViolation
from passes.graph import to_bytes, write_contract
from tests.calib.graphs import exported, one_node
from tests.calib.test_importer_operators import CASES
from tests.calib.test_ptq import (
    REFUSED_BY_MCT,
    framed,
    held_out,
    noise_ratio,
    on_small_numbers,
    pictures,
    run,
    silent,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The bytes depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Fast: what needs no MCT


def test_import_is_light() -> None:
    heavy = ("torch", "model_compression_toolkit", "onnxruntime")
    code = f"import sys, calib.gptq; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "found", "limit"),
    [
        ({"bits": 3}, "weights of 3 bits", "8, 4, 2"),
        ({"bits": 16}, "weights of 16 bits", "8, 4, 2"),
        ({"epochs": 0}, "0 epochs", "at least 1"),
        ({"rate": 0.0}, "rate 0.0", "above 0"),
        ({"rate": float("nan")}, "rate nan", "finite"),
        ({"decide": -1.0}, "decide -1.0", "above 0"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(
    settings: dict[str, float], found: str, limit: str
) -> None:
    model = one_node("Relu", [(1, 3, 8, 8)])
    phases: list[str] = []
    with pytest.raises(InputError) as caught:
        mct_gptq(model, pictures(model), seed=0, progress=lambda phase, _: phases.append(phase), **settings)  # type: ignore[arg-type]
    assert found in str(caught.value)
    assert limit in str(caught.value)
    assert phases == []


def test_an_unknown_operator_is_reported_before_mct_is_loaded() -> None:
    model = one_node("Selu", [(1, 3, 8, 8)])
    with pytest.raises(TargetViolation) as caught:
        mct_gptq(model, pictures(model), seed=0, progress=silent)
    assert [d.node for d in caught.value.diagnostics] == ["the_node"]


def test_pictures_that_do_not_fit_are_refused() -> None:
    model = one_node("Relu", [(1, 3, 8, 8)])
    with pytest.raises(InputError, match="2 sets of pictures"):
        mct_gptq(model, pictures(model) * 2, seed=0, progress=silent)


# Slow: with MCT


class Small(nn.Module):
    """A first layer of 3 channels, a depthwise one, a residual, a transposed one and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 2)

    def forward(self, picture: Tensor) -> Tensor:
        x = torch.relu(self.stem(picture / 64))
        x = x + torch.relu(self.pointwise(torch.relu(self.depthwise(x))))
        mean: Tensor = self.head(torch.relu(self.up(x)).mean((2, 3)))
        return mean


def small() -> ir.Model:
    torch.manual_seed(0)
    model = exported(Small(), (3, 16, 16))
    write_contract(model, raw(3, 16, 16, signed=True))
    return model


def skeleton(model: ir.Model) -> list[tuple[object, ...]]:
    """The graph without its numbers: thresholds, weights and widths are not in it."""
    return [
        (
            node.name,
            node.domain,
            node.op_type,
            [value.name if value else None for value in node.inputs],
            [(value.name, str(value.shape)) for value in node.outputs],
            sorted(
                (name, str(attribute.value))
                for name, attribute in node.attributes.items()
                if name not in ("threshold", "value", "num_bits")
            ),
        )
        for node in model.graph
    ]


def weight_bits(model: ir.Model) -> dict[bool, set[int]]:
    """Whether the chip stores them narrow -> widths of the weight quantizers."""
    found: dict[bool, set[int]] = {}
    for node in model.graph:
        if node.op_type == "WeightsSymmetricQuantizer":
            found.setdefault(stored_narrow(node), set()).add(node.attributes["num_bits"].as_int())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_quantizers_stand_where_mct_ptq_puts_them(bits: int, capfd: pytest.CaptureFixture[str]) -> None:
    model = small()
    phases: list[tuple[str, float | None]] = []
    log = io.StringIO()
    capfd.readouterr()
    learned = mct_gptq(
        model,
        pictures(model, 20),
        seed=0,
        epochs=2,
        bits=bits,
        progress=lambda *step: phases.append(step),
        log=log,
    )
    assert capfd.readouterr() == ("", "")
    assert "Running GPTQ optimization" in log.getvalue()
    shares = {share for phase, share in phases if phase == PHASE}
    assert shares >= {0.25, 0.5, 0.75, 1.0}  # two epochs of a batch of 16 and one of 4
    usual = mct_ptq(model, pictures(model, 20), seed=0, progress=silent)
    assert skeleton(learned) == skeleton(usual)
    assert to_bytes(learned) != to_bytes(usual)
    assert weight_bits(learned) == {False: {8}, True: {bits}}
    narrow = mct_ptq(model, pictures(model, 20), seed=0, bits=bits, progress=silent)
    assert (skeleton(narrow), weight_bits(narrow)) == (skeleton(learned), weight_bits(learned))


@pytest.mark.slow
def test_learned_rounding_is_better_than_the_nearest() -> None:
    """At 4 bits, where there is something to win, on pictures it has not seen; at 8 bits no harm is done."""
    model = small()
    sets = pictures(model, 64)
    inputs = held_out(model, sets, 16)
    expected = run_each(model, inputs)
    usual = mct_ptq(model, sets, seed=0, progress=silent)

    def learned(bits: int) -> float:
        result = mct_gptq(model, sets, seed=0, epochs=40, bits=bits, progress=silent)
        return noise_ratio(expected, run_each(result, inputs))

    assert learned(8) > noise_ratio(expected, run_each(usual, inputs)) - 1
    assert learned(4) > noise_ratio(expected, run_each(with_weight_bits(usual, 4), inputs))


def run_each(model: ir.Model, inputs: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(
        [run(model, [array[i : i + 1] for array in inputs])[0] for i in range(len(inputs[0]))]
    )


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes() -> None:
    model = small()
    first, again = (
        to_bytes(mct_gptq(model, pictures(model, 20), seed=0, epochs=2, bits=4, progress=silent))
        for _ in range(2)
    )
    assert first == again


@pytest.mark.slow
def test_a_network_that_takes_one_picture_at_a_time() -> None:
    """A frame of constants fixes the batch; in training too every batch has to be full."""
    model = framed()
    learned = mct_gptq(model, pictures(model, 18), seed=0, epochs=1, progress=silent)
    usual = mct_ptq(model, pictures(model, 18), seed=0, progress=silent)
    assert skeleton(learned) == skeleton(usual)


@pytest.mark.slow
def test_without_layers_to_learn_it_is_mct_ptq() -> None:
    model = one_node("Relu", [(1, 3, 8, 8)])
    learned = mct_gptq(model, pictures(model), seed=0, bits=4, progress=silent)
    assert to_bytes(learned) == to_bytes(mct_ptq(model, pictures(model), seed=0, progress=silent))


@pytest.mark.slow
def test_what_mct_refuses_is_named() -> None:
    for name, culprit in REFUSED_BY_MCT.items():
        model = on_small_numbers(CASES[name], positive=False)
        with pytest.raises(TargetViolation) as caught:
            mct_gptq(model, pictures(model), seed=0, epochs=1, progress=silent)
        assert [(d.rule, d.node) for d in caught.value.diagnostics] == [("mct/refused", culprit)]
