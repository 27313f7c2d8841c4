"""The tables of docs/training.md: the card of a shipped checkpoint, and the ablation.

    python -m benchmarks.student_tables card RUN CHECKPOINT --data DATA --before RUN... --note TEXT
    python -m benchmarks.student_tables ablation DATA PROTOCOL BASELINE_RUN RUN...

DATA holds coco/, lvis/ and picosam2_reference/. `card` scores CHECKPOINT (a copy of RUN/student.pt) on every
set and protocol and writes its card beside it, with the cards of the runs it started from; `ablation` prints
one Markdown row for each run, with the paired difference from the first. Every number is one that
`picosam2 evaluate` prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from compiler.evaluating import EvaluationResult, evaluate_model

POINT, CLIP, ROI = "point-native-96", "point-native-96-clip", "roi-pad10"
AUTHORS = ("Trained", "Distilled", "Quantized")


def lineage(run: Path, before: list[Path]) -> list[dict[str, Any]]:
    """The cards of the runs that led to `run`, first one first; each started from the one before it."""
    runs = [*before, run]
    cards = [json.loads((each / "card.json").read_text()) for each in runs]
    for earlier, later in zip(runs, cards[1:], strict=False):
        if hashlib.sha256((earlier / "student.pt").read_bytes()).hexdigest() != later["started_from_sha256"]:
            raise SystemExit(f"{earlier}/student.pt is not what the next run started from")
    if cards[0]["started_from_sha256"] is not None:
        raise SystemExit(f"{runs[0]} started from another run: name it with --before")
    return cards


def card(run: Path, checkpoint: Path, data: Path, before: list[Path], note: str) -> dict[str, Any]:
    """The runs' own cards, and what the last one's checkpoint reaches on every set and protocol."""
    *earlier, trained = lineage(run, before)
    coco, lvis = f"coco:{data / 'coco'}", f"lvis:{data / 'lvis'}"
    reference = data / "picosam2_reference"
    scores: dict[str, Any] = {}
    for name, source in (("coco val2017 subset", coco), ("lvis v0.5 val subset", lvis)):
        for protocol in (POINT, CLIP, ROI):
            print(name, protocol, file=sys.stderr)
            result = evaluate_model(checkpoint, source=source, protocol=protocol, training=coco)
            scores[f"{name}, {protocol}"] = result.to_json()
    for author in AUTHORS if trained["recipe"]["protocol"] == POINT else ():
        result = evaluate_model(
            checkpoint,
            source=coco,
            protocol=CLIP,
            against=reference / f"PicoSAM2_{author}_pred.json",
            only=reference / "matched.json",
        )
        scores[f"441 reference instances, {CLIP}, against the authors' {author}"] = result.to_json()
    content = checkpoint.read_bytes()
    return {
        "checkpoint": {
            "file": checkpoint.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        "note": note,
        "training": trained,
        "training_before": earlier,
        "evaluation": scores,
    }


def cell(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def ablation(data: Path, protocol: str, runs: list[Path]) -> None:
    """Prints a Markdown table: COCO and LVIS mIoU of each run and the paired difference from the first."""
    print("| run | COCO val | difference | LVIS val | difference |\n|---|---|---|---|---|")
    for run in runs:
        cells = [run.name]
        for source in (f"coco:{data / 'coco'}", f"lvis:{data / 'lvis'}"):
            result: EvaluationResult = evaluate_model(
                run / "student.pt", source=source, protocol=protocol, against=runs[0] / "student.pt"
            )
            assert result.difference is not None
            own, apart = result.model.figures.overall.miou, result.difference.miou
            cells.append(cell(own.mean, own.low, own.high))
            cells.append("" if run == runs[0] else cell(apart.mean, apart.low, apart.high, "+"))
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("card")
    one.add_argument("run", type=Path)
    one.add_argument("checkpoint", type=Path)
    one.add_argument("--data", type=Path, required=True)
    one.add_argument(
        "--before", type=Path, nargs="*", default=[], help="runs it started from, first one first"
    )
    one.add_argument("--note", default="", help="what the cards do not say")
    other = commands.add_parser("ablation")
    other.add_argument("data", type=Path)
    other.add_argument("protocol")
    other.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "card":
        written = card(options.run, options.checkpoint, options.data, options.before, options.note)
        options.checkpoint.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
    else:
        ablation(options.data, options.protocol, options.runs)


if __name__ == "__main__":
    main()
