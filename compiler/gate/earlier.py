"""What a package is compared with: an earlier package, the JSON of its gate, or that of `picosam2 evaluate`.

An earlier package, named by its folder or by report.json in it, is run on the same crops. A gate's JSON holds
the IoU of every instance, so that both packages are compared instance by instance. The JSON of `evaluate`
holds the mean and its 95 % interval. A document that has a gate's report under the key `gate` is taken for
that report.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.gate.intervals import Interval, intervals
from compiler.package import is_package
from passes.errors import InputError

if TYPE_CHECKING:
    from compiler.gate.measuring import Measurement
    from student.cropset import Integers
    from student.evaluate import Floats

FORMAT = "picosam2 gate"
"""What a gate's report calls itself."""

REPORT = "report.json"
"""The report in a package."""


@dataclass(frozen=True)
class Earlier:
    """What an earlier report says of its int8 network.

    Attributes:
        file: name of the file.
        data, protocol: what it was measured on.
        miou: with the interval of `confidence`.
        crops_sha256: as `Measurement` has it; None from `evaluate`.
        annotation_ids, ious: of every instance, [N]; None from `evaluate`.
    """

    file: str
    data: str
    protocol: str
    miou: Interval
    confidence: float
    crops_sha256: str | None = None
    annotation_ids: Integers | None = field(default=None, repr=False)
    ious: Floats | None = field(default=None, repr=False)

    def interval(self, confidence: float) -> Interval:
        """The interval for another confidence, as if the mean were normal."""
        normal = NormalDist()
        ratio = normal.inv_cdf(0.5 + confidence / 2) / normal.inv_cdf(0.5 + self.confidence / 2)
        value = self.miou.value
        return Interval(
            value, value - ratio * (value - self.miou.low), value + ratio * (self.miou.high - value)
        )


def package_of(path: Path) -> Path | None:
    """The package that a baseline names, by its folder or by report.json in it; None for other files."""
    if path.is_dir():
        return path
    return path.parent if path.name == REPORT and is_package(path.parent) else None


def measured_earlier(name: str, now: Measurement, confidence: float, seed: int) -> Earlier:
    """The earlier package as it was measured beside this one."""
    assert now.earlier is not None
    (found,) = intervals(now.earlier[:, None], now.picture_ids, confidence, seed)
    return Earlier(
        name, now.data, now.protocol, found, confidence, now.crops_sha256, now.annotation_ids, now.earlier
    )


def read_earlier(path: Path) -> Earlier:
    """Raises InputError for a file that is no report with an int8 accuracy."""
    try:
        document = json.loads(path.read_bytes())
        document = document.get("gate", document)
        _require_measured(path, document)
        return _of_gate(path, document) if document.get("format") == FORMAT else _of_evaluate(path, document)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"--baseline {path}",
            f"is no report with an int8 mIoU ({error!r})"[:300],
            "an earlier package, or the JSON of an earlier gate or of `picosam2 evaluate PACKAGE`",
            "picosam2 gate PACKAGE --data ... --max-drop 1 --json baseline.json",
        ) from error


def _require_measured(path: Path, document: dict[str, Any]) -> None:
    """Raises InputError for report.json of a package, whose mIoU, if any, is on calibration pictures."""
    if "agreement" in document and "converter" in document:
        raise InputError(
            f"--baseline {path}",
            "is the report of a compile without its package: a mIoU in it is on calibration pictures, not on "
            "--data",
            "the earlier package, which is run on --data, or the JSON of its gate",
            "give the package's folder",
        )


def require_comparable(earlier: Earlier, now: Measurement) -> str | None:
    """A note where the two were not measured on the same instances.

    Raises:
        InputError: another data set or protocol, or no instance in common.
    """
    if (earlier.data, earlier.protocol) != (now.data, now.protocol):
        raise InputError(
            f"--baseline {earlier.file}",
            f"was measured on {earlier.data}, {earlier.protocol}",
            f"{now.data}, {now.protocol}, as here",
            f"the same data, and --protocol {earlier.protocol}; or run the gate of the earlier package again",
        )
    if earlier.annotation_ids is None:
        return f"{earlier.file} has no figures of single instances: compared by its interval, less sharply"
    shared = np.isin(now.annotation_ids, earlier.annotation_ids)
    if not shared.any():
        raise InputError(
            f"--baseline {earlier.file}",
            "none of its instances is among those scored",
            "instances in common",
            "run the gate of the earlier package on the same data",
        )
    if not shared.all():
        return f"{int(shared.sum())} of {len(shared)} instances are in {earlier.file}: compared on these"
    if len(shared) == len(earlier.annotation_ids) and earlier.crops_sha256 != now.crops_sha256:
        return f"{earlier.file} was measured on the same instances, but their pictures or masks have changed"
    return None


def _of_gate(path: Path, document: dict[str, Any]) -> Earlier:
    instances = document["instances"]
    ids = np.array(instances["annotation_ids"], np.int64)
    ious = np.array(instances["int8_iou"], np.float64)
    if ids.ndim != 1 or ids.shape != ious.shape or len(np.unique(ids)) != len(ids) or not len(ids):
        raise ValueError("instances: not one IoU for each annotation id")
    if not ((ious >= 0) & (ious <= 1)).all():
        raise ValueError("instances: an IoU outside 0..1")
    return Earlier(
        path.name,
        str(document["data"]["name"]),
        str(document["data"]["protocol"]),
        Interval.of_json(document["networks"]["int8"]),
        float(document["options"]["confidence"]),
        str(document["data"]["crops_sha256"]),
        ids,
        ious,
    )


def _of_evaluate(path: Path, document: dict[str, Any]) -> Earlier:
    miou = document["model"]["overall"]["miou"]
    found = Interval.of_json({**miou, "value": miou["mean"]})
    earlier = Earlier(
        path.name, str(document["data"]["name"]), str(document["protocol"]["name"]), found, confidence=0.95
    )
    if not all(math.isfinite(end) for end in dataclasses.astuple(found)):
        raise ValueError("a mIoU without an interval")
    return earlier
