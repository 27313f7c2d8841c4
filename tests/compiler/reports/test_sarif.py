"""report.sarif: the schema of SARIF 2.1.0, places, fingerprints, and how a run ended."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from compiler.reports.sarif import SOURCE_ROOT, to_sarif
from compiler.result import CompileResult
from tests.compiler.reports.results import RESULTS, converter_failed, plain, refused, unread, validate_sarif

GITHUB_RULE = {"id", "name", "shortDescription", "fullDescription", "help"}
GITHUB_RESULT = {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"}
"""What code scanning shows beyond the standard's `required`."""


def run_of(result: CompileResult, model: str = "net.onnx", root: str = "") -> dict:
    return json.loads(to_sarif(result, model, root))["runs"][0]


@pytest.mark.parametrize("name", RESULTS)
def test_the_standards_schema_and_code_scanning_take_it(name):
    document = json.loads(to_sarif(RESULTS[name](), "net.onnx"))
    validate_sarif(document)
    run = document["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert all(rule.keys() >= GITHUB_RULE and rule["help"]["text"] for rule in rules)
    for result in run["results"]:
        assert result.keys() >= GITHUB_RESULT
        assert result["message"]["text"]
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]


def test_the_standards_schema_refuses_what_is_not_sarif():
    for name, spoilt in (("level", "fatal"), ("uri", 'my net <x>|"e.onnx')):
        document = json.loads(to_sarif(refused(), "net.onnx"))
        result = document["runs"][0]["results"][0]
        where = result["locations"][0]["physicalLocation"]["artifactLocation"] if name == "uri" else result
        where[name] = spoilt
        with pytest.raises(jsonschema.ValidationError):
            validate_sarif(document)


def test_ten_results_at_their_modules_with_fingerprints_of_their_own():
    run = run_of(refused())
    names = [one["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for one in run["results"]]
    assert [name.split("/")[0] for name in names] == [f"block.{index}" for index in range(10)]
    prints = [json.dumps(one["partialFingerprints"]) for one in run["results"]]
    assert len(set(prints)) == 10
    assert run["invocations"][0]["exitCode"] == 2
    rule = run["tool"]["driver"]["rules"][0]
    assert "Fix:" in rule["help"]["text"]


@pytest.mark.parametrize(
    ("line", "place", "start"),
    [
        ("/repo/nets/unet.py:12", {"uri": "nets/unet.py", "uriBaseId": SOURCE_ROOT}, 12),
        ("nets/../unet.py:12", {"uri": "unet.py", "uriBaseId": SOURCE_ROOT}, 12),
        ("/repo/../other/unet.py:12", {"uri": "file:///other/unet.py"}, 12),
        ("../other/unet.py:12", {"uri": "file:///other/unet.py"}, 12),
        ("/else/where it is.py:3", {"uri": "file:///else/where%20it%20is.py"}, 3),
        ("", {"uri": "models/net.onnx", "uriBaseId": SOURCE_ROOT}, 1),
    ],
)
def test_a_finding_is_at_the_users_line_else_at_the_model_file(line, place, start):
    result = refused()
    assert result.check is not None
    finding = dataclasses.replace(result.check.diagnostics[0], line=line)
    check = dataclasses.replace(result.check, diagnostics=(finding,))
    (found,) = run_of(dataclasses.replace(result, check=check), "/repo/models/net.onnx", "/repo")["results"]
    physical = found["locations"][0]["physicalLocation"]
    assert physical == {"artifactLocation": place, "region": {"startLine": start}}


@pytest.mark.parametrize("model", ["net.onnx", "./a/../net.onnx", "../repo/net.onnx", "/repo/net.onnx"])
def test_the_model_file_is_named_in_one_way(model):
    (artifact,) = run_of(refused(), model, "/repo")["artifacts"]
    assert artifact["location"] == {"uri": "net.onnx", "uriBaseId": SOURCE_ROOT}


def test_how_a_run_ended_is_a_notification():
    for result, code, words in ((unread(), 130, "interrupted"), (converter_failed(), 4, "killed halfway")):
        (invocation,) = run_of(result)["invocations"]
        assert not invocation["executionSuccessful"]
        assert invocation["exitCode"] == code
        assert words in invocation["toolExecutionNotifications"][0]["message"]["text"]
    (invocation,) = run_of(plain())["invocations"]
    assert invocation["executionSuccessful"]
    assert invocation["toolExecutionNotifications"] == []
