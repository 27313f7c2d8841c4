"""The judgement that every report begins with: may it be shipped, why not, and what to do next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from compiler.inspection.layers import WARNING_DB
from compiler.reports.figures import (
    FLOAT32_DB,
    code,
    counted,
    decibels,
    finite,
    megabytes,
    milliseconds,
)
from compiler.reports.terminal import ACCURACY_CAVEAT, AGREEMENT_WORDS, drop_text, legality_text, miou_text
from compiler.result import CompileResult, Failure
from passes.diagnostics import Severity
from passes.imx500.limits import MEMORY_BUDGET

WEAK_AGREEMENT = 0.9
"""Mean IoU of float and int8 masks below which other ways to quantize are advised (our choice)."""

YES, NO, UNKNOWN = "yes", "no", "not known"


@dataclass(frozen=True)
class Answer:
    """One question of the reader and what is known.

    Attributes:
        question: in a few words.
        answer: `YES`, `NO` or `UNKNOWN` where it is a yes or no, else the figure.
        text: the rest, with what kind of figure it is.
        good: False where something has to be done, None where nothing is to be judged.
        note: sentences to read before the answer is relied on, too long to stand beside it.
    """

    question: str
    answer: str
    text: str
    good: bool | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        text = f"{self.text}. {self.note}" if self.note else self.text
        return {"question": self.question, "answer": self.answer, "text": text, "good": self.good}


@dataclass(frozen=True)
class Verdict:
    """What a reader needs in a minute.

    Attributes:
        passed: a package was made, the check and the converter found no error, and it fits.
        headline: one sentence.
        answers: to the questions, the most important first.
        next_steps: what to do, the first thing first.
    """

    passed: bool
    headline: str
    answers: tuple[Answer, ...]
    next_steps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "headline": self.headline,
            "answers": [one.to_json() for one in self.answers],
            "next_steps": list(self.next_steps),
        }


def verdict(result: CompileResult) -> Verdict:
    """The judgement on a compile, of one that failed too."""
    answers = [
        answer
        for answer in (
            _fits(result),
            _legal(result),
            *_accuracy(result),
            _loses_most(result),
            _latency(result),
        )
        if answer is not None
    ]
    passed = result.failure is None and all(answer.good is True for answer in answers[:2])
    return Verdict(passed, _headline(result, passed), tuple(answers), _next_steps(result))


def _errors(result: CompileResult) -> int:
    return sum(finding.severity is Severity.ERROR for finding in result.findings)


def _headline(result: CompileResult, passed: bool) -> str:
    network = result.network or result.model_name
    if (failure := result.failure) is not None:
        if failure.kind == "interrupted":
            return f"Interrupted in step {failure.step}: there is no package of {network}."
        if (errors := _errors(result)) and failure.kind == "target":
            return (
                f"The {result.target} refuses {network}: {counted(errors, 'violation')}. There is no package."
            )
        return f"Failed in step {failure.step}: {failure.thing}: {failure.found}. There is no package."
    memory = None if result.check is None else result.check.memory
    if result.vendor is None and memory is not None and not memory.fits and memory.may_tile:
        return f"{network} is quantized; only the converter can tell whether it fits."
    if not passed:
        return f"{network} compiled, but not to what the {result.target} runs."
    if result.vendor is None:
        return (
            f"{network} is quantized, and should fit and run on the {result.target}; it is not converted yet."
        )
    return f"{network} fits and runs on the {result.target}."


def _fits(result: CompileResult) -> Answer:
    question = "Does it fit?"
    if (vendor := result.vendor) is not None:
        tiled = ", cut into tiles" if vendor.tiled else ""
        text = (
            f"{megabytes(vendor.total_bytes)} of {megabytes(MEMORY_BUDGET)} "
            f"(measured by the converter{tiled})"
        )
        return Answer(question, YES if vendor.fits else NO, text, vendor.fits)
    memory = None if result.check is None else result.check.memory
    if memory is None:
        return Answer(question, UNKNOWN, "the run ended before memory was forecast", None)
    text = f"{megabytes(memory.total_bytes)} of {megabytes(memory.budget_bytes)} (forecast)"
    if not memory.fits and memory.may_tile:
        return Answer(question, "perhaps", f"{text}; the converter may cut it into tiles", None)
    return Answer(question, YES if memory.fits else NO, text, memory.fits)


def _legal(result: CompileResult) -> Answer:
    question = "Is it legal?"
    if result.check is None:
        return Answer(question, UNKNOWN, "the run ended before the check", None)
    errors = _errors(result)
    if refused := sum(one.severity is Severity.ERROR for one in result.vendor_diagnostics):
        return Answer(question, NO, f"{counted(refused, 'error')} of the converter", False)
    text = legality_text(result.check) + ("; the converter took it" if result.vendor is not None else "")
    return Answer(question, NO if errors else YES, text, not errors)


def _accuracy(result: CompileResult) -> list[Answer]:
    answers = [_miou(result)] if _is_masks(result) else []
    if result.choice is not None:
        kept = next(one for one in result.choice.tried if one.quantizer == result.choice.kept)
        where = f"{result.choice.crops} crops of {result.choice.pictures} pictures"
        interval = "" if finite(kept.drop.high) is None else ", 95 % interval over pictures"
        points = f"{kept.drop.points:.2f} points of mIoU"
        answer = {"measured": points, "bound": f"{points} at most", "none": UNKNOWN}[kept.drop.kind]
        text = f"{kept.quantizer}: {drop_text(kept.drop)}{interval} (measured on {where})"
        answers.append(Answer("What does int8 cost?", answer, text, result.choice.met))
    if result.agreement is not None:
        for output in result.agreement.outputs:
            ratio = "equal" if finite(output.snr_db) is None else decibels(output.snr_db)
            answer = ratio if output.value is None else f"{output.value:.4f}"
            good = None if output.value is None else output.value >= WEAK_AGREEMENT
            parts = [AGREEMENT_WORDS[output.measure]]
            if output is result.agreement.outputs[0] and result.facts and (each := result.facts.agreements):
                parts.append(f"from {min(each):.3f} to {max(each):.3f} over the pictures")
            if output.value is not None:
                parts.append(f"signal-to-noise {ratio}")
            text = f"{', '.join(parts)} (measured on {result.agreement.pictures} pictures held out)"
            answers.append(Answer(f"int8 against float, {output.name}", answer, text, good))
    return answers


def _is_masks(result: CompileResult) -> bool:
    """Some output is a mask, so that mIoU is a question."""
    outputs = () if result.agreement is None else result.agreement.outputs
    return any(output.measure == "mask-iou" for output in outputs)


def _miou(result: CompileResult) -> Answer:
    question = "What is the int8 mIoU?"
    if isinstance(found := result.accuracy, str):
        why = found or "the run ended before it was measured"
        return Answer(question, UNKNOWN, f"{why}; `picosam2 gate` measures it on your validation set", None)
    text = f"{drop_text(found.drop)} (measured on {found.crops} crops of {found.pictures} pictures)"
    note = f"Ranges are 95 % intervals over pictures. The crops are of --calib, {ACCURACY_CAVEAT}."
    return Answer(question, miou_text(found), text, None, note)


def _loses_most(result: CompileResult) -> Answer | None:
    facts = result.facts
    worst = None if facts is None else facts.worst
    if facts is None or worst is None:
        return None
    if worst.alone_db > FLOAT32_DB:
        text = f"no layer loses anything at the output (measured on {facts.pictures} pictures)"
        return Answer("Which layer loses most?", "none", text, True)
    text = (
        f"{decibels(worst.alone_db)} at the output with this layer alone quantized, "
        f"{facts.share_of_noise(worst):.0%} of the noise (measured on {facts.pictures} pictures); "
        + (
            "no layer needs repair"
            if worst.alone_db >= WARNING_DB
            else f"below {WARNING_DB:g} dB a layer needs repair"
        )
    )
    return Answer("Which layer loses most?", worst.name, text, worst.alone_db >= WARNING_DB)


def _latency(result: CompileResult) -> Answer | None:
    if result.check is None or not result.check.macs:
        return None
    return Answer(
        "How fast?", milliseconds(result.check.latency), "estimated from the operations alone", None
    )


def _next_steps(result: CompileResult) -> tuple[str, ...]:
    if result.failure is not None:
        return _after_failure(result, result.failure)
    steps = []
    memory = None if result.check is None else result.check.memory
    if memory is not None and not memory.fits and result.vendor is None:
        steps.append("Make it smaller: see what-if below.")
    worst = None if result.facts is None else result.facts.worst
    if worst is not None and worst.alone_db < WARNING_DB:
        steps.append(
            f"Repair {worst.name}: look at its range and threshold below, or train it: "
            "`--quantizer brevitas-qat`."
        )
    values = [] if result.agreement is None else [one.value for one in result.agreement.outputs]
    if result.choice is not None and result.choice.met is False:
        steps.append("The drop asked for is not met: give more pictures, wider weights or a larger limit.")
    elif any(value is not None and value < WEAK_AGREEMENT for value in values) and result.choice is None:
        steps.append(
            "int8 departs from float: try `--quantizer mct-gptq` or `--quantizer brevitas-qat`, "
            "or `--max-drop 1`."
        )
    if result.vendor is None:
        steps.append("Run the vendor's converter: compile again without `--no-convert`.")
    else:
        steps.append("Take `packerOut.zip` to the camera: `raspberry-pi.md` has the commands.")
    if _is_masks(result):
        steps.append(
            "Score it on your validation set: "
            "`picosam2 gate PACKAGE --data coco:DIR --min-miou X --max-drop 1`."
        )
    return tuple(steps)


def _after_failure(result: CompileResult, failure: Failure) -> tuple[str, ...]:
    errors = [one for one in result.findings if one.severity is Severity.ERROR]
    if not errors:
        return (f"{failure.fix[:1].upper()}{failure.fix[1:]}.",)
    where = errors[0].module or errors[0].node
    first = f"{'Begin with ' + where + ': ' if where else ''}{errors[0].fix}."
    more = f"Then the other {len(errors) - 1}, each with its fix below." if len(errors) > 1 else ""
    command = code(f"picosam2 check {shlex.quote(result.model_name)}")
    again = f"{command} repeats the findings in a second."
    return tuple(step for step in (first, more, again) if step)
