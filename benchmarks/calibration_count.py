"""How the quality of the quantized student depends on the number of calibration crops.

    python -m benchmarks.calibration_count DATA --out ROWS.jsonl [--counts 8 16 ...] [--seeds 0 1]
    python -m benchmarks.calibration_count DATA --out ROWS.jsonl --print [--svg FILE.svg]

DATA holds coco/. For each count and seed: crops of train2017, MCT's post-training quantization of the folded
shipped student, and its score on the crops of val2017 under point-native-96, in the exact simulator, as
`picosam2 evaluate model_quant.onnx` computes it. ROWS.jsonl gets one line for each; what it holds already is
not computed again. `--print` writes the Markdown table of docs/calibration.md, `--svg` its figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from calib.ptq import mct_ptq
from calib.representative import load_representative
from compiler.dialect import output_grid
from compiler.evaluating import predictor
from compiler.frontend import load_model
from passes import graph as graphs
from passes.pipeline import apply_all
from student.crops import POINT_NATIVE_96, Mask
from student.cropset import CropSet, load_crops
from student.evaluate import difference, iou, predict_crops
from student.instances import load_instances

CHECKPOINT = Path(__file__).parents[1] / "student" / "checkpoints" / "picosam2.pt"
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


def masks_of(path: Path, crops: CropSet) -> Mask:
    """What a graph predicts of the crops, bool [N, S, S]."""
    predict, limit = predictor(load_model(path), 1)
    return predict_crops(predict, crops, limit or 16).masks


def measure(data: Path, out: Path, counts: list[int], seeds: list[int]) -> None:
    """Adds the rows that are missing, few crops first."""
    torch.set_num_threads(1)
    done = {(row["count"], row["seed"]) for row in rows(out)}
    wanted = [(count, seed) for count in counts for seed in seeds if (count, seed) not in done]
    if not wanted:
        return
    source = f"coco:{data / 'coco'}"
    loaded = load_model(CHECKPOINT)
    model = apply_all(loaded.model)
    crops = load_crops(load_instances(source), POINT_NATIVE_96)
    with tempfile.TemporaryDirectory(prefix="picosam2-count-") as folder:
        path = Path(folder) / "model.onnx"
        graphs.save(model, path)
        reference = masks_of(path, crops)
        floats = iou(reference, crops.masks)
        for count, seed in wanted:
            pictures = load_representative(source, loaded.contract, count, seed)
            began = time.perf_counter()
            quantized = mct_ptq(model, pictures, seed=seed, progress=lambda phase, share: None)
            seconds = time.perf_counter() - began
            graphs.save(quantized, path)
            masks = masks_of(path, crops)
            ious = iou(masks, crops.masks)
            grid = output_grid(quantized.graph.outputs[0])
            row = {
                "count": count,
                "seed": seed,
                "instances": len(crops),
                "float_miou": float(floats.mean()),
                "miou": float(ious.mean()),
                "difference": difference(ious, floats, crops.picture_ids).miou.to_json(),
                "agreement": float(iou(masks, reference).mean()),
                "output_step": None if grid is None else float(grid.step),
                "mct_s": seconds,
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)


def rows(out: Path) -> list[dict[str, Any]]:
    """What was measured, in order of count and seed."""
    if not out.is_file():
        return []
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return sorted(found, key=lambda row: (row["count"], row["seed"]))


def table(found: list[dict[str, Any]]) -> str:
    """One Markdown row for each measurement; points are hundredths of mIoU."""
    lines = [
        "| crops | seed | mIoU int8 | int8 - float, points [95 %] | agreement | output step | MCT |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        apart = row["difference"]
        mean, low, high = (100 * apart[end] for end in ("mean", "low", "high"))
        lines.append(
            f"| {row['count']} | {row['seed']} | {row['miou']:.4f} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] "
            f"| {row['agreement']:.4f} | {row['output_step']} | {row['mct_s']:.0f} s |"
        )
    return "\n".join(lines)


WIDTH, HEIGHT, MARGIN = 560, 260, 46
"""Of the figure, and around its axes, in pixels."""


def figure(found: list[dict[str, Any]]) -> str:
    """SVG: int8 minus float in points with its interval, for each number of crops, seeds side by side."""
    counts = sorted({row["count"] for row in found})
    lowest = min(100 * float(row["difference"]["low"]) for row in found)
    highest = max(100 * float(row["difference"]["high"]) for row in found)

    def y(points: float) -> float:
        return MARGIN + (highest - points) / (highest - lowest) * (HEIGHT - 2 * MARGIN)

    def x(row_count: int, seed: int) -> float:
        return MARGIN + (counts.index(row_count) + 0.4 + 0.2 * seed) / len(counts) * (WIDTH - 2 * MARGIN)

    ticks = [tick / 10 for tick in range(round(10 * lowest), round(10 * highest) + 1)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="20">int8 minus float, points of mIoU (95 %), by calibration crops</text>',
    ]
    for tick in ticks:
        colour = "#444" if tick == 0 else "#ddd"
        parts.append(
            f'<path d="M{MARGIN} {y(tick):.1f}H{WIDTH - MARGIN}" stroke="{colour}"/>'
            f'<text x="{MARGIN - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:+g}</text>'
        )
    for row in found:
        mean, low, high = (100 * row["difference"][end] for end in ("mean", "low", "high"))
        place = x(row["count"], row["seed"])
        parts.append(
            f'<path d="M{place:.1f} {y(low):.1f}V{y(high):.1f}" stroke="#36c"/>'
            f'<circle cx="{place:.1f}" cy="{y(mean):.1f}" r="3" fill="#36c"/>'
        )
    parts += [
        f'<text x="{x(count, 0):.1f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{count}</text>'
        for count in counts
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--print", action="store_true", dest="show")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    if not options.show:
        measure(options.data, options.out, options.counts, options.seeds)
        return
    print(table(rows(options.out)))
    if options.svg is not None:
        options.svg.write_text(figure(rows(options.out)))


if __name__ == "__main__":
    main()
