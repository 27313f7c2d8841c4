"""report.sarif: the structure that SARIF 2.1.0 prescribes, places, fingerprints, and how a run ended."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from compiler.reports.sarif import SOURCE_ROOT, to_sarif
from compiler.result import CompileResult
from tests.compiler.reports.results import RESULTS, converter_failed, plain, refused, unread

MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
ARTIFACT = {
    "type": "object",
    "required": ["uri"],
    "additionalProperties": False,
    "properties": {
        "uri": {"type": "string", "pattern": r"^[A-Za-z0-9._~:/%+@!$&'()*,;=-]+$"},
        "uriBaseId": {"type": "string"},
    },
}
STRUCTURE = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "additionalProperties": False,
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "version": {"type": "string"},
                                    "semanticVersion": {"type": "string"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id", "help", "shortDescription"],
                                            "additionalProperties": False,
                                            "properties": {
                                                "id": {"type": "string", "minLength": 1},
                                                "name": {"type": "string", "pattern": "^[A-Z][A-Za-z0-9]*$"},
                                                "shortDescription": MESSAGE,
                                                "fullDescription": MESSAGE,
                                                "help": MESSAGE,
                                                "defaultConfiguration": {
                                                    "type": "object",
                                                    "properties": {
                                                        "level": {
                                                            "enum": ["none", "note", "warning", "error"]
                                                        }
                                                    },
                                                },
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["executionSuccessful"],
                            "properties": {
                                "executionSuccessful": {"type": "boolean"},
                                "exitCode": {"type": "integer"},
                                "toolExecutionNotifications": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["message"],
                                        "properties": {
                                            "message": MESSAGE,
                                            "level": {"enum": ["none", "note", "warning", "error"]},
                                            "descriptor": {"type": "object", "required": ["id"]},
                                        },
                                    },
                                },
                            },
                        },
                    },
                    "artifacts": {
                        "type": "array",
                        "uniqueItems": True,
                        "items": {
                            "type": "object",
                            "properties": {
                                "location": ARTIFACT,
                                "roles": {"items": {"const": "analysisTarget"}},
                            },
                        },
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": [
                                "message",
                                "ruleId",
                                "ruleIndex",
                                "locations",
                                "partialFingerprints",
                            ],
                            "additionalProperties": False,
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": MESSAGE,
                                "partialFingerprints": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string", "minLength": 1},
                                },
                                "properties": {"type": "object"},
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {
                                            "physicalLocation": {
                                                "type": "object",
                                                "required": ["artifactLocation"],
                                                "properties": {
                                                    "artifactLocation": ARTIFACT,
                                                    "region": {
                                                        "type": "object",
                                                        "properties": {
                                                            "startLine": {"type": "integer", "minimum": 1}
                                                        },
                                                    },
                                                },
                                            },
                                            "logicalLocations": {
                                                "type": "array",
                                                "uniqueItems": True,
                                                "items": {
                                                    "type": "object",
                                                    "properties": {
                                                        "name": {"type": "string"},
                                                        "fullyQualifiedName": {"type": "string"},
                                                        "kind": {"enum": ["module", "member"]},
                                                    },
                                                },
                                            },
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The parts of SARIF 2.1.0 (OASIS standard, section 3) that we write, with what it requires of each."""


def run_of(result: CompileResult, model: str = "net.onnx", root: str = "") -> dict:
    return json.loads(to_sarif(result, model, root))["runs"][0]


@pytest.mark.parametrize("name", RESULTS)
def test_the_structure_is_that_of_the_standard(name):
    document = json.loads(to_sarif(RESULTS[name](), "net.onnx"))
    jsonschema.validate(document, STRUCTURE)
    run = document["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])


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
