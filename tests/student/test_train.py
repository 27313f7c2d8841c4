"""The loop learns, repeats itself, and continues an interrupted run as if it had not been interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from passes.contract import centred
from passes.errors import InputError
from passes.files import locked
from student import train as training
from student.augment import NONE
from student.checkpoint import load_checkpoint, save_checkpoint
from student.instances import load_instances
from student.networks import PicoSAM2, PicoSAM3
from student.recipe import Recipe
from student.samples import SampleStream
from student.teach import teach
from student.teacher_cache import TeacherCache
from student.train import (
    CARD,
    CHECKPOINT,
    STATE,
    computes_in_bfloat16,
    learning_rate,
    require_run_folder,
    train,
    unlabelled_per_step,
)
from student.training_data import TrainingData, training_data
from tests.student.teaching import SETTINGS, ColourTeacher

SHORT = Recipe(loss="labels", steps=6, batch=2, warmup=2, held_out=6, points=3)


@pytest.fixture
def data(synthetic_coco: Path) -> TrainingData:
    return training_data(SHORT, load_instances(f"coco:{synthetic_coco}", "train2017"))


def weights(directory: Path) -> bytes:
    return (directory / CHECKPOINT).read_bytes()


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3


def test_the_share_of_unlabelled_samples_falls() -> None:
    counts = unlabelled_per_step(Recipe(steps=400, unlabelled_first=0.5, unlabelled_last=0.0), 16)
    assert counts.shape == (400,)
    assert (counts[0], counts[-1]) == (8, 0)
    assert 0 <= counts.min() <= counts.max() <= 8
    assert counts.sum() == pytest.approx(400 * 16 * 0.25, abs=1)
    rare = unlabelled_per_step(Recipe(steps=100, unlabelled_first=0.1, unlabelled_last=0.1), 2)
    assert (rare.sum(), rare.max()) == (20, 1)


def test_the_loss_falls(data: TrainingData, tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=20, batch=4, warmup=4, ema=0.8, points=20, augmentation=NONE)
    outcome = train(recipe, data, tmp_path / "run", cpu=True)
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


def test_a_run_repeats_itself_and_depends_on_its_seed(data: TrainingData, tmp_path: Path) -> None:
    once = train(SHORT, data, tmp_path / "1", cpu=True)
    again = train(SHORT, data, tmp_path / "2", cpu=True, workers=3)
    train(replace(SHORT, seed=1), data, tmp_path / "3", cpu=True)
    assert weights(tmp_path / "1") == weights(tmp_path / "2")
    assert once.curve == again.curve
    assert weights(tmp_path / "1") != weights(tmp_path / "3")


@pytest.fixture
def taught(synthetic_coco: Path, tmp_path: Path) -> TeacherCache:
    """What a small torch teacher says about every object and six points of each picture."""
    teach(
        [load_instances(f"coco:{synthetic_coco}", "train2017")], ColourTeacher(), tmp_path / "cache", SETTINGS
    )
    return TeacherCache(tmp_path / "cache")


@pytest.mark.parametrize("loss", ["soft", "paper"])
def test_a_distilling_run_repeats_and_resumes(
    synthetic_coco: Path, taught: TeacherCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    recipe = replace(SHORT, loss=loss, unlabelled_first=0.5, unlabelled_last=0.5)
    split = training_data(recipe, load_instances(f"coco:{synthetic_coco}", "train2017"), cache=taught)
    train(recipe, split, tmp_path / "whole", cpu=True)
    card = json.loads((tmp_path / "whole" / CARD).read_text())
    assert card["data"]["unlabelled_samples"] > 0
    assert card["teacher"]["pictures_taught"] == 5
    kill_at(4, monkeypatch, lambda: train(recipe, split, tmp_path / "run", cpu=True))
    train(recipe, split, tmp_path / "run", cpu=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    plain = training_data(SHORT, load_instances(f"coco:{synthetic_coco}", "train2017"))
    train(SHORT, plain, tmp_path / "plain", cpu=True)
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
    """Runs until the batch of a step is asked for; the state is saved after every step."""
    made = SampleStream.batch_at

    def interrupted(self: SampleStream, asked: int, *rest: object) -> object:
        if asked == step:
            raise KeyboardInterrupt
        return made(self, asked, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_EVERY", 0.0)
        patch.setattr(SampleStream, "batch_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_what_a_run_leaves(data: TrainingData, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    run = tmp_path / "new" / "run"
    outcome = train(SHORT, data, run, cpu=True, on_progress=lambda *told: seen.append(told))
    checkpoint = load_checkpoint(run / CHECKPOINT)
    assert (checkpoint.contract, checkpoint.protocol) == (centred(3, 96, 96), "point-native-96")
    card = json.loads((run / CARD).read_text())
    assert card["recipe"]["steps"] == 6
    assert card["data"]["annotated_samples"] == 10
    assert card["data"]["held_out_samples"] == 2
    assert card["chosen"] == max(card["curve"], key=lambda point: (point["held_out_miou"], point["step"]))
    assert card["chosen"]["step"] == outcome.chosen.step
    assert Image.open(run / "predictions.png").size == (8 * 192, 192)
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert [told[:2] for told in seen] == [(step, 6) for step in range(1, 7)]
    assert "held-out mIoU" in seen[-1][2]
    assert not list(run.glob("*.part"))


def test_the_best_point_is_kept(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out scores 0.9 and then worse: the weights after the first point are saved, unless told not to."""
    first = train(replace(SHORT, steps=2, points=1), data, tmp_path / "first", cpu=True)
    assert first.chosen.step == 2

    def judged(run: Path, *, select: bool) -> training.Outcome:
        scores = iter([0.9, 0.5, 0.4])
        monkeypatch.setattr(training, "evaluate", lambda *_: np.array([next(scores)]))
        return train(replace(SHORT, select=select), data, run, cpu=True)

    assert judged(tmp_path / "best", select=True).chosen.step == 2
    assert judged(tmp_path / "last", select=False).chosen.step == 6
    assert weights(tmp_path / "best") != weights(tmp_path / "last")


def test_an_interrupted_run_ends_the_same(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(SHORT, data, tmp_path / "whole", cpu=True)
    run = tmp_path / "run"
    kill_at(4, monkeypatch, lambda: train(SHORT, data, run, cpu=True))
    assert torch.load(run / STATE, weights_only=True)["step"] in (3, 4)
    resumed = train(SHORT, data, run, cpu=True)
    assert weights(run) == weights(tmp_path / "whole")
    assert resumed.curve == whole.curve
    again = train(SHORT, data, run, cpu=True)  # a finished run has nothing left to do
    assert again.curve == whole.curve
    assert weights(run) == weights(tmp_path / "whole")


def test_starting_from_a_checkpoint(data: TrainingData, tmp_path: Path) -> None:
    torch.manual_seed(5)
    start = tmp_path / "start.pt"
    save_checkpoint(start, PicoSAM2(), centred(3, 96, 96))
    train(SHORT, data, tmp_path / "run", cpu=True, start_from=start)
    train(SHORT, data, tmp_path / "other", cpu=True)
    assert weights(tmp_path / "run") != weights(tmp_path / "other")
    with pytest.raises(InputError, match=r"--start-from .*, here None"):
        train(SHORT, data, tmp_path / "run", cpu=True)
    save_checkpoint(start, PicoSAM3(), centred(3, 96, 96))
    with pytest.raises(InputError, match="weights of picosam3"):
        train(SHORT, data, tmp_path / "third", cpu=True, start_from=start)


def test_hints_change_the_run_and_leave_the_checkpoints_names(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = np.random.default_rng(0).standard_normal((256, 64, 64)).astype(np.float16)
    monkeypatch.setattr("student.samples.read_embedding", lambda folder, picture: grid)
    train(SHORT, data, tmp_path / "plain", cpu=True)
    train(SHORT, data, tmp_path / "hinted", cpu=True, embeddings=tmp_path)
    plain, hinted = (load_checkpoint(tmp_path / run / CHECKPOINT) for run in ("plain", "hinted"))
    assert list(plain.state_dict) == list(hinted.state_dict)
    assert weights(tmp_path / "plain") != weights(tmp_path / "hinted")
    with pytest.raises(InputError, match="--embeddings True, here False"):
        train(SHORT, data, tmp_path / "hinted", cpu=True)


def test_a_state_of_another_recipe_or_a_broken_one(data: TrainingData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = replace(SHORT, steps=1)
    train(short, data, run, cpu=True)
    with pytest.raises(InputError, match="other settings: steps 1, here 2, seed 0, here 5 "):
        train(replace(short, steps=2, seed=5), data, run, cpu=True)
    (run / STATE).write_bytes(b"broken")
    with pytest.raises(InputError, match="no readable run"):
        train(short, data, run, cpu=True)


def test_a_folder_of_other_things_is_no_run(tmp_path: Path) -> None:
    require_run_folder(tmp_path / "new")
    for name in (CHECKPOINT, "predictions.png", ".lock"):
        (tmp_path / name).touch()
    require_run_folder(tmp_path)
    (tmp_path / "IMG_0001.jpg").touch()
    with pytest.raises(InputError, match=r"--out .* holds other files \(IMG_0001\.jpg\)"):
        require_run_folder(tmp_path)
    (tmp_path / STATE).touch()  # a run, whatever else people keep beside it
    require_run_folder(tmp_path)


def test_a_run_goes_on_with_its_own_data_only(
    data: TrainingData, synthetic_coco: Path, tmp_path: Path
) -> None:
    train(SHORT, data, tmp_path / "run", cpu=True)
    whole = load_instances(f"coco:{synthetic_coco}", "train2017")
    fewer = training_data(SHORT, replace(whole, pictures=whole.pictures[:-1]))
    assert fewer.digest != data.digest
    with pytest.raises(InputError, match="other settings: --data"):
        train(SHORT, fewer, tmp_path / "run", cpu=True)


def test_a_run_that_diverges_says_so(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "loss_of", lambda recipe, logits, targets: logits.mean() * float("nan"))
    with pytest.raises(InputError, match="a loss of nan") as raised:
        train(SHORT, data, tmp_path / "run", cpu=True)
    assert "learning_rate" in raised.value.fix
    assert not (tmp_path / "run" / STATE).exists()


def test_a_resumed_run_keeps_its_curve_in_tensorboard(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kill_at(4, monkeypatch, lambda: train(SHORT, data, tmp_path / "run", cpu=True))
    outcome = train(SHORT, data, tmp_path / "run", cpu=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [event.step for event in events.Scalars("miou/held_out")]
    assert logged == [point.step for point in outcome.curve]


def test_two_runs_do_not_share_a_directory(data: TrainingData, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(InputError, match="another picosam2"):
        train(SHORT, data, tmp_path / "run", cpu=True)


def test_a_run_directory_that_cannot_be(data: TrainingData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train(SHORT, data, tmp_path / "file" / "run", cpu=True)


def test_precision_as_told_or_as_the_hardware_has_it() -> None:
    cpu = torch.device("cpu")
    assert computes_in_bfloat16(Recipe(precision="bf16"), cpu)
    assert not computes_in_bfloat16(Recipe(precision="fp32"), cpu)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    expected = "avx512_bf16" in flags or "amx_tile" in flags
    assert computes_in_bfloat16(Recipe(), cpu) == expected
