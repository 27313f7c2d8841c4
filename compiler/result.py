"""What a compile found and made: one frozen record, from which every report is a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from passes.contract import InputContract
from passes.diagnostics import Diagnostic, Severity, has_errors
from passes.imx500.latency import PUBLISHED, LatencyEstimate, estimate_latency
from passes.imx500.macs import LayerCost
from passes.imx500.memory import MemoryForecast

if TYPE_CHECKING:  # a check needs none of them to run, and does without what they import
    from compiler.agreement import Agreement
    from compiler.quantizing.judge import Accuracy
    from compiler.quantizing.search import Choice
    from compiler.quantizing.widths import Widths
    from compiler.reports.facts import Facts
    from compiler.reports.what_if import WhatIf
    from compiler.simulator.fixedpoint import Grid
    from passes.equalise import Equalisation
    from passes.imx500.fixes import AppliedFix

SCHEMA = 1
"""Version of report.json and of `check --format json`."""


@dataclass(frozen=True)
class CheckResult:
    """Legality, memory and cost of one graph.

    Attributes:
        diagnostics: everything found, errors first.
        memory: the forecast; None where an input has no fixed size.
        costs: multiply-accumulates and parameters of every node that works on data.
        fixes: what `--fix` rewrote before the graph was checked.
        what_if: the same network at other input sizes (`--what-if`).
    """

    diagnostics: tuple[Diagnostic, ...]
    memory: MemoryForecast | None
    costs: tuple[LayerCost, ...]
    fixes: tuple[AppliedFix, ...] = ()
    what_if: tuple[SizeResult, ...] = ()

    @property
    def ok(self) -> bool:
        return not has_errors(self.diagnostics)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one picture: exact, counted from the shapes, or a bound (`uncounted`)."""
        return sum(cost.macs for cost in self.costs)

    @property
    def parameters(self) -> int:
        """Weights and biases of the graph as it is (exact; a folded batch norm counts as its bias)."""
        return sum(cost.parameters for cost in self.costs)

    @property
    def uncounted(self) -> tuple[LayerCost, ...]:
        """The nodes whose cost is not known: with any of them, macs and parameters are lower bounds."""
        return tuple(cost for cost in self.costs if not cost.counted)

    @property
    def counted(self) -> str:
        """Whether macs and parameters are "exact" or "at least" so many."""
        return "at least" if self.uncounted else "exact"

    @property
    def latency(self) -> LatencyEstimate:
        """Of one inference, from the multiply-accumulates (estimated)."""
        return estimate_latency(self.macs)

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
            "latency": {
                **_latency_json(self.macs),
                "calibrated_on": [
                    asdict(point) | {"macs_per_cycle": round(point.macs_per_cycle, 1), "kind": "published"}
                    for point in PUBLISHED
                ],
            },
            "kind": {"macs": self.counted, "parameters": self.counted, "latency": "estimated"},
            "layers": [
                asdict(cost) | {"latency": _latency_json(cost.macs) if cost.macs else None}
                for cost in self.costs
            ],
            "fixes": [asdict(fix) for fix in self.fixes],
            "what_if": [size.to_json() for size in self.what_if],
        }


@dataclass(frozen=True)
class SizeResult:
    """The network at another input size.

    Attributes:
        height, width: the size.
        check: what the check found there; None where the network cannot take the size.
        problem: why it cannot, "" where it can.
    """

    height: int
    width: int
    check: CheckResult | None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        size = {"height": self.height, "width": self.width}
        if self.check is None or self.check.memory is None:
            return size | {"problem": self.problem}
        memory = self.check.memory
        return size | {
            "ok": self.check.ok,
            "model_bytes": memory.model_bytes,
            "runtime_bytes": memory.runtime_bytes,
            "total_bytes": memory.total_bytes,
            "fits": memory.fits,
            "kind": {**memory.exactness, "macs": self.check.counted},
            "macs": self.check.macs,
            "latency": _latency_json(self.check.macs),
        }


def _latency_json(macs: int) -> dict[str, Any]:
    return asdict(estimate_latency(macs)) | {"kind": "estimated"}


@dataclass(frozen=True)
class Input:
    """One input tensor, which takes integers.

    Attributes:
        name, shape: of the ONNX graph's input.
        contract: its own (`compiler.frontend.input_contracts`): only of pictures it is the declared one.
    """

    name: str
    shape: tuple[int | None, ...]
    contract: InputContract

    @property
    def integers(self) -> str:
        """`RGB, integers -128 to 127`."""
        one = self.contract
        return f"{one.colour_order}, integers {one.lowest} to {one.highest}"


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
class Failure:
    """How a compile ended that made no package.

    Attributes:
        step, purpose: the step of the pipeline that it ended in.
        kind: "input", "target", "gate", "environment", "interrupted" or "defect" (ours).
        thing, found, limit, fix: of the error, as `passes.errors.ToolError` has them.
        exit_code: of the command.
        notes: what else was said, for instance where the converter's log lies.
    """

    step: str
    purpose: str
    kind: str
    thing: str
    found: str
    limit: str
    fix: str
    exit_code: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompileResult:
    """Everything the reports show. `None` marks what was not done, never what was not known.

    Of a run that failed, `failure` says how it ended; what it did not come to is None or empty.
    """

    tool_version: str
    target: str
    model_name: str
    model_sha256: str
    model_kind: str
    network: str
    contract: InputContract | None
    seed: int
    quantizer: str | None
    choice: Choice | None
    widths: Widths | None
    equalised: Equalisation | None
    calibration: Mapping[str, Any] | None
    check: CheckResult | None
    outputs: tuple[Output, ...]
    agreement: Agreement | None
    vendor: VendorFigures | None
    vendor_diagnostics: tuple[Diagnostic, ...]
    steps: tuple[StepTime, ...]
    versions: Mapping[str, str]
    accuracy: Accuracy | str = ""
    """Of the int8 network, or why it is not known; "" where the run did not come to it."""
    facts: Facts | None = None
    what_if: WhatIf | None = None
    failure: Failure | None = None
    inputs: tuple[Input, ...] = ()

    @property
    def findings(self) -> tuple[Diagnostic, ...]:
        """What our check and what the converter found."""
        ours = () if self.check is None else self.check.diagnostics
        return (*ours, *self.vendor_diagnostics)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.findings if d.severity is not Severity.NOTE)
