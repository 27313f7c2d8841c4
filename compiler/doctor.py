"""What of this installation differs from what was tried, and the command that repairs it.

Nothing heavy is imported: versions come from the metadata of the installed packages, and the only programs
started are Java and the converter, to see whether they start.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.converter.install import (
    EXECUTABLE,
    EXTRA,
    FREE_BYTES,
    OURS,
    find_executable,
    find_java_home,
    install_command,
    require_java,
    require_safe_path,
    require_temp_dir,
)
from compiler.simulator.native.build import c_compiler
from passes.errors import EnvironmentFault

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

WANTED_MEMORY_BYTES = 2 * 2**30
"""Free memory wanted. For the student the converter was measured to hold 1.2 GB at its peak, MCT 0.7 GB."""

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `fix` is empty where `ok`."""

    name: str
    found: str
    expected: str
    ok: bool
    fix: str


def diagnose() -> tuple[Finding, ...]:
    """Every finding, good ones too: Python, each pinned package, converter, Java, C compiler, disk, memory.

    Never raises for what it finds."""
    try:
        metadata = importlib.metadata.metadata(OURS)
        texts = importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        fix = f"pip install -e '.[{EXTRA}]' in the repository"
        return (Finding(OURS, "not installed", "installed", False, fix),)
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return (Finding("packaging", "not installed", "installed", False, "pip install packaging"),)
    python = SpecifierSet(metadata["Requires-Python"] or "")
    version = platform.python_version()
    findings = [
        _finding(
            "Python",
            version,
            str(python),
            python.contains(version),
            f"make a new environment with Python {python}, for instance python3.11 -m venv .venv",
        )
    ]
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", EXTRA)
        ):
            findings.append(_package(requirement))
    return (*findings, _converter(), _java(), _c_compiler(), _temp_dir(), _memory())


def render(findings: tuple[Finding, ...], console: Console | None = None) -> None:
    """Print a table, then the fixes as commands that can be copied; default: to stdout."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "expected"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/green]" if finding.ok else "[red]wrong[/red]"
        table.add_row(mark, finding.name, finding.found, finding.expected)
    console.print(table)
    for finding in findings:
        if not finding.ok:
            console.print(
                f"Fix of {finding.name}: {finding.fix}", markup=False, highlight=False, soft_wrap=True
            )
    if all(finding.ok for finding in findings):
        console.print("Everything is as it was tried.")


def _finding(name: str, found: str, expected: str, ok: bool, fix: str) -> Finding:
    return Finding(name, found, expected, ok, "" if ok else fix)


def _package(requirement: Requirement) -> Finding:
    """Installed version against the pin; the marker is left out, it says only which extra wants it."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    fix = f'pip install "{requirement.name}{extras}{requirement.specifier}"'
    expected = str(requirement.specifier) or "any"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", expected, False, fix)
    return _finding(requirement.name, version, expected, requirement.specifier.contains(version), fix)


def _converter() -> Finding:
    """Does the converter start (0.4 s)? A broken environment often shows only when it imports its parts."""
    name, expected = f"{EXECUTABLE} --version", "starts"
    executable = find_executable()
    if executable is None:
        return Finding(name, "not found", expected, False, install_command())
    try:
        require_safe_path(executable)
        done = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except EnvironmentFault as fault:
        return Finding(name, fault.found, fault.limit, False, fault.fix)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, str(error), expected, False, install_command())
    lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
    return _finding(name, lines[-1], expected, done.returncode == 0, install_command())


def _java() -> Finding:
    name, expected = "Java", "starts"
    home = find_java_home()
    if home is None:
        return Finding(name, "not found", expected, False, install_command())
    try:
        return Finding(name, require_java(home), expected, True, "")
    except EnvironmentFault as fault:
        return Finding(name, fault.found, expected, False, fault.fix)


def _c_compiler() -> Finding:
    """The fast simulator is compiled on its first use; a compile of a model does without."""
    name, expected = "C compiler (simulator)", "$CC, cc, gcc, clang or ziglang"
    try:
        return Finding(name, " ".join(c_compiler()), expected, True, "")
    except EnvironmentFault:
        return Finding(name, "not found", expected, False, "pip install ziglang")


def _temp_dir() -> Finding:
    name, expected = "temporary directory", f"{FREE_BYTES / 2**20:.0f} MB free, a plain path"
    try:
        return Finding(name, str(require_temp_dir()), expected, True, "")
    except EnvironmentFault as fault:
        return Finding(name, fault.found, expected, False, fault.fix)


def _memory() -> Finding:
    """Memory that can be had without swapping, as Linux estimates it."""
    name, expected = "memory", f"{WANTED_MEMORY_BYTES / 2**30:.0f} GB free"
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return Finding(name, "not known on this system", expected, True, "")
    fix = "close other programs, or add swap"
    return _finding(name, f"{free / 2**30:.1f} GB free", expected, free >= WANTED_MEMORY_BYTES, fix)
