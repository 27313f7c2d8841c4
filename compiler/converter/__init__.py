"""The bridge to the vendor's converter (imx500-converter), used as a black box: run it, read its outputs."""

from compiler.converter.bridge import (
    Conversion,
    ConverterFailed,
    ConverterRejected,
    VendorMemory,
    convert,
)
from compiler.converter.install import ConverterInstall, find_converter

__all__ = [
    "Conversion",
    "ConverterFailed",
    "ConverterInstall",
    "ConverterRejected",
    "VendorMemory",
    "convert",
    "find_converter",
]
