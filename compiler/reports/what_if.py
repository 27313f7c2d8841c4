"""What the same network would need at another input size, or with the other input persistency."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.result import SizeResult
from passes import graph as graphs
from passes.contract import InputContract
from passes.errors import InputError
from passes.imx500.memory import forecast_memory

FACTORS = (1 / 2, 2 / 3, 4 / 3, 2)
"""Sides tried, as parts of the network's own, rounded to multiples of `MULTIPLE`."""

MULTIPLE = 16
"""Networks that halve their input four times take no others."""


@dataclass(frozen=True)
class Persistency:
    """Memory with input persistency on or off, in bytes (forecast)."""

    on: bool
    runtime_bytes: int
    total_bytes: int
    fits: bool


@dataclass(frozen=True)
class WhatIf:
    """Forecasts beside the one of the check.

    Attributes:
        persistency: with input persistency the other way round than the check had it.
        sizes: the network at other input sizes; empty where nothing but its own is possible.
    """

    persistency: Persistency
    sizes: tuple[SizeResult, ...]

    def to_json(self) -> dict[str, Any]:
        """For report.json; every byte is a forecast."""
        return {
            "kind": "estimated",
            "input_persistency": asdict(self.persistency),
            "sizes": [size.to_json() for size in self.sizes],
        }


def what_if(
    checked: ir.Model,
    loaded: ir.Model,
    contract: InputContract,
    input_persistency: bool,
    weight_bits: int = 8,
) -> WhatIf:
    """Forecasts for a network beside the one it was compiled as.

    Args:
        checked: the graph that the check looked at last, float or vendor dialect.
        loaded: the same network before the passes, inputs of known size; it is left as it is.
        contract: its input.
        input_persistency, weight_bits: how it was checked.
    """
    other = forecast_memory(checked, input_persistency=not input_persistency, weight_bits=weight_bits)
    persistency = Persistency(not input_persistency, other.runtime_bytes, other.total_bytes, other.fits)
    return WhatIf(persistency, _sizes(loaded, contract, input_persistency, weight_bits))


def _sizes(
    model: ir.Model, contract: InputContract, input_persistency: bool, weight_bits: int
) -> tuple[SizeResult, ...]:
    from compiler.checking import check_model

    own = (contract.height, contract.width)
    sizes = [
        (_rounded(own[0] * factor), _rounded(own[1] * factor))
        for factor in FACTORS
        if min(own) >= 2 * MULTIPLE
    ]
    wanted = [size for size in dict.fromkeys(sizes) if size != own]
    if not wanted:
        return ()
    with tempfile.TemporaryDirectory(prefix="picosam2-") as folder:
        path = Path(folder) / "model.onnx"
        graphs.save(model, path)
        try:
            return check_model(
                path, input_persistency=input_persistency, weight_bits=weight_bits, what_if=wanted
            ).what_if
        except InputError:  # it takes its own size only
            return ()


def _rounded(side: float) -> int:
    return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)
