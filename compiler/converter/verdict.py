"""Telling a model that is refused from a tool that broke.

A Java machine that was killed, ran out of memory or met a full disk ends in the same exit code 1 and the same
[FEFSUC] as a model that is refused. So a model counts as refused only where a code names a reason and nothing
in the log shows that the machine was the cause. Measured with imx500-converter 3.19.2: its processes killed
one by one, on full disks, with starved heaps, without Java.

One case cannot be told apart: SIGTERM sent to the tiling advisor alone, after [ISM], leaves the log of a
network that does not fit. (The whole tool ended by a signal is told apart.)
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace

from compiler.converter.findings import diagnose
from compiler.converter.install import install_command
from compiler.converter.messages import ORIGIN, TIMESTAMP, parse_log
from passes.diagnostics import has_errors

REJECTION_EXITS = frozenset({1, 2, 3, 4})


@dataclass(frozen=True)
class Fault:
    """Why the tool broke, in the words of ToolError."""

    found: str
    limit: str
    fix: str


_DEATHS = r"Killed|Terminated|Aborted|Segmentation fault|Bus error|Hangup|Illegal instruction"
_KILLED = Fault(
    "one of its processes was killed halfway",
    "it has to run to its end",
    "run it again; if it happens again the machine is out of memory (close other programs)",
)
_MACHINE_SIGNS: tuple[tuple[str, Fault], ...] = (
    (
        r"No space left on device",
        Fault(
            "the disk became full",
            "a conversion needs about 125 MB for a network of 1.3 M parameters",
            "free space in the temporary directory, or set TMPDIR to a folder on another disk",
        ),
    ),
    (
        r"OutOfMemoryError|\bMemoryError\b|Cannot allocate memory|insufficient memory for the Java Runtime"
        r"|CfgConvManager Error: general exception",
        Fault(
            "it ran out of memory",
            "about 2 GB of free memory",
            "close other programs, or set JAVA_TOOL_OPTIONS=-Xmx4g, and run it again",
        ),
    ),
    (rf"line \d+: +\d+ (?:{_DEATHS})|^(?:{_DEATHS})$", _KILLED),
    (
        r"fatal error has been detected by the Java Runtime|Could not create the Java Virtual Machine"
        r"|StackOverflowError",
        Fault(
            "Java crashed",
            "it has to run to its end",
            "unset JAVA_TOOL_OPTIONS, _JAVA_OPTIONS and JDK_JAVA_OPTIONS, then `picosam2 doctor`",
        ),
    ),
    (
        r"Permission denied|Read-only file system|Too many open files",
        Fault(
            "the system refused it a file",
            "it has to write in the temporary directory and to start its own scripts",
            "set TMPDIR to a writable folder that allows programs to run; `picosam2 doctor`",
        ),
    ),
)


def fault_of(returncode: int, log: str) -> Fault | None:
    """Why the tool broke; None where it judged the model (accepted with exit 0, or rejected)."""
    if returncode == 0:
        return None
    line = last_line(log)
    if returncode == 127:
        return Fault(f"exit code 127: a program is missing ({line})", "Java and a shell", install_command())
    if returncode < 0 or returncode > 128:
        return replace(_KILLED, found=f"it was killed halfway ({_signal_name(returncode)}; last: {line})")
    for pattern, fault in _MACHINE_SIGNS:
        sign = re.search(rf"^.*(?:{pattern}).*$", log, re.MULTILINE)
        if sign is not None:
            return replace(fault, found=f"{fault.found} ({_readable(sign[0])})")
    reasons = diagnose(parse_log(log), accepted=False, version="")
    if returncode in REJECTION_EXITS and has_errors(reasons):
        return None
    return Fault(
        f"ended with exit code {returncode} and no reason (last: {line})",
        "exit code 0, or a coded message that says why the model is refused",
        "run it again, then `picosam2 doctor`; the log has every line",
    )


def _signal_name(returncode: int) -> str:
    number = -returncode
    if returncode > 0:  # a shell says 128 + N of its child; the front end's -N becomes 256 - N
        number = returncode - 128 if returncode <= 192 else 256 - returncode
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit code {returncode}"


_NOISE = re.compile(
    r"^\s*$|^\s+at |^\s+\.\.\. \d+ more|^Picked up |sdspconv exited with error code|FailureInSubRunning"
    r"|CODE: \[(?:FEFSUC|FLFSUC|BEFSUC)\]"
)
_SHELL_DEATH = re.compile(rf"([\w.-]+): line \d+: +\d+ ({_DEATHS})")


def last_line(log: str) -> str:
    """The last line that says something, without time and origin; at most 200 characters."""
    for line in reversed(log.splitlines()):
        if _NOISE.search(line):
            continue
        return _readable(line)
    return "nothing was printed"


def _readable(line: str) -> str:
    death = _SHELL_DEATH.search(line)
    if death is not None:
        return f"{death[1]}: {death[2]}"
    return re.sub(rf"^{TIMESTAMP}", "", ORIGIN.sub("", line)).strip()[:200]
