"""What the documentation names exists: commands and options, links, headings, files, modules and names."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from compiler.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.md")))
KITS = (*sorted(ROOT.glob("action.yml")), *sorted(ROOT.glob("examples/*.yml")))
ROOMS = ("passes", "student", "calib", "compiler", "tests", "benchmarks", "docs")
"""Folders whose name at the front makes a word the path of a file, or of a module, of this repository."""

PROGRAMS = ("picosam2", "picosam2-compile", "make")
COMMAND = re.compile(
    rf"(?:^|[;&|]\s*)(?:\w+=\S+\s+)*(?:[\w./]*/)?(?:{'|'.join(PROGRAMS)})\s|\s-m compiler\.cli\s"
)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
HEADING = re.compile(r"#{1,6} +(.+?)[ #]*$")
PATH = re.compile(rf"(?<![\w./*-])(?:(?:{'|'.join(ROOMS)})(?:/[\w.*-]+)+/?|examples/[\w.-]+)(?![\w/<{{])")
"""Other projects have examples with folders in them."""

DOTTED = re.compile(
    rf"(?<![\w./-])(?!\w+\.(?:json|onnx|pt2?)\b)(?:{'|'.join(ROOMS)})(?:\.[A-Za-z_]\w*)+(?![\w./(])"
)
"""A module, or a name in one; `student.pt` is a file of the user's."""
CONDITIONAL = re.compile(r"\$\{\w+:\+(.*?)\}")
"""The shell's ${NAME:+words}: words where NAME is set."""
VARIABLE = re.compile(r"\$\{?\w+\}?")


# What a page holds


def blocks(text: str) -> Iterator[str]:
    """Lines of fenced and of indented blocks; one that ends with a backslash is joined to the next.

    Fences of the language `text` hold output and are left out.
    """
    fenced = shown = indented = False
    before, held = "", ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced, held = not fenced, ""
            shown = fenced and line.strip() != "```text"
            continue
        indented = not fenced and line.startswith("    ") and (indented or not before.strip())
        before = line
        if not (shown or indented):
            continue
        held += line.strip().removesuffix("\\")
        if not line.endswith("\\"):
            yield held
            held = ""


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return "".join(part for place, part in enumerate(re.split(r"(?m)^ *```.*\n", text)) if place % 2 == 0)


def commands(line: str) -> Iterator[list[str]]:
    """The commands of ours in a line of shell, as words; `accelerate launch -m compiler.cli` is one too."""
    if not COMMAND.search(line + " "):
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    to_file = False
    for word in (*lexer, ";"):
        if set(word) <= set("<>"):
            to_file = True
        elif set(word) <= set("();<>|&"):
            yield from _ours(command)
            command = []
        elif to_file:
            to_file = False
        else:
            command.append(word)


def _ours(words: list[str]) -> Iterator[list[str]]:
    if "compiler.cli" in words:
        words = ["picosam2", *words[words.index("compiler.cli") + 1 :]]
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words and Path(words[0]).name in PROGRAMS:
        yield [Path(words[0]).name, *words[1:]]


# What is wrong with it


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))


def command_problem(words: list[str], whole: bool = True) -> str | None:
    """What the command line refuses in a command; it is read and converted, not run.

    `whole`: it is meant to be typed as it stands, so nothing required may be missing. `...` stands for
    arguments that are left out, COMMAND for any.
    """
    program, *given = words
    arguments = [word for word in given if word != "..."]
    if program == "make":
        unknown = [word for word in arguments if "=" not in word and word not in targets()]
        return f"no target {', '.join(unknown)}" if unknown else None
    if program == "picosam2-compile":
        arguments.insert(0, "compile")
    if not arguments or arguments == ["--help"]:
        return None
    name, *options = arguments
    if name == "COMMAND":
        return None
    known = typer.main.get_command(app).commands
    if name not in known:
        return f"no command {name}"
    try:
        known[name].make_context(name, options)
    except typer.Exit:
        return None  # --help
    except typer.TyperException as error:
        message = error.format_message()
        left_out = not whole or "..." in given
        return None if left_out and message.startswith("Missing ") else message
    return None


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    seen: Counter[str] = Counter()
    found = set()
    for line in prose(text).splitlines():
        if heading := HEADING.match(line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def link_problem(page: Path, target: str) -> str | None:
    """A relative link's file or heading that is not there; links to the web are not followed."""
    if re.match(r"[a-z]+:", target):
        return None
    file, _, anchor = target.partition("#")
    path = (page.parent / file).resolve() if file else page
    if ROOT not in (path, *path.parents):
        return f"{target}: outside the repository"
    if not path.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
        return f"{target}: no such heading"
    return None


def path_problem(word: str) -> str | None:
    """A path of the repository (`*` stands for any name) that is not there; `.py` may be left out."""
    name = word.rstrip("/.")
    if any(ROOT.glob(name)) or (ROOT / f"{name}.py").is_file():
        return None
    return f"{word}: no such file"


def module_problem(word: str) -> str | None:
    """`package.module` or `package.module.name` that is not there."""
    parts = word.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.is_dir() or source.is_file():
            defined = _defined(source) if source.is_file() else frozenset()
            missing = [name for name in parts[end : end + 1] if name not in defined]
            return f"{word}: no {missing[0]} in {'.'.join(parts[:end])}" if missing else None
    return f"{word}: no such module"


@cache
def _defined(source: Path) -> frozenset[str]:
    """Names that a module binds at its top level."""
    found: set[str] = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            bound = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in bound for one in ast.walk(target) if isinstance(one, ast.Name)}
    return frozenset(found)


def command_problems(text: str) -> list[str]:
    """Of the blocks, and of the spans of code in the prose, where arguments may be missing."""
    whole = [words for line in blocks(text) for words in commands(line)]
    named = [words for span in SPAN.findall(prose(text)) for words in commands(span)]
    return problems((command_problem(words), words) for words in whole) + problems(
        (command_problem(words, whole=False), words) for words in named
    )


def problems(found: Iterable[tuple[str | None, list[str]]]) -> list[str]:
    return [f"{' '.join(words)}: {problem}" for problem, words in found if problem]


def link_problems(page: Path, text: str) -> list[str]:
    links = LINK.findall(SPAN.sub("", prose(text)))
    return [problem for link in links if (problem := link_problem(page, link))]


def name_problems(text: str) -> list[str]:
    """Of paths and modules in spans of code and in blocks, and of documents that the prose names."""
    code = "\n".join((*SPAN.findall(prose(text)), *blocks(text)))
    spoken = re.findall(r"\b(?:docs|tests|student)/[\w/-]+\.(?:md|py|json)\b", prose(text))
    found = [path_problem(word) for word in (*PATH.findall(code), *spoken)]
    found += [module_problem(word) for word in DOTTED.findall(code)]
    return [problem for problem in found if problem]


def drifted(text: str) -> list[str]:
    """First lines of the page's Python that is not in any module of ours as it stands."""
    sources = [path.read_text(encoding="utf-8") for room in ROOMS for path in ROOT.glob(f"{room}/**/*.py")]
    quoted = re.findall(r"(?ms)^```python\n(.*?)^```$", text)
    return [code.splitlines()[0] for code in quoted if not any(code in source for source in sources)]


# The pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_taken(page: Path) -> None:
    assert command_problems(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert link_problems(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_module_exists(page: Path) -> None:
    assert name_problems(page.read_text(encoding="utf-8")) == []


def kit_commands(text: str) -> Iterator[list[str]]:
    """Commands in YAML, with 1, which is a path, a name and a number, for what the CI system fills in."""
    for line in text.replace("\\\n", " ").splitlines():
        _, found, rest = line.partition("picosam2 ")
        if found and re.match(r"[a-z]+ ", rest):
            yield from commands(VARIABLE.sub("1", CONDITIONAL.sub(r"\1", found + rest)))


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_every_command_of_the_ci_kits_is_taken(kit: Path) -> None:
    found = kit_commands(kit.read_text(encoding="utf-8"))
    assert problems((command_problem(words, whole=False), words) for words in found) == []


def test_every_page_is_in_the_index() -> None:
    """docs/README.md has a line for each page, the README a link to the index."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {link.partition("#")[0] for link in LINK.findall(index)}
    assert {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"} <= linked
    assert "docs/README.md" in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_code_that_is_quoted_is_the_code() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert "```python" in text
    assert drifted(text) == []


def test_the_tutorials_split_is_by_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (script,) = (
        code for code in re.findall(r"(?ms)^```python\n(.*?)^```$", text) if "annotations.json" in code
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    images = [{"id": 90 - number, "file_name": f"{number}.jpg"} for number in range(10)]
    annotations = [{"id": number, "image_id": 81 + number % 10} for number in range(30)]
    for image in images:
        (tmp_path / "photos" / str(image["file_name"])).write_bytes(b"a picture")
    everything = {"images": images, "annotations": annotations, "categories": []}
    (tmp_path / "annotations.json").write_text(json.dumps(everything))
    exec(compile(script, "tutorial.md", "exec"), {})
    parts = {}
    for split, pictures in (("train2017", 8), ("val2017", 2)):
        part = json.loads((tmp_path / f"my-data/annotations/instances_{split}.json").read_text())
        names = {image["file_name"] for image in part["images"]}
        assert names == {path.name for path in (tmp_path / "my-data" / split).iterdir()}
        assert (len(part["images"]), len(part["annotations"])) == (pictures, 3 * pictures)
        parts[split] = {one["image_id"] for one in part["annotations"]}
    assert not parts["train2017"] & parts["val2017"]


# That the helpers can fail


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("picosam2 chek model.onnx", "no command chek"),
        ("picosam2 check model.onnx --fixx", "No such option: --fixx"),
        ("picosam2 check", "Missing argument 'MODEL'"),
        ("picosam2 check a.onnx b.onnx", "unexpected extra argument"),
        ("picosam2 check model.onnx --format yaml", "--format"),
        ("picosam2 compile model.pt --seed many", "--seed"),
        ("picosam2-compile model.pt --tarket imx500", "No such option: --tarket"),
        ("picosam2 gate out/picosam2", "Missing option '--data'"),
        ("cd models && picosam2 check model.onnx --fixx > found.txt", "--fixx"),
        ("torchrun --nproc_per_node 4 -m compiler.cli train --dta coco:DIR", "--dta"),
        ("make compil", "no target compil"),
    ],
)
def test_a_wrong_command_is_found(command: str, problem: str) -> None:
    for page in (f"```sh\n{command}\n```\n", f"Say:\n\n    {command}\n"):
        (found,) = command_problems(page)
        assert problem in found


@pytest.mark.parametrize(
    "command",
    [
        "picosam2 check model.onnx --what-if 64x64,96x96 --fix  # --no-such in a comment",
        "picosam2-compile model.pt --target imx500 && make test-all PYTHON=python3.11",
        "picosam2 check model.onnx --format json > check.json",
        "picosam2 train ... --seed 1",
        "picosam2 --help; picosam2 gate --help",
        "PICOSAM2_DEBUG=1 .venv/bin/picosam2 doctor | head",
        "picosam2 compile model.onnx \\\n    --fix",
        "the network's own; `picosam2 rules --all` is no command at this place",
    ],
)
def test_a_right_command_is_taken(command: str) -> None:
    assert command_problems(f"```sh\n{command}\n```\n") == []


def test_in_prose_arguments_may_be_missing_but_not_wrong() -> None:
    right = "`picosam2 gate` and `picosam2 check MODEL` decide, `picosam2.pt` is a file.\n"
    assert command_problems(right) == []
    assert len(command_problems("`picosam2 gate --what` and `picosam2 chek` do not.\n")) == 2


def test_a_wrong_command_of_a_ci_kit_is_found() -> None:
    line = '  run: picosam2 gate "$PACKAGE" --data 1 ${BASE:+--baseline "$BASE"} %s | tee -a "$OUT"\n'
    text = line % "--max-drop $DROP" + line % "--drop 1"
    right, wrong = (command_problem(words) for words in kit_commands(text))
    assert right is None
    assert "--drop" in str(wrong)


def test_quoted_code_that_has_changed_is_found() -> None:
    as_it_is = "@cache\ndef _limits() -> Mapping[str, str]:\n"
    quoted = "```python\n%s```\n"
    assert drifted(quoted % as_it_is) == []
    assert drifted(quoted % as_it_is.replace("cache", "lru_cache")) == ["@lru_cache"]


def test_output_is_not_taken_for_a_command() -> None:
    page = "```text\npicosam2 fits\n```\n\n```\n%s\n```\n"
    assert command_problems(page % "picosam2 rules") == []
    assert len(command_problems(page % "picosam2 fits")) == 1


def test_the_readme_shows_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {words[1] for line in blocks(text) for words in commands(line) if words[0] == "picosam2"}
    assert set(typer.main.get_command(app).commands) <= named


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("docs/nowhere.md", "no such file"),
        ("docs/gate.md#no-such-heading", "no such heading"),
        ("#no-such-heading", "no such heading"),
        ("../../etc", "outside the repository"),
        ("..", "outside the repository"),
    ],
)
def test_a_dead_link_is_found(link: str, problem: str) -> None:
    (found,) = link_problems(ROOT / "README.md", f"# One\n\nRead [this]({link}).\n")
    assert problem in found


def test_live_links_and_code_are_no_problem() -> None:
    text = "[a](docs/gate.md#verdicts), [b](docs/), [c](https://example.org/x) and `[d](nowhere.md)`\n"
    assert link_problems(ROOT / "README.md", text) == []
    assert anchors("# What `x.y` is, and why\n\n## Again\n\n## Again\n\n```sh\n# no heading\n```\n") == {
        "what-xy-is-and-why",
        "again",
        "again-1",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`passes/imx500/nowhere.py`", "no such file"),
        ("`tests/oracle/*.nothing`", "no such file"),
        ("Read docs/nowhere.md.", "no such file"),
        ("`python -m benchmarks.nowhere`", "no nowhere in benchmarks"),
        ("`passes.pipeline.NOWHERE`", "no NOWHERE in passes.pipeline"),
        ("```sh\npython -m benchmarks.nowhere --out x\n```", "no nowhere in benchmarks"),
    ],
)
def test_a_name_that_is_not_there_is_found(text: str, problem: str) -> None:
    (found,) = name_problems(f"{text}\n")
    assert problem in found


def test_names_that_are_there_are_no_problem() -> None:
    paths = "`passes/imx500/rules/`, `calib/ptq`, `student/checkpoints/*.json`, docs/gate.md"
    names = "`passes.pipeline.FLOAT_TRANSFORMS`, `calib.ptq.mct_ptq`, `RUN/student.pt`, `student.pt`"
    assert name_problems(f"{paths}, {names}\n") == []
