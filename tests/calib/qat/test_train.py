"""Training brings the quantized network nearer to the float one, reproducibly, and survives a kill."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calib.importer import to_torch
from calib.qat import train as training
from calib.qat.losses import distillation
from calib.qat.network import to_network
from calib.qat.quantizers import WeightQuantizer, activation_quantizer
from calib.qat.recipe import Recipe
from calib.qat.train import train
from calib.thresholds import representable
from passes.errors import InputError
from passes.graph import to_bytes
from tests.calib.qat.small_graphs import everywhere, fixture, pictures, without_quantizers

RECIPE = Recipe(epochs=6, batch=8, rate=3e-3, average=0.9)


def silent(phase: str, share: float | None) -> None:
    """A progress nobody looks at."""


def distance(model, reference, inputs: np.ndarray) -> float:
    with torch.no_grad():
        x = torch.from_numpy(inputs)
        return float(distillation([to_network(model).module(x)], [to_torch(reference).module(x)]))


@pytest.mark.parametrize("name", ["transposed", "convolutions"])
@pytest.mark.parametrize("bits", [4, 2])
def test_training_comes_nearer_to_the_float_network(name, bits):
    quantized = fixture(name)
    reference, narrow = without_quantizers(quantized), everywhere(quantized, bits)
    trained = train(narrow, reference, [pictures(64)], RECIPE, progress=silent)
    unseen = pictures(32, seed=1)
    assert distance(trained, reference, unseen) < 0.9 * distance(narrow, reference, unseen)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others():
    quantized = everywhere(fixture("residual"), 4)
    reference, data = without_quantizers(quantized), [pictures(16)]
    results = [
        to_bytes(train(quantized, reference, data, dataclasses.replace(RECIPE, seed=seed), progress=silent))
        for seed in (0, 0, 1)
    ]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("killed", [1, 5, 11])
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, killed):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    quantized = everywhere(fixture("residual"), 4)
    reference, data, state = without_quantizers(quantized), [pictures(16)], tmp_path / "deep" / "state"
    steps = itertools.count()

    def kill(phase: str, share: float | None) -> None:
        if next(steps) == killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quantized, reference, data, RECIPE, progress=kill, state=state)
    assert state.exists()
    shares: list[float] = []
    resumed = train(
        quantized, reference, data, RECIPE, progress=lambda _, share: shares.append(share or 0.0), state=state
    )
    assert shares[0] == killed / 12
    assert not state.exists()
    assert to_bytes(resumed) == to_bytes(train(quantized, reference, data, RECIPE, progress=silent))


@pytest.mark.parametrize("found", ["damaged", "of another run"])
def test_a_state_that_is_no_use_is_replaced(tmp_path, found):
    quantized = fixture("residual")
    reference, data, state = without_quantizers(quantized), [pictures(8)], tmp_path / "state"
    if found == "damaged":
        state.write_bytes(b"PK\x03\x04 and no more")
    else:
        torch.save({"identity": "another"}, state)
    trained = train(quantized, reference, data, RECIPE, progress=silent, state=state)
    assert to_bytes(trained) == to_bytes(train(quantized, reference, data, RECIPE, progress=silent))


def test_a_state_that_cannot_be_kept_stops_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    quantized, occupied = fixture("residual"), tmp_path / "a file, not a folder"
    occupied.write_bytes(b"")
    reference, data = without_quantizers(quantized), [pictures(8)]
    trained = train(quantized, reference, data, RECIPE, progress=silent, state=occupied / "state")
    assert to_bytes(trained) == to_bytes(train(quantized, reference, data, RECIPE, progress=silent))
    assert [path.name for path in tmp_path.iterdir()] == [occupied.name]


def test_a_loss_that_is_no_number_ends_the_training():
    quantized = fixture("residual")
    data = [np.full((8, 3, 8, 8), np.inf, np.float32)]
    with pytest.raises(InputError, match="loss of step 1 is"):
        train(quantized, without_quantizers(quantized), data, RECIPE, progress=silent)


def test_activation_quantizers_and_the_graphs_outputs_stay():
    quantized = fixture("residual")
    trained = train(quantized, without_quantizers(quantized), [pictures(8)], RECIPE, progress=silent)
    ours, theirs = (
        [
            (n.name, n.attributes["threshold"].as_float())
            for n in m.graph
            if n.op_type.startswith("Activation")
        ]
        for m in (trained, quantized)
    )
    assert ours == theirs


def _is_activation(node) -> bool:
    return node.op_type == "ActivationPOTQuantizer"


# Quantizers


@given(
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=50),
    st.integers(-6, 8),
    st.booleans(),
    st.booleans(),
)
def test_the_fused_quantizer_is_brevitas_own(values, power, signed, on_ties):
    from brevitas.core.function_wrapper import Identity
    from brevitas.core.quant import IntQuant

    quantizer = activation_quantizer(2.0**power, 8, signed)
    step = 2.0 ** (power - (7 if signed else 8))
    x = torch.tensor(values)
    x = (torch.floor(x) + 0.5) * step if on_ties else x * step
    plain = IntQuant(narrow_range=False, signed=signed, input_view_impl=Identity())
    found, scale, zero, bits = quantizer(x)
    assert float(scale) == step
    assert torch.equal(found, plain(scale, zero, bits, x))


def test_gradients_pass_inside_the_range_and_stop_outside():
    x = torch.tensor([-0.1, 0.3, 0.9, 1.1], requires_grad=True)
    activation_quantizer(1.0, 8, False)(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@given(st.integers(0, 1 << 20), st.sampled_from([8, 4, 2]))
def test_changing_the_unit_of_a_channel_is_exact(seed, bits):
    random = torch.Generator().manual_seed(seed)
    drawn = torch.exp(torch.randn((5, 1), generator=random) * 4)
    thresholds = torch.from_numpy(representable(drawn.numpy()))
    weight = torch.randn((5, 7), generator=random) * thresholds
    quantizer = WeightQuantizer(thresholds, bits)
    levels = 2 ** (bits - 1)
    wanted = (weight / (thresholds / levels)).round().clamp(-levels, levels - 1)
    unit = quantizer.right_inverse(weight)
    assert torch.equal(quantizer.integers(unit), wanted)
    assert torch.equal(quantizer.thresholds(), thresholds)
    assert torch.equal(quantizer(unit), wanted * (thresholds / levels))


# Losses


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 5, 4, 4), (2, 7), (2, 3, 2)])
def test_the_loss_is_least_where_the_outputs_are_equal(shape):
    random = torch.Generator().manual_seed(0)
    real, noise = torch.randn(shape, generator=random), torch.randn(shape, generator=random)
    near, far = distillation([real + 0.1 * noise], [real]), distillation([real + noise], [real])
    assert distillation([real], [real]).abs() < 1e-6
    assert 0 < near < far
