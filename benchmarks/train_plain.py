"""Crops per second of one training step on this machine, for each number format and memory layout.

python benchmarks/train_plain.py [--batch 16] [--steps 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import time

import torch

from student.networks import PicoSAM2
from student.train import bce_dice


def crops_per_cpu_second(batch: int, steps: int, *, bfloat16: bool, channels_last: bool) -> float:
    """Forward, loss, backward and AdamW on random crops; the first step is not timed."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = PicoSAM2().train().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    pictures = torch.randn(batch, 3, 96, 96).to(memory_format=layout)
    masks = (torch.rand(batch, 1, 96, 96) > 0.5).float()
    for step in range(steps + 1):
        if step == 1:
            started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = network(pictures)
        optimizer.zero_grad()
        bce_dice(logits.float(), masks).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return batch * steps / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for bfloat16 in (False, True):
        for channels_last in (False, True):
            rate = crops_per_cpu_second(
                options.batch, options.steps, bfloat16=bfloat16, channels_last=channels_last
            )
            number = "bfloat16" if bfloat16 else "float32"
            layout = "channels last" if channels_last else "channels first"
            print(f"{number:8}  {layout:14}  {rate:6.1f} crops per CPU second")


if __name__ == "__main__":
    main()
