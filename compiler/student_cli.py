"""The commands around the student: `teach`, `train`, `evaluate`. `compiler.cli` hangs them into the tree."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SRC",
        help="coco:DIR (DIR/annotations/instances_SPLIT.json and DIR/SPLIT/) or lvis:DIR.",
        show_default=False,
    ),
]
UnlabelledOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--unlabelled",
        metavar="FOLDER",
        help="Pictures without annotations, for the teacher alone. Repeatable.",
        show_default=False,
    ),
]
TrainingSplitOption = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="NAME", help="Default: train2017 for COCO, train for LVIS.", show_default=False
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="CPU threads. Default: torch's. Results depend on it.", show_default=False
    ),
]


def train_command(
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Run directory: checkpoint, card, TensorBoard logs, pictures, and the run's state. The same "
            "command again goes on where it stopped.",
            show_default=False,
        ),
    ],
    split: TrainingSplitOption = None,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Made by `picosam2 teach`. Without it the student learns from annotations alone.",
            show_default=False,
        ),
    ] = None,
    unlabelled: UnlabelledOption = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Kept by `picosam2 teach --embeddings DIR`: the student's features learn from these "
            "embeddings too (feature hints).",
            show_default=False,
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option(metavar="NAME", help="picosam2 or picosam3.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="NAME", help="point-native-96 or roi-pad10.", show_default=False)
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="soft (ours), paper (PicoSAM2's), labels (no distillation; the default without a cache).",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", show_default=False)] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Samples per step, all processes together.", show_default=False
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", show_default=False)] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start from this checkpoint's weights.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of the recipe, for instance --set ema=0.998 or "
            "--set augmentation.scale=0.2. Repeatable; see --show-recipe.",
            show_default=False,
        ),
    ] = None,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the recipe and stop.")] = False,
    threads: ThreadsOption = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that prepare samples.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="No GPU even where there is one.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a student on annotated pictures, with what a teacher said about them.

    Killed at any moment, the same command goes on and ends with the same weights. One GPU or the CPU as it
    is; several through `accelerate launch -m compiler.cli train ...` or torchrun.

    [b]Example:[/b]  picosam2 train --data coco:COCO_DIR --teacher-cache CACHE --out run1 --steps 8000
    """
    from compiler.training import TrainOptions, recipe_of, run_training
    from student.instances import training_split

    options = TrainOptions(
        data=data,
        split=split or training_split(data),
        out=out,
        unlabelled=tuple(unlabelled or ()),
        teacher_cache=teacher_cache,
        embeddings=embeddings,
        start_from=start_from,
        recipe={
            "network": network,
            "protocol": protocol,
            "loss": loss,
            "steps": steps,
            "batch": batch,
            "seed": seed,
        },
        overrides=tuple(overrides or ()),
        threads=threads,
        workers=workers,
        cpu=cpu,
        quiet=quiet,
    )
    if show_recipe:
        from student.recipe import recipe_json

        typer.echo(recipe_json(recipe_of(options)))
        return
    run_training(options)


def teach_command(
    teacher: Annotated[
        str,
        typer.Option(
            metavar="KIND:DIR",
            help="onnx:DIR with a SAM-family export (encoder.onnx, sam.onnx), or sam2:DIR with a SAM 2 / 2.1 "
            "checkpoint in Hugging Face's layout.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="The teacher cache. The same command again goes on where it stopped.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SRC",
            help="coco:DIR or lvis:DIR: every object is asked about.",
            show_default=False,
        ),
    ] = None,
    split: TrainingSplitOption = None,
    unlabelled: UnlabelledOption = None,
    points: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Also ask about N points of each picture, wherever they lie."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the points' places.")] = 0,
    min_predicted_iou: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="X", help="Points: keep masks the teacher expects to be this good."
        ),
    ] = 0.80,
    min_stability: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Points: keep masks this stable (SAM's score).")
    ] = 0.85,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the pictures' embeddings here (2 MB each), for a later run or for feature hints.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads; 0: all.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N, for sam2.")] = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Ask a teacher of the SAM family about every object, once, and keep its answers for `picosam2 train`.

    The teacher sees the whole picture and is asked with box and point; what it
    says is kept around each object, whatever protocol the student will use.

    [b]Example:[/b]  picosam2 teach --teacher onnx:mobilesam --data coco:COCO_DIR --points 24 --out cache
    """
    from compiler.teaching import TeachOptions, run_teaching
    from student.instances import training_split
    from student.teach import TeachSettings

    run_teaching(
        TeachOptions(
            data=data,
            teacher=teacher,
            out=out,
            split=split or (training_split(data) if data else None),
            folders=tuple(unlabelled or ()),
            settings=TeachSettings(
                points=points,
                seed=seed,
                minimum_predicted_iou=min_predicted_iou,
                minimum_stability=min_stability,
            ),
            embeddings=embeddings,
            threads=threads,
            device=device,
            quiet=quiet,
        )
    )


class EvaluationFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


def evaluate_command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint (.pt), an exported program (.pt2), a float or quantized .onnx, a package "
            "directory, or stored predictions (COCO RLE of the crops' masks, .json).",
            show_default=False,
        ),
    ],
    data: DataOption,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: val2017 for COCO.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="point-native-96; point-native-96-clip (the PicoSAM2 authors' border); roi-pad10. Default: "
            "what the model (or else --against) was trained on, where it says so, else point-native-96.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Also score this one, and the paired difference.", show_default=False
        ),
    ] = None,
    only: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Score only the instances this JSON file lists.", show_default=False
        ),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(
            metavar="SRC", help="Source of the baseline `mean training mask`: coco:DIR.", show_default=False
        ),
    ] = None,
    declared: Annotated[
        str | None,
        typer.Option("--input", metavar="HOW", help="As in `picosam2 compile`.", show_default=False),
    ] = None,
    float_graph: Annotated[
        bool, typer.Option("--float", help="Of a package directory: the float graph, not the int8 one.")
    ] = False,
    chip: Annotated[
        bool,
        typer.Option(
            "--chip",
            help="Of a package: also score the numbers of the compiled file, under every rounding it "
            "leaves open.",
        ),
    ] = False,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Crops at a time.")] = 16,
    threads: ThreadsOption = None,
    output_format: Annotated[
        EvaluationFormat, typer.Option("--format", help="text for people, json for programs (stdout).")
    ] = EvaluationFormat.TEXT,
    quiet: QuietOption = False,
) -> None:
    """Score anything that maps crops to masks: mIoU, success rate and COCO AP.

    Every figure has a 95 % bootstrap interval over pictures, and trivial baselines stand beside the model.

    [b]Example:[/b]  picosam2 evaluate student.pt --data coco:COCO_DIR --protocol roi-pad10
    """
    from compiler.evaluating import evaluate_model, tables
    from compiler.progress import Counting

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with Counting("evaluate", quiet=quiet) as count:
        result = evaluate_model(
            model,
            source=data,
            split=split,
            protocol=protocol,
            against=against,
            only=only,
            training=training,
            declared=declared,
            float_graph=float_graph,
            batch=batch,
            chip=chip,
            threads=threads,
            on_progress=count,
        )
    if output_format is EvaluationFormat.JSON:
        typer.echo(json.dumps(result.to_json(), indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console(file=sys.stdout)
    for table in tables(result):
        console.print(table)
    for note in result.notes:
        console.print(note, markup=False, highlight=False)
