"""`picosam2 gate` from the command line, on a made-up data set and a package that finds what is red."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml

from calib.representative.content import content_hashes
from compiler.cli import run
from compiler.driver import FLOAT_GRAPH
from compiler.package import FAILED_RUN, write_package
from passes.imx500.memory import forecast_memory
from tests.compiler.small_packages import float_twin, packaged, red_finder
from tests.pictures import write_coco


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), pictures=24)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(tmp_path_factory.mktemp("made") / "red", red_finder(), float_twin(red_finder()))


def arguments(package: Path, coco: Path, *more: str) -> list[str]:
    return ["gate", str(package), "--data", f"coco:{coco}", "--split", "train2017", "-q", *more]


def test_a_package_that_passes(
    package: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "junit.xml"
    asked = ("--min-miou", "0.4", "--max-drop", "1", "--max-memory", "8388480", "--junit", str(junit))
    kept = ("--json", str(tmp_path / "gate.json"))
    assert run(arguments(package, coco, *asked, *kept, "--format", "json")) == 0
    first = capsys.readouterr()
    assert (tmp_path / "gate.json").read_text() == first.out
    document = json.loads(first.out)
    assert first.err.startswith("warning: this gate would let a mask pass")  # red squares are much like discs
    assert (document["verdict"], document["failed"]) == ("pass", [])
    assert [one["name"] for one in document["criteria"]] == ["min-miou", "max-drop", "max-memory"]
    assert document["criteria"][1]["value"] == 0  # the twin finds the same
    assert [one["name"] for one in document["trivial"]] == ["all ones", "best centred disc"]
    assert document["data"]["instances"] == 48
    assert JUnitXml.fromfile(str(junit)).tests == 5
    content = junit.read_bytes()
    assert run(arguments(package, coco, *asked, "--format", "json", "--threads", "1")) == 0
    assert capsys.readouterr().out == first.out
    assert junit.read_bytes() == content


def test_a_package_that_fails(package: Path, coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(package, coco, "--min-miou", "0.999", "--format", "markdown")) == 3
    told = capsys.readouterr()
    assert told.out.startswith("### gate red: FAIL")
    assert told.err.count("error:") == 1
    assert "at least 0.9990: fail" in told.err


def test_an_earlier_report(
    package: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(package, coco, "--max-drop", "1", "--format", "json")) == 0
    earlier = tmp_path / "earlier.json"
    document = json.loads(capsys.readouterr().out)
    earlier.write_text(json.dumps(document))
    assert run(arguments(package, coco, "--max-drop", "1", "--baseline", str(earlier))) == 0
    assert "earlier.json less this (paired, 48 instances)" in capsys.readouterr().out
    document["instances"]["int8_iou"] = [1.0] * 48
    earlier.write_text(json.dumps(document))
    failed = tmp_path / "failed.json"
    again = ("--max-drop", "1", "--baseline", str(earlier), "--json", str(failed))
    assert run(arguments(package, coco, *again)) == 3
    assert json.loads(failed.read_text())["failed"] == ["baseline"]


def test_a_package_against_itself_passes_at_zero(package: Path, coco: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "base.json"
    assert run(arguments(package, coco, "--max-drop", "1", "--json", str(earlier))) == 0
    again = ("--max-drop", "0", "--baseline", str(earlier), "--undecided", "fail")
    assert run(arguments(package, coco, *again)) == 0


def test_the_report_of_a_compile_is_no_baseline(
    package: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"schema": 1, "model": {}, "agreement": {}, "converter": None}))
    assert run(arguments(package, coco, "--max-drop", "1", "--baseline", str(report))) == 1
    told = capsys.readouterr().err
    assert "is the report of a compile without its package: a mIoU in it is on calibration pictures" in told
    assert "Fix: give the package's folder" in told


def test_an_earlier_package_is_run_on_the_same_crops(
    package: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its folder or by report.json in it; the verdict is that of its gate's JSON."""
    blind = packaged(tmp_path / "blind", red_finder(gain=-0.5), float_twin(red_finder(gain=-0.5)))
    kept = tmp_path / "kept.json"
    assert run(arguments(package, coco, "--max-drop", "1", "--json", str(kept))) == 0
    capsys.readouterr()
    (package / "report.json").write_text("{}")
    lost = []
    for baseline in (package, package / "report.json", kept):
        asked = ("--max-drop", "1", "--baseline", str(baseline), "--format", "json")
        assert run(arguments(blind, coco, *asked)) == 3
        document = json.loads(capsys.readouterr().out)
        assert document["failed"] == ["baseline"]
        lost.append(document["criteria"][1]["value"])
    assert lost == [lost[0]] * 3
    assert lost[0] > 10
    assert run(arguments(package, coco, "--max-drop", "0", "--baseline", str(package))) == 0


def test_an_earlier_package_of_other_prompts(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point, box = (
        packaged(tmp_path / name, red_finder(), float_twin(red_finder()), protocol=name)
        for name in ("point-native-96", "roi-pad10")
    )
    asked = arguments(point, coco, "--max-drop", "1", "--baseline", str(box))
    assert run(asked) == 1
    assert "--baseline roi-pad10: was trained on roi-pad10 (point-native-96" in capsys.readouterr().err
    assert run([*asked, "--protocol", "point-native-96", "--format", "json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "roi-pad10 was trained on roi-pad10, and this is its score on point-native-96" in notes
    alike = packaged(tmp_path / "other" / "roi-pad10", red_finder(), float_twin(red_finder()))
    asked = arguments(box, coco, "--max-drop", "1", "--baseline", str(alike), "--format", "json")
    assert run(asked) == 0  # of the same name, and not known what it was trained on
    assert json.loads(capsys.readouterr().out)["data"]["protocol"] == "roi-pad10"
    unknown = packaged(tmp_path / "unknown", red_finder(), float_twin(red_finder()))
    asked = arguments(unknown, coco, "--max-drop", "1", "--baseline", str(box), "--format", "json")
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["data"]["protocol"] == "roi-pad10"


def test_the_forecast_is_of_the_memory_that_was_compiled_for(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def used(name: str, **facts: object) -> tuple[float, str]:
        made = packaged(tmp_path / name, red_finder(), float_twin(red_finder()), **facts)
        assert run(arguments(made, coco, "--max-memory", "8388480", "--format", "json")) == 0
        (criterion,) = json.loads(capsys.readouterr().out)["criteria"]
        return criterion["value"], criterion["kind"]

    kept, freed = (forecast_memory(red_finder(), input_persistency=one).total_bytes for one in (True, False))
    assert kept > freed
    assert used("absent") == used("kept", input_persistency=True) == (kept, "estimated")
    assert used("freed", input_persistency=False) == (freed, "estimated")


def test_a_package_made_from_a_quantized_model(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = packaged(tmp_path / "alone", red_finder())
    kept = tmp_path / "gate.json"
    asked = ("--min-miou", "0.4", "--max-memory", "8388480", "--json", str(kept))
    assert run(arguments(alone, coco, *asked)) == 0
    assert json.loads(kept.read_text())["networks"]["float"] is None
    capsys.readouterr()
    assert run(arguments(alone, coco, "--max-drop", "0", "--baseline", str(kept))) == 1
    assert "Fix: ask for --min-miou and --max-memory alone" in capsys.readouterr().err


def test_the_reports_of_a_failed_compile(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = tmp_path / "out.failed"
    write_package(failed, {"report.md": b"why"}, {"step": "quantize", "exit_code": 1}, FAILED_RUN)
    assert run(arguments(failed, coco, "--max-drop", "1")) == 1
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert "is the report of a compile that failed in step quantize" in told
    assert "report.md" in told


def test_the_prompts_are_those_the_network_was_trained_on(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = packaged(tmp_path / "boxes", red_finder(), protocol="roi-pad10")
    for more, scored in ((), "roi-pad10"), (("--protocol", "point-native-96"), "point-native-96"):
        assert run(arguments(boxes, coco, "--min-miou", "0.1", "--format", "json", *more)) == 0
        assert json.loads(capsys.readouterr().out)["data"]["protocol"] == scored


def test_pictures_that_were_calibrated_on(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = min(content_hashes(f"coco:{coco}", "train2017"))
    card = {"sources": [{"name": "renamed.png", "content": content, "part": "calibration"}]}
    seen = packaged(tmp_path / "seen", red_finder(), float_twin(red_finder()), calibration=card)
    assert run(arguments(seen, coco, "--max-drop", "1")) == 0
    said = capsys.readouterr().out
    assert "calibrated, trained or decided on 1 of the 24 pictures scored: 0000000000" in said
    assert run(arguments(seen, coco, "--max-drop", "1", "--strict")) == 3
    assert capsys.readouterr().err.count("error: gate seen: unseen-pictures") == 1


def wrong(package: Path, coco: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    def asked(*more: str, where: Path = package) -> list[str]:
        return arguments(where, coco, "--max-drop", "1", *more)

    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    alone = packaged(tmp_path / "alone", red_finder())
    return {
        "nothing asked for": (arguments(package, coco), "nothing is asked for"),
        "per cent": (arguments(package, coco, "--min-miou", "52"), "0.52 for per cent"),
        "no package": (
            asked(where=empty),
            "has no manifest.json of ours (a directory that `picosam2 compile` wrote)",
        ),
        "absent": (asked(where=tmp_path / "absent"), "does not exist"),
        "a file": (asked(where=package / FLOAT_GRAPH), "is a file"),
        "no float graph": (asked(where=alone), f"has no {FLOAT_GRAPH}"),
        "protocol": (asked("--protocol", "box"), "--protocol: 'box'"),
        "split": (asked("--split", "absent2017"), "no such file"),
        "baseline": (asked("--baseline", str(tmp_path / "absent.json")), "is no report"),
        "junit": (asked("--junit", str(tmp_path / "absent" / "junit.xml")), "is no folder"),
        "json": (asked("--json", str(tmp_path)), "is a folder"),
        "undecided": (asked("--undecided", "perhaps"), "--undecided"),
    }


NAMES = (
    "nothing asked for",
    "per cent",
    "no package",
    "absent",
    "a file",
    "no float graph",
    "protocol",
    "split",
    "baseline",
    "junit",
    "json",
    "undecided",
)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_one_message(
    name: str, package: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, said = wrong(package, coco, tmp_path)[name]
    assert run(given) == 1
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "Fix: " in line


def test_the_float_graph_needs_no_torch(package: Path, coco: Path) -> None:
    code = (
        "import sys; from compiler.cli import run; "
        f"assert run({arguments(package, coco, '--max-drop', '1')!r}) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gate red: PASS")
