"""The gate: measures a package, holds it against the limits, and warns where the gate itself is weak.

Two things are warned about, and fail the gate under `strict`: pictures that the package was calibrated,
trained or decided on (a score on them is not one on unseen data), and limits that a mask which knows nothing
of the picture would keep to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.gate.criteria import Criterion, Limits, Verdict, accuracy, against_earlier, memory
from compiler.gate.earlier import (
    FORMAT,
    Earlier,
    measured_earlier,
    package_of,
    read_earlier,
    require_comparable,
)
from compiler.gate.intervals import (
    LEAST_CONFIDENCE,
    LEAST_PICTURES,
    MOST_CONFIDENCE,
    Interval,
    intervals,
)
from compiler.gate.measuring import Measurement, measure, open_graphs, require_float, used_memory
from compiler.inspection.opened_package import OpenedPackage, open_package, trained_protocol
from passes.errors import ExitCode, GateFailed, InputError

if TYPE_CHECKING:
    from student.evaluate import Floats

SCHEMA = 1
"""Version of `GateResult.to_json`."""

UNSEEN, TELLING = "unseen-pictures", "telling-limits"
"""Names of the two warnings."""

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class GateOptions:
    """What the user asked for.

    Attributes:
        limits: at least one.
        baseline: an earlier package or report (`compiler.gate.earlier`); needs `limits.max_drop`.
        confidence: of every interval, 0.5..0.99.
        undecided_fails: `too few samples to tell` fails the gate.
        strict: warnings fail the gate.
        seed: of the bootstraps.
    """

    limits: Limits
    baseline: Path | None = None
    confidence: float = 0.95
    undecided_fails: bool = False
    strict: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Caution:
    """One thing that may be wrong with the gate itself.

    Attributes:
        name: UNSEEN or TELLING.
        found: what is wrong, None where nothing is.
        fix: what to do about it.
        items: what it is about, for instance names of pictures.
    """

    name: str
    found: str | None
    fix: str
    items: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "found": self.found, "fix": self.fix, "items": list(self.items)}


@dataclass(frozen=True)
class TrivialScore:
    """What a trivial mask reaches.

    Attributes:
        passes: limits of accuracy are asked for, and none would stop it.
    """

    name: str
    description: str
    miou: Interval
    passes: bool


@dataclass(frozen=True)
class GateResult:
    """One run of the gate; the reports are pure functions of it.

    Attributes:
        int8, real: mIoU of the two networks; `real` is None without a float network.
        trivial: on the same instances.
        criteria: everything asked for.
        cautions: both, whether or not anything was found.
        notes: what was assumed.
    """

    options: GateOptions
    measured: Measurement
    int8: Interval
    real: Interval | None
    trivial: tuple[TrivialScore, ...]
    criteria: tuple[Criterion, ...]
    cautions: tuple[Caution, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[Criterion | Caution, ...]:
        """What fails the gate, as its options have it."""
        return (
            *(one for one in self.criteria if self.fails(one)),
            *(one for one in self.cautions if self.options.strict and one.found is not None),
        )

    def fails(self, one: Criterion) -> bool:
        return _fails(one, self.options)

    @property
    def verdict(self) -> Verdict:
        """Of the whole gate: pass only where every criterion passes."""
        decided = any(not isinstance(one, Criterion) or one.verdict is Verdict.FAIL for one in self.failed)
        if decided:
            return Verdict.FAIL
        if any(one.verdict is Verdict.UNDECIDED for one in self.criteria):
            return Verdict.UNDECIDED
        return Verdict.PASS

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.GATE if self.failed else ExitCode.FINE

    def to_json(self) -> dict[str, Any]:
        """The stable record, without times: the same inputs and seed give the same bytes."""
        options, measured = self.options, self.measured
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "verdict": self.verdict.value,
            "exit_code": int(self.exit_code),
            "failed": [one.name for one in self.failed],
            "package": {
                "name": measured.package,
                "int8_sha256": measured.int8_sha256,
                "float_sha256": measured.float_sha256,
            },
            "data": {
                "name": measured.data,
                "protocol": measured.protocol,
                "instances": len(measured.int8),
                "pictures": measured.pictures,
                "crops_sha256": measured.crops_sha256,
            },
            "options": {
                **vars(options.limits),
                "baseline": None if options.baseline is None else options.baseline.name,
                "confidence": options.confidence,
                "undecided": "fail" if options.undecided_fails else "pass",
                "strict": options.strict,
                "seed": options.seed,
            },
            "criteria": [one.to_json() for one in self.criteria],
            "warnings": [one.to_json() for one in self.cautions if one.found is not None],
            "networks": {
                "int8": self.int8.to_json(),
                "float": None if self.real is None else self.real.to_json(),
            },
            "trivial": [
                {
                    "name": one.name,
                    "description": one.description,
                    "miou": one.miou.to_json(),
                    "passes": one.passes,
                }
                for one in self.trivial
            ],
            "notes": list(self.notes),
            "instances": {
                "annotation_ids": measured.annotation_ids.tolist(),
                "picture_ids": measured.picture_ids.tolist(),
                # unrounded: a package that is compared with itself must lose nothing at all
                "int8_iou": measured.int8.tolist(),
                "float_iou": None if measured.real is None else measured.real.tolist(),
            },
        }


def run_gate(
    package: Path,
    source: str,
    options: GateOptions,
    *,
    split: str | None = None,
    protocol: str | None = None,
    threads: int | None = None,
    on_progress: OnProgress = lambda done, total, phase: None,
) -> GateResult:
    """Measures and judges; arguments beside the options as `measuring.measure` takes them.

    Raises:
        InputError: whatever of these cannot be read, is out of range or does not fit together.
        EnvironmentFault: the simulator's kernels cannot be built.
    """
    require_sound(options)
    before = None if options.baseline is None else package_of(options.baseline)
    earlier = None if options.baseline is None or before is not None else read_earlier(options.baseline)
    found = open_graphs(package)
    known = None if before is None else open_package(before)
    if known is not None and protocol is None:
        _require_alike(found.opened, known)
    if options.limits.max_drop is not None:
        require_float(found)
    used = None if options.limits.max_memory is None else used_memory(found)
    measured = measure(
        found,
        source,
        split,
        protocol,
        earlier=known,
        threads=threads,
        on_progress=on_progress,
    )
    if known is not None:
        earlier = measured_earlier(known.name, measured, options.confidence, options.seed)
    return judge(measured, options, earlier, used)


def _require_alike(now: OpenedPackage, before: OpenedPackage) -> None:
    """Raises InputError where the two were trained on different prompts: no crops would be fair to both."""
    ours, theirs = (trained_protocol(one.manifest) for one in (now, before))
    if ours is not None and theirs is not None and ours != theirs:
        raise InputError(
            f"--baseline {before.name}",
            f"was trained on {theirs}",
            f"{ours}, as {now.name}",
            "compare packages of one kind, or say with --protocol which prompts both are scored by",
        )


def require_sound(options: GateOptions) -> None:
    """Raises InputError for options that ask for nothing, or for something that cannot be."""
    limits = options.limits
    if limits.min_miou is None and limits.max_drop is None and limits.max_memory is None:
        raise InputError(
            "gate",
            "nothing is asked for",
            "at least one of --min-miou, --max-drop and --max-memory",
            "for instance --min-miou 0.45 --max-drop 1",
        )
    if limits.min_miou is not None and not 0 <= limits.min_miou <= 1:
        raise InputError(
            "--min-miou", f"{limits.min_miou:g}", "0 to 1", f"{limits.min_miou / 100:g} for per cent"
        )
    if limits.max_drop is not None and not 0 <= limits.max_drop <= 100:
        raise InputError(
            "--max-drop",
            f"{limits.max_drop:g}",
            "0 to 100 points (hundredths of mIoU)",
            "give the points that may be lost",
        )
    if limits.max_memory is not None and limits.max_memory < 1:
        raise InputError("--max-memory", f"{limits.max_memory}", "1 byte or more", "the chip has 8388480")
    if not LEAST_CONFIDENCE <= options.confidence <= MOST_CONFIDENCE:
        raise InputError(
            "--confidence",
            f"{options.confidence:g}",
            f"{LEAST_CONFIDENCE:g} to {MOST_CONFIDENCE:g}",
            "0.95 is what most use",
        )
    if options.baseline is not None and limits.max_drop is None:
        raise InputError(
            "--baseline", "without --max-drop", "how much worse it may be", "add for instance --max-drop 1"
        )


def judge(
    measured: Measurement,
    options: GateOptions,
    earlier: Earlier | None = None,
    used: tuple[int, str] | None = None,
) -> GateResult:
    """The verdicts on what was measured.

    Args:
        earlier: read from `options.baseline`.
        used: `measuring.used_memory`, where `options.limits.max_memory` asks for it.

    Raises:
        InputError: an earlier report of something else.
    """
    notes = list(measured.notes)
    if measured.pictures < LEAST_PICTURES:
        notes.append(f"{measured.pictures} pictures: with fewer than {LEAST_PICTURES} there is no interval")
    if earlier is not None and (note := require_comparable(earlier, measured)) is not None:
        notes.append(note)

    def of(ious: Floats) -> tuple[Criterion, ...]:
        """The criteria of accuracy for a network that reaches these IoUs."""
        found = accuracy(
            ious, measured.real, measured.picture_ids, options.limits, options.confidence, options.seed
        )
        if earlier is None or options.limits.max_drop is None:
            return found
        return (
            *found,
            against_earlier(
                ious,
                measured.annotation_ids,
                measured.picture_ids,
                earlier,
                options.limits.max_drop,
                options.confidence,
                options.seed,
            ),
        )

    def passes(ious: Floats) -> bool:
        asked = of(ious)
        return bool(asked) and not any(_fails(one, options) for one in asked)

    columns = [measured.int8, *(one.ious for one in measured.trivial)]
    if measured.real is not None:
        columns.append(measured.real)
    int8, *others = intervals(
        np.stack(columns, axis=1), measured.picture_ids, options.confidence, options.seed
    )
    scores = tuple(
        TrivialScore(one.name, one.description, miou, passes(one.ious))
        for one, miou in zip(measured.trivial, others[: len(measured.trivial)], strict=True)
    )
    real = None if measured.real is None else others[-1]
    criteria = of(measured.int8)
    if used is not None and options.limits.max_memory is not None:
        criteria = (*criteria, memory(*used, options.limits.max_memory))
    unseen, note = _unseen(measured)
    return GateResult(
        options,
        measured,
        int8,
        real,
        scores,
        criteria,
        (unseen, _telling(scores, measured.pictures)),
        (*notes, *([note] if note else [])),
    )


def require_passed(result: GateResult) -> None:
    """Raises GateFailed, naming everything that fails the gate."""
    failed = result.failed
    if not failed:
        return
    first = failed[0]
    texts = [one.sentence() if isinstance(one, Criterion) else f"{one.name}: {one.found}" for one in failed]
    raise GateFailed(
        f"gate {result.measured.package}",
        "; ".join(texts),
        f"{len(failed)} of {len(result.criteria) + len(result.cautions)} checks fail",
        first.fix,
    )


def _fails(one: Criterion, options: GateOptions) -> bool:
    if one.verdict is Verdict.UNDECIDED:
        return options.undecided_fails
    return one.verdict is Verdict.FAIL


def _unseen(measured: Measurement) -> tuple[Caution, str | None]:
    """The warning about pictures that the package has seen; and a note where that cannot be known."""
    from calib.representative import HELD_OUT_PART, overlap

    sources = (measured.calibration or {}).get("sources", [])
    seen = [one for one in overlap(sources, measured.contents) if one.get("part") != HELD_OUT_PART]
    names = tuple(sorted({measured.contents[str(one["content"])] for one in seen}))
    found = None
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        found = (
            f"the package was calibrated, trained or decided on {len(names)} of the "
            f"{len(measured.contents)} pictures scored: {shown}"
        )
    note = None
    if not any(one.get("content") for one in sources):
        note = "whether the package has seen these pictures is unknown: it has no content hashes of its own"
    fix = "score it on other pictures, or compile it with --exclude and this data"
    return Caution(UNSEEN, found, fix, names), note


def _telling(scores: tuple[TrivialScore, ...], pictures: int) -> Caution:
    """The warning about limits of accuracy that do not tell a network from nothing at all."""
    passing = [one for one in scores if one.passes]
    best = max(scores, key=lambda one: one.miou.value)
    found = None
    if passing:
        names = " and ".join(f"{one.name} (mIoU {one.miou.value:.4f})" for one in passing)
        found = f"this gate would let a mask pass that knows nothing of the picture: {names}"
    fix = f"ask for more: --min-miou well above {best.miou.value:.2f}"
    if pictures < LEAST_PICTURES:
        fix = f"score at least {LEAST_PICTURES} pictures: with {pictures} nothing is decided at any limit"
    return Caution(TELLING, found, fix, tuple(one.name for one in passing))
