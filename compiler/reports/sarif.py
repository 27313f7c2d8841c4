"""report.sarif and `check --format sarif`: findings as SARIF 2.1.0, for code scanning.

Every finding is a result of its rule, at the module path (a logical location) and at the user's source line
where the export tells it, else at the model file. What ended a run without being a finding on the model is a
notification of the invocation. There are no times in it: the same result gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from compiler.result import CheckResult, CompileResult, Failure
from passes.diagnostics import Diagnostic, Severity
from passes.errors import ExitCode

SCHEMA_URI = "https://json.schemastore.org/sarif-2.1.0.json"
VERSION = "2.1.0"
SOURCE_ROOT = "%SRCROOT%"
"""Base of relative paths: by custom the root of the repository."""

LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}

FINGERPRINT = "picosam2Finding/v1"
"""Two runs give a finding the same fingerprint where rule, place and what was found are the same."""


def to_sarif(result: CompileResult, model_file: str, root: str = "") -> str:
    """report.sarif.

    Args:
        result: a compile, failed or not.
        model_file: path of the model file, which findings without a source line are at.
        root: absolute path of the folder that source paths are given relative to; "" leaves them absolute.
    """
    return _log(result.findings, model_file, result.tool_version, root, result.failure)


def check_sarif(check: CheckResult, model_file: str, tool_version: str, root: str = "") -> str:
    """`picosam2 check --format sarif`; arguments as of `to_sarif`."""
    return _log(check.diagnostics, model_file, tool_version, root, None, 0 if check.ok else ExitCode.TARGET)


def _log(
    findings: Sequence[Diagnostic],
    model_file: str,
    tool_version: str,
    root: str,
    failure: Failure | None,
    exit_code: int = 0,
) -> str:
    ids = list(dict.fromkeys(finding.rule for finding in findings))
    first = {finding.rule: finding for finding in reversed(findings)}
    ended = exit_code if failure is None else failure.exit_code
    invocation: dict[str, Any] = {
        "executionSuccessful": failure is None,
        "exitCode": int(ended),
        "toolExecutionNotifications": [] if failure is None else [_notification(failure)],
    }
    run = {
        "tool": {
            "driver": {
                "name": "picosam2-compile",
                "version": tool_version,
                "semanticVersion": tool_version,
                "rules": [_rule(first[name]) for name in ids],
            }
        },
        "invocations": [invocation],
        "artifacts": [{"location": _artifact(model_file, root), "roles": ["analysisTarget"]}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, ids.index(finding.rule), model_file, root) for finding in findings],
    }
    document = {"$schema": SCHEMA_URI, "version": VERSION, "runs": [run]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rule(example: Diagnostic) -> dict[str, Any]:
    """The rule with its text: of a rule of ours its own, of any other what its first finding says."""
    from passes.imx500.rules import INPUT_RULES, OUTPUT_RULES, QUANTIZED_RULES, RULES, TENSOR_RULES

    texts = {rule.id: (rule.text, rule.fix) for rule in (*RULES, *QUANTIZED_RULES)}
    texts |= {rule.id: (rule.text, rule.fix) for rule in (*INPUT_RULES, *OUTPUT_RULES, *TENSOR_RULES)}
    text, fix = texts.get(example.rule, (example.limit, example.fix))
    return {
        "id": example.rule,
        "name": _pascal(example.rule),
        "shortDescription": {"text": _sentence(text)},
        "fullDescription": {"text": f"{_sentence(text)} Source of the limit: {example.source}."},
        "help": {
            "text": f"{_sentence(text)} Fix: {_sentence(fix)}",
            "markdown": f"{_sentence(text)}\n\n**Fix:** {_sentence(fix)}",
        },
        "defaultConfiguration": {"level": LEVELS[example.severity]},
    }


def _pascal(rule: str) -> str:
    """`imx500/conv-padding` as `Imx500ConvPadding`."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", rule))


def _sentence(text: str) -> str:
    text = text.strip() or "No further text"
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _result(finding: Diagnostic, index: int, model_file: str, root: str) -> dict[str, Any]:
    place = finding.module or finding.node
    where = f"{finding.node}{f' in {finding.module}' if finding.module else ''}: " if finding.node else ""
    message = f"{where}{finding.found}. {_sentence(finding.limit)} Fix: {_sentence(finding.fix)}"
    location: dict[str, Any] = {"physicalLocation": _physical(finding, model_file, root)}
    if place:
        location["logicalLocations"] = [
            {
                "name": place.rpartition(".")[2] or place,
                "fullyQualifiedName": f"{finding.module}/{finding.node}" if finding.module else finding.node,
                "kind": "module" if finding.module else "member",
            }
        ]
    key = "\n".join((finding.rule, finding.module, finding.node, finding.found))
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": message},
        "locations": [location],
        "partialFingerprints": {FINGERPRINT: hashlib.sha256(key.encode()).hexdigest()},
        "properties": {
            "node": finding.node,
            "module": finding.module,
            "found": finding.found,
            "limit": finding.limit,
            "fix": finding.fix,
            "source": finding.source,
        },
    }


def _physical(finding: Diagnostic, model_file: str, root: str) -> dict[str, Any]:
    """The user's line; the model file where it is not known, at line 1, which code scanning asks for."""
    file, _, line = finding.line.rpartition(":")
    if file and line.isdecimal() and int(line) > 0:
        return {"artifactLocation": _artifact(file, root), "region": {"startLine": int(line)}}
    return {"artifactLocation": _artifact(model_file, root), "region": {"startLine": 1}}


def _artifact(file: str, root: str) -> dict[str, str]:
    """A URI: relative to the root where the file is in it, else absolute.

    A relative `file` is one of the root's; without a root it stays as it is.
    """
    path = PurePosixPath(os.path.normpath(os.path.join(root, file)))
    if root and path.is_relative_to(root):
        path = path.relative_to(root)
    if path.is_absolute():
        return {"uri": f"file://{quote(str(path))}"}
    return {"uri": quote(str(path)), "uriBaseId": SOURCE_ROOT}


def _notification(failure: Failure) -> dict[str, Any]:
    found = f"{failure.thing}: {failure.found} ({failure.limit})"
    text = f"Step {failure.step}: {found}. Fix: {_sentence(failure.fix)}"
    return {
        "level": "error",
        "message": {"text": " ".join((text, *failure.notes))},
        "descriptor": {"id": f"step/{failure.step}"},
    }
