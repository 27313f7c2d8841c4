"""`picosam2 evaluate`: any form of a model becomes a predictor, the evaluator scores it.

A model is anything the front end reads (state_dict, torch.export program, float or quantized ONNX), a package
directory, or a JSON list of stored predictions (`student.evaluate.stored_predictions`). Networks see the
pixels that their input contract makes of the crops: float graphs in onnxruntime, quantized ones in the
bit-accurate simulator (`compiler.simulator.engine`), so that their score is that of the exact integers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.agreement import session
from compiler.driver import FLOAT_GRAPH, INT8_GRAPH
from compiler.frontend import Loaded, ModelKind, load_model
from compiler.inspection.mask_output import is_probability
from compiler.inspection.opened_package import trained_protocol
from compiler.package import calibration_sources, is_package, read_manifest
from compiler.simulator.numerics import DIALECT, UNKNOWNS, Imx500, Numerics
from passes import graph as graphs
from passes.contract import InputContract
from passes.diagnostics import Severity
from passes.errors import InputError, first_line

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

    from student.crops import Mask, Pixels, Protocol
    from student.cropset import CropSet, Integers
    from student.evaluate import Baseline, Estimate, Figures, Floats, Predict, Predictions, Score

SCHEMA = 1
"""Version of `EvaluationResult.to_json`."""

MATCHED = "matched.json"
"""Beside stored predictions: which instance each is for (`student.evaluate.matched_rows`)."""

TRAINING_MASKS = 20_000
"""Masks at most that the mean training mask is made from (184 MB), drawn at random where there are more."""

FEW_PICTURES = 50
"""Below, percentile intervals are over 3.5 % too narrow (`compiler.gate.intervals`: t by normal quantile)."""

PROBABILITY_EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1 when they become logits."""

OnProgress = Callable[[int, int, str], None]
"""Called with what is done of a phase, what there is to do, and the phase (`compiler.progress.Counting`)."""


@dataclass(frozen=True)
class ScoredModel:
    """What was scored.

    Attributes:
        file: name of the file, or of the package directory and the file in it.
        kind: what the file is.
        sha256: of the file.
        contract: how pixels become the network's input; None for stored predictions.
        figures: what it reaches.
    """

    file: str
    kind: str
    sha256: str
    contract: InputContract | None
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "kind": self.kind,
            "sha256": self.sha256,
            "input_contract": None if self.contract is None else self.contract.to_json(),
            **self.figures.to_json(),
        }


@dataclass(frozen=True)
class ChipReading:
    """One reading of the compiled file: what the chip computes if its open questions are answered so.

    Attributes:
        numerics: the answers (`compiler.simulator.numerics`).
        reached: overall.
        difference: of this reading minus the exact meaning of the quantized ONNX, paired by picture.
    """

    numerics: Imx500
    reached: Score
    difference: Score

    def to_json(self) -> dict[str, Any]:
        return {
            "rounding": self.numerics.rounding.value,
            "fused_addition_saturates": self.numerics.saturate,
            "overall": self.reached.to_json(),
            "difference_from_dialect": self.difference.to_json(),
        }


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation; the tables and the JSON are pure functions of it.

    Attributes:
        data: name of the data set.
        crowds, empty: annotations of the data set that were left out.
        available: instances of the data set; fewer may have been scored (see `notes`).
        protocol: the rule the crops were cut by.
        model: what was asked for.
        against: the second model on the same instances, if there is one.
        difference: model minus `against`, paired by picture.
        baselines: each with what it reaches on the same instances.
        chip: every reading of the compiled file, where asked for.
        notes: what was assumed, and what was left out.
    """

    data: str
    crowds: int
    empty: int
    available: int
    protocol: Protocol
    model: ScoredModel
    against: ScoredModel | None
    difference: Score | None
    baselines: tuple[tuple[Baseline, Figures], ...]
    chip: tuple[ChipReading, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The stable record: numbers rounded to 4 digits, intervals 95 %, null where there is no value."""
        return {
            "schema": SCHEMA,
            "data": {
                "name": self.data,
                "instances": self.available,
                "crowds_left_out": self.crowds,
                "empty_left_out": self.empty,
            },
            "protocol": dataclasses.asdict(self.protocol),
            "model": self.model.to_json(),
            "against": None if self.against is None else self.against.to_json(),
            "difference": None if self.difference is None else self.difference.to_json(),
            "baselines": [
                {"name": baseline.name, "description": baseline.description, **figures.to_json()}
                for baseline, figures in self.baselines
            ],
            "chip": [reading.to_json() for reading in self.chip],
            "notes": list(self.notes),
        }


def evaluate_model(
    model: Path,
    *,
    source: str,
    split: str | None = None,
    protocol: str | None = None,
    against: Path | None = None,
    only: Path | None = None,
    training: str | None = None,
    declared: str | None = None,
    float_graph: bool = False,
    batch: int = 16,
    chip: bool = False,
    threads: int | None = None,
    on_progress: OnProgress = lambda done, total, phase: None,
) -> EvaluationResult:
    """Scores a model on a data set, beside the trivial baselines and, if given, a second model.

    Args:
        model: see the module's docstring. A checkpoint without an input contract takes the authors' ImageNet
            convention, which the notes then say.
        source, split: the data set (`student.instances.load_instances`).
        protocol: a name in `student.crops.PROTOCOLS`. A network of another input size gets crops of its own
            size, by the same rule. None: what `model` was trained under, else `against`, else
            point-native-96.
        against: a second model or stored predictions, compared on the same instances.
        only: a file that lists the instances to score (`student.evaluate.listed_instances`).
        training: source of the mean training mask (`coco:DIR`), whose training split is used; without it
            there is no such baseline.
        declared: the input contract of networks that carry none (`compiler.frontend.load_model`).
        float_graph: of package directories score the float graph, not the int8 one.
        batch: crops a network sees at a time, where its graph leaves the batch open.
        chip: also score `model` with the numbers of the compiled file, under every answer to what that file
            leaves open.
        threads: of the simulator; None for all cores.

    Raises:
        InputError: whatever of these cannot be read or does not fit together.
    """
    from student.crops import POINT_NATIVE_96, named_protocol
    from student.cropset import load_crops
    from student.evaluate import average_precision, baselines, difference, figures, iou
    from student.instances import load_instances

    if protocol is not None:
        named_protocol(protocol)
    contestants = [_open(path, declared, float_graph) for path in (model, against) if path is not None]
    if chip and contestants[0].kind != ModelKind.QUANTIZED_ONNX.value:
        raise InputError(
            "--chip",
            f"{contestants[0].file} is no quantized graph ({contestants[0].kind})",
            "a package directory, or the quantized ONNX in it",
            "compile the model first",
        )
    if chip and contestants[0].loaded is not None:
        predictor(contestants[0].loaded, threads, UNKNOWNS[0])  # refuse undecoded layers before any picture
    for one in contestants:
        if one.loaded is not None:
            _picture_and_map(one.loaded)  # what does not fit is told before any picture is read
    contracts = [(one.file, one.contract) for one in contestants if one.contract is not None]
    known_protocols = [one.protocol for one in contestants if one.protocol is not None]
    named = named_protocol(protocol or next(iter(known_protocols), POINT_NATIVE_96.name))
    rule = protocol_of_size(named, contracts)
    stored = [_stored(one, rule.size) if one.loaded is None else None for one in contestants]
    lists = [(only.name, _listed(only))] if only is not None else []
    lists += [(one.file, said.annotation_ids) for one, said in zip(contestants, stored, strict=True) if said]
    instances = load_instances(source, split)
    crops = load_crops(instances, rule, lambda done, total: on_progress(done, total, "reading pictures"))
    crops, notes = _restricted(crops, lists)
    notes = [f"{one.file}: {note}" for one in contestants for note in one.notes] + notes
    notes += _seen(contestants, source, split, on_progress)
    notes += [
        f"{one.file} does not say its protocol: scored as if made under {rule.name}"
        for one in contestants
        if one.loaded is None or (one.protocol is None and protocol is None and known_protocols)
    ]
    notes += [
        f"{one.file} was trained on {one.protocol}, and this is its score on {rule.name}"
        for one in contestants
        if one.protocol not in (None, named.name)
    ]
    if (pictures := len(np.unique(crops.picture_ids))) < FEW_PICTURES:
        notes.append(
            f"{pictures} pictures: percentile intervals are too narrow for so few; `picosam2 gate` corrects "
            "for it, so its intervals are wider"
        )
    if instances.boxes:
        notes.append(f"{instances.boxes} annotated boxes do not fit their masks; the masks' own are used")
    known, of = (None, None) if training is None else _training_masks(training, rule, on_progress)
    if known is None:
        notes.append("no training set was given, so there is no mean training mask among the baselines")

    def reached(answers: Predictions, name: str) -> tuple[Floats, Figures]:
        on_progress(0, 1, f"COCO AP of {name}")
        precision = average_precision(answers, crops, instances)
        on_progress(1, 1, f"COCO AP of {name}")
        ious = iou(answers.masks, crops.masks)
        return ious, figures(ious, crops, precision)

    ious, scored = [], []
    for one, said in zip(contestants, stored, strict=True):
        answers = _run(one, crops, batch, threads, on_progress) if said is None else said.of(crops)
        values, found = reached(answers, one.file)
        ious.append(values)
        scored.append(ScoredModel(one.file, one.kind, one.sha256, one.contract, found))
    readings = _readings(contestants[0], crops, batch, threads, ious[0], on_progress) if chip else ()
    trivial = [(one, reached(one.on(crops), one.name)[1]) for one in baselines(crops, known, of)]
    return EvaluationResult(
        instances.name,
        instances.crowds,
        instances.empty,
        len(instances),
        rule,
        scored[0],
        scored[1] if len(scored) == 2 else None,
        difference(ious[0], ious[1], crops.picture_ids) if len(scored) == 2 else None,
        tuple(trivial),
        readings,
        tuple(notes),
    )


# Reading what is to be scored


@dataclass(frozen=True)
class _Contestant:
    """A model or stored predictions; `loaded` is None for the latter."""

    path: Path
    file: str
    kind: str
    sha256: str
    loaded: Loaded | None
    notes: tuple[str, ...]
    calibrated: tuple[Mapping[str, Any], ...] = ()
    """Pictures on the calibration card of its package."""
    protocol: str | None = None
    """What it was trained under; None where that is not known."""

    @property
    def contract(self) -> InputContract | None:
        return None if self.loaded is None else self.loaded.contract


def _open(path: Path, declared: str | None, float_graph: bool) -> _Contestant:
    name, calibrated, protocol = path.name, tuple[Mapping[str, Any], ...](), None
    if path.is_dir():
        manifest = read_manifest(path)
        calibrated, protocol = calibration_sources(manifest), trained_protocol(manifest)
        path = path / (FLOAT_GRAPH if float_graph else INT8_GRAPH)
        name = f"{name}/{path.name}"
        if not path.is_file():
            raise InputError(
                f"package {path.parent}",
                f"has no {path.name}",
                "a package with that graph",
                "score the float graph" if not float_graph else "compile it again",
            )
    elif is_package(path.parent):
        manifest = read_manifest(path.parent)
        said = manifest.get("files", {}).get(path.name, {}).get("sha256")
        if path.is_file() and said == graphs.sha256(path.read_bytes()):
            protocol = trained_protocol(manifest)
    if path.is_file() and _is_json(path):
        return _Contestant(path, name, "stored predictions", graphs.sha256(path.read_bytes()), None, ())
    loaded = load_model(path, declared=declared)
    notes = tuple(f"{note.found}; {note.limit}" for note in loaded.notes if note.severity is Severity.WARNING)
    return _Contestant(
        path, name, loaded.kind.value, loaded.sha256, loaded, notes, calibrated, protocol or loaded.protocol
    )


def _seen(
    contestants: Sequence[_Contestant], source: str, split: str | None, on_progress: OnProgress
) -> list[str]:
    """A note for each package that was calibrated or trained on pictures of the data set, by content."""
    from calib.representative import HELD_OUT_PART, content_hashes, overlap

    if not any(one.calibrated for one in contestants):
        return []
    hashes = content_hashes(
        source, split, lambda phase, share: on_progress(round(100 * (share or 0.0)), 100, phase)
    )
    notes = []
    for one in contestants:
        fitted = [picture for picture in one.calibrated if picture.get("part") != HELD_OUT_PART]
        if found := overlap(fitted, hashes):
            named = ", ".join(str(picture["name"]) for picture in found[:3])
            notes.append(
                f"{one.file}: {len(found)} of these pictures were calibrated on, trained on or decided by "
                f"({named}"
                f"{', ...' if len(found) > 3 else ''}); the score is not one on unseen data"
            )
    return notes


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] in (b"[", b"{")


def protocol_of_size(protocol: Protocol, contracts: Sequence[tuple[str, InputContract]]) -> Protocol:
    """The protocol at the networks' input size; raises InputError where they are not one square.

    Args:
        contracts: file and contract of each network; none for stored predictions alone.
    """
    sizes = {(one.height, one.width) for _, one in contracts}
    if not sizes:
        return protocol
    height, width = max(sizes)
    if len(sizes) > 1 or height != width:
        raise InputError(
            " and ".join(file for file, _ in contracts),
            f"inputs of {' and '.join(f'{h}x{w}' for h, w in sorted(sizes))} pixels",
            "one square size: crops are square, and two models are compared on the same crops",
            "score them one at a time" if len(sizes) > 1 else "export the network with a square input",
        )
    if height == protocol.size:
        return protocol
    name = protocol.name.replace(str(protocol.size), str(height))
    return dataclasses.replace(protocol, size=height, name=name)


def _stored(one: _Contestant, size: int) -> Predictions:
    from student.evaluate import stored_predictions

    beside = one.path.with_name(MATCHED)
    return stored_predictions(one.path, beside if beside.is_file() else None, size)


def _listed(only: Path) -> Integers:
    from student.evaluate import listed_instances

    return listed_instances(only)


def _restricted(crops: CropSet, lists: Sequence[tuple[str, Integers]]) -> tuple[CropSet, list[str]]:
    """The crops that every list names, and a note for each list that leaves some out."""
    notes, available = [], crops.annotation_ids
    for file, ids in lists:
        kept = np.isin(crops.annotation_ids, ids)
        if not kept.any():
            raise InputError(
                file,
                "none of its instances is among those to be scored",
                "annotation ids of the data set and split",
                "give the data set it was made from",
            )
        if not kept.all():
            notes.append(f"only the {int(kept.sum())} of {len(crops)} instances that {file} names")
        absent = int((~np.isin(ids, available)).sum())
        if absent:
            notes.append(f"{absent} of the {len(ids)} instances that {file} names are not in the data set")
        crops = crops.select(kept)
    return crops, notes


def _training_masks(source: str, rule: Protocol, on_progress: OnProgress) -> tuple[Mask, int]:
    """Masks of training instances in their crops, and how many instances there are."""
    from student.cropset import load_masks
    from student.instances import load_instances, training_split

    learnt = load_instances(source, training_split(source))
    phase = "drawing training masks"
    masks = load_masks(
        learnt, rule, TRAINING_MASKS, on_progress=lambda done, total: on_progress(done, total, phase)
    )
    return masks, len(learnt)


# Running networks


def _run(
    one: _Contestant,
    crops: CropSet,
    batch: int,
    threads: int | None,
    on_progress: OnProgress,
    numerics: Numerics = DIALECT,
) -> Predictions:
    from student.evaluate import predict_crops

    assert one.loaded is not None
    predict, limit = predictor(one.loaded, threads, numerics)
    phase = f"running {one.file}{'' if numerics is DIALECT else f' (imx500, {numerics.describe()})'}"
    return predict_crops(
        predict, crops, min(batch, limit or batch), lambda done, total: on_progress(done, total, phase)
    )


def _readings(
    one: _Contestant,
    crops: CropSet,
    batch: int,
    threads: int | None,
    exact: Floats,
    on_progress: OnProgress,
) -> tuple[ChipReading, ...]:
    from student.evaluate import difference, figures, iou

    readings = []
    for numerics in UNKNOWNS:
        answers = _run(one, crops, batch, threads, on_progress, numerics)
        ious = iou(answers.masks, crops.masks)
        change = difference(ious, exact, crops.picture_ids)
        readings.append(ChipReading(numerics, figures(ious, crops, None).overall, change))
    return tuple(readings)


def predictor(
    loaded: Loaded, threads: int | None = None, numerics: Numerics = DIALECT
) -> tuple[Predict, int | None]:
    """A graph with one picture as input and one map of logits as output: simulated, or in onnxruntime.

    A map that comes from a Sigmoid holds probabilities: their logits are given.

    Args:
        threads: None for all cores. No result depends on them.
        numerics: the simulator's (`compile_program`).

    Returns:
        The predictor, and the batch its graph is fixed at (None: any).

    Raises:
        InputError: other inputs or outputs, or a graph that is not simulated, or that onnxruntime refuses.
        EnvironmentFault: the simulator's kernels cannot be built.
    """
    from student.evaluate import network_input

    picture, output, batch = _picture_and_map(loaded)
    probabilities = is_probability(output)
    simulated = loaded.kind is ModelKind.QUANTIZED_ONNX
    given, wanted = picture.name or "", output.name or ""
    if simulated:
        run = _simulated(loaded, given, wanted, threads, numerics)
    else:
        run = _onnxruntime(loaded, given, wanted, threads, batch)

    def predict(pixels: Pixels) -> np.ndarray:
        values = run(network_input(pixels, loaded.contract))
        if not probabilities:
            return values
        inside = np.clip(values, PROBABILITY_EDGE, 1 - PROBABILITY_EDGE)
        logits: np.ndarray = np.log(inside / (1 - inside))
        return logits

    return predict, None if simulated or batch == 1 else batch


def _simulated(
    loaded: Loaded, given: str, wanted: str, threads: int | None, numerics: Numerics
) -> Callable[[np.ndarray], np.ndarray]:
    from compiler.simulator.engine import compile_program

    program = compile_program(loaded.model, threads=threads, numerics=numerics)
    return lambda pictures: program.run({given: pictures})[wanted].real().astype(np.float32)


def _onnxruntime(
    loaded: Loaded, given: str, wanted: str, threads: int | None, batch: int | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Runs `batch` pictures at a time, one where that is open; each run keeps to one thread.

    One picture after the other on each core is what is fastest: the shipped student takes 5.4 ms of a core
    so, 11 ms in batches of 16, and 14 to 23 ms where onnxruntime splits each layer among cores that have
    other work (measured).
    """
    try:
        running = session(loaded.model, threads=1)
    except Exception as error:  # onnxruntime raises its own kinds
        raise _refused(loaded, error) from error
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if threads is None else threads)
    at_a_time = batch or 1

    def run_part(pictures: np.ndarray) -> np.ndarray:
        return np.asarray(running.run([wanted], {given: pictures})[0], np.float32)

    def run(pictures: np.ndarray) -> np.ndarray:
        parts = [pictures[at : at + at_a_time] for at in range(0, len(pictures), at_a_time)]
        try:
            return np.concatenate(list(pool.map(run_part, parts)))
        except Exception as error:
            raise _refused(loaded, error) from error

    return run


def _refused(loaded: Loaded, error: Exception) -> InputError:
    return InputError(
        f"model {loaded.network}",
        f"onnxruntime cannot run it: {first_line(error)}",
        "standard operators on one picture",
        "look at what it names, or export the model again",
    )


def _may_be(shape: tuple[int | None, ...] | None, size: tuple[int, ...]) -> bool:
    """Nothing that is known of a shape speaks against N pictures of this size; running it tells the rest."""
    if shape is None:
        return True
    pairs = zip(shape[1:], size, strict=False)
    return len(shape) == 1 + len(size) and all(one in (None, wanted) for one, wanted in pairs)


def _picture_and_map(loaded: Loaded) -> tuple[ir.Value, ir.Value, int | None]:
    """The input that takes the picture, the output that is the mask, and the batch of the graph (None: any).

    Raises InputError where they are not one each.
    """
    inputs = graphs.real_inputs(loaded.model.graph)
    shape = graphs.static_shape(inputs[0]) if len(inputs) == 1 else None
    if shape is None or len(shape) != 4:
        raise InputError(
            f"model {loaded.network}",
            f"{len(inputs)} inputs" if len(inputs) != 1 else f"an input of shape {shape}",
            "one input N,C,H,W that takes the picture",
            "evaluate a network whose only input is the picture",
        )
    return inputs[0], loaded.model.graph.outputs[_map_output(loaded)], shape[0]


def _map_output(loaded: Loaded) -> int:
    """Index of the output that is the mask: the only map of the input's size."""
    outputs = loaded.model.graph.outputs
    size = (1, loaded.contract.height, loaded.contract.width)
    shapes = [graphs.static_shape(value) for value in outputs]
    if len(outputs) == 1 and _may_be(shapes[0], size):
        return 0
    maps = [index for index, shape in enumerate(shapes) if (shape or ())[1:] == size]
    if len(maps) != 1 and len(outputs) == 1:
        raise InputError(
            f"model {loaded.network}",
            f"output of shape [{', '.join(map(str, ('N', *(shapes[0] or ())[1:])))}]",
            f"one map of the input's size, [N, {', '.join(map(str, size))}]",
            "evaluate a network that puts out one logit per pixel of its input",
        )
    if len(maps) != 1:
        raise InputError(
            f"model {loaded.network}",
            f"{len(outputs)} outputs, {len(maps)} of them one map of {size[1]}x{size[2]}",
            "exactly one such map",
            "export the network with the mask's logits as its output",
        )
    return maps[0]


# Tables


def tables(result: EvaluationResult) -> list[Table]:
    """The terminal's tables, 80 columns wide: overall, and mean IoU by size and by competing objects."""
    rows: list[tuple[str, Figures]] = [(_row_name(result.model.file), result.model.figures)]
    if result.against is not None:
        rows.append((_row_name(result.against.file), result.against.figures))
    models = len(rows)
    rows += [(one.name, found) for one, found in result.baselines]
    first = result.model.figures.overall
    overall = _table(
        f"{result.data}, {result.protocol.name}: {first.samples} instances, {first.pictures} pictures",
        ("mIoU", "mean success\nrate", "AP", "AP50"),
    )
    overall.caption = "\n".join(
        [
            "[95 % interval over pictures]; AP: COCO's, of masks pasted into the picture",
            *(f"{one.name}: {one.description}" for one, _ in result.baselines),
        ]
    )
    for index, (name, found) in enumerate(rows):
        precision = found.average_precision
        values = [] if precision is None else [precision.ap, precision.ap50]
        cells = [_interval(found.overall.miou), _interval(found.overall.mean_success_rate)]
        _add(overall, name, [*cells, *(_number(value) for value in values)])
        if index == models - 1:
            if (change := result.difference) is not None:
                cells = [_interval(change.miou, "+"), _interval(change.mean_success_rate, "+")]
                _add(overall, "difference, paired", cells)
            overall.add_section()
    return [
        overall,
        *([_chip_table(result)] if result.chip else []),
        _by_class("mIoU by size of object", rows, lambda found: found.by_size),
        _by_class("mIoU by number of competing objects in the crop", rows, lambda found: found.by_competing),
    ]


def _row_name(file: str) -> str:
    """Short, for narrow columns: of a package its own name and which of its graphs."""
    for graph, kind in ((INT8_GRAPH, "int8"), (FLOAT_GRAPH, "float")):
        if file.endswith(f"/{graph}"):
            return f"{file.removesuffix(f'/{graph}')} {kind}"
    return file


def _chip_table(result: EvaluationResult) -> Table:
    table = _table(
        "with the numbers of the compiled file (imx500)",
        ("mIoU", "difference from the\nquantized ONNX, paired"),
    )
    table.caption = (
        "estimated: how the chip rounds, and whether a convolution fused with an addition saturates first, "
        "cannot be read in the file"
    )
    for one in result.chip:
        _add(
            table, one.numerics.describe(), [_interval(one.reached.miou), _interval(one.difference.miou, "+")]
        )
    return table


def _by_class(
    title: str, rows: list[tuple[str, Figures]], classes: Callable[[Figures], dict[str, Score]]
) -> Table:
    scores = classes(rows[0][1])
    table = _table(title, [f"{name}\n({score.samples})" for name, score in scores.items()])
    for name, found in rows:
        _add(table, name, [_interval(score.miou) for score in classes(found).values()])
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add(table: Table, name: str, cells: Sequence[str]) -> None:
    from rich.text import Text

    table.add_row(Text(name), *cells)  # as text: a file's name may hold what rich takes for markup


def _interval(value: Estimate, sign: str = "") -> str:
    if not np.isfinite(value.low):
        return format(value.mean, f"{sign}.4f")
    return f"{value.mean:{sign}.4f}\n[{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"
