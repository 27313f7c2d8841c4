"""How often the gate fails what is as good, and catches what is worse, by the number of samples.

    python -m benchmarks.gate_power REPORT.json --out FOUND.json
    python -m benchmarks.gate_power REPORT.json --out FOUND.json --print [--svg FILE.svg]

REPORT.json is what `picosam2 gate PACKAGE --data ... --format json` printed: the IoU of every instance under
the float and the int8 network. Each of 200 re-samplings draws whole pictures with replacement until it has
the wanted number of instances, and is judged as the gate judges (`intervals`, `decide`, confidence 0.95).

Models of equal accuracy: the int8 network shifted by its mean difference, so that its true drop is zero; and
two copies of the float network that each lose 5 % of their instances, chosen apart: equal, but unlike each
other. Worse models: the float network with the IoU of instances drawn at random lowered so that the mean
falls by 0.5, 1, 2 or 3 points: halved; set to 0 (lost); or lost in whole pictures drawn at random, where the
loss itself varies most.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.gate.criteria import Verdict, decide
from compiler.gate.intervals import intervals

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLINGS = 200
SIZES = (100, 200, 441, 1461)
"""Instances: 441 are those of the PicoSAM2 authors' stored predictions, 1,461 all of the COCO subset."""

DROPS = (0.5, 1.0, 2.0, 3.0)
LIMITS = (0.0, 1.0)
"""--max-drop, points."""

CONFIDENCE = 0.95
LOST_BY_EACH = 0.05
WAYS = {
    "halved": "the IoU of random instances halved",
    "lost": "random instances lost (IoU 0)",
    "pictures": "all instances of random pictures lost",
}
EQUAL = {
    "int8": "int8 against float, true drop 0",
    "apart": "two networks that each lose 5 % of the instances, chosen apart",
}


def resampled(picture_ids: Integers, count: int, random: np.random.Generator) -> tuple[Integers, Integers]:
    """Instances, and new ids of their pictures, drawn until there are `count`; both int64 [count]."""
    pictures = [np.flatnonzero(picture_ids == one) for one in np.unique(picture_ids)]
    chosen: list[Integers] = []
    while sum(map(len, chosen)) < count:
        chosen.append(pictures[int(random.integers(len(pictures)))])
    ids = np.repeat(np.arange(len(chosen)), [len(one) for one in chosen])
    return np.concatenate(chosen)[:count], ids[:count]


def losses(
    real: Floats, int8: Floats, chosen: Integers, ids: Integers, random: np.random.Generator
) -> Iterator[tuple[str, float, Floats]]:
    """Way, true drop in points, and what each of the chosen instances loses in points."""
    of, mean = real[chosen], float(real.mean())
    yield "int8", 0.0, 100 * (of - int8[chosen] - (real - int8).mean())
    first, second = (random.random((2, len(of))) < LOST_BY_EACH).astype(np.float64)
    yield "apart", 0.0, 100 * of * (second - first)
    for drop in DROPS:
        share = drop / 100 / mean
        yield "halved", drop, 100 * of * 0.5 * (random.random(len(of)) < 2 * share)
        yield "lost", drop, 100 * of * (random.random(len(of)) < share)
        yield "pictures", drop, 100 * of * (random.random(ids.max() + 1) < share)[ids]


def measure(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each way, drop, limit and size: how many of RESAMPLINGS pass, fail and cannot be told."""
    instances = report["instances"]
    real, int8 = (np.array(instances[name], np.float64) for name in ("float_iou", "int8_iou"))
    picture_ids = np.array(instances["picture_ids"], np.int64)
    counts: Counter[tuple[str, float, float, int, Verdict]] = Counter()
    for size in SIZES:
        for number in range(RESAMPLINGS):
            random = np.random.default_rng([size, number])
            chosen, ids = resampled(picture_ids, size, random)
            ways = list(losses(real, int8, chosen, ids, random))
            columns = np.stack([lost for _, _, lost in ways], axis=1)
            found = intervals(columns, ids, CONFIDENCE, seed=0)
            for (way, drop, _), interval in zip(ways, found, strict=True):
                for limit in LIMITS:
                    counts[way, drop, limit, size, decide(interval, limit, at_least=False)] += 1
        print(f"{size} instances done", flush=True)
    keys = sorted({key[:4] for key in counts})
    return [
        {
            "way": way,
            "drop": drop,
            "limit": limit,
            "instances": size,
            **{verdict.name.lower(): counts[way, drop, limit, size, verdict] for verdict in Verdict},
        }
        for way, drop, limit, size in keys
    ]


def share(rows: list[dict[str, Any]], way: str, drop: float, limit: float, size: int) -> tuple[float, float]:
    """Share that fails and that passes, 0..1."""
    wanted = {"way": way, "drop": drop, "limit": limit, "instances": size}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    return row["fail"] / RESAMPLINGS, row["pass"] / RESAMPLINGS


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: per cent that fail / that pass; the rest has too few samples to tell."""
    lines = [
        "| networks | true drop | --max-drop | " + " | ".join(f"{size:,}" for size in SIZES) + " |",
        "|---" * (3 + len(SIZES)) + "|",
    ]
    kinds: list[tuple[str, str, tuple[float, ...]]]
    kinds = [(way, text, (0.0,)) for way, text in EQUAL.items()]
    kinds += [(way, text, DROPS) for way, text in WAYS.items()]
    for limit in LIMITS:
        for way, text, drops in kinds:
            for drop in drops:
                shares = [share(rows, way, drop, limit, size) for size in SIZES]
                cells = [f"{100 * fail:.1f} / {100 * passed:.1f}" for fail, passed in shares]
                lines.append(f"| {text} | {drop:g} | {limit:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


WIDTH, HEIGHT, MARGIN = 640, 300, 52
DASHES = {0.0: "1 4", 0.5: "2 3", 1.0: "6 3", 2.0: "12 3", 3.0: "none"}


def figure(rows: list[dict[str, Any]], way: str = "lost") -> str:
    """Share caught by the number of instances, one panel for each limit, one line for each true drop."""
    half = WIDTH / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img" aria-label="Share of 200 re-samplings that the gate fails, by instances">'
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for panel, limit in enumerate(LIMITS):
        left, right = panel * half + MARGIN, (panel + 1) * half - 40
        places = [left + (right - left) * at / (len(SIZES) - 1) for at in range(len(SIZES))]

        def y(value: float) -> float:
            return HEIGHT - MARGIN - value * (HEIGHT - 2 * MARGIN)

        parts.append(f'<text x="{left:.0f}" y="20">failed with --max-drop {limit:g}, per cent</text>')
        for tick in (0.0, 0.05, 0.5, 0.95, 1.0):
            parts.append(
                f'<path d="M{left:.1f} {y(tick):.1f}H{right:.1f}" stroke="#ddd"/>'
                f'<text x="{left - 6:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:g}</text>'
            )
        for place, size in zip(places, SIZES, strict=True):
            bottom = HEIGHT - MARGIN + 18
            parts.append(f'<text x="{place:.1f}" y="{bottom}" text-anchor="middle">{size:,}</text>')
        middle = (left + right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 14}" text-anchor="middle">instances</text>')
        for drop in (0.0, *DROPS):
            kind = way if drop else "apart"
            points = [
                (place, y(share(rows, kind, drop, limit, size)[0]))
                for place, size in zip(places, SIZES, strict=True)
            ]
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            parts.append(
                f'<path d="M{path}" fill="none" stroke="#36c" stroke-width="1.5" '
                f'stroke-dasharray="{DASHES[drop]}"/>'
            )
    for number, drop in enumerate((0.0, *DROPS)):
        place, label = MARGIN + 116 * number, f"{drop:g} points lost" if drop else "equal"
        parts.append(
            f'<path d="M{place} 36h26" stroke="#36c" stroke-width="1.5" stroke-dasharray="{DASHES[drop]}"/>'
            f'<text x="{place + 32}" y="40">{label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--print", action="store_true", dest="show")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    if not options.show:
        rows = measure(json.loads(options.report.read_bytes()))
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return
    rows = json.loads(options.out.read_bytes())
    print(table(rows))
    if options.svg is not None:
        options.svg.write_text(figure(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
