"""The evaluator: IoU, success rate, intervals over pictures, baselines, any callable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passes.contract import centred, imagenet, raw
from passes.errors import InputError
from student.coco import CropSet, load_crops
from student.crops import POINT_NATIVE_96
from student.evaluate import (
    Estimate,
    against_reference,
    all_ones,
    best_disc,
    estimate,
    evaluate,
    iou,
    mean_success,
    normalise,
    predictor,
    score,
)
from student.networks import PicoSAM2


def disc(size: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(rows, columns) <= radius


def crop_set(masks: np.ndarray, picture_ids: list[int]) -> CropSet:
    """Crops whose pictures show their masks as 200 on 50."""
    pictures = np.repeat(np.where(masks, 200, 50).astype(np.uint8)[..., None], 3, axis=3)
    ids = np.array(picture_ids, np.int64)
    return CropSet(pictures, masks, ids, np.arange(len(ids), dtype=np.int64), 0, 0)


def test_iou_of_known_masks() -> None:
    truth = np.zeros((4, 2, 2), np.bool_)
    predicted = np.zeros((4, 2, 2), np.bool_)
    truth[0], predicted[0, 0] = True, True  # half
    truth[1, 0], predicted[1, 1] = True, True  # nothing in common
    truth[2, 0, 0] = True  # nothing predicted
    assert iou(predicted, truth).tolist() == [0.5, 0.0, 0.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_mean_success_counts_thresholds(values: list[float]) -> None:
    ious = np.array(values)
    slow = [np.mean([value >= t / 100 for t in range(50, 100, 5)]) for value in values]
    assert mean_success(ious) == pytest.approx(slow)


def test_the_interval_is_over_pictures_not_samples() -> None:
    """100 identical samples of each of two pictures carry the information of two samples."""
    values = np.repeat([0.2, 0.8], 100)
    by_picture = estimate(values, np.repeat([1, 2], 100))
    assert by_picture == Estimate(0.5, 0.2, 0.8)
    by_sample = estimate(values, np.arange(200))
    assert 0.4 < by_sample.low < by_sample.high < 0.6


def test_the_interval_has_the_width_theory_gives() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    found = estimate(values, np.arange(400))
    half = 1.96 * values.std() / np.sqrt(400)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_any_callable_is_scored_and_sees_sensor_pixels() -> None:
    masks = np.stack([disc(96, 10), disc(96, 30), ~disc(96, 20)])
    seen = []

    def threshold(pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8
        seen.append(pixels.shape)
        return pixels[:, :1].astype(np.float32) - 128.0

    ious = evaluate(threshold, crop_set(masks, [1, 1, 2]), batch=2)
    assert ious.tolist() == [1.0, 1.0, 1.0]
    assert seen == [(2, 3, 96, 96), (1, 3, 96, 96)]
    assert score(ious, np.array([1, 1, 2])).pictures == 2


def test_trivial_baselines() -> None:
    crops = crop_set(np.stack([disc(96, 20)] * 3), [1, 2, 3])
    assert all_ones(crops) == pytest.approx([disc(96, 20).mean()] * 3)
    radius, ious = best_disc(crops)
    assert radius == 20.0
    assert ious.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    "contract", [centred(3, 4, 4), imagenet(4, 4), raw(3, 4, 4), raw(3, 4, 4, signed=True)]
)
def test_normalise_follows_the_contract(contract: object) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    delivered = pixels.astype(np.float64) - (128 if contract.signed else 0)  # type: ignore[attr-defined]
    for channel in range(3):
        expected = delivered[:, channel] * contract.scale[channel] + contract.offset[channel]  # type: ignore[attr-defined]
        found = normalise(pixels, contract)[:, channel].numpy()  # type: ignore[arg-type]
        assert found == pytest.approx(expected, abs=1e-5)


def test_padding_is_zero_for_the_student() -> None:
    pixels = np.full((1, 3, 2, 2), POINT_NATIVE_96.pad_value, np.uint8)
    assert not normalise(pixels, centred(3, 2, 2)).any()


def test_predictor_restores_evaluation_mode() -> None:
    torch.manual_seed(0)
    network = PicoSAM2().train()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    predict = predictor(network, centred(3, 96, 96))
    together, alone = predict(pixels), predict(pixels[:1])
    assert together.shape == (2, 1, 96, 96)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)  # batch statistics would differ


def test_the_authors_numbers_on_the_reference_instances(real_data: Path) -> None:
    crops = load_crops(real_data / "coco", "val2017", POINT_NATIVE_96)
    matched = real_data / "picosam2_reference" / "matched.json"
    result = against_reference(all_ones(crops), crops, matched)
    means = [result[f"authors_{m}"]["miou"]["mean"] for m in ("trained", "distilled", "quantized")]
    assert means == pytest.approx([0.3607, 0.3955, 0.3952], abs=1e-4)
    assert result["ours"]["samples"] == 441
    assert result["ours_minus_trained"]["mean"] == pytest.approx(0.2790 - 0.3607, abs=2e-4)


def test_a_reference_of_other_instances(tmp_path: Path) -> None:
    file = tmp_path / "matched.json"
    file.write_text(json.dumps({"rows": [{"ann_id": 99, "iou_trained": 0.1}]}))
    crops = crop_set(np.stack([disc(96, 20)]), [1])
    with pytest.raises(InputError, match="none of its instances"):
        against_reference(all_ones(crops), crops, file)
