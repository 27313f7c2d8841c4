"""report.html in a real browser without a screen, from a file: a silent console, tables that sort and fit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compiler.reports.html import to_html
from tests.compiler.reports.results import RESULTS, WHEN, plain, searched

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


MEASURED = """<script>
const scrolls = (box) => box.scrollWidth > box.clientWidth;
const layers = document.querySelector(".layers"), name = layers.querySelector("tbody th");
const right = (element) => element.getBoundingClientRect().right;
const inside = (heading) => right([...layers.querySelectorAll("thead th")]
  .find((one) => one.textContent === heading)) <= right(layers);
const found = {
  page: scrolls(document.documentElement),
  layers: scrolls(layers),
  others: [...document.querySelectorAll(".scroll:not(.layers)")].filter(scrolls).map((one) => one.ariaLabel),
  weakness: ["noise share", "alone dB"].every(inside),
  hint: getComputedStyle(layers.querySelector(".narrow")).display !== "none",
  lines: [...document.querySelectorAll(".whole")].every((one) => one.getClientRects().length === 1),
};
layers.scrollLeft = 200;
found.stays = name.getBoundingClientRect().left - layers.getBoundingClientRect().left < 2;
document.title = JSON.stringify(found);
</script>"""


def shown(page: str, folder: Path, width: int = 1280) -> tuple[str, list[str]]:
    """The document after its scripts ran in a window so wide, and what the console says."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--v=0", f"--window-size={width},900", "--hide-scrollbars",
         "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, LOGGED.findall(done.stderr)


def reported(document: str) -> Any:
    """What a script of the test left in the title."""
    title = re.search("<title>(.*?)</title>", document)
    assert title is not None
    return json.loads(title[1])


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
    before, down, up = reported(document)
    assert len(set(before)) > 1
    assert down == sorted(before, reverse=True)
    assert up == sorted(before)


@pytest.mark.parametrize(("width", "narrow"), [(1280, False), (500, True), (390, True)])
def test_tables_fit_and_the_one_that_cannot_says_so(tmp_path: Path, width: int, narrow: bool) -> None:
    result = searched()
    assert result.facts is not None
    layers = tuple(
        dataclasses.replace(one, name=f"encoder_stage{number}.0", operators=("Conv", "Relu"), weight_bits=4)
        for number, one in enumerate(result.facts.layers)
    )
    long = dataclasses.replace(result, facts=dataclasses.replace(result.facts, layers=layers))
    page = to_html(long, WHEN).replace("</body>", f"{MEASURED}</body>")
    document, said = shown(page, tmp_path, width)
    assert not said
    assert reported(document) == {
        "page": False, "layers": narrow, "others": [], "weakness": True, "hint": narrow, "lines": True,
        "stays": True,
    }  # fmt: skip
