"""What a user sees when something is wrong: one message, one exit code, no traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar

from passes.diagnostics import Diagnostic


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


def system_error(error: OSError, thing: str = "") -> ToolError:
    """What the operating system refused: a path of the user's, or a machine without room.

    `thing`: what the user gave, for instance an option with its path; by default the file that is named.
    """
    thing, found = thing or str(error.filename or "the file system"), str(error.strerror or error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE):
        return EnvironmentFault(thing, found, "a machine with room", "free it, then run the command again")
    return InputError(
        thing, found, "a path that can be read and written", "correct the path or its permissions"
    )


class TargetViolation(ToolError):
    """The model violates the target (exit 2); `diagnostics` holds every violation found."""

    exit_code: ClassVar[ExitCode] = ExitCode.TARGET

    def __init__(
        self, thing: str, found: str, limit: str, fix: str, diagnostics: Iterable[Diagnostic] = ()
    ) -> None:
        super().__init__(thing, found, limit, fix)
        self.diagnostics = tuple(diagnostics)
