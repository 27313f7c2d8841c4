"""How a fix is declared.

A fix is one function `(node, build) -> Rewrite | None`, registered for the rules it answers and the operator
types it knows. It adds nodes through the builder and says which values stand for the node's outputs; None
means that this form of the node has no faithful rewrite. Its docstring says what the rewrite is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from passes.imx500.fixes.builder import Builder


class Exactness(StrEnum):
    """How near the rewritten graph is to the original, in float arithmetic."""

    EXACT = "exact"
    """The same numbers, moved, or sums of the same products."""
    FLOAT = "within float error"
    """The same function of real numbers, computed in another order."""
    TABLE = "table"
    """An approximation, finer than the steps of an 8-bit tensor."""


@dataclass(frozen=True)
class Rewrite:
    """What a fix made.

    Attributes:
        outputs: the value that stands for each output of the last replaced node, None for one nobody reads.
        done: what was done, one sentence.
        exactness: see Exactness.
        nodes: the nodes replaced, in graph order; empty for the node itself alone.
    """

    outputs: tuple[ir.Value | None, ...]
    done: str
    exactness: Exactness
    nodes: tuple[ir.Node, ...] = ()


Fix = Callable[[ir.Node, Builder], Rewrite | None]

FIXES: dict[tuple[str, str], Fix] = {}
"""(rule, operator type) -> the fix that answers it."""


def fix(rules: str | Sequence[str], *operators: str) -> Callable[[Fix], Fix]:
    """Register the decorated function for `imx500/RULE` (one or several) on the operator types."""

    def register(function: Fix) -> Fix:
        for rule in (rules,) if isinstance(rules, str) else rules:
            for operator in operators:
                FIXES[f"imx500/{rule}", operator] = function
        return function

    return register
