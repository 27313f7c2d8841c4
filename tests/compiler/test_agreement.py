"""Each shape of output is measured by what is the same in it, and the measure's name says of what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compiler.agreement import agreement_by_picture
from compiler.reports.terminal import AGREEMENT_WORDS

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())


def scores(shape: tuple[int, ...]) -> np.ndarray:
    """Channel 0 wins everywhere."""
    made = np.zeros(shape, np.float32)
    made[:, 0] = 1.0
    return made


@pytest.mark.parametrize(
    ("shape", "measure"),
    [
        ((2, 10), "winner-agreement"),
        ((2, 10, 1), "winner-agreement"),
        ((2, 10, 1, 1), "winner-agreement"),
        ((2, 16, 16), "position-agreement"),
        ((2, 16, 2, 8), "pixel-agreement"),
        ((2, 4, 2, 2, 4), "position-agreement"),
    ],
)
def test_winners_are_counted_at_each_position(shape, measure):
    real, found = scores(shape), scores(shape)
    positions = real[0, 0].size
    other = found.reshape(2, shape[1], -1)  # in picture 1 another channel wins at the first position
    other[1, 1, 0] = 2.0
    assert agreement_by_picture(real, found)[0] == measure
    assert agreement_by_picture(real, found)[1] == pytest.approx([1.0, 1 - 1 / positions])


@pytest.mark.parametrize(
    ("shape", "measure"),
    [
        ((2,), "winner-agreement"),
        ((2, 1), "winner-agreement"),
        ((2, 16, 16), "position-agreement"),
        ((2, 1, 16, 16), "position-agreement"),
    ],
)
def test_indices_are_compared_as_they_are(shape, measure):
    """ArgMax has chosen already: the largest index of a row means nothing, nor does an index above 0."""
    real = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) + 1
    found = real.copy()
    found.reshape(2, -1)[1, 0] += 1
    name, values = agreement_by_picture(real, found)
    assert name == measure
    assert values == pytest.approx([1.0, 1 - 1 / real[0].size])


def test_masks_are_compared_by_their_overlap():
    real = np.ones((1, 1, 2, 2), np.float32)
    found = real.copy()
    found[0, 0, 0, 0] = -1.0
    name, values = agreement_by_picture(real, found)
    assert (name, values) == ("mask-iou", pytest.approx([0.75]))


def test_every_measure_has_words_and_is_in_the_published_schema():
    output = SCHEMA["$defs"]["agreement"]["properties"]["outputs"]["items"]["properties"]
    assert set(output["measure"]["enum"]) == set(AGREEMENT_WORDS)
