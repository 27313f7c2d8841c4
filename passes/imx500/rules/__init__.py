"""The operator rules of the IMX500: one function a rule, its docstring is the rule's text.

Importing this package registers every rule; each list is in the order in which violations are reported.
"""

from passes.imx500.rules import (
    convolution,
    data,
    interface,
    operators,
    pooling,
    quantizers,
    resize,
    shape,
    values,
)
from passes.imx500.rules.registry import (
    INPUT_RULES,
    OUTPUT_RULES,
    QUANTIZED_RULES,
    RULES,
    TENSOR_RULES,
    Found,
    Rule,
)

__all__ = [
    "INPUT_RULES",
    "OUTPUT_RULES",
    "QUANTIZED_RULES",
    "RULES",
    "TENSOR_RULES",
    "Found",
    "Rule",
    "convolution",
    "data",
    "interface",
    "operators",
    "pooling",
    "quantizers",
    "resize",
    "shape",
    "values",
]
