"""A small teacher in torch, and a program that teaches with it, to be killed."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from student.crops import Pixels
from student.instances import load_folder, load_instances
from student.teach import TeachSettings, teach
from student.teachers import Answer, Embedding, Prompt


@dataclass
class ColourTeacher:
    """Finds what has the colour of the prompt point; a prompt with a box looks only into it.

    Embedding: the picture averaged over cells of `cell` pixels by torch, float16 [3, h, w].
    """

    cell: int = 2
    sharpness: float = 0.5
    delay: float = 0.0
    name: str = "colour"
    embedded: int = 0

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"colour {self.cell} {self.sharpness}".encode()).hexdigest()

    @property
    def versions(self) -> Mapping[str, str]:
        return {"torch": torch.__version__}

    def stride(self, height: int, width: int) -> float:
        return float(self.cell)

    def embed(self, picture: Pixels) -> Embedding:
        self.embedded += 1
        time.sleep(self.delay)
        planes = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()
        means = torch.nn.functional.avg_pool2d(planes, self.cell, ceil_mode=True, count_include_pad=False)
        return Embedding(means.numpy().astype(np.float16), *picture.shape[:2])

    def prompt(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        planes = torch.from_numpy(embedding.features.astype(np.float32))
        answers = []
        for prompt in prompts:
            colour = planes[:, prompt.row // self.cell, prompt.column // self.cell]
            logits = 12.0 - self.sharpness * (planes - colour[:, None, None]).abs().amax(0)
            logits = logits.clamp(min=-12.0)
            if prompt.box is not None:
                left, top, width, height = (edge / self.cell for edge in prompt.box)
                outside = torch.ones_like(logits, dtype=torch.bool)
                outside[int(top) : math.ceil(top + height), int(left) : math.ceil(left + width)] = False
                logits[outside] = -12.0
            score = float(torch.sigmoid(logits.abs().mean() / 4))
            answers.append(Answer(logits.numpy(), score))
        return answers


SETTINGS = TeachSettings(points=6, seed=3, minimum_predicted_iou=0.5, minimum_stability=0.5, minimum_area=4)


def main(coco: str, folder: str, out: str, kept: str, delay: str) -> None:
    sources = [load_instances(f"coco:{coco}", "train2017"), load_folder(Path(folder))]
    teacher = ColourTeacher(delay=float(delay))
    teach(sources, teacher, Path(out), SETTINGS, Path(kept) if kept else None, pictures_per_shard=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
