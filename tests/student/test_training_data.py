"""The split by picture, and pictures that must not be in both parts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from passes.errors import InputError
from student.instances import load_folder, load_instances
from student.recipe import Recipe
from student.training_data import training_data

RECIPE = Recipe(loss="labels", held_out=3)


def test_held_out_pictures_are_not_trained_on(synthetic_coco: Path) -> None:
    recipe = RECIPE
    split = training_data(recipe, load_instances(f"coco:{synthetic_coco}", "train2017"))
    assert set(split.held_out.picture_ids.tolist()) == {1, 4}
    assert {record.id for record in split.records} == {2, 3, 5, 6}
    assert (split.crowds, split.empty) == (1, 1)


def test_training_needs_two_pictures_and_distillation_a_cache(synthetic_coco: Path) -> None:
    whole = load_instances(f"coco:{synthetic_coco}", "train2017")
    with pytest.raises(InputError, match="two or more"):
        training_data(RECIPE, replace(whole, pictures=whole.pictures[:1]))
    with pytest.raises(InputError, match="no teacher cache"):
        training_data(replace(RECIPE, loss="soft"), whole)


def test_pictures_known_already_are_left_out_of_folders(synthetic_coco: Path, tmp_path: Path) -> None:
    """The annotated folder itself, and a copy of a held-out picture under another name."""
    whole = load_instances(f"coco:{synthetic_coco}", "train2017")
    other = tmp_path / "web"
    other.mkdir()
    shutil.copy(whole.pictures[0].path, other / "copy.png")
    shutil.copy(whole.pictures[1].path, other / "of_training.png")
    folders = [load_folder(synthetic_coco / "train2017"), load_folder(other)]
    split = training_data(RECIPE, whole, folders)
    assert split.held_out.picture_ids.tolist() == [1, 1, 4, 4]
    added = [record.path.name for record in split.records if record.id == -1]
    assert added == ["of_training.png"]
    assert len(split.left_out) == 7


def test_a_broken_held_out_picture_is_left_out(synthetic_coco: Path) -> None:
    whole = load_instances(f"coco:{synthetic_coco}", "train2017")
    whole.pictures[0].path.write_bytes(whole.pictures[0].path.read_bytes()[:300])
    split = training_data(RECIPE, whole)
    assert set(split.held_out.picture_ids.tolist()) == {4}
    assert split.left_out == (whole.pictures[0].key,)


def test_the_digest_names_the_data(synthetic_coco: Path) -> None:
    whole = load_instances(f"coco:{synthetic_coco}", "train2017")
    digest = training_data(RECIPE, whole).digest
    assert digest == training_data(RECIPE, whole).digest
    assert digest != training_data(replace(RECIPE, held_out=2), whole).digest
    assert digest != training_data(RECIPE, replace(whole, pictures=whole.pictures[1:])).digest
