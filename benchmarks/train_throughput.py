"""Training throughput: this project's loop against the PicoSAM2 authors' way, in one run on this machine.

    python -m benchmarks.train_throughput --data COCO_DIR [--samples 320] [--threads 1] [--repeats 3]

Both train the same network on the same real instances, without a teacher. The authors' way, after their
published script: each sample opens its picture anew, decodes its mask from the annotation, clips and resizes
the crop; float32, channels first, AdamW, BCE + Dice + MSE, batch 8. Ours: decoded pictures are kept, samples
are prepared in a thread beside the step, with augmentation; bfloat16 where the hardware has it.
The two take turns, each time in a fresh process; a rate is samples per second of wall time, the median of
the repeats. The first row is the one compared: it counts our decoding, once an epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch.nn import functional

from passes.contract import centred
from student.allocator import keep_freed_memory
from student.crops import PROTOCOLS, crop
from student.evaluate import normalise
from student.instances import load_instances
from student.losses import dice
from student.networks import PicoSAM2
from student.recipe import Recipe
from student.samples import SampleSettings, SampleStream
from student.train import computes_in_bfloat16, loss_of

AUTHORS_BATCH = 8


def authors_way(coco: COCO, folder: Path, annotations: list[int], network: torch.nn.Module | None) -> None:
    """One pass over `annotations` as the authors' script does it; None prepares the samples alone."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4) if network else None
    protocol = PROTOCOLS["point-native-96-clip"]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    for first in range(0, len(annotations), AUTHORS_BATCH):
        pictures, masks = [], []
        for number in annotations[first : first + AUTHORS_BATCH]:
            annotation = coco.anns[number]
            record = coco.imgs[annotation["image_id"]]
            pixels = np.asarray(Image.open(folder / record["file_name"]).convert("RGB"))
            inside = coco.annToMask(annotation).astype(bool)
            pixels, inside = crop(protocol, pixels, inside, annotation["bbox"])
            pictures.append(torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255.0)))
            masks.append(torch.from_numpy(inside[None].astype(np.float32)))
        inputs, target = (torch.stack(pictures) - mean) / deviation, torch.stack(masks)
        if network is None or optimizer is None:
            continue
        logits = network(inputs)
        probabilities = torch.sigmoid(logits)
        loss = (
            functional.binary_cross_entropy_with_logits(logits, target) + dice(probabilities, target).mean()
        )
        loss = loss + functional.mse_loss(probabilities, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def our_way(stream: SampleStream, recipe: Recipe, steps: range, network: torch.nn.Module) -> None:
    """The steps of student.train, without accelerate, EMA and scoring."""
    contract = centred(3, 96, 96)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, fused=True)
    bfloat16 = computes_in_bfloat16(recipe, torch.device("cpu"))
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(stream.batch_at, steps[0])
        for step in steps:
            batch = coming.result()
            coming = ahead.submit(stream.batch_at, step + 1)
            inputs = normalise(batch.pixels, contract).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(inputs)
            loss = loss_of(recipe, logits.float(), batch.targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_norm)
            optimizer.step()


@dataclass(frozen=True)
class Rates:
    """Samples per second of one measurement.

    Attributes:
        training: whole steps; with ours every picture is decoded once an epoch.
        in_memory: the same with the pictures already decoded.
        preparing: without the network: what a GPU waits for.
    """

    training: float
    in_memory: float
    preparing: float


def authors_rate(folder: Path, samples: int, threads: int, repeat: int) -> Rates:
    """`authors_way`, in this process; nothing stays in memory."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "annotations/instances_train2017.json"))
    order = np.random.default_rng(repeat).permutation(sorted(coco.getAnnIds(iscrowd=False)))
    chosen = [int(number) for number in order[: samples + 2 * AUTHORS_BATCH]]
    network = PicoSAM2().train()
    authors_way(coco, folder / "train2017", chosen[samples:], network)
    training, preparing = (
        samples / _seconds(authors_way, coco, folder / "train2017", chosen[:samples], given)
        for given in (network, None)
    )
    return Rates(training, training, preparing)


def our_rate(folder: Path, samples: int, threads: int, repeat: int) -> Rates:
    """`our_way`, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory()
    data = load_instances(f"coco:{folder}", "train2017")
    steps = samples // Recipe.batch
    recipe = Recipe(loss="labels", steps=steps + 4, seed=repeat)
    nothing = np.zeros(recipe.steps, np.int64)
    settings = SampleSettings(PROTOCOLS[recipe.protocol])
    stream = SampleStream(
        data.pictures, settings, recipe.augmentation, nothing, recipe.batch, recipe.seed, len(data.pictures)
    )
    decoding = _seconds(lambda: [stream.store.picture(index) for index in range(len(data.pictures))])
    network = PicoSAM2().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    our_way(stream, recipe, range(2), network)
    measured = range(2, 2 + steps)
    step = _seconds(our_way, stream, recipe, measured, network) / samples
    render = _seconds(lambda: [stream.batch_at(number) for number in measured]) / samples
    decode = decoding / len(data)
    return Rates(1 / (step + decode), 1 / step, 1 / (render + decode))


def _seconds(work: Callable[..., object], *given: object) -> float:
    started = time.perf_counter()
    work(*given)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO folder with train2017")
    parser.add_argument("--samples", type=int, default=320, help="samples per measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    given = options.data, options.samples, options.threads
    # Each measurement has a process of its own: the allocator's settings are ours alone.
    spawn = multiprocessing.get_context("spawn")
    theirs, ours = list[Rates](), list[Rates]()
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for repeat in range(options.repeats):
            theirs.append(pool.submit(authors_rate, *given, repeat).result())
            ours.append(pool.submit(our_rate, *given, repeat).result())
    print(f"{'samples/s':46} authors    ours   ratio")
    for name, what in (
        ("training, each picture decoded once an epoch", "training"),
        ("training, pictures in memory", "in_memory"),
        ("preparing samples, no network", "preparing"),
    ):
        pair = [statistics.median(getattr(rates, what) for rates in way) for way in (theirs, ours)]
        print(f"{name:46} {pair[0]:7.1f} {pair[1]:7.1f} {pair[1] / pair[0]:7.2f}")


if __name__ == "__main__":
    main()
