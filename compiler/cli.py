"""The command line: `picosam2` with its commands, and `picosam2-compile` for the one used most.

Only this module prints results and decides the exit code. Heavy imports stay inside the command that needs
them, so that `--help` answers at once. JSON goes to stdout alone; progress and messages go to stderr.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from compiler.gate_cli import gate_command
from compiler.simulator_cli import diff_command, sensitivity_command, simulate_command
from compiler.student_cli import evaluate_command, teach_command, train_command
from passes.diagnostics import Diagnostic
from passes.errors import (
    ExitCode,
    InputError,
    TargetViolation,
    ToolError,
    first_line,
    missing_package,
    not_readable,
    system_error,
)

if TYPE_CHECKING:
    from compiler.result import CheckResult, CompileResult

app = typer.Typer(
    name="picosam2",
    help="From a model to a package the Sony IMX500 runs: check, quantize, convert, and say what happened.",
    epilog="Exit codes: 0 fine, 1 your input or usage is wrong, 2 the model violates the target, "
    "3 the gate failed, 4 the vendor's tool or the environment failed, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL_HELP = (
    "PicoSAM2/PicoSAM3 state_dict (.pt), torch.export program (.pt2), float .onnx of any network, "
    "or a quantized .onnx of the vendor's dialect."
)
InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="HOW",
        help="What the network was trained on, for sensor pixel p: [b]imagenet[/b] (p/255 - mean)/std; "
        "[b]unit[/b] p/255; [b]centred[/b] (p - 128)/64; [b]raw[/b] p; [b]raw-signed[/b] p - 128; "
        "or a JSON file. Default: what the model declares, else imagenet with a warning.",
        show_default=False,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="HxW",
        help="HEIGHTxWIDTH, for checkpoints and for graphs with a symbolic size (PicoSAM2: 96x96).",
        show_default=False,
    ),
]
PersistencyOption = Annotated[
    bool,
    typer.Option(
        "--input-persistency/--no-input-persistency",
        help="Keep the input tensor in the chip's memory during the whole inference. Off saves its bytes.",
    ),
]
FixOption = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Rewrite what the chip refuses where a faithful rewrite is known, and list each with its cost.",
    ),
]


class CheckFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    MARKDOWN = "markdown"


@app.command("compile")
def compile_command(
    model: Annotated[
        Path | None, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)
    ] = None,
    target: Annotated[str, typer.Option(metavar="CHIP", help="The chip.")] = "imx500",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Package directory. Default: MODEL-imx500 here.", show_default=False
        ),
    ] = None,
    calib: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="Representative pictures: a folder, coco:DIR, or builtin (photographs that come with the "
            "installation; no download).",
        ),
    ] = "builtin",
    calib_count: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many pictures to calibrate on. Default: as many as were measured to be enough.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="Evaluation data: a picture with the same content is never calibrated or trained on.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The prompts the network was trained on, point-native-96 or roi-pad10: crops of coco:DIR "
            "are cut so. Default: what the checkpoint says.",
            show_default=False,
        ),
    ] = None,
    quantizer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="mct-ptq: Sony MCT's post-training quantization. mct-gptq: its gradient-based rounding, a "
            "minute or more. brevitas-qat: trains the quantized graph against the float network, minutes. "
            "The two are kept only where they are at least as good on pictures kept aside.",
        ),
    ] = "mct-ptq",
    weight_bits: Annotated[
        str,
        typer.Option(
            metavar="BITS",
            help="8, 4 (half the bytes; train it: --quantizer brevitas-qat) or mixed: per layer 8, 4 or 2, "
            "the least loss under --memory-target.",
        ),
    ] = "8",
    memory_target: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            help="With --weight-bits mixed: bytes of weights and activations together. Default: the chip's.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Try one way after the other, the cheapest first, until the loss of mIoU is at most this "
            "(with 95 % confidence, on crops kept aside; coco:DIR has masks to measure it). Exit code 3 "
            "where none reaches it.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of every random choice.")
    ] = 0,
    declared: InputOption = None,
    input_size: SizeOption = None,
    convert: Annotated[
        bool,
        typer.Option(
            "--convert/--no-convert", help="Run the vendor's converter. Without it no packerOut.zip."
        ),
    ] = True,
    memory_report_only: Annotated[
        bool,
        typer.Option("--memory-report-only", help="Let the converter only measure memory (half the time)."),
    ] = False,
    input_persistency: PersistencyOption = True,
    fix: FixOption = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="S", help="Seconds the converter may take.")
    ] = 1800,
    dump_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep the graph after each step in this folder.", show_default=False
        ),
    ] = None,
    show_pipeline: Annotated[bool, typer.Option("--show-pipeline", help="Print the steps and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Take a model to a package with the vendor's packerOut.zip and a report of what happened.

    Folds the input normalisation and batch norms into the weights, checks
    operators and memory, quantizes to int8, and runs the vendor's converter.

    [b]Example:[/b]  picosam2 compile picosam2.pt --target imx500 --calib photos/
    """
    from compiler.driver import PIPELINE, CompileOptions, compile_model
    from compiler.frontend import parse_size
    from compiler.progress import Progress
    from compiler.quantizing.search import require_drop

    if show_pipeline:
        for number, step in enumerate(PIPELINE, start=1):
            typer.echo(f"{number:2d}. {step.name:<15} {step.purpose}")
        return
    if model is None:
        raise InputError("MODEL", "is missing", "a model file", "picosam2 compile MODEL; see --help")
    options = CompileOptions(
        model=model,
        out=out or Path(f"{model.stem}-imx500"),
        target=target,
        calib=calib,
        calib_count=calib_count,
        exclude=exclude,
        protocol=protocol,
        quantizer=quantizer,
        weight_bits=weight_bits,
        memory_target=memory_target,
        max_drop=max_drop,
        seed=seed,
        declared=declared,
        size=parse_size(input_size),
        convert=convert,
        memory_report_only=memory_report_only,
        input_persistency=input_persistency,
        fix=fix,
        timeout_s=timeout,
        dump_dir=dump_dir,
    )
    try:
        result = compile_model(options, lambda steps: Progress(steps, quiet=quiet))
    except KeyboardInterrupt as error:  # Typer would drop the notes
        for note in getattr(error, "__notes__", ()):
            typer.echo(note, err=True)
        raise
    _print_summary(result, options.out)
    if result.choice is not None:
        require_drop(result.choice)


@app.command("check")
def check_command(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)],
    output_format: Annotated[
        CheckFormat,
        typer.Option(
            "--format",
            help="text for people, json for programs, sarif for code scanning, markdown for a comment "
            "(stdout).",
        ),
    ] = CheckFormat.TEXT,
    declared: InputOption = None,
    input_size: SizeOption = None,
    input_persistency: PersistencyOption = True,
    weight_bits: Annotated[
        int,
        typer.Option(
            metavar="BITS",
            help="What the weights of a float network will get: 8, 4 or 2 (compile --weight-bits).",
        ),
    ] = 8,
    fix: FixOption = False,
    what_if: Annotated[
        str | None,
        typer.Option(
            "--what-if",
            metavar="HxW,HxW,...",
            help="Also memory, MACs and latency of the same network at these input sizes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say in a second what the vendor's tools say after a minute: every violation, and the memory forecast.

    Nothing is quantized and nothing is written. Exit code 2 where the model violates the target.

    [b]Example:[/b]  picosam2 check model.onnx --what-if 64x64,96x96,128x128
    """
    import importlib.metadata
    import json

    from passes.light_imports import light_imports, without_collector

    with without_collector():
        with light_imports():
            from compiler.checking import check_model
            from compiler.frontend import parse_size, parse_sizes

        if weight_bits not in (8, 4, 2):
            raise InputError("--weight-bits", str(weight_bits), "8, 4 or 2", "picosam2 check --weight-bits 4")
        result = check_model(
            model,
            declared=declared,
            size=parse_size(input_size),
            input_persistency=input_persistency,
            weight_bits=weight_bits,
            fix=fix,
            what_if=parse_sizes(what_if),
        )
    if output_format is CheckFormat.JSON:
        typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False))
    elif output_format is CheckFormat.SARIF:
        from compiler.reports.sarif import check_sarif

        tool = importlib.metadata.version("picosam2-compile")
        typer.echo(check_sarif(result, str(model), tool, str(Path.cwd())), nl=False)
    elif output_format is CheckFormat.MARKDOWN:
        from compiler.reports.markdown import check_markdown

        typer.echo(check_markdown(result, model.name), nl=False)
    else:
        _print_check(result)
    if not result.ok:
        raise typer.Exit(ExitCode.TARGET)


@app.command("doctor")
def doctor_command() -> None:
    """Look at versions, Java, disk and memory, and name the exact fix of each mismatch.

    [b]Example:[/b]  picosam2 doctor
    """
    from compiler.doctor import diagnose, render

    findings = diagnose()
    render(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(ExitCode.ENVIRONMENT)


@app.command("rules")
def rules_command() -> None:
    """Print what the chip takes, as Markdown: every operator, and every rule of `picosam2 check`.

    [b]Example:[/b]  picosam2 rules > operators.md
    """
    from passes.imx500.page import operators_page

    typer.echo(operators_page(), nl=False)


app.command("teach")(teach_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("gate")(gate_command)
app.command("simulate")(simulate_command)
app.command("diff")(diff_command)
app.command("sensitivity")(sensitivity_command)


def main() -> None:
    """Console script `picosam2`."""
    _end(run(sys.argv[1:]))


def compile_main() -> None:
    """Console script `picosam2-compile`: `picosam2 compile`."""
    _end(run(["compile", *sys.argv[1:]], name="picosam2-compile"))


def _end(code: int) -> NoReturn:
    """End the process; a check does so without first taking its graphs apart node by node.

    With torch come threads and libraries that want to be closed, so it ends as Python ends.
    """
    if "torch" in sys.modules:
        sys.exit(code)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # the caller may have closed it
                stream.flush()
    except OSError:
        sys.exit(code)  # Python says what is wrong with the stream
    os._exit(code)


def run(arguments: list[str], name: str = "picosam2") -> int:
    """Run the command line and return the exit code; every error becomes one message on stderr."""
    command = typer.main.get_command(app)
    arguments = arguments or ["--help"]
    _quiet_environment()
    _terminate_like_interrupt()
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except TargetViolation as error:
        _print_diagnostics(error.diagnostics)
        return _fail(error)
    except ToolError as error:
        return _fail(missing_package(error, f"`{_typed(name, arguments)}`") or error, error)
    except TyperException as error:
        return _fail(_usage_error(error, _typed(name, arguments)))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except SystemExit as end:
        # Click ends so where the reader of a pipe has gone (`picosam2 rules | head`): that is no error.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FINE
    except OSError as error:
        return _fail(system_error(error), error)
    except Exception as error:
        if os.environ.get("PICOSAM2_DEBUG"):
            raise
        missing = missing_package(error, f"`{_typed(name, arguments)}`")
        if missing is not None:
            return _fail(missing, error)
        print(
            f"error: internal error, {type(error).__name__}: {first_line(error)}\n"
            "This is a defect of picosam2-compile. PICOSAM2_DEBUG=1 shows where; please report it.",
            *getattr(error, "__notes__", ()),
            sep="\n",
            file=sys.stderr,
        )
        return ExitCode.ENVIRONMENT
    if code == ExitCode.INTERRUPTED:  # Typer made it of a KeyboardInterrupt
        return _interrupted()
    return code if isinstance(code, int) else ExitCode.FINE


def _typed(name: str, arguments: list[str]) -> str:
    """The command as it was typed, without its arguments; `picosam2-compile` is one by itself."""
    known = name == app.info.name and any(arguments[0] == one.name for one in app.registered_commands)
    return f"{name} {arguments[0]}" if known else name


def _usage_error(error: TyperException, typed: str) -> InputError:
    """What Typer refused, as a message of ours: the option, the value given, and what it has to be."""
    message = getattr(error, "format_message", error.__str__)()
    fix = f"`{typed} --help` shows what is accepted"
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        alike = " or ".join(sorted(error.possibilities or ()))
        limit = f"did you mean {alike}?" if alike else _usage(error, typed)
        return InputError(option, f"is no option of {typed}", limit, fix)
    if option is not None:  # "Option '--out' requires an argument.", or that it does not take one
        found = message.rstrip(".").removeprefix(f"Option {option!r} ")
        given = "none was given" if found.startswith("requires") else "one was given"
        return InputError(option, found, given, fix)
    parameter = getattr(error, "param", None)
    if parameter is None:
        found = message[:1].lower() + message[1:].rstrip(".")
        return InputError(typed, found, _usage(error, typed), fix)
    thing = parameter.metavar or parameter.name
    if parameter.param_type_name == "option":
        thing = max(parameter.opts, key=len)
    refused = getattr(error.__cause__, "errors", None)  # pydantic's, where it is about a value
    if refused is not None:
        first = refused()[0]
        return InputError(thing, repr(first["input"]), _limit(first["msg"]), fix)
    if not error.message:
        metavar = f" {parameter.metavar}" if parameter.param_type_name == "option" else ""
        return InputError(thing, "is missing", f"{typed} needs it", f"give {thing}{metavar}; {fix}")
    unreadable = re.fullmatch(r"\w+ '(.*)' is not readable\.", error.message)
    if unreadable is not None:
        return not_readable(f"{thing} {unreadable[1]}", unreadable[1])
    return InputError(thing, error.message.rstrip("."), _usage(error, typed), fix)


def _limit(message: str) -> str:
    """What a value has to be, of pydantic's sentence about the one that was given."""
    if " is not one of " in message:
        return "one of " + message.split(" is not one of ")[1].rstrip(".")
    return message.removeprefix("Input should be ").split(", unable to")[0]


def _usage(error: TyperException, typed: str) -> str:
    """What the command takes, in one line: `picosam2 check [OPTIONS] MODEL`."""
    context = getattr(error, "ctx", None)
    if context is None:
        return f"what {typed} takes"
    pieces = (piece.strip("{}") for piece in context.command.collect_usage_pieces(context))
    return " ".join([typed, *pieces])


def _terminate_like_interrupt() -> None:
    """SIGTERM and SIGHUP unwind like Ctrl-C: temporary folders and the vendor's processes go with us.

    What `nohup` has us ignore stays ignored.
    """
    import signal
    import threading

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, interrupt)


def _fail(error: ToolError, raised: BaseException | None = None) -> int:
    """Print the error with the notes of what was raised, where that is something else."""
    for line in (f"error: {error}", *getattr(raised or error, "__notes__", ())):
        print(line, file=sys.stderr)
    return error.exit_code


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return ExitCode.INTERRUPTED


def _quiet_environment() -> None:
    """Libraries of ours say what matters through us; their banners go nowhere."""
    import logging
    import warnings

    if not os.environ.get("PICOSAM2_DEBUG"):
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)


def _print_diagnostics(diagnostics: tuple[Diagnostic, ...]) -> None:
    from compiler.reports.terminal import diagnostic_text

    for diagnostic in diagnostics:
        print(diagnostic_text(diagnostic), file=sys.stderr)


def _print_check(result: CheckResult) -> None:
    from compiler.reports.terminal import check_rows, cost_lines, diagnostic_text, what_if_lines

    for diagnostic in result.diagnostics:
        typer.echo(diagnostic_text(diagnostic))
    _print_rows(check_rows(result), typer.echo)
    for lines in (cost_lines(result), what_if_lines(result.what_if) if result.what_if else []):
        if lines:
            typer.echo("\n" + "\n".join(lines))


def _print_summary(result: CompileResult, out: Path) -> None:
    from compiler.reports.terminal import summary_rows

    def echo(text: str) -> None:
        print(text, file=sys.stderr)

    _print_diagnostics(result.warnings)
    _print_rows([*summary_rows(result), ("Package", f"{out} (report.html has the details)")], echo)


def _print_rows(rows: list[tuple[str, str]], echo: Callable[[str], object]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        echo(f"{name:<{width}}  {text}")


if __name__ == "__main__":  # accelerate launch -m compiler.cli, torchrun -m compiler.cli
    main()
