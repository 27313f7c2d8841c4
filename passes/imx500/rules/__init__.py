"""The operator rules of the IMX500: one function a rule, its docstring is the rule's text.

Importing this package registers every rule; `RULES` lists them in the order they are reported.
"""

from passes.imx500.rules import convolution, data, operators, pooling, resize, shape, values
from passes.imx500.rules.registry import RULES, Found, Rule

__all__ = [
    "RULES",
    "Found",
    "Rule",
    "convolution",
    "data",
    "operators",
    "pooling",
    "resize",
    "shape",
    "values",
]
