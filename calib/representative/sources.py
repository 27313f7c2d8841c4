"""Where pictures come from: the photographs in the wheels, and folders."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from passes.errors import EnvironmentFault, InputError

BUILTIN = "builtin"
COCO_PREFIX = "coco:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_PHOTOGRAPHS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "skimage",
        "data",
        (
            "astronaut.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "hubble_deep_field.jpg",
            "motorcycle_left.png",
            "rocket.jpg",
        ),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)
"""Package, folder in it, files. Photographs only: no drawings, textures or microscope slides; of the stereo
pair only the left picture, because both show the same scene."""

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class PictureFile:
    """A picture's name, relative to the folder or wheel, and where it lies."""

    name: str
    path: Path


def builtin_pictures() -> list[PictureFile]:
    """The photographs in the wheels; raises EnvironmentFault where a wheel is not installed."""
    files = []
    for package, folder, names in _PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)  # finds the folder without importing the package
        if spec is None or not spec.submodule_search_locations:
            distribution = _DISTRIBUTIONS[package]
            raise EnvironmentFault(
                f"calibration {BUILTIN}",
                f"{distribution} is not installed",
                "scikit-image and scikit-learn, whose photographs it crops",
                f"pip install {distribution}, or give a folder of pictures",
            )
        root = Path(spec.submodule_search_locations[0])
        files += [PictureFile(f"{package}/{folder}/{name}", root / folder / name) for name in names]
    return files


def builtin_text() -> str:
    versions = " and ".join(f"{name} {metadata.version(name)}" for name in _DISTRIBUTIONS.values())
    return f"the photographs shipped with {versions}"


def folder_pictures(folder: Path, what: str) -> list[PictureFile]:
    """The pictures in a folder and its sub-folders, in order of path; `what` they are for is in the errors.

    Raises:
        InputError: no folder, or no pictures in it.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(
            f"{what} {folder}", found, "a folder of pictures, coco:DIR or builtin", "correct the path"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(
            f"{what} {folder}",
            "no pictures in it",
            f"files ending in {', '.join(SUFFIXES)}",
            "give a folder with pictures, or builtin",
        )
    return [PictureFile(path.relative_to(folder).as_posix(), path) for path in paths]
