"""What the IMX500 tool chain takes, as named constants.

Every number here was measured by running the vendor's converter as a black box on networks of our own;
`CONVERTER` says which version. `tests/oracle` holds the verdicts the constants are proved against.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CONVERTER = "imx500-converter 3.19.2"
"""Version of the vendor's converter (uni-pytorch 3.19.0, sdspconv 3.19.1) all limits were measured on."""

SOURCE = f"{CONVERTER}, measured"
"""The `source` of every diagnostic of this target."""

_GROUPS: dict[str, tuple[str, ...]] = {
    "convolution": ("Conv", "ConvTranspose"),
    "linear": ("Gemm", "MatMul"),
    "pooling": ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    "resize": ("Resize",),
    "activation": (
        "Relu", "Clip", "LeakyRelu", "Gelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softmax", "Erf",
    ),
    "normalisation": ("BatchNormalization", "LayerNormalization"),
    "elementwise": (
        "Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Abs", "Exp", "Sqrt", "Pow", "Sin", "Cos",
    ),
    "shape": (
        "Concat", "Split", "Slice", "Pad", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
        "Expand", "Identity", "Dropout",
    ),
    "reduction": ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ArgMax", "TopK"),
    "selection": ("Gather",),
}  # fmt: skip

ACCEPTED_OPERATORS: Mapping[str, str] = MappingProxyType(
    {operator: group for group, operators in _GROUPS.items() for operator in operators}
)
"""Operator type (standard ONNX domain) -> its group. Erf only inside GELU; the rules bound the rest.

Constant, and the shape arithmetic (Shape, Cast, ...) whose result does not depend on the pictures, are no
operators of the chip: they are computed when the model is read and are not listed. GlobalMaxPool is
no operator of the converter either, but its torch form reaches it as MaxPool.
"""

SEEN_TO_PASS: Mapping[str, str] = MappingProxyType(
    {
        "Conv": "kernels up to 100 pixels a side, even and 1xN ones too, strides up to 32, dilations up to "
        "30, any number of groups, depthwise with a multiplier, uneven padding",
        "ConvTranspose": "kernels and strides up to 32, output_padding",
        "MatMul": "constant weights behind rank 2 and 4; two activations of rank 3 and 4",
        "MaxPool": "kernels and strides up to 64, padding",
        "AveragePool": "kernels up to 128, padding that counts and that does not",
        "Resize": "any ratio or size, smaller too",
        "Softmax": "every axis but the batch",
        "Clip": "any bounds, one or both",
        "BatchNormalization": "behind a convolution, where it is folded, and alone",
        "Mul": "as Add, Sub, Div, Max and Min: tensors with every broadcast, constants on either side",
        "Transpose": "ranks 2 to 6",
        "Concat": "channels, height and width",
        "Pad": "any constant, channels too",
        "ReduceMean": "as ReduceSum and ReduceMax: one axis or several, kept or not",
    }
)
"""Operator -> the forms that were measured and passed; the rules bound what is between and beyond."""

MAX_GROUPED_KERNEL = 12
"""Largest side of a depthwise or grouped kernel; dense ones were accepted up to 100."""

MAX_NORM_ROW = 16_383
"""Longest row that LayerNormalization takes; the converter's message names this limit itself."""

MIN_RANK, MAX_RANK = 2, 7
"""Ranks of an activation, batch included; 7 is the highest that was converted."""

RESIZE_MODES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"nearest": ("asymmetric",), "linear": ("half_pixel", "pytorch_half_pixel")}
)
"""Interpolation -> coordinate transformations it is accepted with."""

NEAREST_MODE = "floor"
"""Rounding of nearest-neighbour resizing (what torch does)."""

POW_EXPONENTS = (0.5, 1.0, 2.0)
"""Constant scalar exponents of Pow."""

WEIGHT_BITS = (2, 4, 8)
"""Bit widths of weights."""

ACTIVATION_BITS = (8, 16)
"""Bit widths of activations; where 16 are taken is said by READS_8_BITS (docs/memory.md has the probes)."""

READS_8_BITS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "Resize", "Softmax", "LayerNormalization", "BatchNormalization", "ReduceMean", "ReduceSum", "ReduceMax",
)  # fmt: skip
"""Operators that take no tensor of 16 bits. Elementwise ones, tables, ReduceL2 and what moves numbers do."""

WEIGHT_QUANTIZERS = (
    "WeightsPOTQuantizer",
    "WeightsSymmetricQuantizer",
    "WeightsLUTPOTQuantizer",
    "WeightsLUTSymmetricQuantizer",
)
"""Quantizer nodes the converter takes on weights (uniform ones are refused)."""

ACTIVATION_QUANTIZERS = ("ActivationPOTQuantizer",)
"""Quantizer nodes the converter takes on activations (symmetric and uniform ones are refused)."""

MEMORY_BUDGET = 8_388_480
"""Bytes on the chip for runtime memory, model and the reserve together."""

MEMORY_RESERVED = 1_024
"""Bytes of the budget the chip keeps for itself."""
