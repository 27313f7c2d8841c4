"""What a compile found and made: one frozen record, from which every report is a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.agreement import Agreement
from compiler.simulator.fixedpoint import Grid
from passes.contract import InputContract
from passes.diagnostics import Diagnostic, Severity, has_errors
from passes.imx500.macs import LayerCost
from passes.imx500.memory import MemoryForecast

SCHEMA = 1
"""Version of report.json and of `check --format json`."""


@dataclass(frozen=True)
class CheckResult:
    """Legality, memory and cost of one graph.

    Attributes:
        diagnostics: everything found, errors first.
        memory: the forecast; None where the graph is too broken to schedule.
        costs: multiply-accumulates and parameters per layer.
    """

    diagnostics: tuple[Diagnostic, ...]
    memory: MemoryForecast | None
    costs: tuple[LayerCost, ...]

    @property
    def ok(self) -> bool:
        return not has_errors(self.diagnostics)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one picture (exact, counted from the shapes)."""
        return sum(cost.macs for cost in self.costs)

    @property
    def parameters(self) -> int:
        """Weights and biases of the graph as it is (exact; a folded batch norm counts as its bias)."""
        return sum(cost.parameters for cost in self.costs)

    def to_json(self) -> dict[str, Any]:
        """The block that `check --format json` prints and that report.json holds under `check`."""
        memory = self.memory
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "diagnostics": [diagnostic.to_json() for diagnostic in self.diagnostics],
            "memory": None
            if memory is None
            else {
                "model_bytes": memory.model_bytes,
                "runtime_bytes": memory.runtime_bytes,
                "total_bytes": memory.total_bytes,
                "budget_bytes": memory.budget_bytes,
                "fits": memory.fits,
                "kind": dict(memory.exactness),
            },
            "macs": self.macs,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Output:
    """One output tensor as the device delivers it: real value = integer * step.

    Attributes:
        name, shape: of the ONNX graph's output.
        grid: bits, sign and step of the integers; None for indices (ArgMax), which have no step.
        order: names of the dimensions, outermost first, as in the ONNX graph.
    """

    name: str
    shape: tuple[int | None, ...]
    grid: Grid | None
    order: tuple[str, ...]

    @property
    def dtype(self) -> str:
        return "index" if self.grid is None else f"{'' if self.grid.signed else 'u'}int{self.grid.bits}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "step": None if self.grid is None else self.grid.step,
            "order": list(self.order),
        }


@dataclass(frozen=True)
class VendorFigures:
    """The converter's own memory report, in bytes (measured)."""

    version: str
    model_bytes: int
    runtime_bytes: int
    total_bytes: int
    fits: bool
    tiled: bool
    input_persistency: bool


@dataclass(frozen=True)
class StepTime:
    """Wall seconds of one pipeline step; `cached` where the result came from the cache."""

    name: str
    seconds: float
    cached: bool
    vendor: bool
    """The time is spent in MCT or in the vendor's converter, not in our own code."""


@dataclass(frozen=True)
class CompileResult:
    """Everything the reports show. `None` marks what was not done, never what was not known."""

    tool_version: str
    target: str
    model_name: str
    model_sha256: str
    model_kind: str
    network: str
    contract: InputContract
    seed: int
    quantizer: str | None
    calibration: Mapping[str, Any] | None
    check: CheckResult
    outputs: tuple[Output, ...]
    agreement: Agreement | None
    vendor: VendorFigures | None
    vendor_diagnostics: tuple[Diagnostic, ...]
    steps: tuple[StepTime, ...]
    versions: Mapping[str, str]

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        found = (*self.check.diagnostics, *self.vendor_diagnostics)
        return tuple(d for d in found if d.severity is not Severity.NOTE)
