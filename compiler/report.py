"""Reports: pure functions of a CompileResult (report.json, report.md, and the console summary).

Every figure carries what it is: exact (counted), measured (by the vendor's converter or by running the
network), estimated (our forecast), or assumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compiler.result import SCHEMA, CheckResult, CompileResult, SizeResult, StepTime
from passes.diagnostics import Diagnostic
from passes.imx500.latency import PUBLISHED, LatencyEstimate, estimate_latency
from passes.imx500.limits import MEMORY_BUDGET

if TYPE_CHECKING:
    from compiler.agreement import Agreement, OutputAgreement
    from compiler.quantizing.search import Choice, Tried
    from compiler.quantizing.widths import Widths
    from passes.equalise import Equalisation
    from passes.imx500.fixes import AppliedFix

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
        "quantization": None if result.choice is None else _choice_json(result.choice),
        "equalised": None if result.equalised is None else _equalised_json(result.equalised),
        "weights": None
        if result.widths is None
        else asdict(result.widths) | {"kind": {"loss": "measured", "saved": "estimated"}},
        "calibration": None if result.calibration is None else dict(result.calibration),
        "check": result.check.to_json(),
        "memory_tensors": []
        if result.check.memory is None
        else [asdict(t) for t in result.check.memory.tensors],
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
    lines += [*_memory_lines(result), *_cost_lines(result.check)]
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
    if result.widths is not None:
        rows.append(("Weights", _widths_text(result.widths)))
    if result.choice is not None:
        rows += [
            ("Quantizer", _choice_text(result.choice)),
            *(("", tried_text(t)) for t in result.choice.tried),
        ]
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
    rows.append(("Cost", _cost_text(check)))
    if check.macs:
        without = ", without the operators not counted" if check.uncounted else ""
        rows.append(("Latency", f"{_ms(check.latency)} ({_CALIBRATION}{without})"))
    for fix in check.fixes:
        rows.append(("Fixed", fix_text(fix)))
    return rows


def _cost_text(check: CheckResult) -> str:
    cost = f"{_macs(check)} MACs, {check.parameters:,} parameters"
    if not check.uncounted:
        return f"{cost} (exact)"
    count = len(check.uncounted)
    kinds = ", ".join(sorted({one.operator for one in check.uncounted}))
    return f"{cost}; {count} operator{'s' * (count != 1)} not counted ({kinds})"


def _macs(check: CheckResult) -> str:
    return f"{'at least ' if check.uncounted else ''}{check.macs / 1e6:.1f} M"


_CALIBRATION = "estimated from the MACs at the published rates of " + " and ".join(
    f"{point.network}, {point.ms:g} ms" for point in PUBLISHED
)


def fix_text(fix: AppliedFix) -> str:
    """One rewrite on one line: place, what was done, how near it is, what it costs."""
    where = f" in {fix.module}" if fix.module else ""
    size = "bytes not forecast" if fix.bytes_added is None else f"{fix.bytes_added:+,} bytes (forecast)"
    return (
        f"{fix.rule}: {fix.node}{where}: {fix.done} ({fix.exactness}); "
        f"{fix.macs_added / 1e6:+.2f} M MACs, {size}"
    )


COSTLIEST = 8
"""Modules that the check names with their cost."""


def cost_lines(check: CheckResult) -> list[str]:
    """The modules with the most MACs, one a line, and the others together; report.json has every node."""
    macs: dict[str, int] = {}
    parameters: dict[str, int] = {}
    for cost in check.costs:
        name = cost.module or cost.node
        macs[name] = macs.get(name, 0) + cost.macs
        parameters[name] = parameters.get(name, 0) + cost.parameters
    ordered = sorted((name for name in macs if macs[name]), key=lambda name: (-macs[name], name))
    if not ordered:
        return []
    rows = [("MACs", "share", "parameters", "latency (estimated)", "module")]
    rows += [
        (
            f"{macs[name] / 1e6:.1f} M",
            f"{100 * macs[name] / check.macs:.1f} %",
            f"{parameters[name]:,}",
            _ms(estimate_latency(macs[name])),
            name,
        )
        for name in ordered[:COSTLIEST]
    ]
    if others := ordered[COSTLIEST:]:
        rest = sum(macs[name] for name in others)
        share = f"{100 * rest / check.macs:.1f} %"
        held = f"{sum(parameters[name] for name in others):,}"
        rows.append(
            (f"{rest / 1e6:.1f} M", share, held, _ms(estimate_latency(rest)), f"{len(others)} others")
        )
    return _aligned(rows)


def what_if_lines(sizes: Iterable[SizeResult]) -> list[str]:
    """The network at other input sizes, one a line; bytes are forecasts."""
    rows = [
        (
            "size",
            "model bytes",
            "runtime (forecast)",
            "total",
            "fits",
            "MACs",
            "latency (estimated)",
            "findings",
        )
    ]
    problems = []
    for size in sizes:
        name = f"{size.height}x{size.width}"
        if size.check is None or size.check.memory is None:
            problems.append(f"{name}: {size.problem}")
            continue
        check, memory = size.check, size.check.memory
        tiled = "no, may tile" if memory.may_tile else "no"
        rows.append(
            (
                name,
                f"{memory.model_bytes:,}",
                f"{memory.runtime_bytes:,}",
                f"{memory.total_bytes:,}",
                "yes" if memory.fits else tiled,
                _macs(check),
                _ms(check.latency) if check.macs else "-",
                check_rows(check)[0][1],
            )
        )
    return [*(_aligned(rows) if len(rows) > 1 else []), *problems]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest entry, numbers to the right, the last one as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(f"{text:>{width}}" for text, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


SHORTEST = 0.01
"""Milliseconds below which an estimate is not printed as a number: it is far finer than the estimate is."""


def _ms(estimate: LatencyEstimate) -> str:
    if estimate.high_ms < SHORTEST:
        return f"< {SHORTEST:g} ms"
    low = f"< {SHORTEST:g}" if estimate.low_ms < SHORTEST else _rounded(estimate.low_ms)
    return f"{low} to {_rounded(estimate.high_ms)} ms"


def _rounded(number: float) -> str:
    """Three digits, never in powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


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
    where += f" ({diagnostic.line})" if diagnostic.line else ""
    node = f"{diagnostic.node}{where}: " if diagnostic.node else ""
    limit = diagnostic.limit.rstrip(".")
    return (
        f"{diagnostic.severity.value} {diagnostic.rule}: {node}{diagnostic.found}; {limit}. "
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


def _cost_lines(check: CheckResult) -> list[str]:
    costliest = cost_lines(check)
    return ["## Costliest modules", "", "```", *costliest, "```", ""] if costliest else []


def _choice_json(choice: Choice) -> dict[str, Any]:
    tried = [
        {
            "quantizer": one.quantizer,
            "settings": one.settings,
            "agreement": one.agreement,
            "drop": {
                "points": one.drop.points,
                "low": _finite(one.drop.low),
                "high": _finite(one.drop.high),
                "kind": one.drop.kind,
            },
            "seconds": one.seconds,
        }
        for one in choice.tried
    ]
    return asdict(choice) | {"tried": tried, "kind": "measured"}


def _equalised_json(done: Equalisation) -> dict[str, Any]:
    tensors = [asdict(one) for one in done.tensors if one.scaled]
    return {"channels": done.scaled, "tensors": tensors, "kind": "measured"}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _choice_text(choice: Choice) -> str:
    verdict = (
        "" if choice.met is None else f"; --max-drop {choice.max_drop:g} {'met' if choice.met else 'NOT met'}"
    )
    return (
        f"{choice.kept} kept{verdict} (measured by the exact simulator on {choice.crops} crops of "
        f"{choice.pictures} pictures that nothing was fitted to):"
    )


def tried_text(one: Tried) -> str:
    """One way that was tried: its agreement, what it loses, its time."""
    drop, time = one.drop, "cached" if one.seconds is None else f"{one.seconds:.0f} s"
    interval = f" ({drop.low:+.2f} to {drop.high:+.2f})" if math.isfinite(drop.high) else ""
    lost = {
        "measured": f"drop {drop.points:+.2f}{interval} points of mIoU",
        "bound": f"drop at most {drop.points:.2f}{interval} points",
        "none": "drop not known",
    }[drop.kind]
    return f"{one.quantizer}, {one.settings}: agreement {one.agreement:.4f}, {lost}, {time}"


def _widths_text(widths: Widths) -> str:
    count = {bits: list(widths.bits.values()).count(bits) for bits in (8, 4, 2)}
    layers = ", ".join(
        f"{number} layer{'s' * (number != 1)} of {bits} bits" for bits, number in count.items() if number
    )
    target = "" if widths.memory_target is None else f" for at most {_mb(widths.memory_target)}"
    return f"{layers}{target} (asked: {widths.asked}); what the chip stores in 8 bits stays"


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
        shown = ", ".join(f"{item['name']} ({item['part']})" for item in value[:12])
        return shown + (f" ... ({len(value)} in all)" if len(value) > 12 else "")
    return str(value)


def _whose(step: StepTime) -> str:
    if step.cached:
        return "cache"
    return "vendor" if step.vendor else "ours"


def _mb(number: int) -> str:
    """Bytes as MB of 2^20, the unit of the vendor's 8 MB."""
    return f"{number / 2**20:.2f} MB"
