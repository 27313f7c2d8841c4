"""The whole verdict: what fails, what is warned about, what is written down."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from junitparser import JUnitXml

from compiler.gate.criteria import Verdict
from compiler.gate.earlier import read_earlier, require_comparable
from compiler.gate.gate import TELLING, UNSEEN, judge, require_passed, require_sound
from compiler.gate.intervals import Interval
from compiler.gate.junit import to_junit
from compiler.gate.reports import to_json_text, to_markdown, to_text
from passes.errors import ExitCode, GateFailed, InputError
from tests.compiler.gate.measurements import measurement, options

SEEN = tuple(
    {"content": f"content-{number}", "part": part}
    for number, part in enumerate(["calibration", "deciding", "held out"])
)


def test_everything_kept_to() -> None:
    result = judge(measurement(), options(0.5, 1.0, 100), used=(90, "exact"))
    assert [one.name for one in result.criteria] == ["min-miou", "max-drop", "max-memory"]
    assert {one.verdict for one in result.criteria} == {Verdict.PASS}
    assert (result.verdict, result.exit_code) == (Verdict.PASS, ExitCode.FINE)
    assert not any(one.found for one in result.cautions)
    require_passed(result)
    assert to_text(result).startswith("gate pack: PASS; coco val2017, point-native-96, 500 instances")


def test_what_is_broken_is_named_with_a_fix() -> None:
    result = judge(measurement(drop=3.0), options(0.5, 1.0, 100), used=(101, "exact"))
    assert [one.name for one in result.failed] == ["max-drop", "max-memory"]
    assert result.exit_code is ExitCode.GATE
    with pytest.raises(GateFailed, match=r"gate pack: drop of mIoU.*at most 1\.00: fail; memory of the chip"):
        require_passed(result)
    assert "**FAIL**" in to_markdown(result)


@pytest.mark.parametrize("fails", [False, True])
def test_what_cannot_be_told_counts_as_asked(fails: bool) -> None:
    result = judge(measurement(drop=1.0), options(max_drop=1.0, undecided_fails=fails))
    assert result.verdict is Verdict.UNDECIDED
    assert result.exit_code is (ExitCode.GATE if fails else ExitCode.FINE)
    assert f"TOO FEW SAMPLES TO TELL (exit code {3 * fails})" in to_text(result)
    (case, *_) = next(iter(JUnitXml.fromstring(to_junit(result))))
    assert (case.is_failure, case.is_skipped) == (fails, not fails)


@pytest.mark.parametrize("strict", [False, True])
def test_pictures_that_the_package_has_seen(strict: bool) -> None:
    made = measurement(sources=SEEN)
    result = judge(made, options(0.5, strict=strict))
    unseen = next(one for one in result.cautions if one.name == UNSEEN)
    assert unseen.items == ("0.jpg", "1.jpg")  # what was only reported on was not learnt from
    assert "2 of the 100 pictures scored: 0.jpg, 1.jpg" in to_text(result)
    assert result.exit_code is (ExitCode.GATE if strict else ExitCode.FINE)
    assert result.verdict is (Verdict.FAIL if strict else Verdict.PASS)


@pytest.mark.parametrize("calibration", [None, {"sources": [{"name": "a.jpg", "sha256": "0"}]}])
def test_a_card_without_contents_is_said(calibration: Any) -> None:
    result = judge(dataclasses.replace(measurement(), calibration=calibration), options(0.5))
    assert any("has seen these pictures is unknown" in note for note in result.notes)


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        (options(min_miou=0.29), True),
        (options(min_miou=0.3), True),
        (options(min_miou=0.5), False),
        (options(max_drop=1.0), False),
        (options(max_drop=60.0), True),
        (options(max_memory=100), False),
    ],
)
def test_a_gate_that_a_disc_would_pass_is_warned_about(asked: Any, passes: bool) -> None:
    result = judge(measurement(), asked, used=(1, "exact"))
    (disc,) = result.trivial
    telling = next(one for one in result.cautions if one.name == TELLING)
    assert disc.passes is passes
    assert (telling.found is not None) is passes
    assert ("warning: this gate would let a mask pass" in to_text(result)) is passes
    assert "best centred disc" in to_text(result)
    assert not result.failed
    assert (
        bool(judge(measurement(), dataclasses.replace(asked, strict=True), used=(1, "exact")).failed)
        is passes
    )


def test_a_gate_that_asks_for_no_accuracy_promises_none() -> None:
    result = judge(measurement(), options(max_memory=100, strict=True), used=(90, "exact"))
    assert (result.verdict, result.exit_code) == (Verdict.PASS, ExitCode.FINE)
    assert "would pass" not in to_text(result)


def test_with_few_pictures_a_higher_limit_would_not_tell_more() -> None:
    result = judge(measurement(pictures=4), options(min_miou=0.5, strict=True))
    telling = next(one for one in result.cautions if one.name == TELLING)
    assert telling.found is not None  # nothing is decided, so the disc is not stopped either
    assert telling.fix == "score at least 10 pictures: with 4 nothing is decided at any limit"
    enough = judge(measurement(pictures=10), options(min_miou=0.2))
    assert "--min-miou well above 0.30" in next(one for one in enough.cautions if one.name == TELLING).fix


def test_a_package_without_a_float_network() -> None:
    made = dataclasses.replace(measurement(), real=None, float_sha256=None)
    result = judge(made, options(min_miou=0.5, max_memory=100), used=(90, "exact"))
    assert [one.name for one in result.criteria] == ["min-miou", "max-memory"]
    assert result.verdict is Verdict.PASS
    whole = judge(measurement(), options(min_miou=0.5)).criteria[0].found
    assert dataclasses.astuple(result.criteria[0].found) == pytest.approx(dataclasses.astuple(whole))
    document = json.loads(to_json_text(result))
    assert document["networks"]["float"] is document["instances"]["float_iou"] is None
    assert document["package"]["float_sha256"] is None
    assert "float network" not in to_text(result) + to_markdown(result)


def test_the_same_seed_gives_the_same_bytes() -> None:
    def reports(seed: int) -> list[Any]:
        result = judge(measurement(drop=0.9), options(0.5, 1.0, seed=seed))
        return [to_text(result), to_markdown(result), to_json_text(result), to_junit(result)]

    assert reports(0) == reports(0)
    assert reports(0) != reports(1)


def test_junit_says_it_in_its_properties_and_failures() -> None:
    made = measurement(drop=3.0, sources=SEEN)
    result = judge(made, options(0.5, 1.0))
    document = JUnitXml.fromstring(to_junit(result))
    assert (document.tests, document.failures, document.skipped, document.errors) == (4, 1, 1, 0)
    suite = next(iter(document))
    properties = {one.name: one.value for one in suite.properties()}
    drop = result.criteria[1]
    assert float(properties["max-drop.value"]) == pytest.approx(drop.found.value)
    assert float(properties["max-drop.low"]) == pytest.approx(drop.found.low)
    assert float(properties["max-drop.high"]) == pytest.approx(drop.found.high)
    assert properties["max-drop.limit"] == "1"
    assert properties["max-drop.verdict"] == "fail"
    cases = {case.name: case for case in suite}
    assert list(cases) == ["min-miou", "max-drop", UNSEEN, TELLING]
    (failure,) = cases["max-drop"].result
    assert failure.message == drop.sentence()
    assert drop.fix in failure.text
    assert cases[UNSEEN].is_skipped
    assert cases["min-miou"].is_passed


def test_a_name_that_xml_cannot_hold() -> None:
    made = dataclasses.replace(measurement(), package='a\x00<"&\udc80\x1b')
    suite = next(iter(JUnitXml.fromstring(to_junit(judge(made, options(0.5))))))
    assert next(iter(suite)).classname == 'picosam2.gate.a?<"&??'


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (options(), "gate: nothing is asked for"),
        (options(min_miou=52), "--min-miou: 52"),
        (options(min_miou=float("nan")), "--min-miou: nan"),
        (options(max_drop=-1), "--max-drop: -1"),
        (options(max_memory=0), "--max-memory: 0"),
        (options(0.5, confidence=1.0), "--confidence: 1"),
        (options(0.5, confidence=95), "--confidence: 95"),
        (options(0.5, baseline=Path("old.json")), "--baseline: without --max-drop"),
    ],
)
def test_options_that_cannot_be(asked: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        require_sound(asked)
    assert str(error.value).startswith(said)


def test_its_own_report_is_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(to_json_text(judge(measurement(), options(max_drop=1.0))))
    asked = options(max_drop=1.0, baseline=path)
    same = judge(measurement(), asked, read_earlier(path))
    assert [one.verdict for one in same.criteria] == [Verdict.PASS, Verdict.PASS]
    assert same.criteria[1].found.value == pytest.approx(0, abs=1e-4)
    assert not same.notes
    embedded = tmp_path / "report.json"
    embedded.write_text(json.dumps({"gate": json.loads(path.read_text())}))
    worse = judge(measurement(drop=3.0), asked, read_earlier(embedded))
    assert [one.verdict for one in worse.criteria] == [Verdict.FAIL, Verdict.FAIL]


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_against_itself_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("itself") / "old.json"
    made = measurement(pictures=30, drop=1.0, seed=seed)
    path.write_text(to_json_text(judge(made, options(max_drop=1.0))))
    same = judge(made, options(max_drop=0.0, baseline=path), read_earlier(path)).criteria[1]
    assert same.verdict is Verdict.PASS
    assert same.found == Interval(0.0, 0.0, 0.0)


def test_the_report_of_evaluate_is_a_baseline(tmp_path: Path) -> None:
    made = measurement()
    path = tmp_path / "evaluated.json"
    miou = {"mean": 0.8, "low": 0.78, "high": 0.82}
    document = {
        "data": {"name": made.data},
        "protocol": {"name": made.protocol},
        "model": {"overall": {"miou": miou}},
    }
    path.write_text(json.dumps(document))
    result = judge(made, options(max_drop=1.0, baseline=path), read_earlier(path))
    assert [one.verdict for one in result.criteria] == [Verdict.PASS, Verdict.FAIL]
    assert any("compared by its interval" in note for note in result.notes)


def test_baselines_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    document = json.loads(to_json_text(judge(measurement(), options(0.5))))
    path.write_text(json.dumps(document))
    earlier, made = read_earlier(path), measurement()
    with pytest.raises(InputError, match="was measured on coco val2017, point-native-96"):
        require_comparable(earlier, dataclasses.replace(made, protocol="roi-pad10"))
    with pytest.raises(InputError, match="none of its instances"):
        require_comparable(earlier, dataclasses.replace(made, annotation_ids=-made.annotation_ids))
    fewer = dataclasses.replace(made, annotation_ids=made.annotation_ids + 100)
    assert "400 of 500 instances" in (require_comparable(earlier, fewer) or "")
    changed = require_comparable(earlier, dataclasses.replace(made, crops_sha256="d"))
    assert "their pictures or masks have changed" in (changed or "")
    for broken in (
        "",
        "[]",
        "{}",
        json.dumps(document | {"instances": {"annotation_ids": [1, 1], "int8_iou": [0.5, 0.5]}}),
        json.dumps(document | {"instances": {"annotation_ids": [1, 2], "int8_iou": [0.5]}}),
        json.dumps(document | {"instances": {"annotation_ids": [1], "int8_iou": [1.5]}}),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=r"old\.json: is no report with an int8 mIoU"):
            read_earlier(path)
    with pytest.raises(InputError, match="is no report"):
        read_earlier(tmp_path / "absent.json")


def test_json_holds_every_instance() -> None:
    made = measurement()
    document = json.loads(to_json_text(judge(made, options(0.5))))
    assert document["verdict"] == "pass"
    assert document["instances"]["annotation_ids"] == made.annotation_ids.tolist()
    np.testing.assert_array_equal(document["instances"]["int8_iou"], made.int8)
    np.testing.assert_array_equal(document["instances"]["float_iou"], made.real)
    assert document["options"]["seed"] == 0
