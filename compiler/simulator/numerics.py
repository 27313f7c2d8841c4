"""The two named numerics: what the ONNX file means, and what the converter put into the compiled file.

docs/numerics.md specifies both. `dialect` is exact arithmetic between quantizers. `imx500` takes the integers
that the converter writes (`compiler.chip`): an 8-bit multiplier, a shift and an int32 bias for each output
channel, and additions that are fused with a convolution without rounding in between. What the compiled file
cannot tell is a parameter here; it is an estimate of the chip until a chip has confirmed it.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.simulator.requantization import Rounding


@dataclass(frozen=True)
class Dialect:
    """The exact meaning of the quantized ONNX."""

    name: str = "dialect"

    def describe(self) -> str:
        return self.name


@dataclass(frozen=True)
class Imx500:
    """The numbers of the compiled file.

    Attributes:
        rounding: what the chip does with the bits that a shift drops; not known.
        saturate: a convolution fused with an addition saturates at its own threshold first; not known.
    """

    rounding: Rounding = Rounding.HALF_EVEN
    saturate: bool = True
    name: str = "imx500"

    def describe(self) -> str:
        """For tables: "nearest_even, saturating"."""
        return f"{self.rounding.value}, {'saturating' if self.saturate else 'not saturating'}"


Numerics = Dialect | Imx500

DIALECT = Dialect()


def label(numerics: Numerics) -> str:
    """For people: `dialect`, or for instance `imx500: half_up, saturating`."""
    return numerics.name if isinstance(numerics, Dialect) else f"{numerics.name}: {numerics.describe()}"


def slug(numerics: Numerics) -> str:
    """For names of files and commands: `dialect`, or for instance `imx500-half-up-saturating`."""
    return label(numerics).replace(": ", "-").replace(", ", "-").replace(" ", "-").replace("_", "-")


UNKNOWNS: tuple[Imx500, ...] = tuple(
    Imx500(rounding, saturate) for rounding in Rounding for saturate in (True, False)
)
"""Every combination of what the compiled file cannot tell."""

ALL_NUMERICS: tuple[Numerics, ...] = (DIALECT, *UNKNOWNS)
