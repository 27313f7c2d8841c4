"""The report's mIoU: on which crops it is measured, and when it is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler import driver
from compiler.cache import Cache
from compiler.cli import run
from compiler.driver import CompileOptions, State
from compiler.frontend import Loaded, ModelKind
from compiler.progress import Progress
from compiler.quantizing.judge import accuracy
from passes.contract import InputContract, centred
from tests.compiler.small_packages import float_twin, red_finder
from tests.pictures import write_coco

CHECKPOINTS = Path(__file__).parents[2] / "student" / "checkpoints"
SQUARE, WIDE = centred(3, 96, 96), centred(3, 64, 96)


def reason(calib: str, own: str | None, contract: InputContract = SQUARE) -> str:
    loaded = Loaded(red_finder(), ModelKind.FLOAT_ONNX, "net", contract, (), protocol=own)
    options = CompileOptions(Path("net.onnx"), Path("out"), calib=calib)
    return driver._unscored(State(options, Progress(0, quiet=True), Cache(None), loaded=loaded))


@pytest.mark.parametrize("own", ["point-native-96", "point-native-96-clip", "roi-pad10"])
def test_masks_and_known_prompts_are_all_it_needs(own: str) -> None:
    assert reason("coco:data", own) == ""


def test_why_it_is_not_known() -> None:
    assert "no annotated masks were given" in reason("photos", "roi-pad10")
    assert "not known (--protocol says it)" in reason("coco:data", None)
    assert "trained on roi-pad10, and crops of 96x64 are prompts of point" in reason(
        "coco:data", "roi-pad10", WIDE
    )


def test_against_what_the_checkpoint_says_there_is_a_warning() -> None:
    def notes(own: str | None, asked: str | None) -> list[str]:
        loaded = Loaded(red_finder(), ModelKind.STATE_DICT, "net", SQUARE, (), protocol=own)
        found = driver._prompted(loaded, CompileOptions(Path("net.pt"), Path("out"), protocol=asked))
        assert found.protocol == (asked or own)
        return [note.rule for note in found.notes]

    assert notes("roi-pad10", "point-native-96") == ["input/protocol-overridden"]
    assert notes("roi-pad10", "roi-pad10") == notes("roi-pad10", None) == notes(None, "roi-pad10") == []


def test_two_pictures_calibrate_and_the_score_is_not_known(tmp_path: Path) -> None:
    real = float_twin(red_finder())
    loaded = Loaded(real, ModelKind.STATE_DICT, "net", SQUARE, (), protocol="roi-pad10")
    few = write_coco(tmp_path / "coco", pictures=2)
    options = CompileOptions(Path("net.pt"), tmp_path / "out", calib=f"coco:{few}", calib_count=4)
    state = State(options, Progress(1, quiet=True), Cache(tmp_path), loaded=loaded, float_model=real)
    (drawn,) = driver._calibration(state).representative
    assert len(drawn.pictures) == 4
    assert len(drawn.deciding) == 0
    assert accuracy(real, [drawn], red_finder()) == "no crops are kept apart"


def test_clip_is_nothing_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compile", str(CHECKPOINTS / "picosam2.pt"), "--out", str(tmp_path / "o")]
    assert run([*asked, "--protocol", "point-native-96-clip"]) == 1
    assert "Fix: point-native-96, or roi-pad10" in capsys.readouterr().err


def test_an_unknown_protocol_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compile", str(CHECKPOINTS / "picosam2.pt"), "--out", str(tmp_path / "o"), "--protocol", "box"]
    assert run(asked) == 1
    told = capsys.readouterr().err
    assert "error: --protocol: 'box' (one of point-native-96, point-native-96-clip, roi-pad10)" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "protocol", "least"), [("picosam2", "point-native-96", 0.5), ("picosam2-roi", "roi-pad10", 0.6)]
)
def test_each_shipped_student_is_scored_by_its_own_prompts(
    data_dir: Path, tmp_path: Path, name: str, protocol: str, least: float
) -> None:
    out, source = tmp_path / "out", f"coco:{data_dir / 'coco'}"
    asked = ["compile", str(CHECKPOINTS / f"{name}.pt"), "--calib", source, "--no-convert", "--quiet"]
    assert run([*asked, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"]["miou"]["mean"] > least
    assert report["accuracy"]["crops"] == 256
    assert ("roi-pad10" in report["calibration"]["how"]) == (protocol == "roi-pad10")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["protocol"] == protocol
    # The float graph alone says nothing of prompts: the option does, and the same crops give the same score.
    again = [
        "compile",
        str(out / "model.onnx"),
        *asked[2:],
        "--protocol",
        protocol,
        "--out",
        str(tmp_path / "b"),
    ]
    assert run(again) == 0
    other = json.loads((tmp_path / "b" / "report.json").read_text())
    assert other["accuracy"] == report["accuracy"]
