"""What the commands print: legality, memory, cost and agreement in a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from compiler.reports.figures import aligned, counted, decibels, finite, megabytes, millions, milliseconds
from compiler.result import CheckResult, CompileResult, SizeResult
from passes.diagnostics import Diagnostic
from passes.imx500.latency import PUBLISHED, estimate_latency
from passes.imx500.limits import MEMORY_BUDGET

if TYPE_CHECKING:
    from compiler.agreement import OutputAgreement
    from compiler.quantizing.judge import Accuracy, Drop
    from compiler.quantizing.search import Choice, Tried
    from compiler.quantizing.widths import Widths
    from passes.imx500.fixes import AppliedFix

AGREEMENT_WORDS = {
    "mask-iou": "mean IoU of the float and the int8 mask",
    "pixel-agreement": "pixels whose winning channel is the same",
    "position-agreement": "positions whose winner is the same",
    "winner-agreement": "pictures whose winner is the same",
    "snr-only": "signal-to-noise ratio",
}


def summary_rows(result: CompileResult) -> list[tuple[str, str]]:
    """What a person wants to know in ten seconds, as (name, text); what was not done is left out."""
    rows = [] if result.check is None else check_rows(result.check)
    vendor, memory = result.vendor, None if result.check is None else result.check.memory
    if vendor is not None:
        forecast = "" if memory is None else f"; our forecast was {megabytes(memory.total_bytes)}"
        measured = (
            "Memory",
            f"{megabytes(vendor.total_bytes)} of {megabytes(MEMORY_BUDGET)} (measured by the converter: "
            f"model {megabytes(vendor.model_bytes)}, runtime {megabytes(vendor.runtime_bytes)}{forecast})",
        )
        rows = [measured if name == "Memory" else (name, text) for name, text in rows]
    if result.widths is not None:
        rows.append(("Weights", widths_text(result.widths)))
    if result.choice is not None:
        rows += [
            ("Quantizer", choice_text(result.choice)),
            *(("", tried_text(tried)) for tried in result.choice.tried),
        ]
    if not isinstance(result.accuracy, str):
        found = result.accuracy
        rows.append(("int8 mIoU", f"{miou_text(found)}, {accuracy_text(found)}"))
    if result.agreement is not None:
        several = len(result.agreement.outputs) > 1
        for output in result.agreement.outputs:
            text = agreement_text(output, result.agreement.pictures)
            rows.append(("Float against int8", f"{output.name}: {text}" if several else text))
    return rows


def check_rows(check: CheckResult) -> list[tuple[str, str]]:
    """Legality, memory forecast and cost, as (name, text)."""
    rows = [("Legality", legality_text(check))]
    if (memory := check.memory) is not None:
        model = f"model {megabytes(memory.model_bytes)} {memory.exactness['model_bytes']}"
        runtime = f"runtime {megabytes(memory.runtime_bytes)} {memory.exactness['runtime_bytes']}"
        verdict = "" if memory.fits else " - DOES NOT FIT"
        total = f"{megabytes(memory.total_bytes)} of {megabytes(memory.budget_bytes)}"
        rows.append(("Memory", f"{total} (forecast: {model}, {runtime}){verdict}"))
    rows.append(("Cost", _cost_text(check)))
    if check.macs:
        without = ", without the operators not counted" if check.uncounted else ""
        rows.append(("Latency", f"{milliseconds(check.latency)} ({CALIBRATION}{without})"))
    for fix in check.fixes:
        rows.append(("Fixed", fix_text(fix)))
    return rows


def legality_text(check: CheckResult) -> str:
    """`legal`, or the number of violations; warnings behind."""
    errors = sum(d.severity == "error" for d in check.diagnostics)
    warnings = sum(d.severity == "warning" for d in check.diagnostics)
    legality = "legal" if check.ok else counted(errors, "violation")
    return legality + (f", {counted(warnings, 'warning')}" if warnings else "")


def _cost_text(check: CheckResult) -> str:
    cost = f"{macs_text(check)} MACs, {check.parameters:,} parameters"
    if not check.uncounted:
        return f"{cost} (exact)"
    kinds = ", ".join(sorted({one.operator for one in check.uncounted}))
    return f"{cost}; {counted(len(check.uncounted), 'operator')} not counted ({kinds})"


def macs_text(check: CheckResult) -> str:
    """Multiply-accumulates of the network, `at least` where some are not known."""
    return f"{'at least ' if check.uncounted else ''}{millions(check.macs)}"


CALIBRATION = "estimated from the MACs at the published rates of " + " and ".join(
    f"{point.network}, {point.ms:g} ms" for point in PUBLISHED
)
"""What a latency is and rests on."""


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
            millions(macs[name]),
            f"{100 * macs[name] / check.macs:.1f} %",
            f"{parameters[name]:,}",
            milliseconds(estimate_latency(macs[name])),
            name,
        )
        for name in ordered[:COSTLIEST]
    ]
    if others := ordered[COSTLIEST:]:
        rest = sum(macs[name] for name in others)
        share = f"{100 * rest / check.macs:.1f} %"
        held = f"{sum(parameters[name] for name in others):,}"
        rows.append(
            (millions(rest), share, held, milliseconds(estimate_latency(rest)), f"{len(others)} others")
        )
    return aligned(rows)


def what_if_lines(sizes: Iterable[SizeResult]) -> list[str]:
    """The network at other input sizes, one a line; bytes are forecasts."""
    header = (
        "size", "model bytes", "runtime (forecast)", "total", "fits", "MACs", "latency (estimated)",
        "findings",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [header]
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
                macs_text(check),
                milliseconds(check.latency) if check.macs else "-",
                legality_text(check),
            )
        )
    return [*(aligned(rows) if len(rows) > 1 else []), *problems]


def agreement_text(output: OutputAgreement, pictures: int) -> str:
    """How well float and int8 agree at one output."""
    snr = "equal" if finite(output.snr_db) is None else decibels(output.snr_db)
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


def miou_text(found: Accuracy) -> str:
    """The int8 network's mIoU with its interval over pictures."""
    known = finite(found.miou.low) is not None
    return f"{found.miou.mean:.4f}" + (f" ({found.miou.low:.4f} to {found.miou.high:.4f})" if known else "")


ACCURACY_CAVEAT = (
    "objects of all sizes alike; quantization was not fitted to them, but training may have been, so the "
    "figure is not comparable with the gate's"
)
"""What keeps the mIoU measured on crops of --calib from being the number that counts."""


def accuracy_text(found: Accuracy) -> str:
    """What the mIoU loses against float, and what both rest on."""
    return (
        f"{drop_text(found.drop)} (95 % intervals over pictures; measured on {found.crops} crops of "
        f"{found.pictures} pictures of --calib, {ACCURACY_CAVEAT})"
    )


def choice_text(choice: Choice) -> str:
    """Which way of quantizing was kept, and on what that was decided."""
    verdict = (
        "" if choice.met is None else f"; --max-drop {choice.max_drop:g} {'met' if choice.met else 'NOT met'}"
    )
    return (
        f"{choice.kept} kept{verdict} (measured by the exact simulator on {choice.crops} crops of "
        f"{choice.pictures} pictures that nothing was fitted to):"
    )


def drop_text(drop: Drop) -> str:
    """Accuracy lost against the float network, with its interval."""
    interval = "" if finite(drop.high) is None else f" ({drop.low:+.2f} to {drop.high:+.2f})"
    return {
        "measured": f"drop {drop.points:+.2f}{interval} points of mIoU",
        "bound": f"drop at most {drop.points:.2f}{interval} points",
        "none": "drop not known",
    }[drop.kind]


def tried_text(one: Tried) -> str:
    """One way that was tried: its agreement, what it loses, its time."""
    time = "cached" if one.seconds is None else f"{one.seconds:.0f} s"
    return f"{one.quantizer}, {one.settings}: agreement {one.agreement:.4f}, {drop_text(one.drop)}, {time}"


def widths_text(widths: Widths) -> str:
    """How many layers have how many bits."""
    count = {bits: list(widths.bits.values()).count(bits) for bits in (8, 4, 2)}
    layers = ", ".join(
        f"{counted(number, 'layer')} of {bits} bits" for bits, number in count.items() if number
    )
    target = "" if widths.memory_target is None else f" for at most {megabytes(widths.memory_target)}"
    return f"{layers}{target} (asked: {widths.asked}); what the chip stores in 8 bits stays"
