"""The page names every operator, rule and fix, and docs/operators.md is the page."""

from __future__ import annotations

from pathlib import Path

from passes.imx500.fixes import FIXES
from passes.imx500.limits import ACCEPTED_OPERATORS, CONVERTER, SEEN_TO_PASS
from passes.imx500.page import operators_page
from passes.imx500.rules import INPUT_RULES, OUTPUT_RULES, QUANTIZED_RULES, RULES, TENSOR_RULES
from passes.imx500.rules.operators import REPLACEMENTS

DOCUMENT = Path(__file__).parents[3] / "docs" / "operators.md"
EVERY_RULE = (*INPUT_RULES, *RULES, *OUTPUT_RULES, *QUANTIZED_RULES, *TENSOR_RULES)


def test_the_document_is_the_page() -> None:
    """After a change of a rule: picosam2 rules > docs/operators.md."""
    assert DOCUMENT.read_text(encoding="utf-8") == operators_page()


def test_the_page_is_complete() -> None:
    page = operators_page()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    assert CONVERTER in page
    assert all(operator in page for operator in (*ACCEPTED_OPERATORS, *REPLACEMENTS))
    listed = {row[-2].strip() for row in rows}
    assert {rule.id.removeprefix("imx500/") for rule in EVERY_RULE} <= listed
    assert len(EVERY_RULE) == len({rule.id for rule in EVERY_RULE}) > 60
    assert all("{" not in line for line in page.splitlines())


def test_every_rule_has_a_text_and_a_fix() -> None:
    for rule in EVERY_RULE:
        assert rule.text, rule.id
        assert rule.fix, rule.id
        assert not rule.text.endswith("."), rule.id
        assert "Fix:" not in rule.text + rule.fix, rule.id


def test_the_page_tells_which_fixes_the_tool_makes() -> None:
    page = operators_page()
    for rule, operator in FIXES:
        row = rule.removeprefix("imx500/") if rule != "imx500/operator" else operator
        assert any("`--fix`" in line or "| yes |" in line for line in page.splitlines() if row in line)


def test_the_forms_seen_belong_to_accepted_operators() -> None:
    assert set(SEEN_TO_PASS) <= set(ACCEPTED_OPERATORS)
