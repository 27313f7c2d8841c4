"""The command line: exit codes, one message an error, JSON alone on stdout, light start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from compiler import cli
from passes import contract as contracts
from passes import graph as graphs
from passes.errors import InputError
from tests.graphs import model, node


@pytest.fixture
def legal_onnx(tmp_path):
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    built = model(
        [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["y"])],
        {"x": [1, 3, 16, 16]},
        ["y"],
        {"w": weight},
        contracts.imagenet(16, 16),
    )
    path = tmp_path / "legal.onnx"
    graphs.save(built, path)
    return path


@pytest.fixture
def illegal_onnx(tmp_path):
    """Two violations: a padding as large as the kernel, and an operator the chip lacks."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    built = model(
        [
            node("Conv", ["x", "w"], ["c"], name="stem", pads=[3, 3, 3, 3]),
            node("Softplus", ["c"], ["y"], name="soft"),
        ],
        {"x": [1, 3, 16, 16]},
        ["y"],
        {"w": weight},
        contracts.raw(3, 16, 16),
    )
    path = tmp_path / "illegal.onnx"
    graphs.save(built, path)
    return path


def test_check_json_is_the_documented_block_alone_on_stdout(legal_onnx, capsys):
    assert cli.run(["check", str(legal_onnx), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {
        "schema", "ok", "diagnostics", "memory", "macs", "parameters", "latency", "kind", "layers", "fixes",
        "what_if",
    }  # fmt: skip
    assert document["schema"] == 1
    assert document["ok"] is True
    assert {"model_bytes", "runtime_bytes", "total_bytes", "budget_bytes", "fits"} <= set(document["memory"])
    assert document["macs"] == 8 * 3 * 9 * 16 * 16
    assert document["parameters"] == 8 * 3 * 9 + 8  # the folded offset made a bias
    assert document["kind"] == {"macs": "exact", "parameters": "exact", "latency": "estimated"}
    assert 0 < document["latency"]["low_ms"] < document["latency"]["high_ms"]
    assert {point["kind"] for point in document["latency"]["calibrated_on"]} == {"published"}
    assert sum(layer["macs"] for layer in document["layers"]) == document["macs"]
    assert "Relu" in {layer["operator"] for layer in document["layers"]}


def test_check_names_every_violation_and_exits_2(illegal_onnx, capsys):
    assert cli.run(["check", str(illegal_onnx), "--format", "json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"]
    nodes = {d["node"] for d in document["diagnostics"] if d["severity"] == "error"}
    assert nodes == {"stem", "soft"}
    assert cli.run(["check", str(illegal_onnx)]) == 2
    text = capsys.readouterr().out
    assert "stem" in text
    assert "soft" in text
    assert "Fix:" in text


def test_compile_refuses_before_anything_slow_and_writes_nothing(illegal_onnx, tmp_path, capsys):
    out = tmp_path / "package"
    assert cli.run(["compile", str(illegal_onnx), "--out", str(out), "--no-convert", "-q"]) == 2
    error = capsys.readouterr().err
    assert "stem" in error
    assert "soft" in error
    assert not out.exists()


def test_the_pipeline_is_printed(capsys):
    assert cli.run(["compile", "--show-pipeline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        "preflight", "load", "raise-opset", "fix-batch", "name", "simplify", "explicit-pads",
        "floor-pools", "fold-batchnorm", "fold-input", "remove-dead", "fix",
        "check", "calibration", "equalise", "quantize", "widths", "search", "check-quantized", "agreement",
        "facts", "convert", "package",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compile"], "MODEL"),
        (["compile", "nowhere.pt", "--no-convert"], "nowhere.pt"),
        (["check", "nowhere.onnx"], "nowhere.onnx"),
        (["compile", "MODEL", "--target", "imx501", "--no-convert"], "imx501"),
        (["compile", "MODEL", "--quantizer", "gptq", "--no-convert"], "gptq"),
        (["compile", "MODEL", "--input", "imagnet", "--no-convert"], "imagnet"),
        (["compile", "MODEL", "--input-size", "axb", "--no-convert"], "axb"),
        (["compile", "MODEL", "--input-size", "99x99", "--no-convert"], "16x16"),
        (["compile", "MODEL", "--calib", "no-such-folder", "--no-convert"], "no-such-folder"),
        (["compile", "MODEL", "--out", "MODEL", "--no-convert"], "--out"),
        (["compile", "MODEL", "--calib-count", "0"], "calib-count"),
        (["frobnicate"], "frobnicate"),
        (["check", "MODEL", "--format", "xml"], "xml"),
        (["check", "MODEL", "--what-if", "64x64,axb"], "axb"),
        (["check", "MODEL", "--what-if", "9999"], "--what-if"),
    ],
)
def test_usage_errors_exit_1_with_one_message(arguments, word, legal_onnx, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    filled = [str(legal_onnx) if argument == "MODEL" else argument for argument in arguments]
    assert cli.run([*filled, *(["-q"] if "compile" in filled else [])]) == 1
    captured = capsys.readouterr()
    assert word in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            "compile m --calib-count 0",
            "--calib-count: '0' (greater than or equal to 1). Fix: `picosam2 compile --help`",
        ),
        ("train --steps x", "--steps: 'x' (a valid integer). Fix: `picosam2 train --help`"),
        ("compile m --seed 4294967296", "--seed: '4294967296' (less than or equal to 4294967295). Fix:"),
        ("simulate p --engine slow", "--engine: 'slow' (one of 'fast', 'imx500', 'reference'). Fix:"),
        (
            "compile m --targt imx500",
            "--targt: is no option of picosam2 compile (did you mean --memory-target or --target?). Fix:",
        ),
        ("check m --zzz", "--zzz: is no option of picosam2 check (picosam2 check [OPTIONS] MODEL). Fix:"),
        (
            "gate p",
            "--data: is missing (picosam2 gate needs it). Fix: give --data SRC; `picosam2 gate --help` shows",
        ),
        ("check", "MODEL: is missing (picosam2 check needs it). Fix: give MODEL; `picosam2 check --help`"),
        ("check m --weight-bits", "--weight-bits: requires an argument (none was given). Fix:"),
        ("check m --fix=3", "--fix: does not take a value (one was given). Fix: `picosam2 check --help`"),
        ("check m n", "unexpected extra argument(s) (n) (picosam2 check [OPTIONS] MODEL). Fix:"),
        ("chek m", "picosam2: no such command 'chek'. Did you mean 'check'?"),
        (
            "--zzz",
            "--zzz: is no option of picosam2 (picosam2 [OPTIONS] COMMAND [ARGS]...). Fix: `picosam2 --help`",
        ),
    ],
)
def test_a_usage_error_names_the_option_the_value_the_limit_and_the_help(typed, told, capsys):
    assert cli.run(typed.split()) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert captured.out == ""


def test_the_other_script_names_itself(capsys):
    assert cli.run(["compile", "m", "--seed", "-1"], name="picosam2-compile") == 1
    assert "Fix: `picosam2-compile --help` shows" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"name": "picosam2-compile"}])
def test_a_file_without_read_permission(options, legal_onnx, monkeypatch, capsys):
    allowed = os.access  # root may read everything
    monkeypatch.setattr(
        os, "access", lambda path, mode, **_: str(path) != str(legal_onnx) and allowed(path, mode)
    )
    assert cli.run(["compile", str(legal_onnx)], **options) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: MODEL {legal_onnx}: is not readable (a path that you may read). Fix: chmod"
    )
    assert error.endswith(f" u+rX {legal_onnx}\n")


@pytest.mark.parametrize(("missing", "named"), [("nowhere", "nowhere"), ("nowhere.part", "nowhere")])
def test_a_package_that_is_not_installed_is_the_environments(missing, named, legal_onnx, monkeypatch, capsys):
    def breaks(*_, **__):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("compiler.checking.check_operators", breaks)
    monkeypatch.delenv("PICOSAM2_DEBUG", raising=False)
    assert cli.run(["check", str(legal_onnx)]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: package {named}: is not installed (`picosam2 check`")
    assert "Fix: install this project whole" in line


def test_a_missing_package_that_was_taken_for_a_fault_of_the_model(legal_onnx, monkeypatch, capsys):
    def breaks(*_, **__):
        try:
            raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
        except ModuleNotFoundError as error:
            raise InputError("model", "cannot be run", "a model", "export it again") from error

    monkeypatch.setattr("compiler.checking.check_operators", breaks)
    assert cli.run(["check", str(legal_onnx)]) == 4
    assert capsys.readouterr().err.startswith("error: package nowhere: is not installed")


@pytest.mark.parametrize("missing", ["compiler.nothing", "student", "numpy.nothing", None])
def test_a_module_of_ours_that_is_missing_is_a_defect(missing, legal_onnx, monkeypatch, capsys):
    def breaks(*_, **__):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("compiler.checking.check_operators", breaks)
    monkeypatch.delenv("PICOSAM2_DEBUG", raising=False)
    assert cli.run(["check", str(legal_onnx)]) == 4
    assert "This is a defect" in capsys.readouterr().err


def test_a_place_that_takes_no_package_is_told_before_anything_is_read(legal_onnx, monkeypatch, capsys):
    monkeypatch.setattr("compiler.driver.load_model", lambda *_, **__: pytest.fail("the model was read"))
    assert cli.run(["compile", str(legal_onnx), "--out", "/proc/x", "--no-convert", "-q"]) == 1
    assert "error: --out /proc/x: /proc is not writable" in capsys.readouterr().err


def test_broken_and_missing_calibration_pictures(legal_onnx, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    base = [
        "compile",
        str(legal_onnx),
        "--no-convert",
        "-q",
        "--out",
        str(tmp_path / "o"),
        "--calib",
        str(folder),
    ]
    assert cli.run(base) == 1
    assert "pictures" in capsys.readouterr().err
    (folder / "broken.jpg").write_bytes(b"not a picture")
    assert cli.run(base) == 1
    assert "broken.jpg" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_defect_of_ours_is_one_message_too(legal_onnx, monkeypatch, capsys):
    def breaks(*_, **__):
        raise ZeroDivisionError("float division")

    monkeypatch.setattr("compiler.checking.check_operators", breaks)
    monkeypatch.delenv("PICOSAM2_DEBUG", raising=False)
    assert cli.run(["check", str(legal_onnx)]) == 4
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "PICOSAM2_DEBUG" in error


def test_check_and_help_load_nothing_heavy(legal_onnx):
    """Start-up is light: the modules of a whole process, not its wall-clock."""
    code = (
        "import sys; from compiler import cli; code = cli.run(sys.argv[1:]); "
        "print({'torch', 'sympy', 'PIL'} & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    for arguments in (["--help"], ["check", str(legal_onnx)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stderr.strip().splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("stream", "told"), [(">&-", ""), ("2>&-", "2 violations"), ("", "2 violations"), (">&- 2>&-", "")]
)
def test_the_process_ends_with_its_code_whatever_is_closed(illegal_onnx, stream, told):
    """The whole output reaches a pipe although the process ends without Python's own clean-up."""
    command = ["sh", "-c", f'"$@" {stream}', "sh", sys.executable, "-m", "compiler.cli", "check"]
    done = subprocess.run([*command, str(illegal_onnx)], capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stdout
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    """`picosam2 rules | head`, without a buffer that hides it."""
    command = [sys.executable, "-u", "-m", "compiler.cli", "rules"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 0


@pytest.fixture
def fixable_onnx(tmp_path):
    """One violation with a rewrite, one without."""
    built = model(
        [
            node("Relu", ["x"], ["a"], name="first"),
            node("Elu", ["a"], ["b"], name="elu"),
            node("Log", ["b"], ["y"], name="log"),
        ],
        {"x": [1, 8, 16, 16]},
        ["y"],
        {},
        contracts.raw(8, 16, 16),
    )
    path = tmp_path / "fixable.onnx"
    graphs.save(built, path)
    return path


def test_a_finding_with_a_rewrite_says_so_and_no_other(fixable_onnx, capsys):
    assert cli.run(["check", str(fixable_onnx), "--format", "json"]) == 2
    document = json.loads(capsys.readouterr().out)
    hints = {d["node"]: "--fix" in d["fix"] for d in document["diagnostics"] if d["severity"] == "error"}
    assert hints == {"elu": True, "log": False}
    assert document["fixes"] == []


def test_fix_lists_what_was_rewritten_with_its_cost(fixable_onnx, capsys):
    assert cli.run(["check", str(fixable_onnx), "--fix", "--format", "json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert {d["node"] for d in document["diagnostics"] if d["severity"] == "error"} == {"log"}
    assert all("--fix" not in d["fix"] for d in document["diagnostics"])
    (fix,) = document["fixes"]
    assert (fix["rule"], fix["node"]) == ("imx500/operator", "elu")
    assert {"done", "exactness", "macs_added", "bytes_added"} <= set(fix)
    assert cli.run(["check", str(fixable_onnx), "--fix"]) == 2
    assert "Fixed     imx500/operator: elu: Elu became" in capsys.readouterr().out


def test_compile_fixes_too_and_refuses_what_is_left(fixable_onnx, tmp_path, capsys):
    out = tmp_path / "package"
    assert cli.run(["compile", str(fixable_onnx), "--fix", "--out", str(out), "--no-convert", "-q"]) == 2
    error = capsys.readouterr().err
    assert "log" in error
    assert "elu" not in error
    assert not out.exists()


def test_what_if_prints_a_line_for_each_size(legal_onnx, capsys):
    assert cli.run(["check", str(legal_onnx), "--what-if", "32x32,16,32x32,48x16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["size", "model"])
    assert [line.split()[0] for line in lines[start + 1 :]] == ["32x32", "16x16", "48x16"]


@pytest.mark.parametrize("command", ["compile", "check", "doctor", "rules"])
def test_each_help_has_an_example_that_names_its_command(command, capsys):
    assert cli.run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"picosam2 {command}" in text
