"""Reports: pure functions of a CompileResult (report.json, report.md, and the console summary).

Every figure carries what it is: exact (counted), measured (by the vendor's converter or by running the
network), estimated (our forecast), or assumed.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from compiler.agreement import Agreement, OutputAgreement
from compiler.result import SCHEMA, CheckResult, CompileResult, StepTime
from passes.diagnostics import Diagnostic
from passes.imx500.limits import MEMORY_BUDGET

AGREEMENT_WORDS = {
    "mask-iou": "mean IoU of the float and the int8 mask",
    "pixel-agreement": "pixels whose winning channel is the same",
    "winner-agreement": "pictures whose winner is the same",
    "snr-only": "signal-to-noise ratio",
}


def to_json(result: CompileResult, created: str) -> str:
    """report.json; `created` is an ISO time (timestamps and timings live in the report only)."""
    vendor = result.vendor
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "created": created,
        "tool": result.tool_version,
        "target": result.target,
        "model": {
            "file": result.model_name,
            "sha256": result.model_sha256,
            "kind": result.model_kind,
            "network": result.network,
        },
        "input_contract": result.contract.to_json(),
        "seed": result.seed,
        "quantizer": result.quantizer,
        "calibration": None if result.calibration is None else dict(result.calibration),
        "check": result.check.to_json(),
        "memory_tensors": []
        if result.check.memory is None
        else [asdict(t) for t in result.check.memory.tensors],
        "layers": [asdict(cost) for cost in result.check.costs],
        "outputs": [output.to_json() for output in result.outputs],
        "agreement": None if result.agreement is None else _agreement_json(result.agreement),
        "converter": None
        if vendor is None
        else asdict(vendor)
        | {"kind": "measured", "diagnostics": [d.to_json() for d in result.vendor_diagnostics]},
        "steps": [asdict(step) for step in result.steps],
        "versions": dict(result.versions),
    }
    return json.dumps(document, indent=2, sort_keys=False, allow_nan=False) + "\n"


def _agreement_json(agreement: Agreement) -> dict[str, Any]:
    return {
        "kind": "measured",
        "pictures": agreement.pictures,
        "outputs": [
            asdict(output) | {"snr_db": None if not math.isfinite(output.snr_db) else round(output.snr_db, 3)}
            for output in agreement.outputs
        ],
    }


def to_markdown(result: CompileResult, created: str) -> str:
    """report.md: the same facts for a person."""
    lines = [
        f"# {result.network} on {result.target}",
        "",
        f"{result.model_name} ({result.model_kind}), compiled {created} by picosam2-compile "
        f"{result.tool_version}.",
        "",
        "## In short",
        "",
        *(f"- **{name}**: {text}" for name, text in summary_rows(result)),
        "",
        "## Input",
        "",
        *_contract_lines(result),
        "",
        "## Outputs",
        "",
        "The device delivers integers; the real value is integer x step.",
        "",
        "| name | shape | type | step | order |",
        "|---|---|---|---|---|",
        *(
            f"| {o.name} | {'x'.join(str(d) for d in o.shape)} | {o.dtype} "
            f"| {'' if o.grid is None else f'{o.grid.step:g}'} | {','.join(o.order)} |"
            for o in result.outputs
        ),
        "",
    ]
    lines += _memory_lines(result)
    findings = (*result.check.diagnostics, *result.vendor_diagnostics)
    lines += ["## Findings", ""]
    lines += [f"- {diagnostic_text(d)}" for d in findings] or ["None."]
    lines += ["", *_agreement_lines(result), *_calibration_lines(result)]
    lines += [
        "## Where the time went",
        "",
        "| step | seconds | whose |",
        "|---|---:|---|",
        *(f"| {s.name} | {s.seconds:.2f} | {_whose(s)} |" for s in result.steps),
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in sorted(result.versions.items())),
        "",
    ]
    return "\n".join(lines)


def summary_rows(result: CompileResult) -> list[tuple[str, str]]:
    """What a person wants to know in ten seconds, as (name, text)."""
    rows = check_rows(result.check)
    vendor, memory = result.vendor, result.check.memory
    if vendor is not None:
        forecast = "" if memory is None else f"; our forecast was {_mb(memory.total_bytes)}"
        measured = (
            "Memory",
            f"{_mb(vendor.total_bytes)} of {_mb(MEMORY_BUDGET)} (measured by the converter: model "
            f"{_mb(vendor.model_bytes)}, runtime {_mb(vendor.runtime_bytes)}{forecast})",
        )
        rows = [measured if name == "Memory" else (name, text) for name, text in rows]
    if result.agreement is not None:
        for output in result.agreement.outputs:
            rows.append(("Float against int8", _agreement_text(output, result.agreement.pictures)))
    return rows


def check_rows(check: CheckResult) -> list[tuple[str, str]]:
    """Legality, memory forecast and cost, as (name, text)."""
    errors = sum(d.severity == "error" for d in check.diagnostics)
    warnings = sum(d.severity == "warning" for d in check.diagnostics)
    legality = "legal" if check.ok else f"{errors} violation{'s' * (errors != 1)}"
    if warnings:
        legality += f", {warnings} warning{'s' * (warnings != 1)}"
    rows = [("Legality", legality)]
    if (memory := check.memory) is not None:
        model = f"model {_mb(memory.model_bytes)} {memory.exactness['model_bytes']}"
        runtime = f"runtime {_mb(memory.runtime_bytes)} {memory.exactness['runtime_bytes']}"
        verdict = "" if memory.fits else " - DOES NOT FIT"
        total = f"{_mb(memory.total_bytes)} of {_mb(memory.budget_bytes)}"
        rows.append(("Memory", f"{total} (forecast: {model}, {runtime}){verdict}"))
    rows.append(("Cost", f"{check.macs / 1e6:.1f} M MACs, {check.parameters:,} parameters (exact)"))
    return rows


def _agreement_text(output: OutputAgreement, pictures: int) -> str:
    snr = "equal" if output.snr_db == float("inf") else f"{output.snr_db:.1f} dB"
    if output.value is None:
        return f"signal-to-noise {snr} on {pictures} pictures not calibrated on (measured)"
    return (
        f"{output.value:.4f} {AGREEMENT_WORDS[output.measure]}, signal-to-noise {snr}, "
        f"on {pictures} pictures not calibrated on (measured)"
    )


def diagnostic_text(diagnostic: Diagnostic) -> str:
    """One finding on one line: severity, place, what was found, the limit, the fix."""
    where = f" in {diagnostic.module}" if diagnostic.module else ""
    node = f"{diagnostic.node}{where}: " if diagnostic.node else ""
    return (
        f"{diagnostic.severity.value} {diagnostic.rule}: {node}{diagnostic.found}; {diagnostic.limit}. "
        f"Fix: {diagnostic.fix}"
    )


def _contract_lines(result: CompileResult) -> list[str]:
    contract = result.contract
    delivered = "p - 128" if contract.signed else "p"
    lines = [
        f"{contract.channels}x{contract.height}x{contract.width}, {contract.colour_order}. For sensor pixel "
        f"p (0..255) the chip's network takes the integer q = {delivered}; the network was trained on x:",
        "",
        "| sensor pixel p | integer q | real x per channel |",
        "|---:|---:|---|",
    ]
    for pixel in (0, 64, 128, 255):
        q = pixel - 128 if contract.signed else pixel
        real = ", ".join(f"{s * q + o:.4f}" for s, o in zip(contract.scale, contract.offset, strict=True))
        lines.append(f"| {pixel} | {q} | {real} |")
    return lines


def _memory_lines(result: CompileResult) -> list[str]:
    memory, vendor = result.check.memory, result.vendor
    if memory is None:
        return []
    lines = ["## Memory", "", "| | forecast | kind | converter (measured) |", "|---|---:|---|---:|"]
    rows = (("model", "model_bytes"), ("runtime", "runtime_bytes"), ("total", "total_bytes"))
    for name, field in rows:
        measured = "" if vendor is None else f"{getattr(vendor, field):,}"
        lines.append(f"| {name} | {getattr(memory, field):,} | {memory.exactness[field]} | {measured} |")
    lines += [
        f"| budget | {memory.budget_bytes:,} | exact | |",
        "",
        "The largest tensors in the chip's memory (bytes; live from the first to the last step):",
        "",
        "| tensor | bytes | layout | live |",
        "|---|---:|---|---|",
    ]
    largest = sorted(memory.tensors, key=lambda tensor: (-tensor.bytes, tensor.name))[:8]
    lines += [f"| {t.name} | {t.bytes:,} | {t.layout} | {t.first_step}..{t.last_step} |" for t in largest]
    return [*lines, ""]


def _agreement_lines(result: CompileResult) -> list[str]:
    if result.agreement is None:
        return []
    return [
        "## Float against int8",
        "",
        *(f"- {o.name}: {_agreement_text(o, result.agreement.pictures)}" for o in result.agreement.outputs),
        "",
        "Both ran on the integers the sensor delivers, the int8 side from model_quant.onnx, the file that "
        "the converter took.",
        "",
    ]


def _calibration_lines(result: CompileResult) -> list[str]:
    if result.calibration is None:
        return []
    return [
        "## Calibration",
        "",
        *(f"- {name}: {_short(value)}" for name, value in result.calibration.items()),
        "",
    ]


def _short(value: Any) -> str:
    """A value on one line; of the source pictures the names (report.json has the checksums)."""
    if isinstance(value, list):
        shown = ", ".join(item["name"] + " (held out)" * item["held_out"] for item in value[:12])
        return shown + (f" ... ({len(value)} in all)" if len(value) > 12 else "")
    return str(value)


def _whose(step: StepTime) -> str:
    if step.cached:
        return "cache"
    return "vendor" if step.vendor else "ours"


def _mb(number: int) -> str:
    """Bytes as MB of 2^20, the unit of the vendor's 8 MB."""
    return f"{number / 2**20:.2f} MB"
