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

MAX_DEPTHWISE_KERNEL = 12
"""Largest side of a depthwise kernel; dense and grouped kernels were accepted up to 100."""

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
"""Bit widths of activations; 16 was accepted on one tensor between a convolution and an addition."""

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
