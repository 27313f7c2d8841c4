"""The tables of docs/quantization.md: what quantization loses, at each width, for several seeds.

    python -m benchmarks.quantization_tables DATA --out rows.jsonl ROW...

A ROW is CHECKPOINT:BITS:QUANTIZER:SEED, for example `picosam2:8:brevitas-qat:0`; CHECKPOINT is a name in
student/checkpoints. BITS is 8, 4, or a number of bytes: mixed widths under that memory target. Each row is a
compile (calibrated and trained on DATA/coco), the converter's memory report, and the paired evaluation of the
int8 and the float graph of the package on the COCO and LVIS instances of DATA, under the checkpoint's
protocol, by the exact simulator. Rows that are in the file already are not measured again; at the end the
file is printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from compiler.driver import FLOAT_GRAPH, CompileOptions, compile_model
from compiler.evaluating import evaluate_model
from compiler.progress import Progress

CHECKPOINTS = Path(__file__).parents[1] / "student" / "checkpoints"
PROTOCOLS = {"picosam2": "point-native-96", "picosam2-roi": "roi-pad10"}


def measure(row: str, data: Path, folder: Path) -> dict[str, Any]:
    """Compile and score one row; the package stays in `folder`."""
    checkpoint, bits, quantizer, seed = row.split(":")
    mixed = bits not in ("8", "4")
    options = CompileOptions(
        model=CHECKPOINTS / f"{checkpoint}.pt",
        out=folder / row.replace(":", "-"),
        calib=f"coco:{data / 'coco'}",
        quantizer=quantizer,
        weight_bits="mixed" if mixed else bits,
        memory_target=int(bits) if mixed else None,
        seed=int(seed),
        memory_report_only=True,
    )
    result = compile_model(options, lambda steps: Progress(steps, quiet=True))
    assert result.vendor is not None
    found: dict[str, Any] = {
        "row": row,
        "model_bytes": result.vendor.model_bytes,
        "total_bytes": result.vendor.total_bytes,
        "widths": None if result.widths is None else sorted(result.widths.bits.values()),
        "kept": quantizer if result.choice is None else result.choice.kept,
        "seconds": sum(
            step.seconds for step in result.steps if step.name in ("quantize", "widths", "search")
        ),
        "cached": any(step.cached for step in result.steps if step.name in ("quantize", "search")),
        "tried": [] if result.choice is None else [_tried(one) for one in result.choice.tried],
    }
    for name in ("coco", "lvis"):
        scored = evaluate_model(
            options.out,
            source=f"{name}:{data / name}",
            protocol=PROTOCOLS[checkpoint],
            against=options.out / FLOAT_GRAPH,
        )
        assert scored.difference is not None
        found[name] = {
            "miou": scored.model.figures.overall.miou.to_json(),
            "difference": scored.difference.miou.to_json(),
        }
    return found


def _tried(one: Any) -> dict[str, Any]:
    return {"quantizer": one.quantizer, "agreement": one.agreement, "seconds": one.seconds}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| checkpoint | weights | quantizer | seed | kept | model memory | COCO mIoU | difference "
        "| LVIS difference |",
        "|---|---|---|---:|---|---:|---:|---|---|",
    ]
    for one in rows:
        checkpoint, bits, quantizer, seed = one["row"].split(":")
        width = f"{bits} bits" if bits in ("8", "4") else f"mixed, at most {int(bits):,} bytes in all"
        cells = [
            checkpoint,
            width,
            quantizer,
            seed,
            one["kept"],
            f"{one['model_bytes']:,}",
            f"{one['coco']['miou']['mean']:.4f}",
            _points(one["coco"]["difference"]),
            _points(one["lvis"]["difference"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(difference: dict[str, float]) -> str:
    mean, low, high = (100 * difference[end] for end in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_intermixed_args()
    done = (
        [json.loads(line) for line in arguments.out.read_text().splitlines()]
        if arguments.out.exists()
        else []
    )
    for row in arguments.rows:
        if row not in [one["row"] for one in done]:
            print(row, file=sys.stderr)
            done.append(measure(row, arguments.data, arguments.out.with_suffix("")))
            with arguments.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
