"""What a user sees when something is wrong: one message, one exit code, no traceback."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar

from passes.diagnostics import Diagnostic
from passes.light_imports import installed


class ExitCode(IntEnum):
    """Exit codes of every command: the documented list, nothing else."""

    FINE = 0
    USER = 1
    """The user's input or usage is wrong."""
    TARGET = 2
    """The model violates the target."""
    GATE = 3
    """The accuracy gate failed."""
    ENVIRONMENT = 4
    """The vendor tool or the environment failed."""
    INTERRUPTED = 130
    """The process was interrupted, as the shell counts."""


OURS = ("compiler", "calib", "student", "passes")
"""Packages of this project: one that is missing is a defect."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "edgemdt_tpc": "edge-mdt-tpc",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""What pip calls a package, where that is not what Python calls it."""


def first_line(error: BaseException) -> str:
    """What a foreign exception says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ToolError(Exception):
    """An error with the four things a user needs: the thing, what was found, what was expected, the fix.

    `thing` names the file, option, node or tool; `found` is its value; `limit` what it has to be; `fix` is
    an instruction that works as written.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USER

    def __init__(self, thing: str, found: str, limit: str, fix: str) -> None:
        super().__init__(f"{thing}: {found} ({limit}). Fix: {fix}")
        self.thing = thing
        self.found = found
        self.limit = limit
        self.fix = fix


class InputError(ToolError):
    """The user's input or usage is wrong (exit 1)."""


class EnvironmentFault(ToolError):
    """The vendor's tool, Java or the machine failed (exit 4)."""

    exit_code: ClassVar[ExitCode] = ExitCode.ENVIRONMENT


class GateFailed(ToolError):
    """The accuracy that was asked for is not reached (exit 3)."""

    exit_code = ExitCode.GATE


def not_readable(thing: str, path: str) -> InputError:
    """A file or folder that is there, and that the user may not read; X is for folders alone."""
    return InputError(thing, "is not readable", "a path that you may read", f"chmod u+rX {shlex.quote(path)}")


def missing_package(error: BaseException, command: str) -> EnvironmentFault | None:
    """The package of somebody else's that is not installed, where that is why `command` failed; else None.

    A library, or our own code around it, may have taken the failed import for a fault of the user's input.
    """
    if isinstance(error, EnvironmentFault):  # it says so itself
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__
    package = (cause.name or "").partition(".")[0] if cause is not None else ""
    if not package or package in OURS or installed(package):
        return None
    return EnvironmentFault(
        f"package {DISTRIBUTIONS.get(package, package)}",
        "is not installed",
        f"{command} needs it for what it was given",
        "install this project whole, not a part of it: `pip install FOLDER`, FOLDER being its checkout",
    )


def system_error(error: OSError, thing: str = "") -> ToolError:
    """What the operating system refused: a path of the user's, or a machine without room.

    `thing`: what the user gave, for instance an option with its path; by default the file that is named.
    """
    thing, found = thing or str(error.filename or "the file system"), str(error.strerror or error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE):
        return EnvironmentFault(thing, found, "a machine with room", "free it, then run the command again")
    fix = "correct the path or its permissions"
    if error.errno == errno.EACCES and error.filename is not None and os.path.exists(error.filename):
        fix = f"chmod u+rwX {shlex.quote(str(error.filename))}, or give another path"
    return InputError(thing, found, "a path that can be read and written", fix)


class TargetViolation(ToolError):
    """The model violates the target (exit 2); `diagnostics` holds every violation found."""

    exit_code: ClassVar[ExitCode] = ExitCode.TARGET

    def __init__(
        self, thing: str, found: str, limit: str, fix: str, diagnostics: Iterable[Diagnostic] = ()
    ) -> None:
        super().__init__(thing, found, limit, fix)
        self.diagnostics = tuple(diagnostics)
