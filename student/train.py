"""Trains a network on COCO crops with a plain loop: BCE + Dice, AdamW, warm-up and cosine, EMA weights.

    python -m student.train --data COCO_DIR --steps 3000 --seed 0 --out picosam2.pt

Every random choice of step k comes from (seed, k) alone, so a run that was interrupted and resumed sees the
same batches as one that was not. On the CPU the forward pass runs in bfloat16 with channels-last tensors
(measured on one AMX core: about three times as fast as float32 in the default layout, docs/training.md).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from passes.contract import InputContract, centred
from passes.errors import InputError, ToolError
from student.checkpoint import save_checkpoint
from student.coco import CropSet, load_crops
from student.crops import PROTOCOLS, Mask
from student.evaluate import evaluate, normalise, predictor
from student.networks import NETWORKS

CURVE_POINTS = 20
"""How often in a run the held-out pictures are scored."""

SAVE_EVERY = 60.0
"""Seconds between two writes of the run's state."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, besides the data.

    Attributes:
        network, protocol: names in NETWORKS and PROTOCOLS.
        steps, batch: number of optimizer steps and crops per step.
        seed: of the initial weights and of every random choice.
        learning_rate: its peak; it rises linearly over `warmup` steps and falls to 0 as a cosine.
        weight_decay: of convolution kernels; batch norms and biases have none.
        ema: decay per step of the averaged weights, which are the ones saved.
        gradient_norm: gradients with a larger L2 norm are scaled down to it.
        jitter: the prompt moves by up to this many pixels in each direction, within the object.
        contrast, brightness: pixels become (p - 128) * (1 ± contrast) + 128 ± brightness.
        held_out: every `held_out`-th picture is not trained on and draws the run's curve.
    """

    network: str = "picosam2"
    protocol: str = "point-native-96"
    steps: int = 3000
    batch: int = 16
    seed: int = 0
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.02
    ema: float = 0.998
    gradient_norm: float = 5.0
    jitter: int = 8
    contrast: float = 0.3
    brightness: float = 25.0
    held_out: int = 25

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(
                "recipe",
                f"{self.steps} steps of {self.batch} crops",
                "at least one of each",
                "correct --steps or --batch",
            )


@dataclass(frozen=True)
class CurvePoint:
    """After `step` steps: the mean training loss since the last point, and the EMA weights' held-out mIoU."""

    step: int
    loss: float
    held_out_miou: float


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: the EMA weights, its curve, and the seconds of all its parts together."""

    network: nn.Module
    curve: tuple[CurvePoint, ...]
    seconds: float


def bce_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy plus 1 - Dice (per sample, then averaged); logits and masks float [N, 1, H, W]."""
    bce = functional.binary_cross_entropy_with_logits(logits, masks)
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * masks).sum((1, 2, 3))
    total = (probabilities + masks).sum((1, 2, 3))
    loss: Tensor = bce + (1.0 - (2.0 * overlap + 1.0) / (total + 1.0)).mean()
    return loss


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0 at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1.0 + float(np.cos(np.pi * progress)))


def batch_of(recipe: Recipe, data: CropSet, step: int) -> tuple[NDArray[np.float32], Mask]:
    """The augmented batch of one step: pixels float32 [B, 3, S, S] in 0..255 and masks bool [B, 1, S, S].

    `data` holds crops with a margin of `recipe.jitter` on each side. Each epoch is a permutation of them.
    """
    size, margin = PROTOCOLS[recipe.protocol].size, recipe.jitter
    generator = np.random.default_rng((recipe.seed, 1, step))
    pixels = np.empty((recipe.batch, 3, size, size), np.float32)
    masks = np.empty((recipe.batch, 1, size, size), np.bool_)
    for slot, index in enumerate(_indices(recipe, len(data), step)):
        picture, mask = data.pictures[index], data.masks[index]
        down, right = generator.integers(-margin, margin + 1, 2) if margin else (0, 0)
        centre = margin + size // 2
        if not mask[centre + down, centre + right]:  # the prompt stays in the object
            down = right = 0
        rows = slice(margin + down, margin + down + size)
        columns = slice(margin + right, margin + right + size)
        picture, mask = picture[rows, columns], mask[rows, columns]
        if generator.random() < 0.5:
            picture, mask = picture[:, ::-1], mask[:, ::-1]
        gain = 1.0 + generator.uniform(-recipe.contrast, recipe.contrast)
        shift = 128.0 + generator.uniform(-recipe.brightness, recipe.brightness)
        pixels[slot] = ((picture.astype(np.float32) - 128.0) * gain + shift).transpose(2, 0, 1)
        masks[slot, 0] = mask
    return np.clip(pixels, 0.0, 255.0), masks


def _indices(recipe: Recipe, count: int, step: int) -> list[int]:
    chosen: list[int] = []
    for position in range(step * recipe.batch, (step + 1) * recipe.batch):
        epoch, place = divmod(position, count)
        if not chosen or place == 0:
            order = np.random.default_rng((recipe.seed, 0, epoch)).permutation(count)
        chosen.append(int(order[place]))
    return chosen


def split_by_picture(data: CropSet, every: int) -> tuple[CropSet, CropSet]:
    """Crops to train on and crops held out: every `every`-th picture goes to the second, whole."""
    held = np.isin(data.picture_ids, np.unique(data.picture_ids)[::every])
    return data.select(~held), data.select(held)


def without_margin(data: CropSet, margin: int) -> CropSet:
    """The crops as the protocol defines them, from crops that carry a margin on each side."""
    inner = slice(margin, data.masks.shape[1] - margin)
    return replace(data, pictures=data.pictures[:, inner, inner], masks=data.masks[:, inner, inner])


class _Run:
    """The state of a run: what a step changes and what `state_file` keeps."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.network = _fresh(recipe.network)
        self.averaged = _fresh(recipe.network)
        self.averaged.load_state_dict(self.network.state_dict())
        kernels = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
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

    def advance(self, inputs: Tensor, masks: Tensor) -> None:
        """One optimizer step on normalised pictures [B, 3, S, S] and masks [B, 1, S, S], both float32."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(inputs.to(memory_format=torch.channels_last))
        loss = bce_dice(logits.float(), masks)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        # A short memory at the start, or the random initial weights would stay in the mean for long.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        _average(self.averaged, self.network, decay)
        self.losses.append(loss.item())
        self.step += 1

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "curve": [asdict(point) for point in self.curve],
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        os.replace(beside, path)

    def restore(self, path: Path) -> None:
        """Raises InputError where the file is broken or of another recipe."""
        try:
            state = torch.load(path, weights_only=True)
            kept = dict(state["recipe"])
        except Exception as error:  # damaged pickles raise whatever the damaged bytes say
            raise InputError(
                str(path), "no readable run", "a file written by --state", "delete it to start anew"
            ) from error
        changed = [key for key, value in asdict(self.recipe).items() if kept.get(key) != value]
        if changed:
            raise InputError(
                str(path),
                f"a run with another {', '.join(changed)}",
                "a run is continued with its own settings",
                "give the same options, or another --state file",
            )
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        self.curve = [CurvePoint(**point) for point in state["curve"]]


def train(recipe: Recipe, data: CropSet, contract: InputContract, state_file: Path | None = None) -> Outcome:
    """Runs the recipe on crops that carry a margin of `recipe.jitter`.

    Args:
        state_file: where the run is kept every minute and at its end; an existing one is continued.

    Raises:
        InputError: `state_file` is broken or of another recipe, or nothing is left to train on.
    """
    training, held_out = split_by_picture(data, recipe.held_out)
    if not len(training):
        raise InputError(
            "training pictures", "one picture", "two or more: one is held out", "give more pictures"
        )
    held_out = without_margin(held_out, recipe.jitter)
    run = _Run(recipe)
    if state_file is not None and state_file.exists():
        run.restore(state_file)
    held_out_predict = predictor(run.averaged, contract, bfloat16=True)
    point_every = max(1, recipe.steps // CURVE_POINTS)
    clock = saved = time.monotonic()
    while run.step < recipe.steps:
        pixels, masks = batch_of(recipe, training, run.step)
        run.advance(normalise(pixels, contract), torch.from_numpy(masks).float())
        last = run.step == recipe.steps
        if run.step % point_every == 0 or last:
            held = float(evaluate(held_out_predict, held_out).mean())
            run.curve.append(CurvePoint(run.step, round(float(np.mean(run.losses)), 4), round(held, 4)))
            run.losses = []
            print(_progress(run), file=sys.stderr, flush=True)
        now = time.monotonic()
        run.seconds += now - clock
        clock = now
        if state_file is not None and (last or now - saved > SAVE_EVERY):
            run.save(state_file)
            saved = now
    return Outcome(run.averaged.eval(), tuple(run.curve), run.seconds)


def _fresh(network_name: str) -> nn.Module:
    network: nn.Module = NETWORKS[network_name]()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _progress(run: _Run) -> str:
    point = run.curve[-1]
    return (
        f"step {run.step}/{run.recipe.steps}  loss {point.loss:.3f}  held-out mIoU {point.held_out_miou:.3f}"
        f"  {run.seconds:.0f} s"
    )


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network, running statistics included."""
    for mean, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(current, 1.0 - decay)
        else:
            mean.copy_(current)


def main(arguments: list[str] | None = None) -> int:
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m student.train", description="Train a network on COCO crops."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="COCO folder with annotations/ and train2017/"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--state", type=Path, help="keeps the run; continued where it exists")
    parser.add_argument("--network", choices=sorted(NETWORKS), default=defaults.network)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result depends on it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        recipe = Recipe(network=options.network, steps=options.steps, batch=options.batch, seed=options.seed)
        protocol = PROTOCOLS[recipe.protocol]
        contract = centred(3, protocol.size, protocol.size)
        _require_writable(options.out)
        data = load_crops(options.data, "train2017", protocol, margin=recipe.jitter)
        outcome = train(recipe, data, contract, options.state)
        save_checkpoint(options.out, outcome.network, contract)
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    summary = {
        "recipe": asdict(recipe),
        "crops": len(data),
        "pictures": len(np.unique(data.picture_ids)),
        "seconds": round(outcome.seconds),
        "curve": [asdict(point) for point in outcome.curve],
    }
    print(json.dumps(summary, indent=2))
    return 0


def _require_writable(path: Path) -> None:
    """Found out before the run, not after it."""
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise InputError(str(path), "cannot be written", "a file in a writable folder", "correct --out")


if __name__ == "__main__":
    sys.exit(main())
