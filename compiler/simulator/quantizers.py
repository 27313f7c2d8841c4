"""The quantizer nodes of the vendor dialect (domain mct_quantizers) and the constants they read.

Semantics: mct_quantizers 1.6.0, `quantize_sym_activations_numpy` and `quantize_sym_weights_numpy`, which are
what its onnxruntime operators call; docs/numerics.md quotes them.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from compiler.simulator import enclosures
from compiler.simulator import fixedpoint as fp
from compiler.simulator.enclosures import Value
from compiler.simulator.fixedpoint import FixedPoint, Grid
from compiler.simulator.node import Call, ScaledWeights, operator
from passes.graph import QUANTIZER_DOMAIN

MAX_BITS = 16


def _bits(call: Call) -> int:
    bits = call.integer("num_bits", 0)
    if not 2 <= bits <= MAX_BITS:
        raise call.refuse(f"num_bits = {bits}", f"2 to {MAX_BITS} bits", "quantize to 8 bits")
    return bits


def grid_of(call: Call) -> Grid:
    """The grid of an activation quantizer: step = threshold / 2**(bits - 1) signed, / 2**bits unsigned.

    Raises InputError where the threshold is no power of two.
    """
    bits = _bits(call)
    signed = bool(call.integer("signed", 1))
    threshold = call.number("threshold", Fraction(0))
    exponent = threshold.numerator.bit_length() - threshold.denominator.bit_length()
    if threshold <= 0 or threshold != fp.power_of_two(exponent):
        raise call.refuse(
            f"threshold = {float(threshold)}",
            "a power of two (the converter rounds others up silently)",
            "quantize activations with power-of-two thresholds",
        )
    return Grid(exponent - (bits - 1 if signed else bits), bits, signed)


@operator(
    "ActivationPOTQuantizer", "threshold", "signed", "num_bits", "mctq_version", domain=QUANTIZER_DOMAIN
)
def activation_pot_quantizer(call: Call) -> Value:
    """round(clip(x) / step), ties to even, in lowest..highest."""
    return enclosures.quantize(call.value(0), grid_of(call))


def _quantize_weights(call: Call) -> ScaledWeights:
    """Integers round(w / s) in -2**(bits-1) .. 2**(bits-1) - 1, s = threshold / 2**(bits-1) per channel.

    Thresholds are float32 and taken as the dyadic rationals they are; the division is exact, where
    float32's own division may round a quotient next to a tie onto it.
    """
    weights = call.exact(0)
    thresholds = call.exact(1)
    bits = _bits(call)
    call.only("signed", call.integer("signed", 1), 1)
    per_channel = bool(call.integer("per_channel", 0))
    axis = call.integer("channel_axis", 0) % len(weights.shape)
    channels = weights.shape[axis] if per_channel else 1
    if thresholds.mantissa.size != channels or (thresholds.mantissa <= 0).any():
        raise call.refuse(
            f"{thresholds.mantissa.size} thresholds, {int((thresholds.mantissa <= 0).sum())} not positive",
            f"{channels} positive thresholds",
            "quantize the weights again",
        )
    scale = FixedPoint(
        np.broadcast_to(thresholds.mantissa.reshape(-1), (weights.shape[axis],)),
        thresholds.exponent - (bits - 1),
        thresholds.denominator,
    )
    rows = np.moveaxis(weights.mantissa, axis, 0)
    exact = FixedPoint(rows, weights.exponent, weights.denominator)
    integers = fp.quantize_rows(exact, scale, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return ScaledWeights(np.moveaxis(integers, 0, axis), scale, axis)


_WEIGHT_ATTRIBUTES = ("num_bits", "per_channel", "channel_axis", "signed", "mctq_version")


@operator("WeightsSymmetricQuantizer", *_WEIGHT_ATTRIBUTES, domain=QUANTIZER_DOMAIN)
def weights_symmetric_quantizer(call: Call) -> ScaledWeights:
    return _quantize_weights(call)


@operator("WeightsPOTQuantizer", *_WEIGHT_ATTRIBUTES, domain=QUANTIZER_DOMAIN)
def weights_pot_quantizer(call: Call) -> ScaledWeights:
    """As WeightsSymmetricQuantizer; its thresholds happen to be powers of two."""
    return _quantize_weights(call)
