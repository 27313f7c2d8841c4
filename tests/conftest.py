"""What every test shares: one torch thread (results do not depend on the machine) and the data folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs, and nohup, hand down ignored signals; the tests of interrupts need them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# The same examples every time: a change is judged by itself. `--hypothesis-profile explore` looks for others.
# No deadlines: on a busy machine they fail by the clock alone.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real pictures and teachers; they are not part of the repository."""
    folder = Path(os.environ.get("PICOSAM2_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no pictures: {folder} is absent (set PICOSAM2_DATA)")
    return folder
