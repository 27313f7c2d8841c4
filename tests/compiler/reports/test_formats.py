"""Every format tells every result: valid, deterministic, with all findings, and safe from hostile names."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from compiler.reports.html import to_html
from compiler.reports.json_document import to_json
from compiler.reports.markdown import check_markdown, to_markdown
from compiler.reports.sarif import check_sarif, to_sarif
from compiler.reports.verdict import verdict
from compiler.result import CompileResult, Input
from passes import contract as contracts
from tests.compiler.reports.results import HOSTILE, RESULTS, TEN, WHEN, hostile, plain, refused, searched

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text())
VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
SVG_EMPTY = {"line", "rect", "path", "image"}


@pytest.fixture(params=RESULTS)
def result(request) -> CompileResult:
    return RESULTS[request.param]()


class Page(HTMLParser):
    """Elements, references and nesting of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_EMPTY
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def told(page: str) -> str:
    """What a page says, with plain blanks."""
    return " ".join("".join(Page(page).text).split())


def test_json_fits_its_published_schema(result):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(
        json.loads(to_json(result, WHEN)), SCHEMA, jsonschema.Draft202012Validator,
        format_checker=jsonschema.FormatChecker(),
    )  # fmt: skip


def test_the_schema_refuses_what_is_not_described():
    document = json.loads(to_json(plain(), WHEN))
    for change in ({"schema": 2}, {"new": 1}, {"verdict": None}, {"seed": -1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, SCHEMA)


def test_the_page_stands_alone_and_is_whole(result):
    page = Page(to_html(result, WHEN))
    for _, attributes in page.seen:
        for name in ("href", "src", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    text = to_html(result, WHEN)
    assert "@import" not in text
    assert "url(" not in text
    assert len(page.all("script")) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1


def test_the_page_is_read_aloud_in_order(result):
    page = Page(to_html(result, WHEN))
    levels = [int(tag[1]) for tag, _ in page.seen if tag in ("h1", "h2", "h3")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for tag, attributes in page.seen:
        assert attributes.get("aria-labelledby", identifiers[0]).split()[0] in identifiers
        if tag == "svg":
            assert attributes["role"] == "img"
            assert "aria-label" in attributes or "aria-labelledby" in attributes


def test_every_format_is_a_pure_function(result):
    for make in (to_html, to_json, to_markdown):
        first = make(result, WHEN)
        assert make(result, WHEN) == first
        later = make(result, "2027-01-01T00:00:00+00:00")
        assert later.replace("2027-01-01T00:00:00+00:00", WHEN) == first
    assert to_sarif(result, "net.onnx") == to_sarif(result, "net.onnx")


@pytest.mark.parametrize("output", ["html", "json", "md", "sarif", "check sarif", "check md"])
def test_ten_violations_are_all_told_with_module_and_fix(output):
    found = refused()
    assert found.check is not None
    text = {
        "html": lambda: "".join(Page(to_html(found, WHEN)).text),
        "json": lambda: to_json(found, WHEN),
        "md": lambda: to_markdown(found, WHEN).replace("\\", "").replace("`", ""),
        "sarif": lambda: to_sarif(found, "net.onnx"),
        "check sarif": lambda: check_sarif(found.check, "net.onnx", "0.1.0"),
        "check md": lambda: check_markdown(found.check, "net.onnx").replace("\\", "").replace("`", ""),
    }[output]()
    findings = found.check.diagnostics
    assert len(findings) == TEN
    assert {one.module for one in findings} == {f"block.{index}" for index in range(TEN)}
    for one in findings:
        for part in (one.module, one.node, one.rule):
            assert part in text
        assert json.dumps(one.fix)[1:-1] in text or one.fix.replace("\\", "") in text


def test_hostile_names_stay_text():
    result = hostile()
    page = Page(to_html(result, WHEN))
    assert len(page.all("script")) == 1
    assert HOSTILE in "".join(page.text)
    assert "<script" not in to_markdown(result, WHEN)
    assert json.loads(to_json(result, WHEN))["model"]["file"] == HOSTILE
    location = json.loads(to_sarif(result, HOSTILE))["runs"][0]["results"][0]["locations"][0]
    assert "<" not in location["physicalLocation"]["artifactLocation"]["uri"]


def test_the_page_shows_what_was_measured():
    result = searched()
    page = Page(to_html(result, WHEN))
    text = told(to_html(result, WHEN))
    assert result.facts is not None
    for layer in result.facts.layers:
        assert layer.name in text
    assert "loses most" in text
    assert "published" in text.lower()
    assert "mct-gptq (kept)" in text
    pictures = [one for one in page.all("image") if one["href"].startswith("data:image/png;base64,")]
    assert len(pictures) == len(result.facts.overlays) == 8
    order = [one.agreement for one in result.facts.overlays]
    assert order == sorted(order)


def test_the_verdict_says_what_int8_reaches_or_how_to_find_out():
    known, unknown = (
        next(one for one in verdict(result).answers if "int8 mIoU" in one.question)
        for result in (searched(), plain())
    )
    assert known.answer == "0.4700 (0.4400 to 0.5000)"
    assert "64 crops of 40 pictures" in known.text
    assert "0.4400 to 0.5000" in told(to_html(searched(), WHEN))
    assert json.loads(to_json(searched(), WHEN))["accuracy"]["miou"]["high"] == 0.5
    assert unknown.answer == "not known"
    assert "no annotated masks were given" in unknown.text
    assert "picosam2 gate" in unknown.text


def test_the_caveat_of_the_miou_stands_outside_its_card():
    result = searched()
    answer = next(one for one in verdict(result).answers if "int8 mIoU" in one.question)
    assert len(answer.text) < 100
    assert "not comparable with the gate's" in answer.note
    page = Page(to_html(result, WHEN))
    number = verdict(result).answers.index(answer) + 1
    assert page.all("a") == [{"href": f"#note-{number}"}]
    assert [one for _, one in page.seen if one.get("id") == f"note-{number}"]
    assert answer.note in told(to_html(result, WHEN))
    assert "not comparable with the gate's" in to_markdown(result, WHEN)
    document = json.loads(to_json(result, WHEN))["verdict"]["answers"][number - 1]
    assert document["text"] == f"{answer.text}. {answer.note}"


def test_two_reports_are_told_apart_by_the_file_and_its_hash():
    one = plain()
    other = dataclasses.replace(one, model_sha256="12345678" * 8)
    title, changed = (
        html.unescape(to_html(result, WHEN).split("<title>")[1].split("</title>")[0])
        for result in (one, other)
    )
    assert title == "net.onnx abababab on imx500: passed"
    assert changed == "net.onnx 12345678 on imx500: passed"
    assert f"net.onnx, SHA-256 12345678, {WHEN}" in told(to_html(other, WHEN))
    assert f"net.onnx, {WHEN}" in told(to_html(dataclasses.replace(one, model_sha256=""), WHEN))


def test_a_name_breaks_before_dots_and_slashes_only():
    result = plain()
    assert result.facts is not None
    layers = tuple(
        dataclasses.replace(one, name=name)
        for one, name in zip(result.facts.layers, ("a_1.conv.0", "/up/up.1/Conv", ".x", ""), strict=False)
    )
    page = to_html(dataclasses.replace(result, facts=dataclasses.replace(result.facts, layers=layers)), WHEN)
    assert '<span class="part">a_1<wbr>.conv<wbr>.0</span>' in page
    assert (
        '<span class="part">/up</span><span class="part">/up<wbr>.1</span><span class="part">/Conv</span>'
    ) in page
    assert '<span class="part">.x</span>' in page


def test_what_may_not_fit_is_not_passed():
    result = dataclasses.replace(plain(), vendor=None)
    assert result.check is not None
    assert result.check.memory is not None
    assert verdict(result).passed
    large = dataclasses.replace(result.check.memory, total_bytes=9_000_000, fits=False, may_tile=True)
    found = verdict(dataclasses.replace(result, check=dataclasses.replace(result.check, memory=large)))
    assert not found.passed
    assert "only the converter can tell" in found.headline


def test_where_nothing_is_lost_no_layer_loses_most():
    result = plain()
    assert result.facts is not None
    exact = tuple(dataclasses.replace(one, alone_db=float("inf")) for one in result.facts.layers)
    facts = dataclasses.replace(result.facts, layers=exact)
    answers = verdict(dataclasses.replace(result, facts=facts)).answers
    assert next(one.answer for one in answers if "loses most" in one.question) == "none"


def test_markdown_is_short_enough_for_a_comment():
    assert len(to_markdown(plain(), WHEN).splitlines()) < 60
    assert len(to_markdown(searched(), WHEN).splitlines()) < 70


def test_every_input_of_a_network_with_several_is_named():
    one = plain()
    assert one.contract is not None
    first = Input("pixels", (1, 3, 16, 16), one.contract)
    both = dataclasses.replace(
        one, inputs=(first, Input("<click>", (1, 2), contracts.raw(2, 1, 1, signed=True)))
    )
    lines = ("pixels: 1x3x16x16, RGB, integers -128 to 127", "<click>: 1x2, ANY, integers -128 to 127")
    page = Page(to_html(both, WHEN))
    for said in ("".join(page.text), html.unescape(to_markdown(both, WHEN))):
        assert "The network has 2 inputs" in said
        assert all(line in said for line in lines)
    single = dataclasses.replace(one, inputs=(first,))
    assert to_markdown(single, WHEN) == to_markdown(one, WHEN)
    assert to_html(single, WHEN) == to_html(one, WHEN)
