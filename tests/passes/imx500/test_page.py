"""The page names every operator and every rule, with limits filled in."""

from __future__ import annotations

from passes.imx500.limits import ACCEPTED_OPERATORS
from passes.imx500.page import operators_page
from passes.imx500.rules import RULES


def test_the_page_is_complete():
    page = operators_page()
    assert all(operator in page for operator in ACCEPTED_OPERATORS)
    rows = [line for line in page.splitlines() if line.startswith("| imx500/")]
    assert len(rows) == len(RULES) > 40
    assert not any("{" in row or row.endswith("|  |") for row in rows)
