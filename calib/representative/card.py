"""The calibration card of a package: which pictures, how many, from where."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from calib.representative.object_sizes import SIZES
from calib.representative.parts import CALIBRATION, DECIDING, HELD_OUT_PART
from calib.representative.representative_set import RepresentativeSet

TRAINING = "training"


def card(data: RepresentativeSet, training: RepresentativeSet | None = None) -> dict[str, Any]:
    """The facts of a drawn set, for JSON.

    Args:
        data: its calibration crops were calibrated on.
        training: drawn by the same arguments but with more calibration crops, all of them trained on.

    Returns:
        `how`, `pictures`, `held_out`, `seed`: the sentence, two counts and the seed.
        `protocol`: what crops around objects were asked to be cut by; null for point-native.
        `parts`: for each part the number of `crops`, of source `pictures`, and of crops by size of their
        object (`sizes`, where there are objects); `training` where there is a training set.
        `left_out`: how many of the `pictures` met were excluded, and their `contents`, the content hashes.
        `sources`: every picture with both hashes, its part and its crops. With a training set the crops of
        the part `calibration` are the training crops, of which those calibrated on are the first.
        `sha256`: of the shape and pixels of the crops, part after part as in `parts`.
    """
    largest = training or data
    parts = {CALIBRATION: _part(data, CALIBRATION)}
    pixels = [data.pictures]
    if training is not None:
        parts[TRAINING] = _part(training, CALIBRATION)
        pixels.append(training.pictures)
    parts |= {part: _part(largest, part) for part in (DECIDING, HELD_OUT_PART)}
    pixels += [largest.deciding, largest.held_out]
    digest = hashlib.sha256()
    for one in pixels:
        digest.update(f"{one.shape}\n".encode())
        digest.update(np.ascontiguousarray(one).tobytes())
    return {
        "how": data.how if training is None else f"{data.how}; trained on {training.how}",
        "pictures": len(data.pictures),
        "held_out": len(data.held_out),
        "seed": data.seed,
        "protocol": data.protocol,
        "parts": parts,
        "left_out": {"pictures": len(largest.left_out), "contents": list(largest.left_out)},
        "sources": [
            {
                "name": source.name,
                "sha256": source.sha256,
                "content": source.content,
                "part": source.part,
                "crops": source.crops,
            }
            for source in largest.sources
        ],
        "sha256": digest.hexdigest(),
    }


def _part(data: RepresentativeSet, part: str) -> dict[str, Any]:
    own = [source for source in data.sources if source.part == part]
    facts: dict[str, Any] = {"crops": sum(source.crops for source in own), "pictures": len(own)}
    sizes = Counter(size for source in own for size in source.sizes)
    return facts | ({"sizes": {size: sizes[size] for size in SIZES}} if sizes else {})


def overlap(sources: Iterable[Mapping[str, Any]], contents: Collection[str]) -> tuple[Mapping[str, Any], ...]:
    """The pictures of a card (its `sources`) that are among `contents` (`content_hashes`).

    A score on such pictures is not one on unseen data. Cards of packages that carry no content hashes give
    none.
    """
    return tuple(source for source in sources if source.get("content") in contents)
