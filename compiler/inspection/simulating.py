"""`picosam2 simulate`: what the int8 network finds where a person points, drawn on the picture.

The crop is cut by the same code as in training and scoring (`student.crops`), the network runs in the integer
simulator, and the mask goes back to its place in the picture. Every prompt and every picture's header is
checked before the first picture runs; files appear when all of them are made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from compiler.inspection.engines import Engine, numerics_of, open_engine
from compiler.inspection.mask_output import MaskOutput, mask_outputs
from compiler.inspection.opened_package import OpenedPackage, trained_protocol
from compiler.inspection.prompts import Prompt, evidence, read_prompts, require_inside
from compiler.simulator.reference import IntegerTensor
from passes.contract import InputContract
from passes.errors import InputError
from passes.graph import real_inputs, unique_name
from student.crops import (
    POINT_NATIVE_96,
    PROTOCOLS,
    ROI_PAD10,
    Mask,
    Pixels,
    Protocol,
    bounding_box,
    crop,
    named_protocol,
    shown,
)
from student.instances import load_folder
from student.picture_grid import PREDICTED, outline

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
"""Version of simulation.json."""

RESULTS = "simulation.json"

BATCH = 16
"""Crops the network sees at a time."""

CENTRE = Prompt()
"""The prompt where none is given."""

TINT = 0.45
"""How much of the mask's colour covers the picture inside the mask."""

_QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Job:
    """One prompt on one picture.

    Attributes:
        path: the picture.
        size: its width and height, upright.
        prompt: in pixels of the upright picture.
        protocol: the rule its crop is cut by.
        stem: how its files are called.
    """

    path: Path
    size: tuple[int, int]
    prompt: Prompt
    protocol: Protocol
    stem: str


@dataclass(frozen=True)
class Found:
    """What the network says of one job.

    Attributes:
        rectangle: top, left, height and width of the part of the picture that fills the crop.
        mask: bool [H, W], in the picture.
        in_crop: bool [S, S], as the network put it out.
        logits: the network's integers [S, S].
        score: mean probability inside the mask, 0 where it is empty (as `picosam2 evaluate` ranks masks).
    """

    rectangle: tuple[int, int, int, int]
    mask: Mask
    in_crop: Mask
    logits: IntegerTensor
    score: float


# What is to be done


def plan(
    package: OpenedPackage,
    pictures: Sequence[Path],
    *,
    prompt: Prompt = CENTRE,
    prompts: Path | None = None,
    protocol: str | None = None,
) -> list[Job]:
    """Every job, checked.

    Args:
        pictures: files, and folders whose pictures are meant.
        prompt: for every picture, where `prompts` is None.
        prompts: a file of prompts (`prompts.read_prompts`). Only the pictures it names are run; it
            names them by file name, or by the path given where several have that name.
        protocol: a name in `student.crops.PROTOCOLS`. Default: what the checkpoint that the package was
            compiled from was trained under; where that is not known, roi-pad10 for a box and point-native-96
            for a point.

    Raises:
        InputError: pictures or prompts that cannot be read or do not fit, an unknown protocol, or a network
            whose input is not square.
    """
    if protocol is not None:
        named_protocol(protocol)
    named = _named_pictures(pictures)
    asked = [(name, prompt) for name in named] if prompts is None else read_prompts(prompts)
    rule = protocol or trained_protocol(package.manifest)
    sizes: dict[Path, tuple[int, int]] = {}
    jobs: list[Job] = []
    stems: set[str] = set()
    for name, one in asked:
        path = _matching(name, named, prompts)
        if path not in sizes:
            sizes[path] = upright_size(path)
        size = sizes[path]
        require_inside(one, path.name, *size)
        chosen = PROTOCOLS[rule] if rule else (POINT_NATIVE_96 if one.box is None else ROI_PAD10)
        chosen = _sized(chosen, package.loaded.contract, package.name)
        evidence(one, chosen, *size)
        jobs.append(Job(path, size, one, chosen, unique_name(path.stem, stems)))
    return jobs


def _named_pictures(pictures: Sequence[Path]) -> dict[str, Path]:
    """Every picture once, by what a file of prompts may call it: its name, its path where that is taken."""
    files: dict[Path, None] = {}
    for path in pictures:
        if path.is_dir():
            files.update(dict.fromkeys(record.path for record in load_folder(path).pictures))
        elif path.is_file():
            files[path] = None
        else:
            raise InputError(f"picture {path}", "does not exist", "a picture or a folder", "correct the path")
    found: dict[str, Path] = {}
    for path in files:
        found[path.name if path.name not in found else str(path)] = path
    return found


def _matching(name: str, named: Mapping[str, Path], prompts: Path | None) -> Path:
    if name in named:
        return named[name]
    raise InputError(
        f"--prompts {prompts}",
        f"names the picture {name!r}",
        f"one of the {len(named)} pictures given",
        "correct the name, or give the folder that holds it",
    )


def _sized(protocol: Protocol, contract: InputContract, name: str) -> Protocol:
    """The protocol at the size of the network's input."""
    if contract.height != contract.width:
        raise InputError(
            f"package {name}",
            f"an input of {contract.height}x{contract.width} pixels",
            "a square input: crops are square",
            "simulate a network that was made for prompts",
        )
    size = contract.height
    return dataclasses.replace(protocol, size=size, name=protocol.name.replace(str(protocol.size), str(size)))


# Pictures


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height from the header, turned as the camera says. Raises InputError for no picture."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
            width, height = image.size
    except _BROKEN as error:
        raise _unreadable(path) from error
    return (height, width) if turned else (width, height)


def read_upright(path: Path) -> Pixels:
    """RGB, uint8 [H, W, 3], turned as the camera says. Raises InputError for a broken picture."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except _BROKEN as error:
        raise _unreadable(path) from error


_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises."""


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"picture {path}",
        "cannot be read as a picture",
        "a whole file that Pillow opens (JPEG, PNG, WebP, BMP, ...)",
        "replace the file, or take it out",
    )


# Running


def cut(job: Job, picture: Pixels) -> tuple[Pixels, tuple[int, int, int, int]]:
    """The crop, uint8 [S, S, 3], and the rectangle of the picture that it shows (`student.crops.shown`)."""
    mask, box = evidence(job.prompt, job.protocol, *job.size)
    return crop(job.protocol, picture, mask, box)[0], shown(job.protocol, mask, box)


def simulated(
    package: OpenedPackage, jobs: Sequence[Job], engine: Engine
) -> Iterator[tuple[Job, Pixels, Found]]:
    """Each job with its picture and what was found, in order; pictures are decoded as they are needed.

    Raises:
        InputError: a network that is no segmenter of one picture, or a picture that breaks off.
    """
    from student.evaluate import network_input, paste

    output = mask_output(package)
    (given,) = real_inputs(package.model.graph)
    contract = package.loaded.contract
    path, picture = None, np.zeros((0, 0, 3), np.uint8)
    for start in range(0, len(jobs), BATCH):
        part = []
        for job in jobs[start : start + BATCH]:
            if job.path != path:
                path, picture = job.path, read_upright(job.path)
            part.append((job, picture, *cut(job, picture)))
        crops = np.stack([seen.transpose(2, 0, 1) for _, _, seen, _ in part])
        answer = engine({given.name or "": network_input(crops, contract)}, ())[output.name]
        for index, (job, shot, _, rectangle) in enumerate(part):
            logits = dataclasses.replace(answer, values=answer.values[index, 0])
            inside = logits.real() > output.level
            whole = paste(inside, np.array(rectangle), np.array(shot.shape[:2]))
            yield job, shot, Found(rectangle, whole, inside, logits, _score(logits, inside, output))


def mask_output(package: OpenedPackage) -> MaskOutput:
    """The output that is the mask.

    Raises InputError for a network with several inputs, or without exactly one map of its input's size.
    """
    contract, graph = package.loaded.contract, package.model.graph
    shape = (contract.height, contract.width)
    found = [
        one
        for one in mask_outputs(package.model)
        if tuple(next(v for v in graph.outputs if v.name == one.name).shape or ())[2:] == shape
    ]
    if len(found) == 1 and len(real_inputs(graph)) == 1:
        return found[0]
    raise InputError(
        f"package {package.name}",
        f"{len(real_inputs(graph))} inputs and {len(found)} maps of {shape[0]}x{shape[1]} as outputs",
        "one picture in, one mask of its size out",
        "simulate a package of a prompted segmenter such as PicoSAM2; `picosam2 diff` runs any network",
    )


def _score(logits: IntegerTensor, inside: Mask, output: MaskOutput) -> float:
    values = logits.real()[inside]
    if not values.size:
        return 0.0
    certain = values if output.level else 1.0 / (1.0 + np.exp(-values))
    return float(certain.mean())


# Results


def overlay(job: Job, picture: Pixels, found: Found) -> Pixels:
    """The picture with the mask tinted and outlined, the crop's frame, and the prompt: uint8 [H, W, 3]."""
    height, width = picture.shape[:2]
    drawn = picture.astype(np.float32)
    drawn[found.mask] += TINT * (np.array(PREDICTED, np.float32) - drawn[found.mask])
    canvas = Image.fromarray(np.rint(drawn).astype(np.uint8))
    line = max(1, round(min(height, width) / 240))
    edge = _thick(outline(found.mask), line)
    canvas.paste((255, 255, 255), mask=Image.fromarray(_thick(edge, line + 1)))
    canvas.paste(PREDICTED, mask=Image.fromarray(edge))
    draw = ImageDraw.Draw(canvas)
    top, left, high, wide = found.rectangle
    _framed(draw, (left, top, left + wide - 1, top + high - 1), line)
    if job.prompt.box is not None:
        x0, y0, x1, y1 = job.prompt.box
        _framed(draw, (round(x0), round(y0), round(x1) - 1, round(y1) - 1), line)
    x, y = job.prompt.pixel(width, height)
    reach = 4 * line + 2
    for colour, grown in (((0, 0, 0), line), ((255, 255, 255), 0)):
        draw.line((x - reach - grown, y, x + reach + grown, y), colour, line + 2 * grown)
        draw.line((x, y - reach - grown, x, y + reach + grown), colour, line + 2 * grown)
    return np.asarray(canvas)


def _framed(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], line: int) -> None:
    """A white frame in a black one, seen on every ground."""
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline=(0, 0, 0), width=line)
    draw.rectangle(box, outline=(255, 255, 255), width=line)


def _thick(edge: NDArray[np.bool_], line: int) -> NDArray[np.bool_]:
    """The pixels within `line` - 1 steps of a pixel that is set."""
    for _ in range(line - 1):
        padded = np.pad(edge, 1)
        edge = (
            padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        )
    return edge


def record(job: Job, found: Found) -> dict[str, Any]:
    """The mask in numbers, in pixels of the picture; boxes are x0, y0, x1, y1 with the far edges excluded."""
    width, height = job.size
    top, left, high, wide = found.rectangle
    column, row = job.prompt.pixel(width, height)
    pixels, rows, columns = int(found.mask.sum()), *np.nonzero(found.mask)
    box = bounding_box(found.mask) if pixels else None
    border = np.concatenate([found.in_crop[0], found.in_crop[-1], found.in_crop[:, 0], found.in_crop[:, -1]])
    grid = found.logits
    lowest = -(1 << (grid.bits - 1)) if grid.signed else 0
    ends = (grid.values == lowest) | (grid.values == lowest + (1 << grid.bits) - 1)
    return {
        "picture": job.path.name,
        "width": width,
        "height": height,
        "prompt": job.prompt.to_json() if job.prompt != CENTRE else {"point": [column, row]},
        "protocol": job.protocol.name,
        "crop": {"left": left, "top": top, "width": wide, "height": high},
        "mask": {
            "pixels": pixels,
            "share_of_picture": round(pixels / found.mask.size, 6),
            "share_of_crop": round(float(found.in_crop.mean()), 6),
            "box": None if box is None else [box[0], box[1], box[0] + box[2], box[1] + box[3]],
            "centre": [round(float(columns.mean()), 1), round(float(rows.mean()), 1)] if pixels else None,
            "holds_prompt": bool(found.mask[row, column]),
            "reaches_crop_edge": bool(border.any()),
            "score": round(found.score, 4),
        },
        "output": {
            "lowest": int(grid.values.min()),
            "highest": int(grid.values.max()),
            "step": float(grid.step),
            "saturated_share": round(float(ends.mean()), 6),
        },
        "files": {"overlay": f"{job.stem}.overlay.png", "mask": f"{job.stem}.mask.png"},
    }


def results_table(content: Mapping[str, Any]) -> Table:
    """The terminal's table of what `simulate` returns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{content['package']}, int8, {content['engine']} engine", box=SIMPLE_HEAD)
    table.add_column("picture", overflow="fold")
    table.add_column("prompt")
    for heading in ("mask\npixels", "of the\ncrop", "score", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in content["results"]:
        mask = one["mask"]
        remark = "" if mask["holds_prompt"] else "misses the prompt"
        (kind, numbers), *_ = one["prompt"].items()
        table.add_row(
            Text(one["picture"]),
            f"{kind} {','.join(format(number, 'g') for number in numbers)}",
            str(mask["pixels"]),
            f"{mask['share_of_crop']:.1%}",
            f"{mask['score']:.2f}",
            "empty" if not mask["pixels"] else "leaves the crop" if mask["reaches_crop_edge"] else remark,
        )
    return table


def simulate(
    package: OpenedPackage,
    jobs: Sequence[Job],
    out: Path,
    *,
    engine: str = "fast",
    on_progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> dict[str, Any]:
    """Runs all jobs and writes an overlay and a mask for each and `RESULTS` into the folder `out`.

    Files of other names in `out` are left alone. Nothing is written where a picture fails.

    Returns:
        The content of `RESULTS`.

    Raises:
        InputError: as `plan`, `simulated` and `open_engine`, and where a result would replace a picture.
    """
    mask_output(package)
    names = [name for job in jobs for name in (f"{job.stem}.overlay.png", f"{job.stem}.mask.png")]
    taken = {(out / name).resolve() for name in names} & {job.path.resolve() for job in jobs}
    if taken:
        raise InputError(
            f"--out {out}", f"would replace the picture {min(taken)}", "another folder", "choose one"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}", "is a file", "a folder, or a free name", "choose another name")
    running = open_engine(engine, package.model)
    parent = out if out.is_dir() else out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".simulated.", suffix=".part", dir=parent))
    try:
        results = []
        for job, picture, found in simulated(package, jobs, running):
            Image.fromarray(overlay(job, picture, found)).save(beside / f"{job.stem}.overlay.png")
            Image.fromarray(found.mask.astype(np.uint8) * 255).save(beside / f"{job.stem}.mask.png")
            results.append(record(job, found))
            on_progress(len(results), len(jobs), job.path.name)
        content = {
            "schema": SCHEMA,
            "package": package.name,
            "model_sha256": package.loaded.sha256,
            "numerics": numerics_of(engine),
            "engine": engine,
            "results": results,
        }
        (beside / RESULTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        out.mkdir(exist_ok=True)
        for name in [*names, RESULTS]:
            os.replace(beside / name, out / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return content
