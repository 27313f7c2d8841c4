"""Reports are pure functions of the result and say of each figure what it is."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from compiler import raspberry_pi
from compiler.agreement import Agreement, OutputAgreement
from compiler.checking import check_graph
from compiler.driver import _manifest_facts
from compiler.quantizing.judge import Drop
from compiler.quantizing.search import Choice, Tried
from compiler.quantizing.widths import Option, Widths
from compiler.reports.json_document import to_json
from compiler.reports.markdown import to_markdown
from compiler.reports.terminal import (
    COSTLIEST,
    check_rows,
    cost_lines,
    fix_text,
    summary_rows,
    what_if_lines,
)
from compiler.result import CompileResult, Output, SizeResult, StepTime, VendorFigures
from compiler.simulator.fixedpoint import Grid
from passes import contract as contracts
from passes.equalise import Equalisation, EqualisedTensor
from passes.imx500.fixes import AppliedFix, Exactness
from passes.imx500.macs import LayerCost
from passes.pipeline import apply_all
from tests.graphs import model, node

WHEN = "2026-01-02T03:04:05+00:00"


TRIED = (
    Tried("mct-ptq", "32 crops", 0.98125, Drop(0.1, -0.05, 0.25, "measured"), 7.0),
    Tried("brevitas-qat", "512 crops", 0.97, Drop(3.0, math.nan, math.nan, "bound"), None),
)


@pytest.fixture(scope="module")
def result() -> CompileResult:
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = apply_all(
        model(
            [node("Conv", ["x", "w"], ["y"], name="stem", pads=[1, 1, 1, 1])],
            {"x": [1, 3, 16, 16]},
            ["y"],
            {"w": weight},
            contracts.centred(3, 16, 16),
        )
    )
    return CompileResult(
        tool_version="0.1.0",
        target="imx500",
        model_name="net.onnx",
        model_sha256="ab" * 32,
        model_kind="float ONNX",
        network="net",
        contract=contracts.centred(3, 16, 16),
        seed=7,
        quantizer="brevitas-qat",
        choice=Choice("mct-ptq", 64, 32, 0.5, True, TRIED),
        widths=Widths("mixed", 9000, {"a": 4, "b": 8}, (Option("a", 4, 0.001, 64),)),
        equalised=Equalisation((EqualisedTensor("h", 8, 1, 2.5, 0.5), EqualisedTensor("r", 8, 0, 0.1, 0.1))),
        calibration={"how": "by hand", "sources": [{"name": "a.png", "sha256": "01", "part": "held out"}]},
        check=check_graph(graph),
        outputs=(Output("y", (1, 8, 16, 16), Grid(-3, 8, True), ("N", "C", "H", "W")),),
        agreement=Agreement(16, (OutputAgreement("y", "mask-iou", 0.987654, float("inf")),)),
        vendor=VendorFigures("3.19.2", 1000, 2000, 4024, fits=True, tiled=False, input_persistency=True),
        vendor_diagnostics=(),
        steps=(StepTime("quantize", 1.5, cached=False, vendor=True), StepTime("check", 0.1, False, False)),
        versions={"torch": "2.6.0"},
    )


def test_json_holds_the_block_of_check_and_is_strict(result):
    document = json.loads(to_json(result, WHEN))
    assert document["check"] == json.loads(json.dumps(result.check.to_json()))
    assert document["schema"] == 1
    assert document["seed"] == 7
    found = document["quantization"]
    assert (found["kept"], found["crops"], found["pictures"]) == ("mct-ptq", 64, 32)
    assert (found["max_drop"], found["met"], found["kind"]) == (0.5, True, "measured")
    assert found["tried"] == [
        {
            "quantizer": "mct-ptq",
            "settings": "32 crops",
            "agreement": 0.98125,
            "drop": {"points": 0.1, "low": -0.05, "high": 0.25, "kind": "measured"},
            "seconds": 7.0,
        },
        {
            "quantizer": "brevitas-qat",
            "settings": "512 crops",
            "agreement": 0.97,
            "drop": {"points": 3.0, "low": None, "high": None, "kind": "bound"},
            "seconds": None,
        },
    ]
    assert document["weights"]["bits"] == {"a": 4, "b": 8}
    assert document["equalised"]["channels"] == 1
    assert [one["name"] for one in document["equalised"]["tensors"]] == ["h"]
    assert document["outputs"][0] == {
        "name": "y", "shape": [1, 8, 16, 16], "dtype": "int8", "step": 0.125, "order": ["N", "C", "H", "W"],
    }  # fmt: skip
    assert document["agreement"]["outputs"][0]["snr_db"] is None  # infinite: JSON has no word for it
    assert document["converter"]["kind"] == "measured"
    assert to_json(result, WHEN) == to_json(result, WHEN)


def test_markdown_tells_the_pixel_table_and_the_outputs(result):
    text = to_markdown(result, WHEN)
    assert "| 0 | -128 | -2.0000, -2.0000, -2.0000 |" in text
    assert "| y | 1x8x16x16 | int8 | 0.125 | N,C,H,W |" in text
    assert "| model | " in text
    assert "**0.9877**" in text
    assert "seed 7" in text


def test_the_summary_prefers_what_was_measured(result):
    rows = dict(summary_rows(result))
    assert "measured by the converter" in rows["Memory"]
    alone = dict(summary_rows(dataclasses.replace(result, vendor=None, agreement=None)))
    assert "forecast" in alone["Memory"]
    assert "Float against int8" not in alone


def test_the_costliest_modules_add_up_to_the_whole(result):
    lines = cost_lines(result.check)
    assert lines[0].split() == ["MACs", "share", "parameters", "latency", "(estimated)", "module"]
    assert lines[1].split()[:4] == ["0.1", "M", "100.0", "%"]
    assert lines[1].endswith("stem")


def test_more_modules_than_are_shown_are_summed(result):
    costs = tuple(LayerCost(f"n{i}", "Conv", f"m{i}", 1_000_000 * (20 - i), i) for i in range(20))
    lines = cost_lines(dataclasses.replace(result.check, costs=costs))
    assert len(lines) == 1 + COSTLIEST + 1
    assert lines[1].split()[0] == "20.0"
    assert lines[-1].split()[:4] == ["78.0", "M", "37.1", "%"]  # 12 + 11 + ... + 1 of 210
    assert lines[-1].endswith("12 others")


def test_instructions_for_the_camera(result):
    text = raspberry_pi.instructions(result, packed=True)
    assert "imx500-package -i packerOut.zip" in text
    assert "p - 128" in text
    assert "--no-convert" not in text
    assert "--no-convert" in raspberry_pi.instructions(result, packed=False)


@pytest.mark.parametrize(
    ("added", "words"), [(None, "bytes not forecast"), (-1024, "-1,024 bytes (forecast)")]
)
def test_a_fix_says_what_it_costs(added, words):
    fix = AppliedFix("imx500/pool-rank", "pool", "features.0", "became 2-D", Exactness.EXACT, 0, added)
    assert words in fix_text(fix)


@pytest.mark.parametrize(
    ("macs", "words"),
    [
        (4_000, "< 0.01 ms"),
        (240_000, "< 0.01 to 0.0106 ms"),
        (323_053_056, "11.6 to 14.3 ms"),
        (10**11, "3,580 to 4,427 ms"),
    ],
)
def test_a_latency_is_printed_as_people_write_it(result, macs, words):
    check = dataclasses.replace(result.check, costs=(LayerCost("n", "Conv", "m", macs, 1),))
    assert words in cost_lines(check)[1]
    assert dict(check_rows(check))["Latency"].startswith(words)


def test_what_is_not_counted_is_said(result):
    assert "(exact)" in dict(check_rows(result.check))["Cost"]
    assert result.check.to_json()["kind"]["macs"] == "exact"
    unknown = [LayerCost(name, name, "", 0, 0, counted=False) for name in ("LSTM", "Einsum")]
    check = dataclasses.replace(result.check, costs=(*result.check.costs, *unknown))
    rows = dict(check_rows(check))
    assert rows["Cost"] == "at least 0.1 M MACs, 216 parameters; 2 operators not counted (Einsum, LSTM)"
    assert "without the operators not counted" in rows["Latency"]
    assert check.to_json()["kind"] == {"macs": "at least", "parameters": "at least", "latency": "estimated"}
    size = SizeResult(8, 8, check)
    assert any("at least 0.1 M" in line for line in what_if_lines([size]))
    assert size.to_json()["kind"]["macs"] == "at least"


def test_the_manifest_names_the_quantizer_that_was_kept(result):
    assert _manifest_facts(result, input_persistency=True)["quantizer"] == "mct-ptq"
    asked = dataclasses.replace(result, choice=None)
    assert _manifest_facts(asked, input_persistency=True)["quantizer"] == "brevitas-qat"


@pytest.mark.parametrize("kept", [True, False])
def test_the_manifest_says_whether_the_input_keeps_its_memory(result, kept):
    assert _manifest_facts(result, input_persistency=kept)["input_persistency"] is kept


def test_the_summary_says_which_quantizer_was_kept_and_what_each_reached(result):
    rows = summary_rows(result)
    place = [name for name, _ in rows].index("Quantizer")
    texts = [text for _, text in rows[place : place + 3]]
    assert texts[0].startswith(
        "mct-ptq kept; --max-drop 0.5 met (measured by the exact simulator on 64 crops"
    )
    assert texts[1] == (
        "mct-ptq, 32 crops: agreement 0.9812, drop +0.10 (-0.05 to +0.25) points of mIoU, 7 s"
    )
    assert texts[2] == "brevitas-qat, 512 crops: agreement 0.9700, drop at most 3.00 points, cached"
    assert dict(rows)["Weights"].startswith("1 layer of 8 bits, 1 layer of 4 bits for at most 0.01 MB")
