"""The evaluator: scores anything that turns crops of sensor pixels into logits.

    python -m student.evaluate student/checkpoints/picosam2.pt --data COCO_DIR

A sample is one instance; its IoU is taken inside the crop at threshold 0.5 (logit > 0). Intervals are 95 %
percentile bootstraps over PICTURES, since the instances of one picture are not independent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from passes.contract import InputContract
from passes.errors import InputError, ToolError
from student.checkpoint import load_checkpoint
from student.coco import CropSet, load_crops
from student.crops import PROTOCOLS, Mask, Pixels

Floats = NDArray[np.float64]
Predict = Callable[[Pixels], NDArray[np.float32]]
"""Sensor pixels, RGB uint8 [N, 3, S, S], to logits, float32 [N, 1, S, S]."""

SUCCESS_THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))
"""IoU thresholds .50:.05:.95 of the mean success rate (which the authors call mAP)."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What one predictor reaches on one set of crops."""

    samples: int
    pictures: int
    miou: Estimate
    mean_success_rate: Estimate


def iou(predicted: Mask, truth: Mask) -> Floats:
    """Intersection over union of each sample, float64 [N] of bool [N, ...]; two empty masks agree (1.0)."""
    axes = tuple(range(1, truth.ndim))
    union = (predicted | truth).sum(axes)
    overlap = (predicted & truth).sum(axes)
    ious: Floats = np.where(union == 0, 1.0, overlap / np.maximum(union, 1))
    return ious


def mean_success(ious: Floats) -> Floats:
    """The share of SUCCESS_THRESHOLDS each sample's IoU reaches, float64 [N]."""
    reached: Floats = (ious[:, None] >= np.array(SUCCESS_THRESHOLDS)).mean(axis=1)
    return reached


def estimate(
    values: Floats, picture_ids: NDArray[np.int64], resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean of `values` [N] and its interval from `resamples` bootstraps over pictures."""
    _, picture = np.unique(picture_ids, return_inverse=True)
    sums, counts = np.bincount(picture, values), np.bincount(picture)
    pictures = len(counts)
    drawn = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1.0 / pictures), resamples)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), (2.5, 97.5))
    return Estimate(*(round(float(x), 4) for x in (values.mean(), low, high)))


def score(ious: Floats, picture_ids: NDArray[np.int64]) -> Score:
    """Sums up the IoU of each sample; both [N]."""
    return Score(
        len(ious),
        len(np.unique(picture_ids)),
        estimate(ious, picture_ids),
        estimate(mean_success(ious), picture_ids),
    )


def evaluate(predict: Predict, crops: CropSet, batch: int = 16) -> Floats:
    """The IoU of each crop, float64 [N]."""
    pixels, masks = crops.pictures.transpose(0, 3, 1, 2), crops.masks[:, None]
    return np.concatenate(
        [
            iou(predict(np.ascontiguousarray(pixels[i : i + batch])) > 0, masks[i : i + batch])
            for i in range(0, len(crops), batch)
        ]
    )


def all_ones(crops: CropSet) -> Floats:
    """The IoU of each crop for a prediction that is true everywhere."""
    return iou(np.ones_like(crops.masks), crops.masks)


def best_disc(crops: CropSet) -> tuple[float, Floats]:
    """Radius in pixels of the centred disc with the highest mean IoU on these crops, and the IoU of each."""
    size = crops.masks.shape[1]
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    distance = np.hypot(rows, columns)
    tried = [
        (float(r), iou(np.broadcast_to(distance <= r, crops.masks.shape), crops.masks))
        for r in range(2, size, 2)
    ]
    return max(tried, key=lambda radius_and_ious: float(radius_and_ious[1].mean()))


def normalise(pixels: NDArray[Any], contract: InputContract) -> Tensor:
    """What the network sees of RGB pixels [N, 3, H, W] in 0..255: float32 of the same shape."""
    delivered = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)) - (
        128.0 if contract.signed else 0.0
    )
    scale = torch.tensor(contract.scale).view(1, -1, 1, 1)
    offset = torch.tensor(contract.offset).view(1, -1, 1, 1)
    return delivered * scale + offset


def predictor(network: nn.Module, contract: InputContract, *, bfloat16: bool = False) -> Predict:
    """A torch network as `Predict`, in evaluation mode; with `bfloat16` faster and less exact."""

    def predict(pixels: Pixels) -> NDArray[np.float32]:
        network.eval()
        inputs = normalise(pixels, contract).to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits: NDArray[np.float32] = network(inputs).float().numpy()
        return logits

    return predict


def against_reference(ious: Floats, crops: CropSet, matched_file: Path) -> dict[str, Any]:
    """Our IoU beside the authors' models' on the instances of `matched_file` (key `rows`).

    Returns:
        For each of the authors' models its own score and our paired difference (ours - theirs).
    """
    rows = json.loads(matched_file.read_text())["rows"]
    theirs = {int(row["ann_id"]): row for row in rows}
    shared = np.isin(crops.annotation_ids, list(theirs))
    if not shared.any():
        raise InputError(
            str(matched_file),
            "none of its instances is in the evaluated split",
            "annotation ids of that split",
            "give the annotation file the reference was made from",
        )
    pictures = crops.picture_ids[shared]
    result: dict[str, Any] = {"ours": asdict(score(ious[shared], pictures))}
    for model in ("trained", "distilled", "quantized"):
        values = np.array([theirs[int(i)][f"iou_{model}"] for i in crops.annotation_ids[shared]])
        result[f"authors_{model}"] = asdict(score(values, pictures))
        result[f"ours_minus_{model}"] = asdict(estimate(ious[shared] - values, pictures))
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m student.evaluate", description="Score a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--data", type=Path, required=True, help="COCO folder with annotations/ and the split"
    )
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="point-native-96")
    parser.add_argument("--reference", type=Path, help="matched.json with the authors' IoU of each instance")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        checkpoint = load_checkpoint(options.checkpoint)
        if checkpoint.contract is None:
            raise InputError(
                str(options.checkpoint),
                "no input contract in the file",
                "a checkpoint that says how pixels are scaled",
                "save it with student.checkpoint.save_checkpoint and its contract",
            )
        crops = load_crops(options.data, options.split, PROTOCOLS[options.protocol])
        ious = evaluate(predictor(checkpoint.build(), checkpoint.contract), crops)
        radius, disc = best_disc(crops)
        result = {
            "split": options.split,
            "protocol": asdict(PROTOCOLS[options.protocol]),
            "model": asdict(score(ious, crops.picture_ids)),
            "all_ones": asdict(score(all_ones(crops), crops.picture_ids)),
            "best_centred_disc": {"radius": radius} | asdict(score(disc, crops.picture_ids)),
        }
        if options.reference is not None:
            result["reference"] = against_reference(ious, crops, options.reference)
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
