"""Compile results for the tests of the reports, made by the real check, forecast and measurements."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import onnx_ir as ir

from calib.representative import RepresentativeSet
from compiler.agreement import Agreement, OutputAgreement
from compiler.checking import check_graph
from compiler.quantizing.judge import Accuracy, Drop
from compiler.quantizing.search import Choice, Tried
from compiler.quantizing.widths import Option, Widths
from compiler.reports.facts import measure_facts
from compiler.reports.failed_run import failure_of
from compiler.reports.what_if import what_if
from compiler.result import CompileResult, Output, StepTime, VendorFigures
from compiler.simulator.fixedpoint import Grid
from passes import contract as contracts
from passes.diagnostics import Diagnostic, Severity
from passes.equalise import Equalisation, EqualisedTensor
from passes.errors import EnvironmentFault, TargetViolation
from passes.graph import MODULE_KEY
from student.evaluate import Estimate
from tests.compiler.small_packages import SIZE, float_twin, segmenter
from tests.graphs import model, node

WHEN = "2026-01-02T03:04:05+00:00"

SARIF_SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0.schema.json").read_text())
"""The standard's schema as SchemaStore publishes it (2.1.0-rtm.5), unchanged; a JSON schema of draft 4."""

HOSTILE = "</script><script>alert(1)</script>|`*_&\"'"


def validate_sarif(document: dict) -> None:
    """Raises jsonschema.ValidationError where `document` is no SARIF 2.1.0, its URIs and times included."""
    formats = jsonschema.FormatChecker()
    assert {"uri", "uri-reference", "date-time"} <= set(formats.checkers)  # jsonschema[format-nongpl]
    jsonschema.Draft4Validator(SARIF_SCHEMA, format_checker=formats).validate(document)


@cache
def plain() -> CompileResult:
    """An ordinary compile of a small segmenter, converted, with everything measured."""
    graph, contract = segmenter(), contracts.raw(3, SIZE, SIZE, signed=True)
    real = float_twin(graph)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, SIZE, SIZE), np.uint8)
    crops = RepresentativeSet(pixels[:2], pixels, contract, (), 0, "random")
    check = check_graph(graph)
    assert check.memory is not None
    facts = measure_facts(real, graph, [crops])
    return CompileResult(
        tool_version="0.1.0",
        target="imx500",
        model_name="net.onnx",
        model_sha256="ab" * 32,
        model_kind="float ONNX",
        network="net",
        contract=contract,
        seed=7,
        quantizer="mct-ptq",
        choice=None,
        widths=None,
        equalised=None,
        calibration={"how": "by hand", "pictures": 2, "held_out": 10, "seed": 0, "sha256": "cd" * 32},
        check=check,
        outputs=(Output("y", (1, 1, SIZE, SIZE), Grid(-4, 8, True), ("N", "C", "H", "W")),),
        agreement=Agreement(10, (OutputAgreement("y", "mask-iou", float(np.mean(facts.agreements)), 20.0),)),
        vendor=VendorFigures(
            "3.19.2",
            check.memory.model_bytes,
            check.memory.runtime_bytes,
            check.memory.total_bytes,
            fits=True,
            tiled=False,
            input_persistency=True,
        ),
        vendor_diagnostics=(),
        steps=(StepTime("quantize", 1.5, cached=False, vendor=True), StepTime("check", 0.1, False, False)),
        versions={"torch": "2.6.0"},
        accuracy="no annotated masks were given (--calib coco:DIR)",
        facts=facts,
        what_if=what_if(graph, real, contract, input_persistency=True),
    )


def searched() -> CompileResult:
    """With a search of ways to quantize and layers of different widths."""
    tried = (
        Tried("mct-ptq", "32 crops", 0.97, Drop(1.2, 0.4, 2.0, "measured"), 7.0),
        Tried(
            "mct-gptq", "256 crops", 0.98, Drop(0.5, 0.1, 0.9, "measured"), None, Estimate(0.47, 0.44, 0.5)
        ),
    )
    widths = Widths("mixed", 100_000, {"a": 4, "b": 8}, (Option("a", 4, 0.1, 512),))
    return dataclasses.replace(
        plain(),
        quantizer="mct-gptq",
        choice=Choice("mct-gptq", 64, 40, 1.0, True, tried),
        widths=widths,
        equalised=Equalisation((EqualisedTensor("h", 8, 1, 2.5, 0.5),)),
        accuracy=Accuracy(Estimate(0.47, 0.44, 0.5), tried[1].drop, 64, 40),
    )


TEN = 10


def ten_violations() -> ir.Model:
    """Ten violations of different kinds, one in each of the modules block.0 to block.9."""
    random = np.random.default_rng(0)
    weights = {
        "padded": random.normal(size=(16, 3, 3, 3)).astype(np.float32),
        "deep": random.normal(size=(16, 1, 13, 13)).astype(np.float32),
        "dilated": random.normal(size=(16, 16, 3, 3)).astype(np.float32),
        "jump": random.normal(size=(16, 16, 2, 2)).astype(np.float32),
        "sizes": np.array([1, 16, 24, 24], np.int64),
        "none": np.array([], np.float32),
        "cube": np.array(3.0, np.float32),
        "slope": np.full((16, 1, 1), 0.1, np.float32),
    }
    nodes = [
        node("Conv", ["x", "padded"], ["v0"], name="pad", pads=[3, 3, 3, 3]),
        node("Conv", ["v0", "deep"], ["v1"], name="depthwise", group=16, pads=[6, 6, 6, 6]),
        node("Conv", ["v1", "dilated"], ["v2"], name="dilate", strides=[2, 2], dilations=[2, 2]),
        node("Softplus", ["v2"], ["v3"], name="softplus"),
        node("Pow", ["v3", "cube"], ["v4"], name="cube"),
        node("Elu", ["v4"], ["v5"], name="elu"),
        node("Selu", ["v5"], ["v6"], name="selu"),
        node("Softsign", ["v6"], ["v7"], name="softsign"),
        node(
            "Resize",
            ["v7", "none", "none", "sizes"],
            ["v8"],
            name="bicubic",
            mode="cubic",
            coordinate_transformation_mode="half_pixel",
        ),
        node("LpNormalization", ["v8"], ["y"], name="lp", axis=1, p=2),
    ]
    built = model(nodes, {"x": [1, 3, 16, 16]}, ["y"], weights, contracts.raw(3, 16, 16))
    for index, one in enumerate(one for one in built.graph if one.op_type != "Constant"):
        one.metadata_props[MODULE_KEY] = f"block.{index}"
    return built


def refused() -> CompileResult:
    """A run that ended in the check."""
    check = check_graph(ten_violations())
    error = TargetViolation("model net.onnx", "violates", "none", "apply the fixes", check.diagnostics)
    return dataclasses.replace(
        unread(),
        check=check,
        contract=contracts.raw(3, 16, 16),
        failure=failure_of(error, "check", "operator rules and memory forecast"),
    )


def converter_failed() -> CompileResult:
    """A run that ended in the converter, with all that was measured before."""
    error = EnvironmentFault("the vendor's converter", "killed halfway", "it has to end", "run it again")
    error.add_note("the converter's whole log: net.converter.log")
    failure = failure_of(error, "convert", "the vendor's converter")
    return dataclasses.replace(plain(), vendor=None, failure=failure)


def converter_refused() -> CompileResult:
    """A run that the converter ended by refusing the model."""
    found = Diagnostic(
        "converter/cbe", Severity.ERROR, "n1", "", "too wide", "narrow", "narrow it", "its own"
    )
    error = TargetViolation("model net", "refused by the converter", "narrow", "narrow it", [found])
    failure = failure_of(error, "convert", "the vendor's converter")
    return dataclasses.replace(plain(), vendor=None, vendor_diagnostics=(found,), failure=failure)


def unread() -> CompileResult:
    """A run that was interrupted while the model was loaded: nearly nothing is known."""
    return CompileResult(
        tool_version="0.1.0",
        target="imx500",
        model_name="net.onnx",
        model_sha256="",
        model_kind="",
        network="net",
        contract=None,
        seed=0,
        quantizer="mct-ptq",
        choice=None,
        widths=None,
        equalised=None,
        calibration=None,
        check=None,
        outputs=(),
        agreement=None,
        vendor=None,
        vendor_diagnostics=(),
        steps=(),
        versions={},
        failure=failure_of(KeyboardInterrupt(), "load", "the model file becomes one ONNX graph"),
    )


def hostile() -> CompileResult:
    """Every name that comes from a user's file is markup."""
    finding = Diagnostic(
        "imx500/x", Severity.ERROR, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, "test", f"{HOSTILE}:3"
    )
    result = plain()
    assert result.check is not None
    assert result.check.memory is not None
    assert result.facts is not None
    memory = dataclasses.replace(
        result.check.memory,
        tensors=tuple(dataclasses.replace(one, name=HOSTILE) for one in result.check.memory.tensors),
        steps=(HOSTILE,) * len(result.check.memory.steps),
    )
    layers = tuple(dataclasses.replace(one, name=HOSTILE) for one in result.facts.layers)
    return dataclasses.replace(
        result,
        network=HOSTILE,
        model_name=HOSTILE,
        check=dataclasses.replace(result.check, diagnostics=(finding,), memory=memory),
        outputs=(dataclasses.replace(result.outputs[0], name=HOSTILE),),
        facts=dataclasses.replace(result.facts, layers=layers),
        failure=failure_of(EnvironmentFault(HOSTILE, HOSTILE, HOSTILE, HOSTILE), "convert", "convert"),
    )


RESULTS = {
    "plain": plain,
    "searched": searched,
    "refused by the check": refused,
    "refused by the converter": converter_refused,
    "converter failed": converter_failed,
    "interrupted": unread,
    "hostile": hostile,
}
"""Name -> what makes the result."""
