"""Trains a student: annotated objects, a teacher's answers, and pictures without annotations.

One loop for a CPU, a GPU or many (accelerate). Every random choice of step k comes from (seed, k) alone, so a
run that was killed and continued sees the same batches, and ends with the same bytes, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from passes.contract import InputContract, centred
from passes.errors import InputError
from student.allocator import keep_freed_memory
from student.checkpoint import load_checkpoint, save_checkpoint
from student.crops import PROTOCOLS
from student.cropset import CropSet, load_crops
from student.evaluate import evaluate, normalise, predictor
from student.features import Hinted, feature_loss
from student.instances import InstanceSet, PictureRecord
from student.losses import Targets, labels_loss, paper_loss, soft_loss
from student.networks import NETWORKS
from student.recipe import Recipe, changed
from student.samples import Batch, SampleStream
from student.teacher_cache import TeacherCache

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE, CHECKPOINT, CARD = "run.pt", "student.pt", "card.json"
"""Files of a run's directory; beside them tensorboard/ and predictions.png."""

SAVE_EVERY = 60.0
"""Seconds between two writes of the run's state."""

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, one line about the run)."""


@dataclass(frozen=True)
class CurvePoint:
    """After `step` steps: the mean training loss since the last point, and the EMA weights' held-out mIoU."""

    step: int
    loss: float
    held_out_miou: float


@dataclass(frozen=True)
class TrainingData:
    """Pictures to learn from and pictures to judge by, no picture in both.

    Attributes:
        records: annotated pictures and, after them, pictures only a teacher has seen.
        held_out: crops of annotated pictures that are never trained on.
        cache: the teacher's answers; None to train without.
        name: the data sets' names, for the card.
        crowds, empty: annotations left out.
    """

    records: tuple[PictureRecord, ...]
    held_out: CropSet
    cache: TeacherCache | None
    name: str
    crowds: int
    empty: int


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: the chosen EMA weights, the curve, and the seconds of all its parts together.

    `seconds` counts the time of the steps, `samples_per_second` that of the last process alone.
    """

    network: nn.Module
    contract: InputContract
    curve: tuple[CurvePoint, ...]
    chosen: CurvePoint
    seconds: float
    broken: tuple[str, ...]


def training_data(
    recipe: Recipe,
    annotated: InstanceSet,
    folders: Sequence[InstanceSet] = (),
    cache: TeacherCache | None = None,
) -> TrainingData:
    """Holds out every `recipe.held_out`-th annotated picture; nothing of it is trained on.

    Raises:
        InputError: nothing left to train on, a distilling recipe without a cache, or a cache that knows none
            of the pictures.
    """
    if recipe.loss != "labels" and cache is None:
        raise InputError(
            f"loss {recipe.loss}",
            "no teacher cache",
            "one made by `picosam2 teach`",
            "give --teacher-cache, or --loss labels to train without a teacher",
        )
    with_objects = [record for record in annotated.pictures if record.instances]
    held = {record.id for record in with_objects[:: recipe.held_out]}
    held_set = tuple(record for record in with_objects if record.id in held)
    rest = tuple(record for record in annotated.pictures if record.id not in held)
    extra = tuple(record for folder in folders for record in folder.pictures)
    if not any(record.instances for record in rest):
        raise InputError(
            annotated.name,
            f"{len(with_objects)} picture with objects",
            "two or more: one is held out",
            "give more pictures",
        )
    if cache is not None and not any(record.key in cache for record in (*rest, *extra)):
        raise InputError(
            "teacher cache",
            f"none of the pictures of {annotated.name} is in it",
            "the cache of these pictures (named by folder and file)",
            "run `picosam2 teach` with the same --data and --split",
        )
    crops = load_crops(
        InstanceSet(annotated.name, held_set, annotated.categories, 0, 0), PROTOCOLS[recipe.protocol]
    )
    name = " + ".join([annotated.name, *(folder.name for folder in folders)])
    return TrainingData(rest + extra, crops, cache, name, annotated.crowds, annotated.empty)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0 at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def unlabelled_per_step(recipe: Recipe) -> NDArray[np.int64]:
    """How many samples of each step are unlabelled: int64 [steps], its share linear over the run."""
    share = np.linspace(recipe.unlabelled_first, recipe.unlabelled_last, recipe.steps)
    wanted = np.concatenate([[0.0], np.cumsum(share * recipe.batch)])
    whole = np.floor(wanted + 1e-9).astype(np.int64)
    return whole[1:] - whole[:-1]


def loss_of(recipe: Recipe, logits: Tensor, targets: Targets) -> Tensor:
    """The recipe's loss, a scalar: the weighted mean over samples."""
    if recipe.loss == "labels":
        each = labels_loss(logits, targets)
    elif recipe.loss == "paper":
        each = paper_loss(logits, targets)
    else:
        each = soft_loss(logits, targets, recipe.teacher_weight)
    return (targets.weight * each).mean()


def computes_in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the run uses bf16 autocast: as told, or where the hardware multiplies bfloat16."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def train(
    recipe: Recipe,
    data: TrainingData,
    directory: Path,
    *,
    start_from: Path | None = None,
    embeddings: Path | None = None,
    cpu: bool = False,
    workers: int = 1,
    pictures_in_memory: int = 4096,
    on_progress: Progress = lambda done, total, text: None,
) -> Outcome:
    """Runs the recipe, or goes on with the run kept in `directory`, and writes its checkpoint and card there.

    Args:
        start_from: a checkpoint whose weights the run starts from, instead of random ones.
        embeddings: `EMBEDDINGS/<fingerprint>` of the teacher, for feature hints; None trains without.
        cpu: no GPU even where there is one.
        workers: threads that prepare samples.
        pictures_in_memory: decoded pictures kept, about 1 MB each for COCO.

    Raises:
        InputError: `directory` cannot be written, or holds a broken run or one with other settings; the batch
            cannot be shared evenly by the processes.
    """
    from accelerate import Accelerator

    keep_freed_memory()
    accelerator = Accelerator(cpu=cpu)
    share = _share(recipe, accelerator)
    protocol = PROTOCOLS[recipe.protocol]
    contract = centred(3, protocol.size, protocol.size)
    _make_directory(directory)
    stream = SampleStream(
        data.records,
        protocol,
        data.cache,
        recipe.augmentation,
        unlabelled_per_step(recipe),
        recipe.batch,
        recipe.seed,
        pictures_in_memory,
        embeddings,
        recipe.sizes,
    )
    run = _Run(recipe, accelerator, start_from, hinted=embeddings is not None)
    if (directory / STATE).exists():
        run.restore(directory / STATE)
    accelerator.wait_for_everyone()
    main = accelerator.is_main_process
    log = _Log(directory, data.held_out, contract, run.step) if main else None
    scored = predictor(run.averaged, contract, bfloat16=run.bfloat16)
    point_every = max(1, recipe.steps // recipe.points)
    clock = saved = time.monotonic()
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(max(1, workers)) as pool:
        coming: Future[Batch] | None = None
        while run.step < recipe.steps:
            batch = coming.result() if coming else stream.batch_at(run.step, share, pool)
            if run.step + 1 < recipe.steps:
                coming = ahead.submit(stream.batch_at, run.step + 1, share, pool)
            run.advance(normalise(batch.pixels, contract), batch)
            last = run.step == recipe.steps
            at_point = run.step % point_every == 0 or last
            if at_point and log is not None:
                run.add_point(float(evaluate(scored, data.held_out).mean()))
                log.point(run, scored)
            now = time.monotonic()
            run.seconds += now - clock
            clock = now
            if main and (at_point or now - saved > SAVE_EVERY):
                run.save(directory / STATE)
                saved = now
            on_progress(run.step, recipe.steps, _line(run))
    accelerator.wait_for_everyone()
    outcome = run.outcome(contract, tuple(sorted(stream.shelf.broken.values())))
    if log is not None:
        log.close()
        save_checkpoint(directory / CHECKPOINT, outcome.network, contract)
        card = _card(
            recipe, data, stream, outcome, start_from, accelerator, run.bfloat16, embeddings is not None
        )
        _write(directory / CARD, json.dumps(card, indent=2) + "\n")
    accelerator.wait_for_everyone()
    return outcome


class _Run:
    """The state of a run: what a step changes and what its file keeps."""

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, start_from: Path | None, *, hinted: bool
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.accelerator = recipe, accelerator
        self.started_from = _digest(start_from) if start_from else None
        device = accelerator.device
        self.network = _fresh(recipe.network, device)
        if start_from is not None:
            checkpoint = load_checkpoint(start_from)
            if checkpoint.network_name != recipe.network:
                raise InputError(
                    str(start_from),
                    f"weights of {checkpoint.network_name}",
                    f"weights of {recipe.network}",
                    f"give --network {checkpoint.network_name}, or other weights",
                )
            self.network.load_state_dict(checkpoint.state_dict)
        self.averaged = _fresh(recipe.network, device)
        self.averaged.load_state_dict(self.network.state_dict())
        learner = Hinted(self.network).to(device) if hinted else self.network
        self.learner = learner
        self.trained = accelerator.prepare_model(learner)
        kernels = [p for p in learner.parameters() if p.ndim > 1]
        others = [p for p in learner.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": kernels, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            fused=True,
        )
        self.bfloat16 = computes_in_bfloat16(recipe, device)
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.curve: list[CurvePoint] = []
        self.best: tuple[CurvePoint, dict[str, Tensor]] | None = None

    def advance(self, inputs: Tensor, batch: Batch) -> None:
        """One optimizer step on this process's normalised pictures, float32 [B, 3, S, S]."""
        device = self.accelerator.device
        self.trained.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        inputs = inputs.to(device).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            answer = self.trained(inputs)
        logits, features = answer if isinstance(answer, tuple) else (answer, None)
        loss = loss_of(self.recipe, logits.float(), batch.targets.to(device))
        if features is not None and batch.features is not None and batch.inside is not None:
            # Hints show the way and are gone when it is found.
            weight = self.recipe.feature_weight * (1.0 - self.step / self.recipe.steps)
            apart = feature_loss(features.float(), batch.features.to(device), batch.inside.to(device))
            loss = loss + weight * apart.mean()
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        # A short memory at the start, or the random initial weights would stay in the mean for long.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        _average(self.averaged, self.network, decay)
        self.losses.append(float(loss.detach()))
        self.step += 1

    def add_point(self, held_out_miou: float) -> None:
        point = CurvePoint(self.step, round(float(np.mean(self.losses)), 4), round(held_out_miou, 4))
        self.curve.append(point)
        self.losses = []
        if self.best is None or point.held_out_miou >= self.best[0].held_out_miou:
            weights = {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}
            self.best = (point, weights)

    def outcome(self, contract: InputContract, broken: tuple[str, ...]) -> Outcome:
        if self.best is None:  # a process that does not judge
            return Outcome(self.averaged.eval(), contract, (), CurvePoint(self.step, 0.0, 0.0), 0.0, broken)
        chosen = self.best[0] if self.recipe.select else self.curve[-1]
        if self.recipe.select:
            self.averaged.load_state_dict(self.best[1])
        return Outcome(self.averaged.eval(), contract, tuple(self.curve), chosen, self.seconds, broken)

    def save(self, path: Path) -> None:
        assert self.best is None or isinstance(self.best[1], dict)
        state = {
            "recipe": asdict(self.recipe),
            "started_from": self.started_from,
            "hinted": isinstance(self.learner, Hinted),
            "processes": self.accelerator.num_processes,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "curve": [asdict(point) for point in self.curve],
            "learner": self.learner.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": None if self.best is None else [asdict(self.best[0]), self.best[1]],
        }
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        os.replace(beside, path)

    def restore(self, path: Path) -> None:
        """Raises InputError where the file is broken or of another recipe."""
        try:
            state = torch.load(path, weights_only=True, map_location=self.accelerator.device)
            kept = dict(state["recipe"])
        except Exception as error:  # damaged pickles raise whatever the damaged bytes say
            raise InputError(
                str(path), "no readable run", "a file written by `picosam2 train`", "delete it to start anew"
            ) from error
        differing = changed(self.recipe, kept)
        if state["started_from"] != self.started_from:
            differing.append("--start-from")
        if state["hinted"] != isinstance(self.learner, Hinted):
            differing.append("--embeddings")
        if state["processes"] != self.accelerator.num_processes:
            differing.append("number of processes")
        if differing:
            raise InputError(
                str(path),
                f"a run with another {', '.join(differing)}",
                "a run is continued with its own settings",
                "give the same options, or another --out directory",
            )
        self.learner.load_state_dict(state["learner"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        if state["best"] is not None:
            self.best = (CurvePoint(**state["best"][0]), state["best"][1])


class _Log:
    """What people look at during a run: TensorBoard's scalars, and pictures of what the network sees."""

    def __init__(self, directory: Path, held_out: CropSet, contract: InputContract, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]

        self.directory, self.held_out = directory, held_out
        self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step or None)  # type: ignore[no-untyped-call]

    def point(self, run: _Run, predict: Any) -> None:
        from student.picture_grid import prediction_grid, save_png

        point = run.curve[-1]
        rate = learning_rate(run.recipe, run.step - 1)
        for name, value in (
            ("loss/train", point.loss),
            ("miou/held_out", point.held_out_miou),
            ("learning_rate", rate),
        ):
            self.writer.add_scalar(name, value, run.step)  # type: ignore[no-untyped-call]
        grid = prediction_grid(predict, self.held_out)
        self.writer.add_image("held_out", grid, run.step, dataformats="HWC")  # type: ignore[no-untyped-call]
        self.writer.flush()  # type: ignore[no-untyped-call]
        save_png(self.directory / "predictions.png", grid)

    def close(self) -> None:
        self.writer.close()  # type: ignore[no-untyped-call]


def _share(recipe: Recipe, accelerator: Accelerator) -> slice:
    """This process's samples of a step."""
    processes = accelerator.num_processes
    if recipe.batch % processes:
        raise InputError(
            "batch",
            f"{recipe.batch} samples for {processes} processes",
            "a multiple of the number of processes",
            f"give --batch {math.ceil(recipe.batch / processes) * processes}",
        )
    each = recipe.batch // processes
    return slice(accelerator.process_index * each, (accelerator.process_index + 1) * each)


def _fresh(network_name: str, device: torch.device) -> nn.Module:
    network: nn.Module = NETWORKS[network_name]()
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _line(run: _Run) -> str:
    if not run.curve:
        return f"loss {np.mean(run.losses[-50:]):.3f}" if run.losses else ""
    return f"loss {run.curve[-1].loss:.3f}  held-out mIoU {run.curve[-1].held_out_miou:.3f}"


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network, running statistics included."""
    for mean, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(current, 1.0 - decay)
        else:
            mean.copy_(current)


def _card(
    recipe: Recipe,
    data: TrainingData,
    stream: SampleStream,
    outcome: Outcome,
    start_from: Path | None,
    accelerator: Accelerator,
    bfloat16: bool,
    hinted: bool,
) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "data": {
            "name": data.name,
            "pictures": len(data.records),
            "annotated_samples": stream.annotated,
            "unlabelled_samples": stream.unlabelled,
            "held_out_pictures": len(np.unique(data.held_out.picture_ids)),
            "held_out_samples": len(data.held_out),
            "crowds_left_out": data.crowds,
            "empty_left_out": data.empty,
            "broken_pictures": list(outcome.broken),
        },
        "teacher": None
        if data.cache is None
        else {
            "name": data.cache.header.teacher,
            "fingerprint": data.cache.header.fingerprint,
            "settings": dict(data.cache.header.settings),
            "shards": hashlib.sha256("".join(data.cache.header.shards).encode()).hexdigest(),
        },
        "feature_hints": hinted,
        "started_from_sha256": _digest(start_from) if start_from else None,
        "curve": [asdict(point) for point in outcome.curve],
        "chosen": asdict(outcome.chosen),
        "contract": json.loads(outcome.contract.dumps()),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "pillow", "pycocotools")},
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "bfloat16": bfloat16,
        "seconds": round(outcome.seconds, 1),
    }


def _digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(str(path), "no such file", "a checkpoint", "correct --start-from")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _make_directory(directory: Path) -> None:
    """Found out before the run, not after it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            str(directory), f"cannot be made ({error.strerror})", "a writable folder", "correct --out"
        ) from error
    if not os.access(directory, os.W_OK):
        raise InputError(str(directory), "cannot be written", "a writable folder", "correct --out")


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    os.replace(beside, path)
