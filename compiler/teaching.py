"""`picosam2 teach`: from options to a teacher cache, and what is said at its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from passes.errors import InputError
from student.teach import TeachSettings, teach
from student.teacher_cache import CacheHeader
from student.teachers import Sam2, Teacher


@dataclass(frozen=True)
class TeachOptions:
    """What the command line asked for.

    Attributes:
        data: `coco:DIR` or `lvis:DIR`; None for folders only.
        split: of the data set (`student.instances.load_instances`).
        folders: plain folders of pictures without annotations; they need `settings.points`.
        teacher: `onnx:DIR` or `sam2:DIR`.
        out: the cache's folder.
        settings: how many unlabelled points, which answers are kept.
        embeddings: where embeddings are kept for a later run; None keeps none.
        threads: cores used; 0 for all.
        device: `cpu` or `cuda`, for SAM 2.
        quiet: without progress.
    """

    data: str | None
    teacher: str
    out: Path
    split: str | None = None
    folders: tuple[Path, ...] = ()
    settings: TeachSettings = field(default_factory=TeachSettings)
    embeddings: Path | None = None
    threads: int = 0
    device: str = "cpu"
    quiet: bool = False


def open_teacher(name: str, threads: int = 0, device: str = "cpu") -> Teacher:
    """Opens a teacher by name.

    Args:
        name: `onnx:DIR` (encoder.onnx and sam.onnx) or `sam2:DIR` (Hugging Face's layout).
        threads: cores used; 0 for all.
        device: `cpu` or `cuda`; ONNX teachers run on the CPU.

    Raises:
        InputError: no such kind of teacher, or a folder that holds none.
    """
    from compiler.sam_onnx import SamOnnx

    kinds: dict[str, Callable[[Path], Teacher]] = {
        "onnx": lambda directory: SamOnnx(directory, threads),
        "sam2": lambda directory: _sam2(directory, threads, device),
    }
    kind, colon, directory = name.partition(":")
    if kind not in kinds or not colon or not directory:
        raise InputError(
            f"teacher {name!r}",
            "names no teacher",
            "onnx:DIR with encoder.onnx and sam.onnx, or sam2:DIR in Hugging Face's layout",
            "for instance --teacher onnx:/data/mobilesam",
        )
    return kinds[kind](Path(directory))


def run_teaching(options: TeachOptions) -> CacheHeader:
    """Makes or completes the cache and says what is in it.

    Raises:
        InputError: see `student.instances`, `student.teach` and `open_teacher`.
    """
    from compiler.progress import Counting
    from student.instances import load_folder, load_instances

    if options.folders and not options.settings.points:
        raise InputError(
            "--unlabelled",
            "pictures without annotations and no points",
            "at least 1 point a picture",
            "add --points 64",
        )
    sources = [] if options.data is None else [load_instances(options.data, options.split)]
    sources += [load_folder(folder) for folder in options.folders]
    teacher = open_teacher(options.teacher, options.threads, options.device)
    for source in sources:
        if source.boxes:
            print(
                f"warning: {source.name}: {source.boxes} boxes do not fit their masks, whose own are used",
                file=sys.stderr,
            )
    with Counting("teach", quiet=options.quiet) as count:
        header = teach(sources, teacher, options.out, options.settings, options.embeddings, on_progress=count)
    if header.broken:
        named = ", ".join(header.broken_names) + (", ..." if header.broken > len(header.broken_names) else "")
        print(f"warning: {header.broken} pictures are broken and were skipped: {named}", file=sys.stderr)
    size = sum(path.stat().st_size for path in options.out.glob("shard-*.bin"))
    print(
        f"{header.annotated} annotated and {header.unlabelled} unlabelled lessons of {len(header.pictures)} "
        f"pictures, {size / 1e6:.0f} MB, in {options.out}. "
        f"Next: {_next(options)}",
        file=sys.stderr,
    )
    return header


def _next(options: TeachOptions) -> str:
    """The training on what was taught, whole: it needs annotated pictures, whatever was taught."""
    from student.instances import training_split

    words = ["picosam2", "train", "--data", options.data or "coco:DIR"]
    if options.data and options.split not in (None, training_split(options.data)):
        words += ["--split", str(options.split)]
    for folder in options.folders:
        words += ["--unlabelled", str(folder)]
    words += ["--teacher-cache", str(options.out)]
    if options.embeddings is not None:
        words += ["--embeddings", str(options.embeddings)]
    return shlex.join([*words, "--out", "RUN"])


def _sam2(directory: Path, threads: int, device: str) -> Sam2:
    import torch

    if threads:
        torch.set_num_threads(threads)
    return Sam2(directory, device)
