"""Compile kernels.c once for this processor and load it.

The library is kept in the user's cache folder under the hash of everything it depends on: the source, the
options, the compiler and what the compiler says about the processor. Any C compiler gives the same integers:
the kernels compute with integers, and with float32 operations that are rounded one by one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from compiler.cache import default_folder
from passes.errors import EnvironmentFault, first_line

SOURCE = Path(__file__).with_name("kernels.c")
OPTIONS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-std=gnu11")
NATIVE = ("-march=native",)
"""The instructions of this processor; a compiler that does not know the option builds without it."""


Variant = Literal["native", "without-vnni", "portable"]
"""What of this processor the kernels use: everything, no VNNI (AVX2 where there is one), no intrinsics."""

_DEFINES: dict[Variant, tuple[str, ...]] = {
    "native": (),
    "without-vnni": ("-DWITHOUT_VNNI",),
    "portable": ("-DPORTABLE",),
}


@functools.cache
def kernels(variant: Variant = "native") -> ctypes.CDLL:
    """The kernels for this processor. Every variant computes the same integers; the tests run them all.

    Raises EnvironmentFault where there is no C compiler or it fails.
    """
    compiler = c_compiler()
    source = SOURCE.read_bytes()
    defines = _DEFINES[variant]
    options, described = _options(compiler)
    parts = (source, "\0".join((*compiler, *options, *defines)).encode(), described)
    name = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    library = default_folder() / f"kernels-{name[:32]}.so"
    if not library.is_file():
        _build([*compiler, *options, *defines], library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder may be read-only
            library.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"simulator kernels {library}",
            first_line(error),
            "a library that can be loaded",
            "remove it and run again; `picosam2 simulate --engine reference` needs no library",
        ) from error


def c_compiler() -> list[str]:
    """The command of $CC, of a C compiler on PATH, or of the ziglang wheel; EnvironmentFault without one."""
    named = os.environ.get("CC", "").split()
    if named and shutil.which(named[0]):
        return named
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise EnvironmentFault(
        "simulator kernels",
        "no C compiler on PATH",
        "cc, gcc or clang (the fast simulator is compiled once for this processor)",
        "install one, or `pip install ziglang`; `picosam2 simulate --engine reference` runs without",
    )


def _options(compiler: list[str]) -> tuple[tuple[str, ...], bytes]:
    """The options the compiler takes, and its macros: they name its version and what the processor can do."""
    for extra in (NATIVE, ()):
        done = subprocess.run(
            [*compiler, *extra, "-E", "-dM", "-x", "c", os.devnull], capture_output=True, check=False
        )
        if done.returncode == 0:
            return (*OPTIONS, *extra), done.stdout
    return OPTIONS, b""


def _build(command: list[str], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as folder:
            made = Path(folder) / library.name
            done = subprocess.run(
                [*command, "-o", str(made), str(SOURCE), "-lm"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise EnvironmentFault(
                    f"simulator kernels, built by {command[0]}",
                    (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0],
                    "a C compiler that knows C11",
                    "set CC to another compiler (`picosam2 simulate --engine reference` needs none)",
                )
            made.replace(library)
    except OSError as error:
        raise EnvironmentFault(
            f"cache folder {library.parent}", first_line(error), "a folder that can be written to",
            "set PICOSAM2_CACHE to another folder",
        ) from error  # fmt: skip
