"""Does the chip compute what the simulator computes? Every integer of a few inputs is compared.

    python3 -m on_the_pi.check network.rpk                      # on the Raspberry Pi, camera connected
    python3 -m on_the_pi.check network.rpk --record found.npz   # and keep what the chip put out
    python3 -m on_the_pi.check --replay found.npz               # the same comparison, anywhere

Exit code 0: all integers are equal to those of one of the numerics, which is named. 1: they are not, the
check could not run, or its recording could not be written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import Answer, Camera, open_camera
from .outputs import SAME_NETWORK, Facts, Integers, Output, Problem, place, read_arrays, read_facts

FOLDER = Path(__file__).resolve().parents[1]
"""device-check/, where this file lies in a package."""

RAW = "input {}, tensor {}"
"""Name of a tensor in a recording of answers that are no integers of this network: as the camera gave it, in
the camera's order."""


@dataclass(frozen=True)
class Difference:
    """The first place where found and expected differ: `input` counts from 0, `index` is in the output."""

    input: int
    output: Output
    index: tuple[int, ...]
    expected: int
    found: int

    def __str__(self) -> str:
        where = ", ".join(f"{d}={i}" for d, i in zip(self.output.order, self.index, strict=True))
        return (
            f"input {self.input}, output {self.output.name}, index {list(self.index)} ({where}): "
            f"expected {self.expected}, found {self.found}"
        )


@dataclass(frozen=True)
class Comparison:
    """Against the expected integers of one set of numerics.

    Attributes:
        numerics: all names that give these integers.
        differing: how many integers differ.
        largest: of the differences, in steps.
        first: the first of them; None where all are equal.
        exchanged: all are equal once height and width of every output are exchanged.
    """

    numerics: tuple[str, ...]
    differing: int
    largest: int
    first: Difference | None
    exchanged: bool


@dataclass(frozen=True)
class Verdict:
    """The whole comparison.

    Attributes:
        found: what the chip put out, [N, ...] by output name.
        comparisons: with each set of expected integers.
        unseen: the first input value that the network did not get; None where it got all, or does not say.
        times_ms: the chip's own, for each input.
    """

    found: Mapping[str, Integers]
    comparisons: tuple[Comparison, ...]
    unseen: str | None
    times_ms: tuple[tuple[float, float], ...]

    @property
    def agreeing(self) -> tuple[str, ...]:
        return tuple(name for one in self.comparisons if one.first is None for name in one.numerics)


class Replay:
    """A camera that answers with what `--record` kept, one set for each input in turn.

    Args:
        recorded: integers [N, ...] by output name, or the camera's tensors under `RAW` names.
        inputs: how many will be asked about.
        file: where it is from, for messages.

    Raises Problem for a recording of another network, and for one of fewer inputs.
    """

    def __init__(self, facts: Facts, recorded: Mapping[str, Integers], inputs: int, file: str) -> None:
        raw = RAW.format(0, 0) in recorded
        for output in () if raw else facts.outputs:
            array = recorded.get(output.name)
            if array is None:
                raise Problem(f"recording {file}", f"no output {output.name}", "all outputs", "record again")
            if array.dtype.kind not in "iu" or array.shape[1:] != output.shape:
                raise Problem(
                    f"recording {file}, output {output.name}",
                    f"{array.dtype} {list(array.shape)}",
                    f"integers [N, {', '.join(map(str, output.shape))}]",
                    SAME_NETWORK,
                )
        if raw:
            answered = next(number for number in count() if RAW.format(number, 0) not in recorded)
        else:
            answered = min(len(recorded[output.name]) for output in facts.outputs)
        if answered < inputs:
            raise Problem(
                f"recording {file}",
                f"answers to {answered} inputs",
                f"{inputs}, one for each input of the package",
                "record again, with this device-check",
            )
        self._outputs, self._recorded, self._next = facts.outputs, recorded, 0
        self._listing = facts.listings[0]

    def run(self, integers: Integers) -> Answer:
        number, self._next = self._next, self._next + 1
        raw: list[NDArray[Any]] = []
        while (name := RAW.format(number, len(raw))) in self._recorded:
            raw.append(self._recorded[name])
        if raw:
            return Answer(tuple(raw), None, None)
        outputs = []
        for index in self._listing:
            output = self._outputs[index]
            outputs.append(self._recorded[output.name][number].astype(np.float64) * output.step)
        return Answer(tuple(outputs), None, None)


def run(inputs: Integers, camera: Camera) -> tuple[Answer, ...]:
    """The camera's answer to each of the inputs, [N, C, H, W]."""
    return tuple(camera.run(one) for one in inputs)


def found_integers(
    facts: Facts, answers: Sequence[Answer], listing: Sequence[int] | None = None
) -> dict[str, Integers]:
    """[N, ...] by output name. Raises Problem where shapes or values are not those of this network."""
    read = [facts.read(answer.outputs, listing) for answer in answers]
    return {output.name: np.stack([one[output.name] for one in read]) for output in facts.outputs}


def judge(
    facts: Facts,
    inputs: Integers,
    answers: Sequence[Answer],
    expected: Sequence[tuple[tuple[str, ...], Mapping[str, Integers]]],
) -> Verdict:
    """Compare every integer with every set of expected ones.

    Args:
        inputs: what was injected, [N, C, H, W].
        expected: for each set the numerics that give it, and its arrays [N, ...] by output name.

    Of the orders in which the camera may list the outputs the first that leads to equal integers is taken.
    Raises Problem as `found_integers`.
    """
    verdict = _judged(facts, inputs, answers, expected, found_integers(facts, answers))
    for listing in facts.listings if not verdict.agreeing else ():
        try:
            other = found_integers(facts, answers, listing)
        except Problem:  # the tensors do not fit in this order
            continue
        if (judged := _judged(facts, inputs, answers, expected, other)).agreeing:
            return judged
    return verdict


def _judged(
    facts: Facts,
    inputs: Integers,
    answers: Sequence[Answer],
    expected: Sequence[tuple[tuple[str, ...], Mapping[str, Integers]]],
    found: Mapping[str, Integers],
) -> Verdict:
    return Verdict(
        found=found,
        comparisons=tuple(_compared(facts, names, arrays, found) for names, arrays in expected),
        unseen=_unseen(inputs, answers),
        times_ms=tuple(answer.times_ms for answer in answers if answer.times_ms is not None),
    )


def _compared(
    facts: Facts,
    numerics: tuple[str, ...],
    expected: Mapping[str, Integers],
    found: Mapping[str, Integers],
) -> Comparison:
    steps = {name: values - expected[name].astype(np.int64) for name, values in found.items()}
    return Comparison(
        numerics=numerics,
        differing=sum(int(np.count_nonzero(one)) for one in steps.values()),
        largest=max(int(np.abs(one).max(initial=0)) for one in steps.values()),
        first=_first(facts, steps, expected, found),
        exchanged=all(_exchanged(found[name], values) for name, values in expected.items()),
    )


def _first(
    facts: Facts,
    steps: Mapping[str, Integers],
    expected: Mapping[str, Integers],
    found: Mapping[str, Integers],
) -> Difference | None:
    """By input, then output in the graph's order, then index."""
    for number in range(len(next(iter(steps.values())))):
        for output in facts.outputs:
            wrong = np.flatnonzero(steps[output.name][number])
            if wrong.size:
                index = place(wrong[0], output.shape)
                at = (number, *index)
                return Difference(
                    number, output, index, int(expected[output.name][at]), int(found[output.name][at])
                )
    return None


def _exchanged(found: Integers, expected: Integers) -> bool:
    square = found.ndim > 2 and found.shape[-1] == found.shape[-2]
    return square and bool(np.array_equal(found.swapaxes(-1, -2), expected))


def _unseen(inputs: Integers, answers: Sequence[Answer]) -> str | None:
    for number, (one, answer) in enumerate(zip(inputs, answers, strict=True)):
        if answer.seen is not None and not np.array_equal(answer.seen, one):
            wrong = np.flatnonzero(answer.seen != one)
            index = place(wrong[0], one.shape)
            return (
                f"input {number}: {wrong.size:,} of {one.size:,} values are not what was injected, the first "
                f"at {list(index)} (C, H, W): injected {one[index]}, seen {answer.seen[index]}"
            )
    return None


def lines(facts: Facts, verdict: Verdict) -> list[str]:
    """What is printed."""
    count = sum(values.size for values in verdict.found.values())
    text = [f"{facts.network}: {count:,} output integers", "", "differing  numerics"]
    for one in verdict.comparisons:
        text += [f"{one.differing:9,}  {name}" for name in one.numerics]
    text.append("")
    if verdict.agreeing:
        text.append(f"EQUAL. Every integer is the one of: {'; '.join(verdict.agreeing)}")
        if len(verdict.agreeing) > 1:
            text.append("These inputs do not tell them apart.")
    else:
        nearest = min(verdict.comparisons, key=lambda one: (one.differing, one.largest))
        assert nearest.first is not None  # else it would agree
        text += [
            f"DIFFERENT. Nearest: {nearest.numerics[0]}; {nearest.differing:,} integers differ, by at most "
            f"{nearest.largest}",
            f"First difference: {nearest.first}",
        ]
        exchanged = [name for one in verdict.comparisons if one.exchanged for name in one.numerics]
        if exchanged:
            text.append(
                f"With height and width exchanged every integer is the one of: {'; '.join(exchanged)}"
            )
    if verdict.unseen is not None:
        said = "The camera says that the network saw something else"
        if verdict.agreeing:
            said = "The camera hands another input back, though the outputs are those of the injected one"
        text.append(f"{said}: {verdict.unseen}")
    if facts.missing is not None:
        text.append(f"Not compared with the chip's own numerics: {facts.missing}")
    if verdict.times_ms:
        network, dsp = (statistics.median(one[i] for one in verdict.times_ms) for i in (0, 1))
        text.append(
            f"The chip's own times, median of {len(verdict.times_ms)}: network {network:.3f} ms, "
            f"pre-processing (DSP) {dsp:.3f} ms"
        )
    return text


def check(folder: Path, network: Path | None, replay: Path | None, record: Path | None) -> bool:
    """Run and print the check; whether all integers are equal. Raises Problem where it cannot run."""
    facts = read_facts(folder)
    inputs = _arrays(folder / facts.inputs, [facts.input.name])[facts.input.name]
    names = [output.name for output in facts.outputs]
    expected = [(one.numerics, _arrays(folder / one.file, names)) for one in facts.expected]
    if replay is not None:
        answers = run(inputs, Replay(facts, read_arrays(replay), len(inputs), str(replay)))
    else:
        assert network is not None  # the command line demands one of the two
        with open_camera(network, facts.input) as camera:
            answers = run(inputs, camera)
    try:
        verdict = judge(facts, inputs, answers, expected)
    except Problem:
        if record is not None:
            try:
                _write(record, {facts.input.name: inputs, **_raw(answers)})
                print(f"{record} holds what the camera put out, as it came", flush=True)
            except Problem as unwritten:
                print(f"error: {unwritten}", file=sys.stderr)
        raise
    print("\n".join(lines(facts, verdict)), flush=True)
    if record is not None:
        _write(record, {facts.input.name: inputs, **verdict.found})
    return bool(verdict.agreeing)


def _arrays(path: Path, names: Sequence[str]) -> dict[str, Integers]:
    """A file of the package. Raises Problem where it cannot be read or an array is not in it."""
    arrays = read_arrays(path)
    for name in names:
        if name not in arrays:
            raise Problem(f"{path}", f"no array {name}", "a file of the package", "copy device-check whole")
    return arrays


def _raw(answers: Sequence[Answer]) -> dict[str, Integers]:
    return {
        RAW.format(number, place): values
        for number, answer in enumerate(answers)
        for place, values in enumerate(answer.outputs)
    }


def _write(path: Path, arrays: Mapping[str, Integers]) -> None:
    """An .npz, whole or not at all. Raises Problem where it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    kept: dict[str, Any] = dict(arrays)
    try:
        try:
            with part.open("wb") as stream:
                np.savez_compressed(stream, **kept)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Problem(
            f"--record {path}",
            f"cannot be written ({error.strerror or error})",
            "a file in a folder that exists and has room",
            "give another --record and run again",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m on_the_pi.check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("network", nargs="?", type=Path, help="network.rpk, made by imx500-package")
    parser.add_argument("--record", type=Path, metavar="FILE.npz", help="keep inputs and found integers")
    parser.add_argument("--replay", type=Path, metavar="FILE.npz", help="compare a recording, no camera")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="device-check of the package")
    chosen = parser.parse_args(arguments)
    if (chosen.network is None) == (chosen.replay is None):
        print("error: give network.rpk, or --replay FILE.npz", file=sys.stderr)
        return 1
    try:
        equal = check(chosen.folder, chosen.network, chosen.replay, chosen.record)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
