"""Measurements made up for the tests of the gate."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.gate.criteria import Limits
from compiler.gate.gate import GateOptions
from compiler.gate.measuring import Measurement, Trivial


def measurement(
    pictures: int = 100,
    each: int = 5,
    drop: float = 0.0,
    seed: int = 0,
    sources: tuple[dict[str, Any], ...] = ({"content": "elsewhere", "part": "calibration"},),
) -> Measurement:
    """A float network of mIoU 0.6 or so and an int8 one that is `drop` points worse, in every instance apart.

    Picture number k has the content hash `content-k` and the name `k.jpg`. The disc reaches 0.3.
    """
    random = np.random.default_rng(seed)
    ids = np.repeat(np.arange(pictures), each)
    real = np.clip(random.normal(0.6, 0.1, len(ids)), 0.2, 0.98)
    noise = random.normal(0, 0.02, len(ids))
    int8 = np.clip(real - drop / 100 + noise - noise.mean(), 0, 1)
    return Measurement(
        package="pack",
        int8_sha256="a" * 64,
        float_sha256="b" * 64,
        data="coco val2017",
        protocol="point-native-96",
        crops_sha256="c" * 64,
        annotation_ids=np.arange(len(ids)) + 1000,
        picture_ids=ids,
        int8=int8,
        real=real,
        trivial=(Trivial("best centred disc", "radius 10 px", np.full(len(ids), 0.3)),),
        contents={f"content-{number}": f"{number}.jpg" for number in range(pictures)},
        calibration={"sources": list(sources)},
    )


def options(
    min_miou: float | None = None, max_drop: float | None = None, max_memory: int | None = None, **more: Any
) -> GateOptions:
    return GateOptions(Limits(min_miou, max_drop, max_memory), **more)
