"""Brevitas quantizers that compute what the vendor dialect's quantizer nodes compute (docs/numerics.md)."""

from __future__ import annotations

from typing import Any

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.function_wrapper import Identity
from brevitas.core.quant import IntQuant, RescalingIntQuant
from brevitas.core.scaling import ConstScaling, ParameterScaling, PowerOfTwoIntScaling
from brevitas.core.zero_point import ZeroZeroPoint
from torch import Tensor, nn

from calib.thresholds import MANTISSA_BITS

SMALLEST_THRESHOLD = 2.0**-8
"""Of a weight quantizer, in units of its channel: training cannot make a threshold vanish."""


class Clamp(nn.Module):
    """torch's own clamp: the values and gradients of Brevitas' TensorClamp in one pass instead of four.

    With numbers instead of tensors as bounds, so that the gradient takes one pass too.
    """

    def forward(self, x: Tensor, min_val: Tensor, max_val: Tensor) -> Tensor:
        return torch.clamp(x, float(min_val), float(max_val))


class _RoundAndClamp(torch.autograd.Function):
    """clamp(round(x / step), lowest, highest) * step; the gradient is 1 inside the range, 0 outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, lowest: float, highest: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range = (lowest * step, highest * step)
        return (x / step).round_().clamp_(lowest, highest).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        inside: Tensor = torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.range)
        return inside, None, None, None


class _Representable(torch.autograd.Function):
    """calib.thresholds.representable; the gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, thresholds: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(thresholds)
        whole = torch.round(torch.ldexp(mantissa, torch.tensor(MANTISSA_BITS)))
        return torch.ldexp(whole, exponent - MANTISSA_BITS)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class RepresentableScaling(ParameterScaling):  # type: ignore[misc]  # Brevitas has no types
    """Brevitas' learned threshold, rounded to what the chip's multiplier holds."""

    def forward(self, placeholder: Tensor, threshold: Tensor | None = None) -> Tensor:
        return _Representable.apply(super().forward(placeholder, threshold))  # type: ignore[no-any-return,no-untyped-call]


class ConstantStepIntQuant(IntQuant):  # type: ignore[misc]  # Brevitas has no types
    """Brevitas' IntQuant for a step that is not trained, and no zero point: the same numbers.

    Four passes in place instead of ten: 7 ms instead of 55 ms for 3.5 million numbers and their gradient
    (measured, one core), and the activations of a picture are millions.
    """

    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        bounds = float(self.min_int(bit_width)), float(self.max_int(bit_width))
        return _RoundAndClamp.apply(x, float(scale), *bounds)  # type: ignore[no-any-return,no-untyped-call]


def activation_quantizer(threshold: float, bits: int, signed: bool) -> RescalingIntQuant:
    """ActivationPOTQuantizer: step threshold / 2^(bits - signed), ties to even."""
    return RescalingIntQuant(
        ConstantStepIntQuant(narrow_range=False, signed=signed, input_view_impl=Identity()),
        ConstScaling(threshold),
        PowerOfTwoIntScaling(signed=signed),
        ZeroZeroPoint(),
        BitWidthConst(bits),
    )


class WeightQuantizer(nn.Module):
    """WeightsSymmetricQuantizer as a parametrization of a layer's weight, with learnable thresholds.

    Weights and thresholds are trained in units of their channel: the power of two next above the threshold
    they start with. Changing the unit is exact, and one learning rate fits every channel of every layer. What
    quantizes are the thresholds rounded to 8-bit mantissas (calib.thresholds).

    Attributes:
        quantizer: Brevitas' quantizer; its `scaling_impl.value` is the threshold in units.
        units: float32 powers of two, of a shape that broadcasts with the weight.
    """

    units: Tensor

    def __init__(self, thresholds: Tensor, bits: int) -> None:
        """`thresholds`: float32, positive, of a shape that broadcasts with the weight."""
        super().__init__()
        self.register_buffer("units", torch.exp2(torch.ceil(torch.log2(thresholds.double()))).float())
        self.quantizer = RescalingIntQuant(
            IntQuant(narrow_range=False, signed=True, input_view_impl=Identity(), tensor_clamp_impl=Clamp()),
            RepresentableScaling(thresholds / self.units, scaling_min_val=SMALLEST_THRESHOLD),
            PowerOfTwoIntScaling(signed=True),
            ZeroZeroPoint(),
            BitWidthConst(bits),
        )

    def forward(self, weight: Tensor) -> Tensor:
        """Weight in units -> the quantized weight."""
        quantized: Tensor = self.quantizer(weight)[0]
        return quantized * self.units

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight in units; what `parametrize` keeps as the trained tensor."""
        return weight / self.units

    def integers(self, weight: Tensor) -> Tensor:
        """The whole numbers Brevitas rounds a weight in units to, float32."""
        _, scale, zero_point, bits = self.quantizer(weight)
        integers: Tensor = self.quantizer.int_quant.to_int(scale, zero_point, bits, weight)
        return integers

    def thresholds(self) -> Tensor:
        """The thresholds as they are now, float32, in the units of the weight itself."""
        bits = self.quantizer.msb_clamp_bit_width_impl()
        scale: Tensor = self.quantizer.scaling_impl(self.units, self.quantizer.int_scaling_impl(bits))
        thresholds: Tensor = scale * 2.0 ** (float(bits) - 1) * self.units
        return thresholds
