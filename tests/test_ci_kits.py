"""action.yml, the hooks and examples/: they parse, the command line takes every command in them, and what the
action runs installs and writes what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from compiler.cli import app
from compiler.exported_program import PROGRAM
from passes import graph as graphs
from tests.compiler.small_packages import float_twin, packaged, red_finder
from tests.graphs import model, node
from tests.pictures import write_coco

ROOT = Path(__file__).parents[1]
KITS = (
    "action.yml",
    ".pre-commit-hooks.yaml",
    "examples/github-workflow.yml",
    "examples/gitlab-ci.yml",
    "examples/pre-commit-config.yaml",
)
COMMAND = re.compile(r"\bpicosam2 (?:check|compile|gate) [^|>;]*")
SHELL = re.compile(r"\$\{\w+:\+(.*?)\}")
"""${NAME:+words}: words where NAME is set."""
VARIABLE = re.compile(r"\$\w+")
"""A value that the CI system fills in; 1 is a path, a name and a number."""


def texts(node: Any) -> Iterator[str]:
    """Every string of a YAML document that may be a command."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("run", "entry", "script", "before_script"):
                yield from ([value] if isinstance(value, str) else value)
            else:
                yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)


def commands() -> list[tuple[str, str]]:
    return [
        (kit, command.strip())
        for kit in KITS
        for text in texts(yaml.safe_load((ROOT / kit).read_text()))
        for line in text.replace("\\\n", " ").splitlines()
        for command in COMMAND.findall(SHELL.sub(r"\1", line))
    ]


@pytest.mark.parametrize("kit", KITS)
def test_it_is_one_yaml_document(kit: str) -> None:
    assert yaml.safe_load((ROOT / kit).read_text())


@pytest.mark.parametrize(("kit", "command"), commands())
def test_the_command_line_takes_the_command(kit: str, command: str) -> None:
    _, name, *arguments = shlex.split(VARIABLE.sub("1", command))
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known[name].make_context(name, arguments)  # parses and converts; raises for what it does not take


def test_the_kits_run_check_compile_and_gate() -> None:
    named = {(kit, command.split()[1]) for kit, command in commands()}
    assert {name for kit, name in named if kit == "action.yml"} == {"check", "compile", "gate"}
    assert {name for kit, name in named if kit == "examples/gitlab-ci.yml"} == {"check", "compile", "gate"}
    assert (".pre-commit-hooks.yaml", "check") in named


def test_the_page_about_the_gate_names_the_options_that_the_kits_give_it() -> None:
    page = (ROOT / "docs/gate.md").read_text()
    given = {
        word
        for _, command in commands()
        if command.split()[1] == "gate"
        for word in command.split()
        if word.startswith("--")
    }
    assert {"--junit", "--json", "--baseline"} <= given
    assert [option for option in sorted(given) if option not in page] == []


def test_the_workflow_gives_the_action_only_inputs_it_has() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    workflow = yaml.safe_load((ROOT / "examples/github-workflow.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    given = [step["with"] for step in steps if step.get("uses", "").startswith("OWNER/")]
    assert given
    for one in given:
        assert set(one) <= set(action["inputs"])
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(action["inputs"])
    for step in action["runs"]["steps"]:
        assert "uses" in step or step["shell"] == "bash"
        assert "${{" not in step.get("run", ""), "inputs reach the shell as variables, never as text"


def test_the_baseline_of_the_workflow_is_what_the_action_keeps() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    kept = {
        step["with"]["name"]: step["with"]["path"].split()
        for step in action["runs"]["steps"]
        if "upload-artifact" in step.get("uses", "")
    }
    workflow = yaml.safe_load((ROOT / "examples/github-workflow.yml").read_text())
    (fetching,) = (step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step)
    artifact, folder = re.findall(r"--name (\S+) --dir (\S+)", fetching)[0]
    (asked,) = (
        step["with"] for step in workflow["jobs"]["gate"]["steps"] if "baseline" in step.get("with", {})
    )
    where = Path(asked["baseline"])
    assert where.parent.as_posix() == folder
    assert where.name in kept[artifact]
    assert "--json " + where.name in next(
        step["run"] for step in action["runs"]["steps"] if step.get("name") == "gate"
    )


def test_the_hook_of_the_example_is_offered() -> None:
    offered = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    asked = yaml.safe_load((ROOT / "examples/pre-commit-config.yaml").read_text())
    assert {hook["id"] for repo in asked["repos"] for hook in repo["hooks"]} <= offered


def test_the_files_that_are_named_are_there() -> None:
    for kit in (*KITS, "examples/README.md"):
        for name in re.findall(r"(?:examples|tests)/[\w.-]+\.\w+", (ROOT / kit).read_text()):
            assert (ROOT / name).is_file(), f"{kit}: {name}"


# What the action runs


def run_step(
    name: str, folder: Path, variables: dict[str, str], programs: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """A step of the action as GitHub runs it: `shell: bash` is bash -eo pipefail.

    Args:
        variables: those of the step's `env`, with the values that GitHub would fill in.
        programs: what is on PATH before everything else, shell text by name.
    """
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (step,) = (one for one in action["runs"]["steps"] if one.get("name") == name)
    assert set(variables) == set(step["env"])
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for program, text in programs.items():
        (tools / program).write_text(f"#!/bin/sh\n{text}\n")
        (tools / program).chmod(0o755)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            **variables,
        },
        capture_output=True,
        text=True,
    )


OURS = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m compiler.cli "$@"'
LOG = 'echo "$@" >> pip.log'


@pytest.mark.parametrize(
    ("steps", "model", "installed"),
    [
        (
            "check",
            "m.onnx",
            ["install --requirement A/examples/requirements-check.txt", "install --no-deps A"],
        ),
        ("gate", "", ["install --requirement A/examples/requirements-gate.txt", "install --no-deps A"]),
        (
            "check gate",
            "m.onnx",
            [
                "install --requirement A/examples/requirements-check.txt",
                "install --requirement A/examples/requirements-gate.txt",
                "install --no-deps A",
            ],
        ),
        ("check", "m.pt2", ["install A"]),
        ("compile gate", "m.onnx", ["install A"]),
    ],
)
def test_only_what_the_steps_need_is_installed(
    tmp_path: Path, steps: str, model: str, installed: list[str]
) -> None:
    done = run_step("install", tmp_path, {"ACTION": "A", "STEPS": steps, "MODEL": model}, {"pip": LOG})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pip.log").read_text().splitlines() == installed


def test_an_unknown_step_of_the_action_is_named(tmp_path: Path) -> None:
    done = run_step("install", tmp_path, {"ACTION": "A", "STEPS": "gate ship", "MODEL": ""}, {"pip": LOG})
    assert done.returncode == 1
    assert "steps: 'ship'" in done.stdout
    assert not (tmp_path / "pip.log").exists()


def test_the_gate_of_the_action_writes_its_reports_and_ends_with_the_gates_exit_code(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", pictures=12)
    packaged(tmp_path / "package", red_finder(), float_twin(red_finder()))
    variables = {
        "PACKAGE": "package",
        "DATA": "coco:coco",
        "SPLIT": "train2017",
        "PROTOCOL": "point-native-96",
        "MIN_MIOU": "0.4",
        "MAX_DROP": "1",
        "BASELINE": "earlier.json",
    }
    done = run_step("gate", tmp_path, variables, {"picosam2": OURS})
    assert done.returncode == 0, done.stderr
    assert "::notice::picosam2: there is no earlier.json yet" in done.stdout
    assert (tmp_path / "summary.md").read_text().startswith("### gate package: ")
    assert (tmp_path / "picosam2-junit.xml").read_text().startswith("<?xml")
    first = json.loads((tmp_path / "picosam2-gate.json").read_text())
    assert first["failed"] == []

    (tmp_path / "picosam2-gate.json").rename(tmp_path / "earlier.json")
    done = run_step("gate", tmp_path, {**variables, "MIN_MIOU": "0.999"}, {"picosam2": OURS})
    assert done.returncode == 3, done.stderr
    second = json.loads((tmp_path / "picosam2-gate.json").read_text())
    assert second["failed"] == ["min-miou"]
    assert second["options"]["baseline"] == "earlier.json"


def test_the_check_of_the_action_leaves_no_empty_report(tmp_path: Path) -> None:
    """A model that cannot be read: what code scanning would be given is a report or nothing."""
    done = run_step("check", tmp_path, {"MODEL": "absent.onnx", "INPUT": ""}, {"picosam2": OURS})
    assert done.returncode == 1
    assert "error: model absent.onnx: does not exist" in done.stderr
    assert not (tmp_path / "picosam2-check.sarif").exists()


def test_the_compile_of_the_action_says_what_the_network_was_trained_on(tmp_path: Path) -> None:
    given = {"MODEL": "a model.onnx", "PACKAGE": "package", "CALIB": "builtin"}
    fake = {"picosam2": 'for word in "$@"; do echo "$word"; done'}
    plain = ["compile", "a model.onnx", "--no-convert", "--out", "package", "--calib", "builtin", "--quiet"]
    done = run_step("compile", tmp_path, {**given, "INPUT": "", "PROTOCOL": ""}, fake)
    assert done.stdout.splitlines() == plain
    done = run_step("compile", tmp_path, {**given, "INPUT": "unit", "PROTOCOL": "roi-pad10"}, fake)
    assert done.stdout.splitlines() == [*plain[:-1], "--input", "unit", "--protocol", "roi-pad10", "--quiet"]


# What a light installation needs

SHORT_LISTS = ("requirements-check.txt", "requirements-gate.txt")

WITHIN = """
import importlib.abc, importlib.metadata, json, sys
from packaging.requirements import Requirement

def needed(requirement, known):
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return
    name = requirement.name.lower().replace("_", "-")
    if name not in known:
        known.add(name)
        for one in importlib.metadata.requires(name) or ():
            needed(Requirement(one), known)

listed, arguments = json.loads(sys.argv[1]), sys.argv[2:]
known = {"picosam2-compile", "pip", "setuptools"}
for line in listed:
    needed(Requirement(line), known)
installed = importlib.metadata.packages_distributions()

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        owners = installed.get(name.split(".")[0])
        if owners and not {one.lower().replace("_", "-") for one in owners} & known:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from compiler.cli import run
sys.exit(run(arguments))
"""
"""Runs a command as if only some distributions and what they require were installed."""


def within(listed: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHIN, json.dumps(listed), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def short_list(name: str) -> list[str]:
    lines = (ROOT / "examples" / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", SHORT_LISTS)
def test_a_short_list_has_the_versions_of_the_project(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(short_list(name)) <= set(project)


def test_the_gate_runs_with_its_short_list_alone(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "coco", pictures=12)
    package = packaged(tmp_path / "package", red_finder(), float_twin(red_finder()))
    asked = ["--data", f"coco:{data}", "--split", "train2017", "--min-miou", "0.4", "--max-drop", "1"]
    asked += ["--max-memory", "8388480", "--junit", str(tmp_path / "junit.xml"), "--format", "markdown"]
    listed = short_list("requirements-gate.txt")
    done = within(listed, "gate", str(package), *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("### gate package")
    for left_out in ("pycocotools", "onnxruntime", "junitparser", "pillow"):
        fewer = [line for line in listed if not line.startswith(left_out)]
        done = within(fewer, "gate", str(package), *asked)
        assert done.returncode == 4, f"{left_out} is not needed"
        line = done.stderr.splitlines()[-1]  # after the progress
        assert line.startswith(f"error: package {left_out}: is not installed (`picosam2 gate`")


def test_a_check_of_an_onnx_file_runs_with_its_short_list_alone(tmp_path: Path) -> None:
    package = packaged(tmp_path / "package", red_finder(), float_twin(red_finder()))
    listed = short_list("requirements-check.txt")
    done = within(listed, "check", str(package / "model.onnx"))
    assert done.returncode == 0, done.stderr
    assert within(listed, "check", "--help").returncode == 0
    fewer = [line for line in listed if not line.startswith("onnxsim")]
    done = within(fewer, "check", str(package / "model.onnx"))
    assert done.returncode == 4
    assert "error: package onnxsim: is not installed" in done.stderr


def test_a_check_folds_constants_without_onnxruntime(tmp_path: Path) -> None:
    shape = [node("Shape", ["x"], ["s"]), node("Reshape", ["x", "s"], ["r"]), node("Relu", ["r"], ["y"])]
    graphs.save(model(shape, {"x": [1, 3, 8, 8]}, ["y"], {}), tmp_path / "m.onnx")
    listed = short_list("requirements-check.txt")
    assert not any(line.startswith("onnxruntime") for line in listed)
    done = within(listed, "check", str(tmp_path / "m.onnx"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["check", "MODEL.pt2"], "torch"),
        (["check", "MODEL.pt"], "torch"),
        (["compile", "MODEL.onnx", "--no-convert", "-q", "--out", "OUT"], "pillow"),
    ],
)
def test_what_a_light_installation_lacks_is_named(tmp_path: Path, arguments: list[str], named: str) -> None:
    with zipfile.ZipFile(tmp_path / "MODEL.pt2", "w") as archive:
        archive.writestr(PROGRAM, "{}")
    (tmp_path / "MODEL.pt").write_bytes(b"\x80\x02.")
    graphs.save(model([node("Relu", ["x"], ["y"])], {"x": [1, 3, 8, 8]}, ["y"], {}), tmp_path / "MODEL.onnx")
    paths = [str(tmp_path / one) if one.startswith(("MODEL", "OUT")) else one for one in arguments]
    done = within(short_list("requirements-check.txt"), *paths)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: package {named}: is not installed (`picosam2 {arguments[0]}`")
    assert "pip install" in line
    assert not (tmp_path / "OUT").exists()


def test_the_hook_takes_what_the_short_list_reads() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert re.search(hook["files"], "models/a.onnx")
    assert not re.search(hook["files"], "models/a.pt2")
