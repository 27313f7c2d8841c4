"""Feature hints: what of a teacher's embedding a view shows, and a student that learns to say it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from passes.errors import InputError
from student.augment import View
from student.features import Hinted, feature_loss, read_embedding, shown_features
from student.networks import PicoSAM2


def coordinates(side: int = 64) -> np.ndarray:
    """A grid whose first two channels are the row and the column of each cell's centre."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    return np.stack([rows, columns]).astype(np.float16)


def test_features_lie_where_the_view_lies() -> None:
    """Picture 320 x 640 on a 64-grid: 10 pixels a cell."""
    shown, inside = shown_features(coordinates(), (320, 640), View(100.0, 200.0, 96.0, 192.0), 12)
    rows = (100.0 + (np.arange(12) + 0.5) * 8.0) / 10.0
    columns = (200.0 + (np.arange(12) + 0.5) * 16.0) / 10.0
    assert np.allclose(shown[0], rows[:, None], atol=1e-3)
    assert np.allclose(shown[1], columns[None], atol=1e-3)
    assert inside.all()


def test_a_mirrored_view_sees_the_mirror_image() -> None:
    view = View(100.0, 200.0, 96.0, 96.0)
    plain, _ = shown_features(coordinates(), (320, 640), view, 12)
    mirrored, _ = shown_features(coordinates(), (320, 640), View(100.0, 200.0, 96.0, 96.0, True), 12)
    assert np.allclose(mirrored, plain[:, :, ::-1])


def test_outside_the_picture_nothing_is_asked() -> None:
    _, inside = shown_features(coordinates(), (320, 640), View(-48.0, 592.0, 96.0, 96.0), 12)
    assert inside[:6].sum() == 0
    assert inside[6:, :6].all()
    assert inside[:, 6:].sum() == 0


def test_the_loss_counts_the_inside_alone_and_ignores_length() -> None:
    teachers = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(2, 3, 3)
    inside[:, 0] = 0.0
    wrong_outside = 3.0 * teachers
    wrong_outside[:, :, 0] *= -1.0
    assert feature_loss(wrong_outside, teachers, inside).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert feature_loss(-teachers, teachers, inside).tolist() == pytest.approx([2.0, 2.0], abs=1e-6)
    assert feature_loss(teachers, teachers, torch.zeros(2, 3, 3)).tolist() == [0.0, 0.0]


def test_a_hinted_student_gives_its_own_logits_and_features() -> None:
    torch.manual_seed(0)
    network = PicoSAM2().eval()
    hinted = Hinted(network).eval()
    pictures = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        logits, features = hinted(pictures)
        assert torch.equal(logits, network(pictures))
    assert features.shape == (2, 256, 12, 12)
    assert not network.up2._forward_pre_hooks  # type: ignore[union-attr]
    features.requires_grad_()


def test_gradients_of_the_hint_reach_the_encoder() -> None:
    network = PicoSAM2().train()
    _, features = Hinted(network)(torch.randn(2, 3, 96, 96))
    feature_loss(features, torch.randn(2, 256, 12, 12), torch.ones(2, 12, 12)).sum().backward()  # type: ignore[no-untyped-call]
    assert network.down1.weight.grad is not None
    assert network.down1.weight.grad.abs().max() > 0
    assert network.output_head.weight.grad is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "no readable embedding"),
        (np.zeros((1, 32, 64, 64), np.float16), "an embedding of shape"),
        (np.zeros((256, 64), np.float16), "an embedding of shape"),
    ],
)
def test_a_missing_or_foreign_embedding(tmp_path: Path, array: np.ndarray | None, message: str) -> None:
    if array is not None:
        np.save(tmp_path / f"{hashlib.sha256(b'picture').hexdigest()}.npy", array)
    with pytest.raises(InputError, match=message):
        read_embedding(tmp_path, b"picture")
