"""report.html in a real browser without a screen, from a file: a silent console, and tables that sort."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compiler.reports.html import to_html
from tests.compiler.reports.results import RESULTS, WHEN, plain

BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium and no google-chrome on the path"),
]

LOGGED = re.compile(r":CONSOLE:?[^\n]*")

SORTED = """<script>
const table = document.querySelector("table[data-sortable]");
const column = [...table.tHead.rows[0].cells].findIndex((one) => one.textContent === "MACs");
const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.v));
const seen = [values()];
for (let time = 0; time < 2; time++) {
  table.tHead.rows[0].cells[column].querySelector("button").click();
  seen.push(values());
}
document.title = JSON.stringify(seen);
</script>"""


def shown(page: str, folder: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console says."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--v=0", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, LOGGED.findall(done.stderr)


@pytest.mark.parametrize("name", RESULTS)
def test_nothing_is_said_on_the_console(name: str, tmp_path: Path) -> None:
    document, said = shown(to_html(RESULTS[name](), WHEN), tmp_path)
    assert "How it was made" in document
    assert not said


def test_what_goes_wrong_is_noticed(tmp_path: Path) -> None:
    _, said = shown(to_html(plain(), WHEN).replace("document.querySelectorAll", "document.absent"), tmp_path)
    assert said


def test_a_heading_sorts_its_table_downwards_then_upwards(tmp_path: Path) -> None:
    document, said = shown(to_html(plain(), WHEN).replace("</body>", f"{SORTED}</body>"), tmp_path)
    assert not said
    title = re.search("<title>(.*?)</title>", document)
    assert title is not None
    before, down, up = json.loads(title[1])
    assert len(set(before)) > 1
    assert down == sorted(before, reverse=True)
    assert up == sorted(before)
