"""The held-out representative pictures of a package, as its graph takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.representative import PICTURES, delivered, load_representative
from compiler.frontend import input_contracts
from compiler.inspection.opened_package import OpenedPackage, trained_protocol


def held_out_pictures(
    package: OpenedPackage, source: str, seed: int | None = None
) -> tuple[tuple[NDArray[np.float32], ...], str]:
    """Pictures that calibration never saw.

    Args:
        source: builtin, coco:DIR or a folder (`calib.representative.load_representative`).
        seed: of the choice. Default: the one the package was compiled with, so that of the source it was
            calibrated on these are the very pictures its report is about.

    Returns:
        For each input of the graph float32 [16, C, H, W], and one sentence about the pictures.

    Raises:
        InputError: a source without readable pictures.
    """
    calibration: Mapping[str, Any] = package.manifest.get("calibration") or {}
    count = int(calibration.get("pictures", PICTURES))
    chosen = int(package.manifest.get("seed", 0)) if seed is None else seed
    # What was left out then shifts which pictures are held out, so it is left out again.
    left_out = calibration.get("left_out", {}).get("contents", ())
    found, sentences = [], []
    for contract in input_contracts(package.model, package.loaded.contract):
        pictures = load_representative(
            source,
            contract,
            count,
            chosen,
            exclude=left_out,
            # Packages of earlier versions, whose cards name none, were calibrated on point-native crops.
            protocol=calibration.get("protocol") if calibration else trained_protocol(package.manifest),
        )
        scale, offset = (
            np.array(numbers, np.float32).reshape(1, -1, 1, 1)
            for numbers in (contract.scale, contract.offset)
        )
        found.append(delivered(pictures.held_out, contract) * scale + offset)
        sentences.append(f"the held-out ones of {pictures.how}")
    return tuple(found), sentences[0]
