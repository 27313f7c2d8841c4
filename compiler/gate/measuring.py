"""A package measured for the gate: the IoU of every instance, under the int8 and the float graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.driver import FLOAT_GRAPH
from compiler.frontend import load_model
from compiler.inspection.opened_package import OpenedPackage, open_package, trained_protocol
from passes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from compiler.frontend import Loaded
    from student.crops import Pixels
    from student.cropset import CropSet, Integers
    from student.evaluate import Floats
    from student.instances import PictureRecord

    OnProgress = Callable[[int, int, str], None]

BATCH = 64
"""Crops that the networks are given at a time: 7 MB as float32."""


@dataclass(frozen=True)
class Trivial:
    """A mask that knows nothing of the picture, the same for every instance.

    Attributes:
        name, description: as `student.evaluate.Baseline` has them.
        ious: float64 [N].
    """

    name: str
    description: str
    ious: Floats = field(repr=False)


@dataclass(frozen=True)
class Measurement:
    """Everything the verdicts rest on.

    Attributes:
        package: name of the directory.
        int8_sha256, float_sha256: of the two graphs' files; the second is None without a float graph.
        data: name of the data set.
        protocol: name of the rule the crops were cut by.
        crops_sha256: of the crops, their masks and their ids: the same instances, pixel by pixel.
        annotation_ids, picture_ids: int64 [N].
        int8, real: IoU of each instance, float64 [N]; `real` is None without a float graph.
        trivial: at least one.
        contents: content hash (`calib.representative`) -> file name of every picture that was scored.
        calibration: the package's calibration card; None where it has none.
        earlier: IoUs of the int8 network of an earlier package; None where none was given.
        notes: what a reader has to know of how it was measured.
    """

    package: str
    int8_sha256: str
    float_sha256: str | None
    data: str
    protocol: str
    crops_sha256: str
    annotation_ids: Integers = field(repr=False)
    picture_ids: Integers = field(repr=False)
    int8: Floats = field(repr=False)
    real: Floats | None = field(repr=False)
    trivial: tuple[Trivial, ...]
    contents: Mapping[str, str] = field(repr=False)
    calibration: Mapping[str, Any] | None = field(repr=False)
    earlier: Floats | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> int:
        return len(np.unique(self.picture_ids))


@dataclass(frozen=True)
class Graphs:
    """The graphs of a package, opened before any picture is read.

    Attributes:
        real: the float graph; None in a package that was compiled from a quantized model.
    """

    opened: OpenedPackage
    real: Loaded | None
    folder: Path


def open_graphs(package: Path) -> Graphs:
    """Raises InputError for what is no package, and for the reports of a compile that failed."""
    if not package.is_dir():
        found = "is a file" if package.exists() else "does not exist"
        raise InputError(
            f"package {package}", found, "a directory that `picosam2 compile` wrote", "name that directory"
        )
    opened = open_package(package)
    real = None if opened.float_model is None else load_model(package / FLOAT_GRAPH)
    return Graphs(opened, real, package)


def require_float(found: Graphs) -> None:
    """Raises InputError for a package without the float graph that a drop is measured against."""
    if found.real is None:
        raise InputError(
            f"package {found.folder}",
            f"has no {FLOAT_GRAPH} (a compile from a quantized model writes none), which --max-drop measures "
            "the drop against",
            "a package compiled from a float model",
            "ask for --min-miou and --max-memory alone, or compile it from the float model",
        )


def measure(
    found: Graphs,
    source: str,
    split: str | None,
    protocol: str | None,
    *,
    earlier: OpenedPackage | None = None,
    threads: int | None = None,
    on_progress: OnProgress = lambda done, total, phase: None,
) -> Measurement:
    """Scores the graphs and the trivial baselines on every instance of a data set.

    Args:
        source, split: the data set (`student.instances.load_instances`).
        protocol: a name in `student.crops.PROTOCOLS`, cut at the network's input size; None: what the
            network was trained under, where its package (or else the earlier one) says so, else
            point-native-96.
        earlier: an earlier package, whose int8 graph is run on the same crops.
        threads: None for all cores. No result depends on them.

    Raises:
        InputError: an unknown protocol, a data set that cannot be read, a network that takes no square
            picture or puts out no mask.
        EnvironmentFault: the simulator's kernels cannot be built.
    """
    from PIL import Image

    from calib.representative.content import content_hash
    from compiler.evaluating import predictor, protocol_of_size
    from student.crops import POINT_NATIVE_96, named_protocol
    from student.cropset import load_crops
    from student.evaluate import baselines, iou, predict_crops
    from student.instances import load_instances

    packages = [found.opened] if earlier is None else [found.opened, earlier]
    # Two folders may have one name: previous/package and package.
    trained = [(one.name, trained_protocol(one.manifest)) for one in packages]
    known = [own for _, own in trained if own is not None]
    named = named_protocol(protocol or next(iter(known), POINT_NATIVE_96.name))
    networks = {"int8": found.opened.loaded}
    if found.real is not None:
        networks["float"] = found.real
    if earlier is not None:
        networks["earlier"] = earlier.loaded
    rule = protocol_of_size(named, [(name, one.contract) for name, one in networks.items()])
    runs = {name: predictor(one, threads) for name, one in networks.items()}
    instances = load_instances(source, split)
    contents: dict[str, str] = {}

    def remember(record: PictureRecord, pixels: Pixels) -> None:
        contents[content_hash(Image.fromarray(pixels))] = record.path.name

    crops = load_crops(
        instances,
        rule,
        lambda done, total: on_progress(done, total, "reading pictures"),
        remember,
    )

    def reached(name: str) -> Floats:
        predict, limit = runs[name]
        answers = predict_crops(
            predict,
            crops,
            limit or BATCH,
            lambda done, total: on_progress(done, total, f"running the {name} network"),
        )
        return iou(answers.masks, crops.masks)

    return Measurement(
        found.opened.name,
        found.opened.loaded.sha256,
        None if found.real is None else found.real.sha256,
        instances.name,
        rule.name,
        _fingerprint(crops),
        crops.annotation_ids,
        crops.picture_ids,
        reached("int8"),
        None if found.real is None else reached("float"),
        tuple(
            Trivial(one.name, one.description, iou(one.on(crops).masks, crops.masks))
            for one in baselines(crops)
        ),
        contents,
        found.opened.manifest.get("calibration"),
        None if earlier is None else reached("earlier"),
        tuple(
            f"{name} was trained on {own}, and this is its score on {rule.name}"
            for name, own in trained
            if own not in (None, named.name)
        ),
    )


def used_memory(found: Graphs) -> tuple[int, str]:
    """Bytes of the chip's memory; `exact` from the converter's report, else `estimated` by the forecast.

    The forecast is for the input persistency that the manifest names; packages that name none have it.

    Raises:
        InputError: a damaged memory report.
    """
    from compiler.converter.bridge import MEMORY_REPORT, memory_report

    report = found.folder / MEMORY_REPORT
    if report.is_file():
        try:
            return memory_report(report.read_bytes()).total_bytes, "exact"
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                str(report), f"unreadable ({error!r})", "the converter's report", "compile it again"
            ) from error
    from passes.imx500.memory import forecast_memory

    kept = found.opened.manifest.get("input_persistency", True) is not False
    return forecast_memory(found.opened.model, input_persistency=kept).total_bytes, "estimated"


def _fingerprint(crops: CropSet) -> str:
    digest = hashlib.sha256()
    for part in (crops.annotation_ids, crops.picture_ids, crops.pictures, np.packbits(crops.masks, axis=-1)):
        digest.update(f"{part.dtype} {part.shape}\n".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
