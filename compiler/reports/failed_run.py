"""The reports of a compile that made no package: beside its place, in OUT.failed/, whole or not at all.

An earlier package in OUT stays. What lies in OUT.failed/ is about the last run that left reports there, and a
compile that succeeds takes it away. A folder of that name that is not ours is never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from compiler.package import FAILED_RUN, added_files, is_package, write_package
from compiler.result import CompileResult, Failure
from passes.errors import (
    EnvironmentFault,
    ExitCode,
    GateFailed,
    InputError,
    TargetViolation,
    ToolError,
    first_line,
    missing_package,
    system_error,
)

SMALLER = (("report.md", "report.json", "report.sarif"), ("report.md",))
"""What is tried after everything, where the disk is full; the first is what to read first."""

KINDS: tuple[tuple[type[ToolError], str], ...] = (
    (TargetViolation, "target"),
    (GateFailed, "gate"),
    (EnvironmentFault, "environment"),
)


def failure_of(error: BaseException, step: str, purpose: str) -> Failure:
    """The failure that an exception means, in the step that raised it."""
    notes = tuple(getattr(error, "__notes__", ()))
    if isinstance(error, OSError):
        error = system_error(error)
    error = missing_package(error, "`picosam2 compile`") or error
    if isinstance(error, ToolError):
        kind = next((name for of, name in KINDS if isinstance(error, of)), "input")
        four = (error.thing, error.found, error.limit, error.fix)
        return Failure(step, purpose, kind, *four, int(error.exit_code), notes)
    if isinstance(error, KeyboardInterrupt):
        return Failure(
            step,
            purpose,
            "interrupted",
            "the compile",
            "was interrupted",
            "it has to run to its end",
            "run the command again: what the cache holds is not done twice",
            int(ExitCode.INTERRUPTED),
            notes,
        )
    return Failure(
        step,
        purpose,
        "defect",
        "picosam2-compile",
        f"internal error, {type(error).__name__}: {first_line(error)}",
        "no defect of ours",
        "PICOSAM2_DEBUG=1 shows where; please report it",
        int(ExitCode.ENVIRONMENT),
        notes,
    )


def failed_place(out: Path) -> Path:
    """Where the reports of a failed compile to `out` lie."""
    return out.with_name(f"{out.name}.failed")


def write_failed(out: Path, result: CompileResult, model: Path, created: str) -> Path | None:
    """Write the reports of a failed run; where there is no room for all of them, the most telling ones.

    Returns what to read first, or None where nothing could be written: a folder of this name is not ours, or
    the disk refuses. Nothing half-written stays.
    """
    from compiler.reports.files import report_files

    place = failed_place(out)
    if place.is_symlink() or (place.exists() and not _is_ours(place)):
        return None
    files = report_files(result, model, created)
    for names in (tuple(files), *SMALLER):  # report.html is the first of all
        try:
            write_package(place, {name: files[name] for name in names}, _facts(result), FAILED_RUN)
        except (EnvironmentFault, InputError):
            continue
        return place / names[0]
    return None


def _facts(result: CompileResult) -> Mapping[str, object]:
    return {
        "tool": result.tool_version,
        "target": result.target,
        "step": "" if result.failure is None else result.failure.step,
        "exit_code": 0 if result.failure is None else result.failure.exit_code,
    }


def remove_failed(out: Path) -> None:
    """Take the reports of an earlier failed run away, after a compile to `out` succeeded."""
    place = failed_place(out)
    if not place.is_symlink() and _is_ours(place):
        shutil.rmtree(place, ignore_errors=True)


def _is_ours(place: Path) -> bool:
    """A folder that an earlier failed run wrote, and nobody added anything to."""
    return is_package(place, FAILED_RUN) and not added_files(place, FAILED_RUN)
