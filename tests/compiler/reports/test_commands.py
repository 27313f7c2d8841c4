"""Commands within texts are code in report.html and report.md; names from a user's file stay text there."""

from __future__ import annotations

import dataclasses

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from compiler.reports.figures import code, pieces
from compiler.reports.html import to_html
from compiler.reports.markdown import check_markdown, to_markdown
from compiler.result import CompileResult, Failure
from passes.diagnostics import Diagnostic, Severity
from tests.compiler.reports.results import HOSTILE, RESULTS, WHEN, hostile, plain, refused, unread
from tests.compiler.reports.test_formats import Page, told

GATE = "picosam2 gate PACKAGE --data coco:DIR --min-miou X --max-drop 1"

BREAKOUT = "a`b ``c`` `d` <b>e</b> --no-x | \\`f` [g](h) </code> ```"
"""Every way out of a code span that a name can try."""


def spans(text: str) -> list[str]:
    """What a text has as code."""
    return [part for part, is_code in pieces(text) if is_code]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("run `picosam2 doctor`; then wait", ["picosam2 doctor"]),
        ("(`--fix`)", ["--fix"]),
        ("crops of --calib, without --no-convert.", ["--calib", "--no-convert"]),
        ("``picosam2 check 'a`b'`` repeats", ["picosam2 check 'a`b'"]),
        ("a ` b ` c", []),
        ("a`b` c`d", []),
        ("name `b, then `picosam2 rules`", ["picosam2 rules"]),
        ("`never closed --fix", ["--fix"]),
        ("a--b, a -- b, ---c, --x`", []),
        (f"--{'a' * 100}", []),
    ],
)
def test_what_is_code_in_a_text(text: str, expected: list[str]) -> None:
    assert spans(text) == expected


@pytest.mark.parametrize("command", ["picosam2 check net.onnx", "x `y` z", "x ``y z", "a`b``c```d", HOSTILE])
def test_a_command_with_any_backticks_is_found_again(command: str) -> None:
    assert spans(f"before {code(command)} behind") == [command]


def test_commands_are_code_on_the_page() -> None:
    page = to_html(plain(), WHEN)
    assert "`" not in page.split("<main>")[1].split("<script>")[0]
    assert GATE in told(page)
    options = ("--data", "--min-miou", "--max-drop")
    assert all(f'<span class="whole">{option}</span>' in page for option in options)
    assert "<code>picosam2 gate</code> measures it" in page


def rendered(text: str) -> list[Token]:
    """What a reader of Markdown makes of it, the texts within their blocks."""
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    assert not [one for one in blocks if one.type in ("html_block", "fence", "code_block")]
    return [one for block in blocks for one in block.children or ()]


def test_commands_are_code_in_markdown() -> None:
    found = [one.content for one in rendered(to_markdown(plain(), WHEN)) if one.type == "code_inline"]
    assert GATE in found
    assert "\\`" not in to_markdown(plain(), WHEN)
    check = refused().check
    assert check is not None
    found = [one.content for one in rendered(check_markdown(check, "net.onnx")) if one.type == "code_inline"]
    assert {"--fix", "picosam2 rules"} <= set(found)


def named(name: str) -> CompileResult:
    """A refused model whose file and modules have this name, within texts of ours that name commands."""
    fix = f"`picosam2 rules` has {name}, or `--fix`"
    finding = Diagnostic("imx500/x", Severity.ERROR, name, name, name, "none", fix, "test", "")
    failure = Failure("check", "it is checked", "target", name, name, "none", fix, 2, (f"`{name}`",))
    check = plain().check
    assert check is not None
    check = dataclasses.replace(check, diagnostics=(finding,))
    return dataclasses.replace(unread(), model_name=name, network=name, check=check, failure=failure)


@pytest.mark.parametrize("name", [HOSTILE, BREAKOUT, "`", "``", "\\", "<!--", "`<script>`", "a|`b|c` d"])
def test_no_name_gets_out_of_a_code_span(name: str) -> None:
    result = named(name)
    page = Page(to_html(result, WHEN))
    assert len(page.all("script")) == 1
    assert not page.all("b")
    tokens = rendered(to_markdown(result, WHEN))
    assert {one.content for one in tokens if one.type == "html_inline"} <= {"<code>", "</code>"}
    assert not [one for one in tokens if one.type in ("link_open", "image")]
    found = [one.content for one in tokens if one.type == "code_inline"]
    assert found.count("picosam2 rules") >= 3
    assert not [one for one in found if any(mark in one for mark in "`<>")]
    assert "<script" not in to_markdown(result, WHEN)


def test_the_command_to_repeat_quotes_the_name_for_the_shell() -> None:
    assert "picosam2 check 'my net; x.onnx' repeats" in told(to_html(named("my net; x.onnx"), WHEN))


@pytest.mark.parametrize("result", RESULTS)
def test_markdown_holds_no_markup_but_ours(result: str) -> None:
    tokens = rendered(to_markdown(RESULTS[result](), WHEN))
    assert {one.content for one in tokens if one.type == "html_inline"} <= {"<code>", "</code>"}


def test_a_hostile_name_reads_as_it_is_in_markdown() -> None:
    text = "".join(one.content for one in rendered(to_markdown(hostile(), WHEN)) if one.type == "text")
    assert HOSTILE in text
