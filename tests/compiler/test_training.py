"""`picosam2 train` from the command line: killed and continued, shared by two processes, and misused."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compiler.cli import run
from student.checkpoint import load_checkpoint
from tests.pictures import write_coco

SMALL = [
    "--cpu",
    "--threads",
    "1",
    "--batch",
    "2",
    "--set",
    "warmup=2",
    "--set",
    "held_out=4",
    "--set",
    "points=3",
]


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A COCO folder of eight pictures with one bright square each."""
    return write_coco(tmp_path / "coco", pictures=8, squares=1)


def command(squares: Path, out: Path, steps: int) -> list[str]:
    return ["train", "--data", f"coco:{squares}", "--out", str(out), "--steps", str(steps), *SMALL]


def test_a_run_from_the_command_line(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(squares, tmp_path / "run", 3)) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "train 3/3" in printed.err
    assert "Next: picosam2 evaluate" in printed.err
    assert load_checkpoint(tmp_path / "run" / "student.pt").network_name == "picosam2"
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["recipe"]["loss"] == "labels"  # no teacher was given
    assert card["data"]["pictures"] == 6


def test_the_recipe_can_be_seen_first(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train", "--data", "coco:x", "--out", "y", "--teacher-cache", "c", "--protocol", "roi-pad10"]
    assert run([*given, "--set", "ema=0.9", "--show-recipe"]) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert (recipe["loss"], recipe["ema"], recipe["protocol"]) == ("soft", 0.9, "roi-pad10")
    assert recipe["augmentation"]["keep_prompt"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "coco:missing"], "missing"),
        (["--data", "photos"], "photos"),
        (["--loss", "soft"], "no teacher cache"),
        (["--teacher-cache", "nowhere"], "nowhere"),
        (["--unlabelled", "."], "no teacher"),
        (["--embeddings", "."], "no teacher cache"),
        (["--network", "unet"], "unet"),
        (["--set", "speed=1"], "no such setting"),
        (["--start-from", "nothing.pt"], "nothing.pt"),
    ],
)
def test_mistakes_end_in_one_line(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run([*command(squares, tmp_path / "run", 2), *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.slow
def test_killed_at_three_random_moments_a_run_ends_in_the_same_bytes(squares: Path, tmp_path: Path) -> None:
    """Three SIGKILLs of a real process; its state is saved at each point of the curve."""
    steps, often = 30, ["--set", "points=30"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "compiler.cli", *command(squares, out, steps), *often],
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait(300) == 0
    out, luck = tmp_path / "killed", random.Random(0)
    for kill in range(3):
        process = start(out)
        before = (out / "run.pt").stat().st_mtime_ns if kill else 0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:  # until it has come further than the last one
            state = out / "run.pt"
            if state.exists() and state.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(luck.uniform(0.0, 0.7))
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not (out / "student.pt").exists()
    assert start(out).wait(300) == 0
    assert (out / "student.pt").read_bytes() == (tmp_path / "whole" / "student.pt").read_bytes()
    cards = [json.loads((run_ / "card.json").read_text()) for run_ in (out, tmp_path / "whole")]
    assert cards[0]["curve"] == cards[1]["curve"]


@pytest.mark.slow
def test_two_processes_train_one_student(squares: Path, tmp_path: Path) -> None:
    """Through torchrun, with gloo: twice the same bytes; it learns, and it can be resumed."""
    first, second = tmp_path / "first", tmp_path / "second"
    settings = ["--batch", "4", "--set", "ema=0.5"]
    for out in (first, second):
        torchrun([*command(squares, out, 12), *settings])
    assert (first / "student.pt").read_bytes() == (second / "student.pt").read_bytes()
    card = json.loads((first / "card.json").read_text())
    assert card["processes"] == 2
    assert card["curve"][-1]["loss"] < card["curve"][0]["loss"]
    (second / "student.pt").unlink()
    torchrun([*command(squares, second, 12), *settings])  # from its state: nothing is left to train
    assert (first / "student.pt").read_bytes() == (second / "student.pt").read_bytes()


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        torchrun([*command(squares, tmp_path / "run", 2), "--batch", "3"])
    assert "3 samples for 2 processes" in raised.value.stderr
    assert "--batch 4" in raised.value.stderr


def torchrun(arguments: list[str]) -> None:
    """`picosam2 ARGUMENTS` in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--master_addr", "127.0.0.1", "--master_port", str(port), "-m", "compiler.cli", *arguments),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
