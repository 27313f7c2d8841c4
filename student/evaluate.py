"""The evaluator: scores anything that turns crops of sensor pixels into logits or masks.

A sample is one instance. Its prediction is the mask inside its crop at threshold 0.5 (logit > 0), its IoU is
taken there. Intervals are 95 % percentile bootstraps over PICTURES, since the instances of one picture are
not independent; those of differences are paired: both predictors are drawn on the same pictures.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from passes.contract import InputContract
from passes.errors import InputError
from student.crops import Mask, Pixels, cut_rectangle, mask_iou
from student.cropset import CropSet, Integers, Progress
from student.instances import InstanceSet, checked_code

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float64]
Predict = Callable[[Pixels], NDArray[Any]]
"""Sensor pixels, RGB uint8 [N, 3, S, S], to logits, float [N, 1, S, S], or masks, bool [N, 1, S, S]."""

SUCCESS_THRESHOLDS = tuple(t / 100 for t in range(50, 100, 5))
"""IoU thresholds .50:.05:.95 of the mean success rate (which the authors call mAP)."""

RESAMPLES = 2000
"""Bootstraps of an interval."""

SMALL, MEDIUM = 32**2, 96**2
"""COCO's size classes: small below 32 x 32 pixels of annotated area, large from 96 x 96 pixels on."""

CHUNK = 1024
"""Crops that are compared at a time (38 MB as float32)."""


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its 95 % interval, whose ends are NaN where there is only one picture."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Rounded to 4 digits; null where there is no interval."""
        ends = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: round(end, 4) if math.isfinite(end) else None for name, end in ends.items()}


@dataclass(frozen=True)
class Score:
    """What one predictor reaches on a set of crops, or two predictors' paired difference on it."""

    samples: int
    pictures: int
    miou: Estimate
    mean_success_rate: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "pictures": self.pictures,
            "miou": self.miou.to_json(),
            "mean_success_rate": self.mean_success_rate.to_json(),
        }


@dataclass(frozen=True)
class AveragePrecision:
    """COCOeval's six first figures, 0..1; NaN where no ground truth is of that size."""

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float

    def to_json(self) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else round(value, 4) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Figures:
    """Everything measured of one predictor.

    Attributes:
        overall: over all samples.
        by_size: small, medium and large objects by annotated area; classes without samples are left out.
        by_competing: by number of other instances in the crop: 0, 1, 2-3, 4+.
        average_precision: None where it was not asked for.
    """

    overall: Score
    by_size: dict[str, Score]
    by_competing: dict[str, Score]
    average_precision: AveragePrecision | None

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall.to_json(),
            "by_size": {name: score.to_json() for name, score in self.by_size.items()},
            "by_competing": {name: score.to_json() for name, score in self.by_competing.items()},
            "coco_ap": None if self.average_precision is None else self.average_precision.to_json(),
        }


@dataclass(frozen=True)
class Predictions:
    """What a predictor says of N instances.

    Attributes:
        annotation_ids: int64 [N], each once.
        masks: bool [N, S, S], in the crop of each instance.
        scores: float64 [N], 0..1: how sure it is of each mask, for average precision.
    """

    annotation_ids: Integers
    masks: Mask
    scores: Floats

    def of(self, crops: CropSet) -> Predictions:
        """Those of `crops`, in their order; every crop has one."""
        order = np.argsort(self.annotation_ids)
        place = order[np.searchsorted(self.annotation_ids, crops.annotation_ids, sorter=order)]
        return Predictions(crops.annotation_ids, self.masks[place], self.scores[place])


@dataclass(frozen=True)
class Baseline:
    """The same mask for every crop.

    Attributes:
        name: all ones, best centred disc, or mean training mask.
        description: how it was chosen.
        mask: bool [S, S].
    """

    name: str
    description: str
    mask: Mask

    def on(self, crops: CropSet) -> Predictions:
        """The mask for every crop, without copies of it; score 1."""
        same = np.broadcast_to(self.mask, crops.masks.shape)
        return Predictions(crops.annotation_ids, same, np.ones(len(crops)))


# Figures


def iou(predicted: Mask, truth: Mask) -> Floats:
    """`mask_iou` of each sample, float64 [N] of bool [N, ...]."""
    return np.array([mask_iou(*pair) for pair in zip(predicted, truth, strict=True)], np.float64)


def mean_success(ious: Floats) -> Floats:
    """The share of SUCCESS_THRESHOLDS each sample's IoU reaches, float64 [N]."""
    reached: Floats = (ious[:, None] >= np.array(SUCCESS_THRESHOLDS)).mean(axis=1)
    return reached


def estimate(values: Floats, picture_ids: Integers, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of `values` [N] and its interval from `resamples` bootstraps over pictures."""
    if len(np.unique(picture_ids)) < 2:
        return Estimate(float(values.mean()), math.nan, math.nan)
    low, high = np.percentile(resampled_means(values, picture_ids, resamples, seed), (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high))


def resampled_means(values: Floats, picture_ids: Integers, resamples: int, seed: int) -> Floats:
    """The means of `resamples` bootstraps: as many pictures as there are, drawn with replacement.

    Args:
        values: [N], or [N, K] for K columns that are drawn on the same pictures, so that they stay paired.

    Returns:
        [resamples] or [resamples, K].
    """
    _, picture = np.unique(picture_ids, return_inverse=True)
    counts = np.bincount(picture)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, picture, values)
    pictures = len(counts)
    random = np.random.default_rng(seed)
    share = np.full(pictures, 1.0 / pictures)
    means = []
    for start in range(0, resamples, 100):  # a part at a time: 5,000 pictures are 80 MB otherwise
        drawn = random.multinomial(pictures, share, min(100, resamples - start))
        means.append(((drawn @ sums).T / (drawn @ counts)).T)
    found: Floats = np.concatenate(means)
    return found


def score(ious: Floats, picture_ids: Integers) -> Score:
    """Sums up the IoU of each sample; both [N], at least one."""
    return Score(
        len(ious),
        len(np.unique(picture_ids)),
        estimate(ious, picture_ids),
        estimate(mean_success(ious), picture_ids),
    )


def difference(first: Floats, second: Floats, picture_ids: Integers) -> Score:
    """The first predictor's IoU of each sample minus the second's, all [N]: paired by picture."""
    return Score(
        len(first),
        len(np.unique(picture_ids)),
        estimate(first - second, picture_ids),
        estimate(mean_success(first) - mean_success(second), picture_ids),
    )


def size_classes(crops: CropSet) -> dict[str, NDArray[np.bool_]]:
    """Which crops show a small, a medium and a large object, bool [N] each."""
    areas = crops.areas
    return {
        "small": areas < SMALL,
        "medium": (areas >= SMALL) & (areas < MEDIUM),
        "large": areas >= MEDIUM,
    }


def competition_classes(crops: CropSet) -> dict[str, NDArray[np.bool_]]:
    """Which crops show 0, 1, 2-3, and 4 or more other instances, bool [N] each."""
    others = crops.competing
    return {"0": others == 0, "1": others == 1, "2-3": (others >= 2) & (others <= 3), "4+": others >= 4}


def figures(ious: Floats, crops: CropSet, average_precision: AveragePrecision | None = None) -> Figures:
    """Sums up the IoU of each crop, [N], over all of them and by class."""
    pictures = crops.picture_ids

    def split(classes: dict[str, NDArray[np.bool_]]) -> dict[str, Score]:
        return {name: score(ious[which], pictures[which]) for name, which in classes.items() if which.any()}

    return Figures(
        score(ious, pictures),
        split(size_classes(crops)),
        split(competition_classes(crops)),
        average_precision,
    )


# COCO's average precision


def paste(mask: Mask, rectangle: Integers, size: Integers) -> Mask:
    """A crop's mask where it belongs in the picture.

    Args:
        mask: bool [S, S].
        rectangle: top, left, height and width of what the crop shows (`CropSet.shown`).
        size: height and width of the picture.

    Returns:
        bool [H, W]. Where the crop was rescaled the mask is too, bilinearly, and cut at one half.
    """
    top, left, height, width = (int(x) for x in rectangle)
    if mask.shape != (height, width):
        grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
        mask = np.asarray(grey) >= 128
    pasted: Mask = cut_rectangle(mask, -top, -left, int(size[0]), int(size[1]), False)
    return pasted


def average_precision(predictions: Predictions, crops: CropSet, instances: InstanceSet) -> AveragePrecision:
    """COCO's AP of masks (COCOeval, `segm`, default thresholds, 100 detections a picture and category).

    Every prediction is one detection: its mask pasted back into the picture, its category that of the
    instance it was prompted with, its score `predictions.scores`. The ground truth is the whole mask of
    every instance in `crops`, also outside the crop: an object larger than its crop cannot be found
    whole. Crowds are left out. The prompt gives away where an object is and what it is, so this says how good
    and how well ranked the masks are, and is not comparable with a detector's AP.

    Args:
        predictions: of `crops`, in their order.
        instances: the data set that `crops` were cut from.
    """
    from pycocotools import mask as codes
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    kept = set(crops.annotation_ids.tolist())
    pictures = set(crops.picture_ids.tolist())
    categories = sorted(set(crops.category_ids.tolist()))
    truth = [
        {
            "image_id": record.id,
            "category_id": instance.category_id,
            "segmentation": instance.rle,
            "area": instance.area,
            "bbox": list(instance.box),
            "iscrowd": 0,
        }
        for record in instances.pictures
        for instance in record.instances
        if instance.annotation_id in kept
    ]
    found = [
        {
            "image_id": int(crops.picture_ids[i]),
            "category_id": int(crops.category_ids[i]),
            "segmentation": codes.encode(
                np.asfortranarray(paste(predictions.masks[i], crops.shown[i], crops.sizes[i]), np.uint8)
            ),
            "score": float(predictions.scores[i]),
        }
        for i in range(len(crops))
    ]
    for number, annotation in enumerate(truth, 1):
        annotation["id"] = number  # COCOeval takes the id 0 for "not matched"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and its table
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [
                {"id": record.id, "height": record.height, "width": record.width}
                for record in instances.pictures
                if record.id in pictures
            ],
            "categories": [{"id": number} for number in categories],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return AveragePrecision(*(math.nan if value < 0 else float(value) for value in evaluation.stats[:6]))


# Baselines


def overlaps(truth: Mask, candidates: Mask) -> Floats:
    """IoU of every crop's mask, bool [N, S, S], with every candidate, bool [K, S, S]: float64 [N, K]."""
    columns = candidates.reshape(len(candidates), -1).T.astype(np.float32)
    areas = columns.sum(axis=0)
    ious = np.empty((len(truth), len(candidates)))
    for start in range(0, len(truth), CHUNK):
        rows = truth[start : start + CHUNK].reshape(-1, len(columns)).astype(np.float32)
        shared = (rows @ columns).astype(np.float64)  # counts below 2^24: exact
        union = rows.sum(axis=1, keepdims=True) + areas - shared
        ious[start : start + CHUNK] = np.where(union == 0, 1.0, shared / np.maximum(union, 1))
    return ious


def baselines(
    crops: CropSet, training: Mask | None = None, training_instances: int | None = None
) -> list[Baseline]:
    """What any model must be read against: the masks that know nothing of the picture.

    The disc's radius is the best one for these very crops, so it is an upper bound for discs. The level of
    the mean training mask is the best one for the training crops.

    Args:
        training: the masks of training crops, bool [M, S, S]; without them there is no mean training mask.
        training_instances: how many there are, where `training` is a part of them drawn at random.
    """
    size = crops.masks.shape[1]
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    radii = list(range(2, size, 2))
    discs = np.stack([np.hypot(rows, columns) <= radius for radius in radii])
    best = int(overlaps(crops.masks, discs).mean(axis=0).argmax())
    found = [
        Baseline("all ones", "every pixel", np.ones((size, size), np.bool_)),
        Baseline("best centred disc", f"radius {radii[best]} px, the best on these crops", discs[best]),
    ]
    if training is not None:
        mean = training.mean(axis=0)
        levels = [level / 100 for level in range(5, 100, 5)]
        masks = np.stack([mean >= level for level in levels])
        best = int(overlaps(training, masks).mean(axis=0).argmax())
        drawn = f" drawn from {training_instances}" if (training_instances or 0) > len(training) else ""
        text = f"mean of {len(training)} training masks{drawn} at level {levels[best]:.2f}, the best on those"
        found.append(Baseline("mean training mask", text, masks[best]))
    return found


# Predictors


def network_input(pixels: NDArray[Any], contract: InputContract) -> NDArray[np.float32]:
    """What the network sees of RGB pixels [N, 3, H, W] in 0..255: float32 [N, C, H, W] of the contract.

    BGR is the reversed order of channels; GREY is ITU-R 601 luma rounded to integers, as Pillow's `L`.

    Raises:
        InputError: pixels of another size than the contract's, or a contract of an input that is no picture.
    """
    if pixels.shape[2:] != (contract.height, contract.width):
        raise InputError(
            "input contract",
            f"{contract.height}x{contract.width} pixels",
            f"the crops have {pixels.shape[2]}x{pixels.shape[3]}",
            "choose a protocol of the network's size",
        )
    if contract.colour_order == "GREY" and contract.channels == 1:
        weights = np.array((19595, 38470, 7471)) / 65536
        pixels = np.floor(np.einsum("nchw,c->nhw", pixels.astype(np.float64), weights) + 0.5)[:, None]
    elif contract.channels != 3:
        raise InputError(
            "input contract",
            f"{contract.channels} channels, {contract.colour_order}",
            "3 channels (RGB or BGR) or 1 (GREY)",
            "evaluate a network that takes pictures",
        )
    elif contract.colour_order == "BGR":
        pixels = pixels[:, ::-1]
    delivered = pixels.astype(np.float32) + np.float32(contract.lowest)
    scale = np.array(contract.scale, np.float32).reshape(1, -1, 1, 1)
    offset = np.array(contract.offset, np.float32).reshape(1, -1, 1, 1)
    return delivered * scale + offset


def normalise(pixels: NDArray[Any], contract: InputContract) -> Tensor:
    """`network_input` as a tensor."""
    import torch

    return torch.from_numpy(network_input(pixels, contract))


def predictor(network: nn.Module, contract: InputContract, *, bfloat16: bool = False) -> Predict:
    """A torch network as `Predict`, in evaluation mode, on its device; `bfloat16` is faster, less exact."""
    import torch

    device = next(network.parameters()).device

    def predict(pixels: Pixels) -> NDArray[np.float32]:
        network.eval()
        inputs = normalise(pixels, contract).to(device, memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits: NDArray[np.float32] = network(inputs).float().cpu().numpy()
        return logits

    return predict


def predict_crops(
    predict: Predict, crops: CropSet, batch: int = 16, on_progress: Progress = lambda done, total: None
) -> Predictions:
    """Runs a predictor over all crops.

    The score of a mask is the mean probability (sigmoid of the logit) inside it, 0 where it is empty; masks
    without logits have score 1.

    Args:
        on_progress: called after each batch with the numbers of crops.

    Raises:
        InputError: the predictor's output is no map of the crops' size, or holds NaN.
    """
    count, size = len(crops), crops.masks.shape[1]
    masks, scores = np.empty((count, size, size), np.bool_), np.ones(count)
    pixels = crops.pictures.transpose(0, 3, 1, 2)
    for start in range(0, count, batch):
        part = np.ascontiguousarray(pixels[start : start + batch])
        answer = np.asarray(predict(part))
        if answer.shape != (len(part), 1, size, size):
            raise InputError(
                "predictor",
                f"output of shape {list(answer.shape)}",
                f"one map of the crops' size, {[len(part), 1, size, size]}",
                "evaluate a network that puts out one logit per pixel of its input",
            )
        where = slice(start, start + len(part))
        if answer.dtype == np.bool_:
            masks[where] = answer[:, 0]
        else:
            masks[where], scores[where] = _masks_and_scores(answer[:, 0])
        on_progress(start + len(part), count)
    return Predictions(crops.annotation_ids, masks, scores)


def _masks_and_scores(logits: NDArray[Any]) -> tuple[Mask, Floats]:
    if np.isnan(logits).any():
        raise InputError(
            "predictor", "NaN logits", "numbers", "take weights from before the training diverged"
        )
    masks = logits > 0
    with np.errstate(over="ignore"):
        certain = (masks / (1.0 + np.exp(-logits.astype(np.float64)))).sum(axis=(1, 2))
    return masks, certain / np.maximum(masks.sum(axis=(1, 2)), 1)


def evaluate(predict: Predict, crops: CropSet, batch: int = 16) -> Floats:
    """The IoU of each crop, float64 [N]; raises as `predict_crops`."""
    return iou(predict_crops(predict, crops, batch).masks, crops.masks)


# Stored predictions


def listed_instances(file: Path) -> Integers:
    """The annotation ids in a JSON file of {"rows": [{"ann_id": 82445, ...}, ...]}, int64 [N].

    Raises:
        InputError: no such file, or not of this form.
    """
    return np.array([ann_id for ann_id, _ in _rows(file)], np.int64)


def matched_rows(file: Path) -> dict[int, int]:
    """Annotation id -> index in the list of stored predictions; every row has a `pred_index` too.

    Raises:
        InputError: as `listed_instances`.
    """
    rows = _rows(file)
    if any(index is None for _, index in rows):
        raise InputError(
            str(file), "rows without pred_index", "the index of each prediction", "give a complete file"
        )
    return {ann_id: index for ann_id, index in rows if index is not None}


def _rows(file: Path) -> list[tuple[int, int | None]]:
    try:
        rows = [
            (int(row["ann_id"]), None if row.get("pred_index") is None else int(row["pred_index"]))
            for row in json.loads(file.read_bytes())["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            str(file),
            f"unreadable ({error!r})",
            '{"rows": [{"ann_id": 82445, "pred_index": 0}, ...]}',
            "give a file that names annotations and their predictions",
        ) from error
    if not rows or len({ann_id for ann_id, _ in rows}) != len(rows):
        raise InputError(
            str(file),
            f"{len(rows)} rows, {len({ann_id for ann_id, _ in rows})} instances",
            "one row or more, each of another instance",
            "correct the rows",
        )
    return rows


def stored_predictions(file: Path, matched: Path | None, size: int) -> Predictions:
    """Predictions from a JSON list of {"segmentation": COCO RLE of the crop, "score": ...}.

    The score is optional (1 without it). An entry belongs to the instance in its `annotation_id`, or to the
    one that `matched` (see `matched_rows`) maps to its index.

    Args:
        size: side of the crops.

    Raises:
        InputError: a file that is not of this form, masks of another size, or nothing that says which
            instance a prediction is for.
    """
    try:
        entries = json.loads(file.read_bytes())
        if not isinstance(entries, list):
            raise ValueError(f"a JSON {type(entries).__name__}")
        if matched is not None:
            index_of = matched_rows(matched)
        else:
            index_of = {int(entry["annotation_id"]): index for index, entry in enumerate(entries)}
            if len(index_of) != len(entries):
                raise ValueError(f"{len(entries) - len(index_of)} instances twice")
        if min(index_of.values(), default=0) < 0:
            raise ValueError("a negative pred_index")
        chosen = [entries[index] for index in index_of.values()]
        masks = [_stored_mask(entry["segmentation"], size) for entry in chosen]
        scores = np.array([float(entry.get("score", 1.0)) for entry in chosen])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(
            str(file),
            f"unreadable as predictions ({error!r})",
            f"a JSON list of COCO RLE masks of {size}x{size}, each with an annotation_id or named in a "
            "matched.json",
            "give such a file, with matched.json beside it",
        ) from error
    if not masks:
        raise InputError(str(file), "no predictions", "at least one", "give a file with predictions")
    return Predictions(np.array(list(index_of), np.int64), np.stack(masks), scores)


def _stored_mask(code: dict[str, Any], size: int) -> Mask:
    from pycocotools import mask as codes

    mask: Mask = codes.decode(checked_code(code, size, size)).astype(np.bool_)
    return mask
