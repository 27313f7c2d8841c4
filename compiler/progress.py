"""Progress of a long command on stderr: a live line on a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Progress:
    """`with Progress(14) as progress`: `start` a step, `update` it, `done` prints it with its seconds.

    On a terminal the running step has a spinner, its phase and a bar; in a pipe or a log every finished step
    is one line, so that nothing is silent and nothing is noisy. `quiet` prints nothing.
    """

    def __init__(self, steps: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._steps, self._quiet, self._stream = steps, quiet, stream or sys.stderr
        self._count = 0
        self._name = ""
        self._started = 0.0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, name: str, purpose: str) -> None:
        self._count += 1
        self._name, self._started = name, time.perf_counter()
        if self._bar is not None:
            self._task = self._bar.add_task(f"{self._prefix()} {purpose}", total=None)

    def update(self, phase: str, share: float | None = None) -> None:
        """What the step is doing now; `share` of it done, 0..1, None where that is not known."""
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                description=f"{self._prefix()} {phase}",
                total=None if share is None else 1.0,
                completed=0.0 if share is None else share,
            )

    def done(self, note: str = "") -> float:
        """The step ended; returns its seconds."""
        seconds = time.perf_counter() - self._started
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self.say(f"{self._prefix()} {seconds:7.2f} s  {note}".rstrip())
        return seconds

    def say(self, text: str) -> None:
        """A line above the live display."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _prefix(self) -> str:
        return f"[{self._count:2d}/{self._steps}] {self._name:<15}"


class Counting:
    """`with Counting("teach") as count`: `count(done, total, text)` as often as one likes.

    On a terminal a bar with the time left; elsewhere a line when `text` changes, at most every
    `SECONDS_BETWEEN_LINES`, and at the end.
    """

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, name: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._name, self._quiet, self._stream = name, quiet, stream or sys.stderr
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._said = ""
        self._when = float("-inf")

    def __enter__(self) -> Counting:
        if not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, text: str = "") -> None:
        if self._quiet:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{self._name}  {text}")
            return
        now = time.monotonic()
        if done == total or (text != self._said and now - self._when > self.SECONDS_BETWEEN_LINES):
            print(f"{self._name} {done}/{total}  {text}".rstrip(), file=self._stream, flush=True)
            self._said, self._when = text, now
