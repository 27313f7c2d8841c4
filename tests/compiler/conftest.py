"""What several of the compiler's slow tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.cli import run

SHIPPED = Path(__file__).parents[2] / "student" / "checkpoints" / "picosam2.pt"


@pytest.fixture(scope="session")
def shipped_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped student, quantized on builtin pictures; not converted."""
    out = tmp_path_factory.mktemp("shipped") / "picosam2"
    assert run(["compile", str(SHIPPED), "--out", str(out), "--no-convert", "-q"]) == 0
    return out
