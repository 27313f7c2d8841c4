"""dnnParams.xml, which the converter writes: the outputs of the compiled network as the chip has them.

`ordinal` of an output is its number among the graph's outputs (34 of 34 outputs of two networks converted
with imx500-converter 3.19.2, matched by node name and shape); the order of the elements is another.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from passes.errors import EnvironmentFault


@dataclass(frozen=True)
class ChipOutput:
    """One output: real value = integer * scale.

    Attributes:
        ordinal: number among the outputs of the ONNX graph.
        shape: without the batch, in the graph's order of dimensions.
        bits, signed: of the integers.
    """

    ordinal: int
    shape: tuple[int, ...]
    scale: float
    bits: int
    signed: bool


def read_outputs(content: bytes) -> tuple[ChipOutput, ...]:
    """The outputs in the order of the file. Raises EnvironmentFault where it is not understood."""
    try:
        root = ElementTree.fromstring(content)
        found = tuple(
            ChipOutput(
                ordinal=int(one.attrib["ordinal"]),
                shape=tuple(int(size.attrib["size"]) for size in one.iter("dimension")),
                scale=float(one.attrib["scale"]),
                bits=int(one.attrib["bitsPerElement"]),
                signed=one.attrib["format"] == "signed",
            )
            for one in root.iter("outputTensor")
        )
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise _unknown(f"{type(error).__name__}: {error}") from error
    if sorted(one.ordinal for one in found) != list(range(len(found))) or not found:
        raise _unknown(f"ordinals {[one.ordinal for one in found]}")
    return found


def _unknown(found: str) -> EnvironmentFault:
    return EnvironmentFault(
        "dnnParams.xml",
        found,
        "what imx500-converter 3.19.2 writes: outputTensor elements numbered from 0",
        "`picosam2 doctor` names the converter's tried version",
    )
