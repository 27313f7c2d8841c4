"""Where a compile's time goes, and how fast the answers are that need no vendor tool.

    python -m benchmarks.compile_time [--runs 5] [--compiles 3] [--checkpoint FILE]

Prints a Markdown table (docs/performance.md holds the last one): whole-process times as the median of
several runs, our own share of the median compile without any cache, and the check against the vendor's
fastest answer, its memory report, on the same network in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PICOSAM2 = Path(sys.executable).parent / "picosam2"


def seconds(arguments: list[str], runs: int, cache: Path) -> float:
    """Median wall seconds of `picosam2 ARGUMENTS` as a whole process, after one run that is not counted."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(
            [PICOSAM2, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PICOSAM2_CACHE": str(cache)},
        )
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def compiled(checkpoint: Path, out: Path, cache: Path, *options: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds of a compile and its report."""
    started = time.perf_counter()
    subprocess.run(
        [PICOSAM2, "compile", str(checkpoint), "--out", str(out), "--quiet", *options],
        check=True,
        env=os.environ | {"PICOSAM2_CACHE": str(cache)},
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - started, json.loads((out / "report.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of the short commands")
    parser.add_argument("--compiles", type=int, default=3, help="without any cache; best an odd number")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "student/checkpoints/picosam2.pt")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="picosam2-bench-") as folder:
        work = Path(folder)
        fresh = [
            compiled(arguments.checkpoint, work / "package", work / f"cache-{number}")
            for number in range(arguments.compiles)
        ]
        times = [one[0] for one in fresh]
        whole, report = sorted(fresh, key=lambda one: one[0])[len(fresh) // 2]
        again = statistics.median(
            compiled(arguments.checkpoint, work / "package", work / "cache-0")[0] for _ in fresh
        )
        memory_only, memory_report = compiled(
            arguments.checkpoint, work / "memory", work / "cache-0", "--memory-report-only"
        )
        vendor_memory = next(s["seconds"] for s in memory_report["steps"] if s["name"] == "convert")
        model = work / "package" / "model.onnx"
        help_s = seconds(["--help"], arguments.runs, work / "cache-0")
        check_s = seconds(["check", str(model)], arguments.runs, work / "cache-0")
    vendor = sum(step["seconds"] for step in report["steps"] if step["vendor"])
    ours = whole - vendor
    rows = [
        (
            f"whole compile, nothing cached, median of {len(fresh)}",
            f"{whole:.1f} s ({min(times):.1f} to {max(times):.1f})",
        ),
        ("of it MCT and the converter", f"{vendor:.1f} s"),
        ("of it ours (imports and start-up included)", f"{ours:.1f} s, {100 * ours / whole:.1f} %"),
        (f"the same compile again, cached, median of {len(fresh)}", f"{again:.1f} s"),
        ("`picosam2 --help`", f"{help_s:.2f} s"),
        ("`picosam2 check model.onnx`", f"{check_s:.2f} s"),
        (
            "the vendor's memory report",
            f"{vendor_memory:.1f} s ({memory_only:.1f} s with our compile around it)",
        ),
        ("the vendor's memory report / our check", f"{vendor_memory / check_s:.0f} x"),
    ]
    print(f"| measured; `--help` and `check`: median of {arguments.runs} | |")
    print("|---|---:|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    print("\n| step | seconds | whose |\n|---|---:|---|")
    for step in report["steps"]:
        print(f"| {step['name']} | {step['seconds']:.2f} | {'vendor' if step['vendor'] else 'ours'} |")


if __name__ == "__main__":
    main()
