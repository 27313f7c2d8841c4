"""Run the vendor's tool in a process group of its own, and never leave any of it behind.

The tool starts a shell, which starts Java, which starts more shells and Java machines. They all stay in one
process group, which is killed as a whole when the tool ends, when time is up, and when this process is
interrupted or told to end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

TICK_S = 0.5
"""Seconds between two calls of `on_tick` while the tool prints nothing."""

REAP_S = 0.02
"""Seconds between two looks at a tool that closed its output and is about to end."""

DRAIN_S = 5.0
"""How long to wait for a killed group to let go of its output."""

ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        returncode: as subprocess gives it (negative: the signal that killed it); None if `timed_out`.
        log: everything written to stdout and stderr, in order, without colour codes.
        seconds: wall time.
        timed_out: it was still running after the time allowed, and was killed.
    """

    returncode: int | None
    log: str
    seconds: float
    timed_out: bool


def run_group(
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> Finished:
    """Run `command` in `folder` and return when all of its process group is gone.

    `on_line` gets every complete line as it is printed, `on_tick` is called when nothing is printed for a
    while. If this process gets SIGTERM or SIGHUP and nobody else handles them, SystemExit(128 + signal) is
    raised after the group was killed, so that callers can clean up as after Ctrl-C.

    Raises:
        OSError: the command cannot be started.
    """
    start = time.monotonic()
    with _termination_raises():
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None  # stdout=PIPE
        output = _Output(process.stdout.fileno(), on_line)
        try:
            returncode = _wait(process.pid, output, start + timeout_s, on_tick)
        finally:
            _kill(process, output)
    return Finished(returncode, output.text(), time.monotonic() - start, timed_out=returncode is None)


class _Output:
    """What came through the pipe so far; whole lines go to `on_line` as they come."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor, self._on_line = descriptor, on_line
        self._parts: list[bytes] = []
        self._rest = b""
        self.ended = False

    def read(self, wait_s: float) -> bool:
        """Take what is there, waiting for at most `wait_s`; False where nothing came."""
        if self.ended:
            time.sleep(min(wait_s, REAP_S))
            return False
        if not select.select([self._descriptor], [], [], wait_s)[0]:
            return False
        part = os.read(self._descriptor, 65536)
        self.ended = not part
        self._parts.append(part)
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            self._on_line(_clean(line))
        return True

    def text(self) -> str:
        return _clean(b"".join(self._parts))


def _clean(data: bytes) -> str:
    return ANSI_COLOUR.sub("", data.decode("utf-8", errors="replace")).replace("\r\n", "\n")


def _wait(pid: int, output: _Output, deadline: float, on_tick: Callable[[], None]) -> int | None:
    """The return code of `pid` once it ended (its group may live on), None when the deadline passed first."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if not output.read(min(TICK_S, left)):
            on_tick()
        # WNOWAIT leaves the ended process in the table, so that its group's number cannot be taken by others
        # before the group is killed.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _kill(process: subprocess.Popen[bytes], output: _Output) -> None:
    """Kill the group, then wait until nobody of it holds the output any more."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + DRAIN_S
    while not output.ended and time.monotonic() < deadline:
        output.read(0.05)
    assert process.stdout is not None
    process.stdout.close()


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit inside, where they would have ended this process at once."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
