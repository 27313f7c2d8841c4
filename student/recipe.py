"""Everything that decides the result of a training run, besides the data."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from passes.errors import InputError
from student.augment import Augmentation, default_augmentation
from student.crops import PROTOCOLS

LOSSES = {
    "labels": "ours without the teacher: no distillation",
    "paper": "PicoSAM2's: a (MSE + Dice against the teacher) + (1 - a) (BCE + Dice against the annotation)",
    "soft": "ours: overlap with the annotation, and cross-entropy against a blend of annotation and teacher",
}
OVERLAPS = ("iou", "dice")
SIZES = {
    "data": "every annotated object counts the same",
    "coco": "small, medium and large objects count as in all of COCO, 41 : 34 : 24",
}
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    Attributes:
        network, protocol: names in NETWORKS and PROTOCOLS.
        steps, batch: number of optimizer steps and samples per step, all processes together.
        seed: of the initial weights and of every random choice.
        loss: a key of LOSSES.
        teacher_weight: `soft` loss: the largest share of the teacher in the blend (`losses.teacher_weight`).
        overlap: one of OVERLAPS, the soft measure in `soft` and `labels`.
        entropy_weight: of cross-entropy beside it.
        feature_weight: of the feature hints at the first step, falling linearly to 0; they are used where
            the teacher's embeddings are given.
        sizes: a key of SIZES.
        unlabelled_first, unlabelled_last: share of unlabelled samples at the first and last step, linear in
            between; they exist where the teacher cache holds unlabelled points.
        learning_rate: its peak; it rises linearly over `warmup` steps and falls to 0 as a cosine.
        weight_decay: of convolution kernels; batch norms and biases have none.
        ema: decay per step of the averaged weights, which are the ones scored and saved.
        gradient_norm: gradients with a larger L2 norm are scaled down to it.
        held_out: every `held_out`-th annotated picture is not trained on: it draws the curve and selects.
        points: how often in a run the held-out pictures are scored.
        select: save the weights of the best point of the curve instead of the last ones.
        precision: bf16 autocast, fp32, or auto: bf16 where the device multiplies bfloat16 in hardware.
        group: pictures that are used together before the next ones; about twice as many are in memory,
            1 MB each for COCO, 3.5 MB with feature hints.
        augmentation: see `augment.Augmentation`.
    """

    network: str = "picosam2"
    protocol: str = "point-native-96"
    steps: int = 8_000
    batch: int = 16
    seed: int = 0
    loss: str = "soft"
    teacher_weight: float = 0.5
    overlap: str = "iou"
    entropy_weight: float = 0.25
    feature_weight: float = 1.0
    sizes: str = "coco"
    unlabelled_first: float = 0.25
    unlabelled_last: float = 0.0
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    ema: float = 0.999
    gradient_norm: float = 5.0
    held_out: int = 25
    points: int = 20
    select: bool = True
    precision: str = "auto"
    group: int = 1024
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        from student.networks import NETWORKS

        for name, value, known in (
            ("network", self.network, NETWORKS),
            ("protocol", self.protocol, PROTOCOLS),
            ("loss", self.loss, LOSSES),
            ("precision", self.precision, PRECISIONS),
            ("sizes", self.sizes, SIZES),
            ("overlap", self.overlap, OVERLAPS),
        ):
            if value not in known:
                raise InputError(
                    f"recipe, {name}", repr(value), f"one of {', '.join(sorted(known))}", "correct it"
                )
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"recipe, {name}", f"{value:g}", f"{least:g} to {most:g}", "correct it")
        if PROTOCOLS[self.protocol].border == "clip":
            raise InputError(
                "recipe, protocol",
                repr(self.protocol),
                "a protocol that pads; clipped crops are for comparing with the authors",
                "train with point-native-96 (its augmentation clips some crops, see --set augmentation.clip)",
            )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("steps", 1, 1e9),
    ("batch", 1, 65_536),
    ("seed", 0, 2**63 - 1),
    ("teacher_weight", 0, 1),
    ("entropy_weight", 0, 100),
    ("feature_weight", 0, 100),
    ("unlabelled_first", 0, 1),
    ("unlabelled_last", 0, 1),
    ("learning_rate", 1e-9, 1),
    ("warmup", 0, 1e9),
    ("weight_decay", 0, 1),
    ("ema", 0, 1),
    ("gradient_norm", 1e-6, 1e6),
    ("held_out", 2, 1_000_000),
    ("points", 1, 10_000),
    ("group", 1, 1e9),
)


def make_recipe(chosen: dict[str, Any], overrides: typing.Sequence[str] = ()) -> Recipe:
    """A recipe from options (None: the default) and `name=value` overrides, which win.

    The augmentation's defaults are those of the protocol.

    Raises:
        InputError: an unknown name or a value of another type.
    """
    values = {name: value for name, value in chosen.items() if value is not None}
    light: dict[str, Any] = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"--set {override}", "no '='", "NAME=VALUE", "for instance --set ema=0.998")
        if name.startswith("augmentation."):
            light[name.removeprefix("augmentation.")] = _parsed(Augmentation, name, text)
        else:
            values[name] = _parsed(Recipe, name, text)
    protocol = PROTOCOLS.get(values.get("protocol", Recipe.protocol))
    augmentation = default_augmentation(protocol) if protocol else Augmentation()
    return Recipe(**values, augmentation=dataclasses.replace(augmentation, **light))


def _parsed(kind: type, name: str, text: str) -> Any:
    short = name.removeprefix("augmentation.")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind) if f.name != "augmentation"]
    if short not in names:
        raise InputError(f"--set {name}", "no such setting", ", ".join(names), "correct the name")
    try:
        if hints[short] is bool:
            return {"true": True, "false": False}[text.lower()]
        return hints[short](text)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"--set {name}", repr(text), f"a value of type {hints[short].__name__}", "correct the value"
        ) from error


def recipe_json(recipe: Recipe) -> str:
    """The recipe as JSON, in the order of its attributes."""
    return json.dumps(asdict(recipe), indent=2)


def changed(recipe: Recipe, kept: dict[str, Any]) -> list[str]:
    """The settings in which a recipe written by `asdict` differs: name, then what each says of it."""
    found = []
    for name, value in asdict(recipe).items():
        before = kept.get(name)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            inner = [key for key in {**before, **value} if before.get(key) != value.get(key)]
            found += [f"{name}.{key} {before.get(key)}, here {value.get(key)}" for key in inner]
        else:
            found.append(f"{name} {before}, here {value}")
    return found
