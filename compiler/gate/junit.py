"""junit.xml of a gate: one test case for each criterion and each warning.

Jenkins, GitLab and GitHub's test reporters read it. Failed is what fails the gate; skipped is an undecided
criterion, or a warning, that does not fail it. The figures stand in the suite's properties as
CRITERION.value, .low, .high and .limit (most consumers refuse or ignore properties of single test cases), and
in words in each test case's output. No time was measured: the same inputs give the same bytes.
"""

from __future__ import annotations

import math
from xml.etree import ElementTree

from compiler.gate.criteria import Criterion, Verdict
from compiler.gate.gate import Caution, GateResult

SUITE = "picosam2 gate"


def to_junit(result: GateResult) -> bytes:
    """The file's content."""
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(SUITE)
    for name, value in _properties(result).items():
        suite.add_property(name, value)
    checks: tuple[Criterion | Caution, ...] = (*result.criteria, *result.cautions)
    for one in checks:
        case = TestCase(one.name, f"picosam2.gate.{_printable(result.measured.package)}")
        text = _printable(_sentence(one))
        if one in result.failed:
            failure = Failure(text, type_="GateFailed")
            failure.text = f"{text}\nFix: {_printable(one.fix)}"
            case.result = failure
        elif isinstance(one, Criterion) and one.verdict is Verdict.UNDECIDED:
            case.result = Skipped(text, type_="undecided")
        elif isinstance(one, Caution) and one.found is not None:
            case.result = Skipped(text, type_="warning")
        case.system_out = text
        suite.add_testcase(case)
    document = JUnitXml(SUITE)
    document.add_testsuite(suite)
    document.tests, document.failures = suite.tests, suite.failures
    document.errors, document.skipped = suite.errors, suite.skipped
    ElementTree.indent(document._elem)
    content: bytes = ElementTree.tostring(document._elem, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _properties(result: GateResult) -> dict[str, str]:
    measured, options = result.measured, result.options
    found = {
        "verdict": result.verdict.value,
        "package": _printable(measured.package),
        "int8_sha256": measured.int8_sha256,
        "data": _printable(measured.data),
        "protocol": measured.protocol,
        "instances": str(len(measured.int8)),
        "pictures": str(measured.pictures),
        "confidence": f"{options.confidence:g}",
        "seed": str(options.seed),
    }
    for one in result.criteria:
        figures = {**vars(one.found), "limit": one.limit}
        found |= {
            f"{one.name}.{name}": f"{value:.10g}" for name, value in figures.items() if math.isfinite(value)
        }
        found[f"{one.name}.unit"] = one.unit
        found[f"{one.name}.verdict"] = one.verdict.value
    return found


def _sentence(one: Criterion | Caution) -> str:
    if isinstance(one, Criterion):
        return one.sentence()
    return one.found or "nothing found"


def _printable(text: str) -> str:
    """Without the control characters and lone surrogates that XML cannot hold: names come from files."""
    return "".join(
        letter if letter.isprintable() else "?" for letter in text.encode("utf-8", "replace").decode()
    )
