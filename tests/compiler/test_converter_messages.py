"""Every message the real converter was seen to print, and every way it was made to break.

converter_logs.jsonl holds whole logs of real runs (`source` run: refused networks, accepted ones, processes
killed, full disks, starved heaps, no Java) and messages of the oracle with the codes and reasons another
program read from them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.converter.findings import diagnose
from compiler.converter.messages import parse_log
from compiler.converter.verdict import fault_of, last_line
from passes.diagnostics import Severity

LOGS = [json.loads(line) for line in (Path(__file__).parent / "converter_logs.jsonl").open()]
RUNS = {case["name"]: case for case in LOGS if case["source"] == "run"}
ORACLE = [case for case in LOGS if case["source"] != "run"]

REFUSED = {
    "operators": [("converter/usop", "", "operator Elu"), ("converter/usop", "", "operator Softplus")],
    "attributes": [
        ("converter/invop", "/c/layer/Conv", "Conv: padding = Padding2d(h=(4, 4), w=(4, 4))"),
        ("converter/invop", "/d/layer/Conv", "Conv: stride, dilation = (2, 2), (2, 2)"),
    ],
    "producer": [("converter/exec", "", "Unsupported producer: me. Only pytorch is supported")],
    "batch": [
        (
            "converter/invmod",
            "",
            "The provided model input: 0 has batch-size > 1. MCT currently supports batch-size of 1 only.",
        )
    ],
    "dynamic_size": [
        (
            "converter/invmod",
            "",
            "The provided model input: 0 has a dynamic input tensor shape. MCT currently supports models "
            "with constant input tensor size.",
        )
    ],
    "activation_quantizer": [("converter/usop", "", "operator ActivationSymmetricQuantizer")],
    "empty": [("converter/exec", "", "Onnx model loaded but failed validation check")],
    "truncated": [("converter/exec", "", "Failed to load trunc.onnx")],
    "disconnected": [("converter/exec", "", "stopped with AssertionError")],
    "weights_16_bit": [
        ("converter/cnve", "/a/layer/Conv", "input number 1 has 16 bits"),
        ("converter/cnve", "/b/layer/Conv", "input number 1 has 16 bits"),
    ],
    "activations_4_bit": [("converter/cnve", "/b/layer/Conv", "output number 0 has 4 bits")],
    "input_not_quantized": [("converter/ve", "input", "the result of Placeholder has no quantizer")],
    "nan_weight": [
        ("converter/gre", "/a/WeightsSymmetricQuantizer", "a constant holds NaN"),
        ("converter/gre", "/b/WeightsSymmetricQuantizer", "a constant holds NaN"),
    ],
    "no_quantizers": [("converter/ge", "", "the network has no quantizers")],
    "embedding": [("converter/ge", "", 'For input string: ""')],
    "too_large_no_tiles": [("converter/ism", "", "needs 12.01 MB")],
    "too_large_skip": [("converter/ism", "", "needs 21.65 MB")],
    "too_large_even_tiled": [("converter/ism", "", "needs 16.53 MB")],
    "no_shapes": [("converter/exec", "", "Can't find value_info for first.quantized")],
    "instance_norm": [
        ("converter/cbe", "", "layers GROUP_NORM: mismatch in input.NofDim, actual=3, expected=2")
    ],
}
"""Errors (rule, node, found) of each refused network, read from its log by eye."""

BROKEN = {
    "heap8": ("ran out of memory", "OutOfMemoryError"),
    "heap16": ("ran out of memory", "general exception"),
    "badjvm": ("Java crashed", "Could not create the Java Virtual Machine"),
    "nojava": ("exit code 127", "java: command not found"),
    "disk20k": ("the disk became full", "No space left on device"),
    "disk60k": ("the disk became full", "No space left on device"),
    "disk300k": ("the disk became full", "No space left on device"),
    "killed_conversion_java": ("killed halfway", "converter-frontend.sh: Killed"),
    "killed_back_end_java": ("killed halfway", "converter-backend.sh: Killed"),
    "killed_tiling_java": ("killed halfway", "tiling-advisor.sh: Killed"),
    "killed_main_java": ("killed halfway", "SIGKILL"),
    "killed_shell": ("killed halfway", "SIGKILL"),
}
ACCEPTED = {"accepted": [], "accepted_memory_report": [], "tiled_memory_report": ["converter/ism"]}


def test_every_recorded_run_is_expected_somewhere():
    assert set(RUNS) == {*REFUSED, *BROKEN, *ACCEPTED}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_network_is_no_fault_and_every_reason_is_told(name):
    case = RUNS[name]
    assert fault_of(case["exit_code"], case["log"]) is None
    diagnostics = diagnose(parse_log(case["log"]), accepted=False, version="3.19.2")
    errors = [(d.rule, d.node, d.found) for d in diagnostics if d.severity is Severity.ERROR]
    assert errors == REFUSED[name]
    assert all(d.limit and d.fix and "3.19.2" in d.source for d in diagnostics)


def test_memory_gives_both_numbers_and_the_tiling_attempt_as_a_note():
    log = RUNS["too_large_skip"]["log"]
    error, note = diagnose(parse_log(log), accepted=False, version="3.19.2")
    assert "8.00 MB" in error.limit
    assert "--no-input-persistency" in error.fix
    assert (note.severity, note.rule, note.node) == (Severity.NOTE, "converter/ge", "/b/layer/Conv")


def test_memory_after_tiling_is_a_note():
    log = RUNS["too_large_even_tiled"]["log"]
    _, note = diagnose(parse_log(log), accepted=False, version="3.19.2")
    assert (note.severity, note.found) == (Severity.NOTE, "needs 8.71 MB even when cut into tiles")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tool_is_a_fault_whatever_its_codes_say(name):
    case = RUNS[name]
    fault = fault_of(case["exit_code"], case["log"])
    assert fault is not None
    for part in BROKEN[name]:
        assert part in fault.found
    assert fault.limit
    assert fault.fix


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_network_gives_at_most_warnings(name):
    case = RUNS[name]
    assert fault_of(case["exit_code"], case["log"]) is None
    diagnostics = diagnose(parse_log(case["log"]), accepted=True, version="3.19.2")
    assert [d.rule for d in diagnostics] == ACCEPTED[name]
    assert all(d.severity is Severity.WARNING for d in diagnostics)


@pytest.mark.parametrize("case", ORACLE, ids=lambda case: case["name"])
def test_oracle_messages(case):
    """As many errors as the message has error lines, each with the vendor's own reason as its limit."""
    assert fault_of(case["exit_code"], case["log"]) is None
    diagnostics = diagnose(parse_log(case["log"]), accepted=False, version="3.19.2")
    rules = {d.rule.removeprefix("converter/").upper() for d in diagnostics}
    # GE wraps RE, and FEFSUC says only where it failed
    assert rules == set(case.get("codes", rules)) - ({"GE"} if "RE" in rules else set()) - {"FEFSUC"}
    errors = [d for d in diagnostics if d.severity is Severity.ERROR]
    lines = sum("Param error" in line or "Input error" in line for line in case["log"].splitlines())
    if lines:
        assert len(errors) == lines
        assert all(d.node.startswith("/") and d.limit in " ".join(case["log"].split()) for d in errors)
    else:
        assert len(errors) == 1
    for reason in case.get("reasons", ()):
        found = f"{reason['param']} = {' '.join(reason['value'].split())}".replace("np.int64(-1)", "-1")
        assert [d for d in errors if found in d.found and d.limit == reason["reason"]]


def test_oracle_subset_has_every_code_a_refused_network_ever_had():
    codes = {code for case in LOGS for code in case.get("codes", ())}
    assert codes == {"USOP", "INVOP", "ISM", "TANSF", "GE", "RE", "FEFSUC"}


@pytest.mark.parametrize(
    ("returncode", "log", "part"),
    [
        (-15, "", "SIGTERM"),
        (-9, "2026-11-22 17:43:00.973 INFO : CODE: [START] Starting SDSPconv\n", "Starting SDSPconv"),
        (1, "Segmentation fault\n", "Segmentation fault"),
        (1, "", "nothing was printed"),
        (5, "CODE: [USOP] The network contains unsupported ops: Elu", "exit code 5"),
        (1, "2026-11-22 17:43:00.973 ERROR: CODE: [FEFSUC] Failure in conversion process: ", "no reason"),
        (1, "2026-11-22 17:43:00.973 ERROR: CODE: [CBE] EtdConvManager Error: ", "no reason"),
        (
            1,
            "2026-11-22 17:43:00.973 ERROR: CODE: [NEW] a code of a later version",
            "a code of a later version",
        ),
    ],
)
def test_no_reason_no_verdict(returncode, log, part):
    fault = fault_of(returncode, log)
    assert fault is not None
    assert part in fault.found


def test_the_last_line_leaves_out_traces_and_echoes():
    log = (
        "2026-11-22 17:43:30.346 ERROR: something happened [site-packages/uni/common/logger.py:185]\n"
        'Exception in thread "main" sdsp.app.logging.FailureInSubRunningException: ERROR\n'
        "\tat sdsp.app.ConvMain.run(ConvMain.kt:311)\n"
        "2026-11-22 17:43:30,428 ERROR : sdspconv exited with error code: 1\n\n"
    )
    assert last_line(log) == "something happened"
