"""The loop learns, repeats itself, and continues an interrupted run as if it had not been interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from passes.contract import centred
from passes.errors import InputError
from student import train as training
from student.checkpoint import load_checkpoint
from student.coco import CropSet, load_crops
from student.crops import POINT_NATIVE_96
from student.train import (
    Recipe,
    batch_of,
    bce_dice,
    learning_rate,
    main,
    split_by_picture,
    train,
    without_margin,
)

CONTRACT = centred(3, 96, 96)
SHORT = Recipe(steps=6, batch=2, warmup=2, held_out=6)


@pytest.fixture
def crops(synthetic_coco: Path) -> CropSet:
    return load_crops(synthetic_coco, "train2017", POINT_NATIVE_96, margin=SHORT.jitter)


def weights(outcome: training.Outcome) -> bytes:
    return b"".join(t.contiguous().numpy().tobytes() for t in outcome.network.state_dict().values())


def test_the_loss_of_known_predictions() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[:, :, :2] = 1.0
    sure = (masks * 2 - 1) * 50
    assert bce_dice(sure, masks).item() == pytest.approx(0.0, abs=1e-6)
    dice = (2 * 4.0 + 1) / (8 + 8 + 1)
    assert bce_dice(torch.zeros_like(masks), masks).item() == pytest.approx(np.log(2) + 1 - dice, abs=1e-6)


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3


def test_an_epoch_shows_every_crop_once() -> None:
    recipe = Recipe(batch=5)
    seen = [index for step in range(7) for index in training._indices(recipe, 7, step)]
    for epoch in range(5):
        assert sorted(seen[7 * epoch : 7 * (epoch + 1)]) == list(range(7))
    assert seen[:7] != seen[7:14]


def test_augmentation_keeps_the_prompt_in_the_object(crops: CropSet) -> None:
    for step in range(20):
        pixels, masks = batch_of(SHORT, crops, step)
        assert pixels.shape == (2, 3, 96, 96)
        assert 0.0 <= pixels.min() <= pixels.max() <= 255.0
        assert (masks[:, 0, 48, 48] | masks[:, 0, 48, 47]).all()  # a flip moves the centre by one pixel


def test_held_out_pictures_are_not_trained_on(crops: CropSet) -> None:
    kept, held = split_by_picture(crops, 3)
    assert set(held.picture_ids.tolist()) == {1, 4}
    assert set(kept.picture_ids.tolist()) == {2, 3, 5, 6}
    assert len(kept) + len(held) == len(crops)


def test_without_margin_is_the_protocols_crop(synthetic_coco: Path, crops: CropSet) -> None:
    plain = load_crops(synthetic_coco, "train2017", POINT_NATIVE_96)
    inner = without_margin(crops, SHORT.jitter)
    assert np.array_equal(inner.pictures, plain.pictures)
    assert np.array_equal(inner.masks, plain.masks)


def test_the_loss_falls(crops: CropSet) -> None:
    outcome = train(Recipe(steps=20, batch=4, warmup=4, held_out=6, ema=0.8), crops, CONTRACT)
    first, last = outcome.curve[0], outcome.curve[-1]
    assert (first.step, last.step) == (1, 20)
    assert last.loss < 0.6 * first.loss


def test_the_average_moves_by_one_minus_decay() -> None:
    mean, current = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    with torch.no_grad():
        current.weight.fill_(5.0)
    current.running_mean.fill_(10.0)  # type: ignore[union-attr, operator]
    current.num_batches_tracked.fill_(7)  # type: ignore[union-attr, operator]
    training._average(mean, current, 0.75)
    state = mean.state_dict()
    assert state["weight"].tolist() == [2.0, 2.0]
    assert state["running_mean"].tolist() == [2.5, 2.5]
    assert state["num_batches_tracked"].item() == 7


def test_a_run_repeats_itself_and_depends_on_its_seed(crops: CropSet) -> None:
    once = train(SHORT, crops, CONTRACT)
    again = train(SHORT, crops, CONTRACT)
    other = train(replace(SHORT, seed=1), crops, CONTRACT)
    assert weights(once) == weights(again)
    assert once.curve == again.curve
    assert weights(once) != weights(other)


def test_an_interrupted_run_ends_the_same(
    crops: CropSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(SHORT, crops, CONTRACT)
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    state = tmp_path / "run.state"

    def interrupted(recipe: Recipe, data: CropSet, step: int) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return batch_of(recipe, data, step)

    with monkeypatch.context() as patch:
        patch.setattr(training, "batch_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(SHORT, crops, CONTRACT, state)
    assert torch.load(state, weights_only=True)["step"] == 4
    resumed = train(SHORT, crops, CONTRACT, state)
    assert weights(resumed) == weights(whole)
    assert resumed.curve == whole.curve


def test_a_state_of_another_recipe_or_a_broken_one(crops: CropSet, tmp_path: Path) -> None:
    state = tmp_path / "run.state"
    train(Recipe(steps=1, batch=2, held_out=6), crops, CONTRACT, state)
    with pytest.raises(InputError, match="another steps, seed"):
        train(Recipe(steps=2, batch=2, held_out=6, seed=5), crops, CONTRACT, state)
    state.write_bytes(b"broken")
    with pytest.raises(InputError, match="no readable run"):
        train(SHORT, crops, CONTRACT, state)


def test_the_command_line(synthetic_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student.pt"
    given = ["--data", str(synthetic_coco), "--steps", "2", "--batch", "2", "--seed", "4", "--out", str(out)]
    assert main(given) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["recipe"]["seed"] == 4
    assert (summary["crops"], summary["pictures"]) == (12, 6)
    assert "step 2/2" in printed.err
    assert load_checkpoint(out).contract == CONTRACT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--data": "missing"}, "no such file"),
        ({"--out": "missing/student.pt"}, "cannot be written"),
        ({"--steps": "0"}, "0 steps"),
    ],
)
def test_bad_options_end_in_one_line(
    synthetic_coco: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"--data": str(synthetic_coco), "--out": "student.pt", "--steps": "2"} | changed
    assert main([word for pair in options.items() for word in pair]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "student.pt").exists()
