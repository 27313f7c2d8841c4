"""The commands around the simulator: `simulate`, `diff`, `sensitivity`. `compiler.cli` hangs them in."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from passes.errors import ExitCode, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from compiler.inspection.differences import Differences
    from compiler.inspection.opened_package import OpenedPackage
    from compiler.inspection.prompts import Prompt

PackageArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PACKAGE",
        help="A directory that `picosam2 compile` wrote (the converter is not needed: --no-convert), or a "
        "quantized .onnx of the vendor's dialect.",
        show_default=False,
    ),
]
PointOption = Annotated[
    str | None,
    typer.Option(
        "--point",
        metavar="X,Y",
        help="The pixel pointed at, from the top left corner. Default: the centre of the picture.",
        show_default=False,
    ),
]
BoxOption = Annotated[
    str | None,
    typer.Option(
        "--box",
        metavar="X0,Y0,X1,Y1",
        help="A box around the object: left, top, right and bottom edge in pixels.",
        show_default=False,
    ),
]
HeldOutOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SRC",
        help="Where the 16 pictures come from: a folder, coco:DIR, or builtin, as --calib of `compile`. Of "
        "the source that the package was calibrated on they are those that calibration never saw.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


class OutputFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    OutputFormat, typer.Option("--format", help="text for people, json for programs (stdout).")
]


class EngineName(StrEnum):
    FAST = "fast"
    IMX500 = "imx500"
    REFERENCE = "reference"


def simulate_command(
    package: PackageArgument,
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="PICTURE...", help="Pictures, or folders of pictures.", show_default=False),
    ],
    point: PointOption = None,
    box: BoxOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts of many pictures. CSV with the header picture,x,y or picture,x0,y0,x1,y1; or JSON: "
            r'\[{"picture": "a.jpg", "point": \[320, 240]}, ...] with "box" for boxes. Only the pictures it '
            "names are run; one may be named several times.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the crop is cut: point-native-96 (a window of the network's size around the point, not "
            "rescaled) or roi-pad10 (the box and 10 % around it, rescaled). Default: what the package's "
            "checkpoint was trained under, where that is known, else point-native-96 for a point and "
            "roi-pad10 for a box.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="fast; reference: the same integers, one picture a second, beyond doubt; imx500: with the "
            "8-bit multipliers and whole biases that the converter writes for the chip (an estimate: the "
            "rounding inside the chip is not known)."
        ),
    ] = EngineName.FAST,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the results. Files of other names stay.")
    ] = Path("simulated"),
    output_format: FormatOption = OutputFormat.TEXT,
    quiet: QuietOption = False,
) -> None:
    """Show what the int8 network finds where you point: every integer as the quantized file defines it.

    For each prompt two pictures of full size are written: NAME.overlay.png with
    the mask tinted, the frame of what the network saw, and the prompt; and
    NAME.mask.png, 255 where the mask is. simulation.json has every mask in numbers.

    [b]Examples:[/b]  picosam2 simulate out/picosam2 street.jpg --point 320,240

    picosam2 simulate out/picosam2 photos/ --prompts prompts.csv --out masks
    """
    from compiler.inspection.opened_package import open_package
    from compiler.inspection.simulating import plan, simulate
    from compiler.progress import Counting

    if prompts is not None and (point or box):
        raise InputError("--prompts", "a file and a prompt", "one of the two", "drop --point or --box")
    opened = open_package(package)
    jobs = plan(opened, pictures, prompt=_prompt(point, box), prompts=prompts, protocol=protocol)
    with Counting("simulate", quiet=quiet) as count:
        content = simulate(opened, jobs, out, engine=engine.value, on_progress=count)
    if output_format is OutputFormat.JSON:
        typer.echo(json.dumps(content, indent=2, allow_nan=False))
        return
    from rich.console import Console

    from compiler.inspection.simulating import results_table

    console = Console(file=sys.stdout)
    console.print(results_table(content))
    written = "one overlay and its mask" if len(jobs) == 1 else f"{len(jobs)} overlays and masks"
    console.print(f"{written} in {out}", markup=False, highlight=False)


def diff_command(
    package: PackageArgument,
    first: Annotated[
        str,
        typer.Argument(
            metavar="FIRST",
            help="[b]fast[/b] or [b]reference[/b]: the integer simulator; [b]imx500[/b]: it, with the "
            "compiled file's multipliers and biases ([b]imx500-half-up-saturating[/b] and others: under the "
            "other answers to what that file leaves open, by their names in device-check/); "
            "[b]onnxruntime[/b]: the int8 file in float32; [b]float[/b]: the float network, rounded to each "
            "tensor's grid; or an .npz of recorded integers, arrays N,C,H,W by tensor name, for instance "
            "from a device.",
            show_default=False,
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="The same choice.", show_default=False)],
    data: HeldOutOption = "builtin",
    pictures: Annotated[
        int, typer.Option(min=1, max=16, metavar="N", help="How many of those pictures.")
    ] = 1,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead: this picture, cropped as in `simulate`.", show_default=False
        ),
    ] = None,
    point: PointOption = None,
    box: BoxOption = None,
    map_file: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE.png",
            help="Write a picture of the first tensor that differs: where, in each channel.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Keep the input and all integers of FIRST, to compare with later.",
            show_default=False,
        ),
    ] = None,
    require_equal: Annotated[
        bool, typer.Option("--require-equal", help="Exit 3 where a single integer differs.")
    ] = False,
    output_format: FormatOption = OutputFormat.TEXT,
    quiet: QuietOption = False,
) -> None:
    """Compare two executions of a package integer by integer, and name the first layer that differs.

    Both see the same input: that of a recording which holds it, a picture, or held-out pictures.

    [b]Examples:[/b]  picosam2 diff out/picosam2 onnxruntime reference --map first.png

    picosam2 diff out/picosam2 reference device.npz --require-equal
    """
    from compiler.inspection.difference_map import difference_map
    from compiler.inspection.differences import find_differences, open_source
    from compiler.inspection.opened_package import open_package
    from compiler.inspection.recording import write_recording
    from student.picture_grid import save_png

    _require_place("--map", map_file)
    _require_place("--record", record)
    opened = open_package(package)
    sources, held = [], None
    for name in (first, second):
        source, inputs = open_source(name, opened)
        sources.append((Path(name).name if name.endswith(".npz") else name, source))
        if inputs is not None and held is not None and not _same(inputs, held):
            raise InputError(
                f"diff of {first} and {second}",
                "recordings of different input",
                "two recordings of the same pictures",
                "record both from one input",
            )
        held = inputs if held is None else held
    if held is None:
        held = _inputs(opened, data, pictures, picture, _prompt(point, box))

    def say(name: str) -> None:
        if not quiet:
            print(f"diff: running {name}", file=sys.stderr, flush=True)

    found = find_differences(opened, sources[0], sources[1], held, say)
    if record is not None:
        whole = {name: values for name, values in held.items() if (values == values.round()).all()}
        kept = {name: values.astype("int16") for name, values in whole.items()}
        write_recording(record, {**kept, **found.first_integers})
    drawn = difference_map(found)
    if map_file is not None and drawn is not None:
        save_png(map_file, drawn)
    elif map_file is not None:
        print(f"diff: nothing differs, so there is no {map_file}", file=sys.stderr)
    if output_format is OutputFormat.JSON:
        typer.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        _print_differences(found)
    if require_equal and found.first_differing is not None:
        raise typer.Exit(ExitCode.GATE)


def sensitivity_command(
    package: PackageArgument,
    data: HeldOutOption = "builtin",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Of the choice of pictures. Default: the package's own.",
            show_default=False,
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.svg", help="Write the plot, an SVG for any browser.", show_default=False
        ),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
    quiet: QuietOption = False,
) -> None:
    """Say where quantization loses accuracy: which layer, and whether by its weights or by its result.

    Each layer is quantized alone and compared with the float network at the
    output; the whole network, its weights and its activations alone are measured
    at every layer. One to two minutes for PicoSAM2.

    [b]Example:[/b]  picosam2 sensitivity out/picosam2 --plot layers.svg
    """
    from compiler.inspection.held_out import held_out_pictures
    from compiler.inspection.opened_package import open_package
    from compiler.inspection.sensitivity import measure_sensitivity
    from compiler.inspection.sensitivity_report import plot, table
    from compiler.progress import Counting
    from passes.files import write_beside

    _require_place("--plot", plot_file)
    opened = open_package(package)
    pictures, how = held_out_pictures(opened, data, seed)
    with Counting("sensitivity", quiet=quiet) as count:
        found = measure_sensitivity(
            opened.model, opened.float_model, pictures, name=opened.name, source=how, progress=count
        )
    if plot_file is not None:
        write_beside(plot_file, plot(found).encode())
    if output_format is OutputFormat.JSON:
        typer.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    Console(file=sys.stdout).print(table(found))


def _require_place(option: str, path: Path | None) -> None:
    """The folder of a result exists: said before the work, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(option, f"{path.parent} is no folder", "a folder that exists", "make it first")


def _prompt(point: str | None, box: str | None) -> Prompt:
    from compiler.inspection.prompts import Prompt, parse_numbers

    if point is not None and box is not None:
        raise InputError("--point and --box", "both", "one of them", "drop one")
    if point is not None:
        return Prompt(point=parse_numbers("--point", point, "x,y"))
    return Prompt() if box is None else Prompt(box=parse_numbers("--box", box, "x0,y0,x1,y1"))


def _inputs(
    opened: OpenedPackage, data: str, count: int, picture: Path | None, prompt: Prompt
) -> Mapping[str, NDArray[Any]]:
    """The graph's inputs by name: a crop of the picture, or held-out pictures."""
    from compiler.inspection.differences import named_inputs
    from compiler.inspection.held_out import held_out_pictures

    if picture is None:
        arrays: Sequence[NDArray[Any]] = [one[:count] for one in held_out_pictures(opened, data)[0]]
    else:
        from compiler.inspection.simulating import cut, mask_output, plan, read_upright
        from student.evaluate import network_input

        mask_output(opened)
        (job,) = plan(opened, [picture], prompt=prompt)
        pixels, _ = cut(job, read_upright(picture))
        arrays = [network_input(pixels.transpose(2, 0, 1)[None], opened.loaded.contract)]
    return named_inputs(opened, arrays)


def _same(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    from numpy import array_equal

    return all(array_equal(one[name], other[name]) for name in one)


def _print_differences(found: Differences) -> None:
    from rich.console import Console

    from compiler.inspection.difference_report import table, verdict

    console = Console(file=sys.stdout)
    if found.first_differing is not None:
        console.print(table(found))
    for line in verdict(found):
        console.print(line, markup=False, highlight=False)
