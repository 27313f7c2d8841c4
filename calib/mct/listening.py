"""What MCT prints goes to a log, and its bars become progress."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO

Progress = Callable[[str, float | None], None]
"""Called with the phase and the share of it that is done, None where that is not known."""


class _Listener(io.TextIOBase):
    """Takes what MCT prints; its tqdm bars become progress."""

    BAR = re.compile(r"([A-Z][\w ]+): +(\d+)%")

    def __init__(self, progress: Progress, log: TextIO | None) -> None:
        self._progress = progress
        self._log = log

    def write(self, text: str) -> int:
        if self._log is not None:
            self._log.write(text)
        for phase, percent in self.BAR.findall(text):
            self._progress(phase.lower(), int(percent) / 100)
        return len(text)


@contextmanager
def quiet(progress: Progress, log: TextIO | None) -> Iterator[None]:
    listener = _Listener(progress, log)
    with redirect_stdout(listener), redirect_stderr(listener), warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
