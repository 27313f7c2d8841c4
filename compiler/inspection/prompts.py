"""Prompts for pictures: a point or a box in the picture's own pixels, from the command line or a file.

x runs to the right and y down, from 0 at the top left corner, as picture viewers show them. A box is
x0,y0,x1,y1 with the far edges excluded.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from passes.errors import InputError, first_line
from student.crops import Box, Mask, Protocol

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Prompt:
    """A point (x, y) or a box (x0, y0, x1, y1); neither: the centre of the picture."""

    point: Numbers | None = None
    box: Numbers | None = None

    def to_json(self) -> dict[str, Any]:
        if self.box is not None:
            return {"box": list(self.box)}
        return {"point": None if self.point is None else list(self.point)}

    def pixel(self, width: int, height: int) -> tuple[int, int]:
        """Column and row of the pixel that is meant: of a box and of a picture the middle one."""
        if self.point is not None:
            return math.floor(self.point[0]), math.floor(self.point[1])
        x0, y0, x1, y1 = self.box or (0, 0, width, height)
        return math.floor((x0 + x1 - 1) / 2), math.floor((y0 + y1 - 1) / 2)


def parse_numbers(option: str, text: str, names: str) -> Numbers:
    """`"30,40"` -> (30.0, 40.0). Raises InputError unless it is as many finite numbers as there are names."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(names.split(",")) or not all(math.isfinite(number) for number in numbers):
        raise InputError(
            option, repr(text), f"{names} in pixels of the picture", f"for instance {_EXAMPLE[names]}"
        )
    return numbers


_EXAMPLE = {"x,y": "--point 320,240", "x0,y0,x1,y1": "--box 250,180,400,330"}


def require_inside(prompt: Prompt, name: str, width: int, height: int) -> None:
    """Raises InputError for a prompt outside a picture, and for a box without extent."""
    if prompt.point is not None:
        x, y = prompt.point
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"point {x:g},{y:g} for {name}",
                "lies outside the picture",
                f"x in 0..{width - 1} and y in 0..{height - 1}; the picture is {width}x{height}",
                "give a point inside",
            )
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        said = f"box {x0:g},{y0:g},{x1:g},{y1:g} for {name}"
        if not (x0 < x1 and y0 < y1):
            raise InputError(said, "has no extent", "x0 < x1 and y0 < y1", "give left,top,right,bottom")
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            raise InputError(
                said,
                "leaves the picture",
                f"0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}",
                "give a box inside",
            )


def evidence(prompt: Prompt, protocol: Protocol, width: int, height: int) -> tuple[Mask, Box | None]:
    """The prompt as `student.crops.crop` takes one: a mask of one pixel, and left, top, width, height.

    Raises InputError for a protocol that goes by boxes and a prompt that has none.
    """
    if protocol.box_margin is not None and prompt.box is None:
        raise InputError(
            f"protocol {protocol.name}",
            "shows the part of the picture around a box, and there is none",
            "a box around the object",
            "give --box x0,y0,x1,y1, or --protocol point-native-96",
        )
    mask = np.zeros((height, width), np.bool_)
    column, row = prompt.pixel(width, height)
    mask[row, column] = True
    if prompt.box is None:
        return mask, None
    x0, y0, x1, y1 = prompt.box
    return mask, (x0, y0, x1 - x0, y1 - y0)


# Files of prompts


def read_prompts(path: Path) -> list[tuple[str, Prompt]]:
    """(picture, prompt) of every row of a CSV or JSON file.

    CSV has a header: picture,x,y or picture,x0,y0,x1,y1 or all of them, with empty cells. JSON is a list of
    {"picture": "a.jpg", "point": [x, y]} and {"picture": "a.jpg", "box": [x0, y0, x1, y1]}.

    Raises:
        InputError: a file that cannot be read, or a row that is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--prompts {path}",
            f"cannot be read ({first_line(error)})",
            "a CSV or JSON file",
            "correct the path",
        ) from error
    rows = _json_rows(path, text) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text)
    found = [_row(path, number, row) for number, row in rows]
    if not found:
        raise InputError(f"--prompts {path}", "no row", "at least one prompt", "add rows; see --help")
    return found


def _json_rows(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"--prompts {path}", f"no JSON ({error})", "a list of prompts", "correct it"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"--prompts {path}",
            f"a JSON {type(rows).__name__}",
            '[{"picture": "a.jpg", "point": [320, 240]}, ...]',
            "write a list of objects",
        )
    return list(enumerate(rows, start=1))


def _csv_rows(text: str) -> list[tuple[int, Mapping[str, Any]]]:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, cells in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        filled = {
            name.strip(): cell.strip() for name, cell in cells.items() if name and cell and cell.strip()
        }
        row: dict[str, Any] = {"picture": filled.get("picture")}
        for kind, names in (("point", ("x", "y")), ("box", ("x0", "y0", "x1", "y1"))):
            if any(name in filled for name in names):
                row[kind] = [filled.get(name) for name in names]
        rows.append((number, row))
    return rows


def _row(path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, Prompt]:
    picture, point, box = row.get("picture"), row.get("point"), row.get("box")
    if isinstance(picture, str) and picture and (point is None) != (box is None):
        numbers = _finite(point if box is None else box, 2 if box is None else 4)
        if numbers is not None:
            return picture, Prompt(point=numbers) if box is None else Prompt(box=numbers)
    raise InputError(
        f"--prompts {path}, row {number}",
        f"picture {picture!r}, point {point!r}, box {box!r}",
        "a picture and either a point x,y or a box x0,y0,x1,y1, in pixels",
        "correct the row; `picosam2 simulate --help` shows both forms",
    )


def _finite(values: Any, count: int) -> Numbers | None:
    try:
        numbers = tuple(float(value) for value in values) if isinstance(values, Sequence) else ()
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else None
