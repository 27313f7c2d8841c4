"""Recipes: overrides by name, and mistakes that name the setting."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from passes.errors import InputError
from student.augment import ROI
from student.recipe import Recipe, changed, make_recipe, recipe_json


def test_options_and_overrides() -> None:
    recipe = make_recipe(
        {"steps": 7, "seed": None}, ["ema=0.5", "select=false", "augmentation.scale=0.1", "steps=9"]
    )
    assert (recipe.steps, recipe.seed, recipe.ema, recipe.select) == (9, 0, 0.5, False)
    assert recipe.augmentation.scale == 0.1


def test_the_protocol_brings_its_augmentation() -> None:
    assert make_recipe({"protocol": "roi-pad10"}).augmentation == ROI
    assert make_recipe({}, ["protocol=roi-pad10"]).augmentation == ROI


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        ({}, ["ema"], "no '='"),
        ({}, ["emma=1"], "no such setting"),
        ({}, ["augmentation.zoom=1"], "no such setting"),
        ({}, ["steps=many"], "a value of type int"),
        ({}, ["select=perhaps"], "a value of type bool"),
        ({"network": "unet"}, [], "one of picosam2, picosam3"),
        ({"protocol": "point-native-96-clip"}, [], "a protocol that pads"),
        ({"steps": 0}, [], "recipe, steps"),
        ({}, ["ema=1.5"], "0 to 1"),
        ({}, ["learning_rate=nan"], "recipe, learning_rate"),
    ],
)
def test_mistakes_name_the_setting(options: dict[str, object], overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(options, overrides)


def test_what_changed() -> None:
    kept = json.loads(recipe_json(Recipe()))
    assert kept == asdict(Recipe())
    assert changed(Recipe(), kept) == []
    gone = json.loads(recipe_json(Recipe()))
    gone["augmentation"]["removed since"] = 1
    assert changed(Recipe(), gone) == ["augmentation.removed since 1, here None"]
    assert changed(make_recipe({"seed": 3}, ["augmentation.grey=0.5"]), kept) == [
        "seed 0, here 3",
        f"augmentation.grey {kept['augmentation']['grey']}, here 0.5",
    ]
