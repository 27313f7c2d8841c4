"""What people look at during a run: TensorBoard's curves, and pictures of what the network sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from student.cropset import CropSet
from student.evaluate import Predict
from student.picture_grid import prediction_grid, save_png

TENSORBOARD, PREDICTIONS = "tensorboard", "predictions.png"


class RunLog:
    """Writes tensorboard/ and predictions.png in a run's directory; goes on after `step` steps."""

    def __init__(self, directory: Path, held_out: CropSet, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]

        self.directory, self.held_out = directory, held_out
        self.writer = SummaryWriter(str(directory / TENSORBOARD), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def point(self, step: int, scalars: Mapping[str, float], predict: Predict) -> None:
        """Logs the numbers of a step and what the network predicts then."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
        grid = prediction_grid(predict, self.held_out)
        self.writer.add_image("held_out", grid, step, dataformats="HWC")  # type: ignore[no-untyped-call]
        self.writer.flush()  # type: ignore[no-untyped-call]
        save_png(self.directory / PREDICTIONS, grid)

    def close(self) -> None:
        self.writer.close()  # type: ignore[no-untyped-call]
