"""The command `gate`. `compiler.cli` hangs it into the tree."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from passes.errors import InputError

if TYPE_CHECKING:
    from compiler.gate.gate import GateResult


class GateFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class Undecided(StrEnum):
    PASS = "pass"
    FAIL = "fail"


def gate_command(
    package: Annotated[
        Path,
        typer.Argument(
            metavar="PACKAGE",
            help="A directory that `picosam2 compile` wrote; the converter is not needed (--no-convert).",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SRC",
            help="coco:DIR (DIR/annotations/instances_SPLIT.json and DIR/SPLIT/) or lvis:DIR: pictures that "
            "the package has not seen.",
            show_default=False,
        ),
    ],
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: val2017 for COCO.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="point-native-96, point-native-96-clip or roi-pad10. Default: what the network was trained "
            "on, where its package says so, else point-native-96.",
            show_default=False,
        ),
    ] = None,
    min_miou: Annotated[
        float | None,
        typer.Option(metavar="X", help="The int8 network's least mIoU, 0 to 1.", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Hundredths of mIoU that int8 may lose against the package's own float network (and against "
            "--baseline).",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="An earlier package (its folder or report.json in it; it is run on the same crops), the "
            "JSON of its gate, or that of `picosam2 evaluate` (by its interval): not worse than that by more "
            "than --max-drop.",
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="Of the chip's memory, by the converter's report (exact) or else the forecast (estimated).",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="C", help="Of the intervals, 0.5 to 0.99.")] = 0.95,
    undecided: Annotated[
        Undecided,
        typer.Option(
            help="What `too few samples to tell` counts as. pass: only what is shown to be worse fails. "
            "fail: only what is shown to be good enough passes."
        ),
    ] = Undecided.PASS,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Warnings fail too: pictures that the package was calibrated on, and limits that a centred "
            "disc keeps to.",
        ),
    ] = False,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a JUnit report for CI.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Also write the JSON report, which --baseline of a later run takes.",
            show_default=False,
        ),
    ] = None,
    output_format: Annotated[
        GateFormat,
        typer.Option("--format", help="text for people, json for programs, markdown for pull requests."),
    ] = GateFormat.TEXT,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="CPU threads. Default: all cores. No result depends on them.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Of the bootstraps.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Decide whether a package may be shipped: exit code 0, or 3 where it is shown to be too bad.

    Scores the int8 and the float network on the same instances. Every criterion
    passes, fails, or has too few samples to tell: a 95 % bootstrap interval over
    pictures decides, and the same seed always gives the same verdict. Beside them
    stand masks that know nothing of the picture.

    [b]Example:[/b]  picosam2 gate out/picosam2 --data coco:COCO_DIR --min-miou 0.45 --max-drop 1

    [b]In CI:[/b]  picosam2 gate out/picosam2 --data coco:COCO_DIR --max-drop 1
    --baseline main.json --json gate.json --junit junit.xml --format markdown
    """
    from passes.light_imports import light_imports, without_collector

    _require_place("--junit", junit)
    _require_place("--json", json_file)
    with without_collector():
        with light_imports():
            from compiler.gate.criteria import Limits
            from compiler.gate.gate import GateOptions, require_passed, run_gate
            from compiler.progress import Counting

        options = GateOptions(
            Limits(min_miou, max_drop, max_memory),
            baseline,
            confidence,
            undecided is Undecided.FAIL,
            strict,
            seed,
        )
        with Counting("gate", quiet=quiet) as count:
            result = run_gate(
                package,
                data,
                options,
                split=split,
                protocol=protocol,
                threads=threads,
                on_progress=count,
            )
    _write(result, junit, json_file)
    _print(result, output_format)
    require_passed(result)


def _require_place(option: str, path: Path | None) -> None:
    """Raises InputError, before anything slow, where the file could not be written in the end."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        found = "is a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise InputError(f"{option} {path}", found, "a file in a folder that exists", "correct the path")


def _write(result: GateResult, junit: Path | None, json_file: Path | None) -> None:
    from compiler.gate.junit import to_junit
    from compiler.gate.reports import to_json_text
    from passes.files import write_beside

    if junit is not None:
        write_beside(junit, to_junit(result))
    if json_file is not None:
        write_beside(json_file, f"{to_json_text(result)}\n".encode())


def _print(result: GateResult, output_format: GateFormat) -> None:
    from compiler.gate.reports import to_json_text, to_markdown, to_text

    if output_format is GateFormat.JSON:
        typer.echo(to_json_text(result))
    else:
        typer.echo(to_markdown(result) if output_format is GateFormat.MARKDOWN else to_text(result), nl=False)
    if output_format is not GateFormat.TEXT:
        for one in result.cautions:
            if one.found is not None:
                print(f"warning: {one.found}. Fix: {one.fix}", file=sys.stderr)
