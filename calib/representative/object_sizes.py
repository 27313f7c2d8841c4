"""Which objects crops are cut around: picture after picture, evenly over their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

SMALL, MEDIUM, LARGE = "small", "medium", "large"
SIZES = (SMALL, MEDIUM, LARGE)

SMALL_BELOW, MEDIUM_BELOW = 32**2, 96**2
"""COCO's size classes, in pixels of the mask (cocodataset.org, detection evaluation)."""


def size_class(area: int) -> str:
    """Of a mask of so many pixels."""
    return SMALL if area < SMALL_BELOW else MEDIUM if area < MEDIUM_BELOW else LARGE


def crop_random(seed: int, content: str, repetition: int) -> np.random.Generator:
    """The generator of the crop that is the picture's `repetition`-th, counted from 0."""
    return np.random.default_rng([seed, int(content, 16), repetition])


def choose_objects(
    objects: Sequence[Sequence[str]], number: int, randoms: Sequence[tuple[int, str]]
) -> list[tuple[int, int, np.random.Generator]]:
    """Picture, object in it and generator of each of `number` crops.

    One object of every picture in turn, then another of each, and none again before all were taken. Each is
    of the size drawn least so far among those its picture still has. What is drawn depends on what was drawn
    before alone, so fewer crops are the first of more.

    Args:
        objects: size class of each object of each picture; at least one picture, none without objects.
        randoms: seed and content hash of each picture (`crop_random`).
    """
    taken: Counter[str] = Counter()
    repetitions = [0] * len(objects)
    left: list[set[int]] = [set() for _ in objects]
    chosen: list[tuple[int, int, np.random.Generator]] = []
    while len(chosen) < number:
        if not any(left):
            left = [set(range(len(sizes))) for sizes in objects]
        for picture, sizes in enumerate(objects):
            if not left[picture] or len(chosen) == number:
                continue
            random = crop_random(*randoms[picture], repetitions[picture])
            repetitions[picture] += 1
            there = {sizes[one] for one in left[picture]}
            fewest = min(taken[size] for size in there)
            rare = [size for size in SIZES if size in there and taken[size] == fewest]
            size = rare[int(random.integers(len(rare)))]
            among = sorted(one for one in left[picture] if sizes[one] == size)
            one = among[int(random.integers(len(among)))]
            left[picture].remove(one)
            taken[size] += 1
            chosen.append((picture, one, random))
    return chosen
