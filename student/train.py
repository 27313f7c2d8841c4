"""Trains a student: annotated objects, a teacher's answers, and pictures without annotations.

One loop for a CPU, a GPU or many (accelerate). Every random choice of step k comes from (seed, k) alone, so a
run that was killed and continued sees the same batches, and ends with the same bytes, as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import time
from collections.abc import Callable
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
from passes.errors import InputError, first_line
from passes.files import locked, require_own, write_beside
from student.allocator import keep_freed_memory
from student.checkpoint import load_checkpoint, save_checkpoint
from student.crops import PROTOCOLS
from student.evaluate import evaluate, normalise, predictor
from student.features import Hinted, feature_loss
from student.losses import Targets, paper_loss, soft_loss
from student.networks import NETWORKS
from student.recipe import Recipe, changed
from student.run_log import PREDICTIONS, TENSORBOARD, RunLog
from student.samples import Batch, SampleSettings, SampleStream, size_weights
from student.training_data import TrainingData

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE, CHECKPOINT, CARD = "run.pt", "student.pt", "card.json"
"""Files of a run's directory; beside them those of `student.run_log`."""

DATA_CONDITION = "--data, --unlabelled or --teacher-cache"

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
class Outcome:
    """What a run ends with: the chosen EMA weights, the curve, and the seconds of all its parts together.

    `broken` names pictures that could not be decoded and were replaced by others.
    """

    network: nn.Module
    contract: InputContract
    curve: tuple[CurvePoint, ...]
    chosen: CurvePoint
    seconds: float
    broken: tuple[str, ...]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine that would reach 0 one step after the last."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def unlabelled_per_step(recipe: Recipe, batch: int) -> NDArray[np.int64]:
    """How many of `batch` samples of each step are unlabelled: int64 [steps], linear over the run."""
    share = np.linspace(recipe.unlabelled_first, recipe.unlabelled_last, recipe.steps)
    wanted = np.concatenate([[0.0], np.cumsum(share * batch)])
    whole = np.floor(wanted + 1e-9).astype(np.int64)
    return whole[1:] - whole[:-1]


def loss_of(recipe: Recipe, logits: Tensor, targets: Targets) -> Tensor:
    """The recipe's loss, a scalar: the weighted mean over samples."""
    if recipe.loss == "paper":
        each = paper_loss(logits, targets)
    else:
        most = 0.0 if recipe.loss == "labels" else recipe.teacher_weight
        each = soft_loss(logits, targets, most, recipe.entropy_weight, recipe.overlap)
    return (targets.weight * each).mean()


def computes_in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the run uses bf16 autocast: as told, or where the hardware multiplies bfloat16."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def require_run_folder(directory: Path) -> None:
    """Raises InputError where `directory` holds other things than a run; writes nothing."""
    if not (directory / STATE).exists():
        own = (CHECKPOINT, CARD, TENSORBOARD, PREDICTIONS)
        require_own(directory, "--out", own, "an empty folder, or one with a run to go on with")


def train(
    recipe: Recipe,
    data: TrainingData,
    directory: Path,
    *,
    start_from: Path | None = None,
    embeddings: Path | None = None,
    cpu: bool = False,
    workers: int = 1,
    on_progress: Progress = lambda done, total, text: None,
) -> Outcome:
    """Runs the recipe, or goes on with the run kept in `directory`, and writes its checkpoint and card there.

    Args:
        start_from: a checkpoint whose weights the run starts from, instead of random ones.
        embeddings: `EMBEDDINGS/<fingerprint>` of the teacher, for feature hints; None trains without.
        cpu: no GPU even where there is one.
        workers: threads that prepare samples.

    Raises:
        InputError: `directory` cannot be written, or holds a broken run or one with other settings; the batch
            cannot be shared evenly by the processes.
    """
    from accelerate import Accelerator

    keep_freed_memory()
    # Autocast is the recipe's own: what `accelerate config` says about precision is not asked.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    main, process, processes = (
        accelerator.is_main_process,
        accelerator.process_index,
        accelerator.num_processes,
    )
    if recipe.batch % processes:
        raise InputError(
            "batch",
            f"{recipe.batch} samples for {processes} processes",
            "a multiple of the number of processes",
            f"give --batch {math.ceil(recipe.batch / processes) * processes}",
        )
    protocol = PROTOCOLS[recipe.protocol]
    contract = centred(3, protocol.size, protocol.size)
    weights = size_weights(data.records) if recipe.sizes == "coco" else (1.0, 1.0, 1.0)
    stream = SampleStream(
        data.records[process::processes],
        SampleSettings(protocol, data.cache, embeddings, weights),
        recipe.augmentation,
        unlabelled_per_step(recipe, recipe.batch // processes),
        recipe.batch // processes,
        recipe.seed,
        recipe.group,
        process,
    )
    run = _Run(recipe, accelerator, data.digest, start_from, hinted=embeddings is not None)
    with locked(directory) if main else contextlib.nullcontext():
        if (directory / STATE).exists():
            run.restore(directory / STATE)
            stream.store.broken.update(run.broken)
        accelerator.wait_for_everyone()
        log = RunLog(directory, data.held_out, run.step) if main else None
        scored = predictor(run.averaged, contract, bfloat16=run.bfloat16)
        point_every = max(1, recipe.steps // recipe.points)
        clock = saved = time.monotonic()
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(max(1, workers)) as pool:
            coming: Future[Batch] | None = None
            while run.step < recipe.steps:
                batch = coming.result() if coming else stream.batch_at(run.step, pool)
                if run.step + 1 < recipe.steps:
                    coming = ahead.submit(stream.batch_at, run.step + 1, pool)
                run.advance(normalise(batch.pixels, contract), batch)
                at_point = run.step % point_every == 0 or run.step == recipe.steps
                if at_point and log is not None:
                    run.add_point(float(evaluate(scored, data.held_out).mean()))
                    point = run.curve[-1]
                    scalars = {
                        "loss/train": point.loss,
                        "miou/held_out": point.held_out_miou,
                        "learning_rate": learning_rate(recipe, run.step - 1),
                    }
                    log.point(run.step, scalars, scored)
                now = time.monotonic()
                run.seconds += now - clock
                clock = now
                if main and (at_point or now - saved > SAVE_EVERY):
                    run.broken = sorted(stream.store.broken)
                    run.save(directory / STATE)
                    saved = now
                on_progress(run.step, recipe.steps, _line(run))
        accelerator.wait_for_everyone()
        outcome = run.outcome(contract)
        if log is not None:
            log.close()
            save_checkpoint(directory / CHECKPOINT, outcome.network, contract, recipe.protocol)
            card = _card(recipe, data, stream, outcome, run)
            write_beside(directory / CARD, (json.dumps(card, indent=2) + "\n").encode())
        accelerator.wait_for_everyone()
    return outcome


class _Run:
    """The state of a run: what a step changes and what its file keeps."""

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, data: str, start_from: Path | None, *, hinted: bool
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.accelerator = recipe, accelerator
        device = accelerator.device
        self.bfloat16 = computes_in_bfloat16(recipe, device)
        self.started_from = _digest(start_from) if start_from else None
        self.conditions: dict[str, Any] = {
            DATA_CONDITION: data,
            "--start-from": self.started_from,
            "--embeddings": hinted,
            "number of processes": accelerator.num_processes,
            "--threads": torch.get_num_threads() if device.type == "cpu" else 0,
            "device": device.type,
            "number format of the hardware": self.bfloat16,
        }
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
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.curve: list[CurvePoint] = []
        self.best: tuple[CurvePoint, dict[str, Tensor]] | None = None
        self.broken: list[str] = []

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
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"training, step {self.step}",
                f"a loss of {value}",
                "a finite number",
                "delete the run's directory and lower --set learning_rate, or use --set precision=fp32",
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        # A short memory at the start, or the random initial weights would stay in the mean for long.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        _average(self.averaged, self.network, decay)
        self.losses.append(value)
        self.step += 1

    def add_point(self, held_out_miou: float) -> None:
        point = CurvePoint(self.step, round(float(np.mean(self.losses)), 4), round(held_out_miou, 4))
        self.curve.append(point)
        self.losses = []
        if self.best is None or point.held_out_miou >= self.best[0].held_out_miou:
            weights = {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}
            self.best = (point, weights)

    def outcome(self, contract: InputContract) -> Outcome:
        broken = tuple(self.broken)
        if self.best is None:  # a process that does not judge
            return Outcome(self.averaged.eval(), contract, (), CurvePoint(self.step, 0.0, 0.0), 0.0, broken)
        chosen = self.best[0] if self.recipe.select else self.curve[-1]
        if self.recipe.select:
            self.averaged.load_state_dict(self.best[1])
        return Outcome(self.averaged.eval(), contract, tuple(self.curve), chosen, self.seconds, broken)

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "conditions": self.conditions,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "curve": [asdict(point) for point in self.curve],
            "learner": self.learner.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": None if self.best is None else [asdict(self.best[0]), self.best[1]],
            "broken": self.broken,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_beside(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Raises InputError where the file is broken or of a run under other conditions."""
        try:
            # Always to the CPU: load_state_dict moves what it takes to where it belongs.
            state = torch.load(path, weights_only=True, map_location="cpu")
            differing = changed(self.recipe, dict(state["recipe"]))
            kept = dict(state["conditions"])
        except Exception as error:  # damaged pickles raise whatever the damaged bytes say
            raise InputError(
                str(path),
                f"no readable run ({type(error).__name__}: {first_line(error)})",
                "a file written by this version of `picosam2 train`",
                "move it away to start anew",
            ) from error
        differing += [
            name if name == DATA_CONDITION else f"{name} {kept.get(name)}, here {value}"
            for name, value in self.conditions.items()
            if kept.get(name) != value
        ]
        if differing:
            raise InputError(
                str(path),
                f"a run with other settings: {', '.join(differing)}",
                "a run is continued with its own settings",
                "give the same options, or another --out directory",
            )
        self.learner.load_state_dict(state["learner"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.curve = [CurvePoint(**point) for point in state["curve"]]
        self.broken = list(state["broken"])
        if state["best"] is not None:
            self.best = (CurvePoint(**state["best"][0]), state["best"][1])


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
    recipe: Recipe, data: TrainingData, stream: SampleStream, outcome: Outcome, run: _Run
) -> dict[str, Any]:
    cache = data.cache
    return {
        "recipe": asdict(recipe),
        "data": {
            "name": data.name,
            "sha256": data.digest,
            "pictures": len(data.records),
            "annotated_samples": sum(len(record.instances) for record in data.records),
            "unlabelled_samples": len(stream.unlabelled) if run.accelerator.num_processes == 1 else None,
            "size_weights": stream.settings.size_weights,
            "held_out_pictures": len(np.unique(data.held_out.picture_ids)),
            "held_out_samples": len(data.held_out),
            "crowds_left_out": data.crowds,
            "empty_left_out": data.empty,
            "pictures_left_out": list(data.left_out),
            "broken_pictures": list(outcome.broken),
        },
        "teacher": None
        if cache is None
        else {
            "name": cache.header.teacher,
            "fingerprint": cache.header.fingerprint,
            "settings": dict(cache.header.settings),
            "shards": hashlib.sha256("".join(cache.header.shards).encode()).hexdigest(),
            "pictures_taught": sum(record.key in cache for record in data.records),
        },
        "feature_hints": isinstance(run.learner, Hinted),
        "started_from_sha256": run.started_from,
        "curve": [asdict(point) for point in outcome.curve],
        "chosen": asdict(outcome.chosen),
        "contract": json.loads(outcome.contract.dumps()),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "pillow", "pycocotools")},
        "device": run.accelerator.device.type,
        "processes": run.accelerator.num_processes,
        "threads": run.conditions["--threads"],
        "bfloat16": run.bfloat16,
        "seconds": round(outcome.seconds, 1),
    }


def _digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(str(path), "no such file", "a checkpoint", "correct --start-from")
    return hashlib.sha256(path.read_bytes()).hexdigest()
