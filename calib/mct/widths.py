"""Weights of other widths than 8 bits, as MCT's capabilities of the IMX500 offer them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.errors import InputError
from passes.imx500.weights import INPUT_CHANNELS

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (8, 4, 2)
"""Bits of a weight, symmetric, one threshold per output channel."""


def check_width(bits: int) -> None:
    """Raise InputError where MCT has no such weights."""
    if bits not in WIDTHS:
        raise InputError(
            "quantization", f"weights of {bits} bits", ", ".join(map(str, WIDTHS)), "choose one of them"
        )


def set_width(config: Any, module: nn.Module, bits: int) -> None:
    """Have MCT give `bits` bits to the weights that the chip stores narrow; in `config` all have 8 before."""
    from model_compression_toolkit.core.common.matchers.node_matcher import BaseNodeMatcher

    class Narrow(BaseNodeMatcher):  # type: ignore[misc]  # MCT has no types
        def apply(self, node: Any) -> bool:
            return _stored_narrow(node.framework_attr)

    # MCT refuses a choice of width that fits no node.
    if bits != 8 and any(_stored_narrow(vars(layer)) for layer in module.modules()):
        config.bit_width_config.set_manual_weights_bit_width(Narrow(), bits, "weight")


def _stored_narrow(attributes: dict[str, Any]) -> bool:
    """Of a layer's attributes, as torch and MCT's nodes name them; see calib.widths.stored_narrow."""
    return "in_features" in attributes or int(attributes.get("in_channels", 0)) > INPUT_CHANNELS
