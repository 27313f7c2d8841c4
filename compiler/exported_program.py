"""Reading a torch.export program (.pt2) without running anything from it.

torch.export.load trusts its file: it unpickles whole objects, evaluates the strings of symbolic sizes
(sympy's `sympify` is an eval), and resolves the name of every call below `torch`, `torch.os.system` included.
So the archive's JSON is looked at first: calls of ATen operators only and fixed sizes only; tensors are then
loaded as weights only. What is refused here could not be compiled for the chip either.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.errors import InputError, first_line

if TYPE_CHECKING:
    import torch

PROGRAM = "serialized_exported_program.json"
CALLS = re.compile(r"torch\.ops\.(aten|prims)\.(?!__)\w+(\.(?!__)\w+)?|_operator\.getitem")
"""Names a node may call: ATen and primitive operators, and taking one of several results."""


def load_program(path: Path) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The program as a module in inference form, and its example inputs.

    Raises InputError for symbolic sizes, for calls that are no ATen operator, for keyword inputs, and for
    files that torch cannot load.
    """
    _require_harmless(path)
    import torch

    try:
        with _weights_only():
            program = torch.export.load(path)
        arguments, keywords = program.example_inputs
        module = program.module()
    except Exception as error:  # torch.export raises its own kinds and pickle's
        raise InputError(
            f"model {path}",
            f"cannot be loaded as a torch.export program: {first_line(error)}",
            f"a program saved by torch {torch.__version__} with example inputs, tensors only",
            "torch.export.save(torch.export.export(model.eval(), (example,)), PATH)",
        ) from error
    if keywords:
        raise InputError(
            f"model {path}", f"takes keyword inputs {sorted(keywords)}", "positional inputs only", "wrap it"
        )
    return module, tuple(arguments)


def _require_harmless(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(PROGRAM))
            program = json.loads(archive.read(name))
        calls = sorted({target for target in _targets(program) if not CALLS.fullmatch(target)})
        symbolic = bool(program.get("range_constraints")) or _mentions(program, "expr_str")
    except (OSError, ValueError, RecursionError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"model {path}",
            f"is truncated or corrupt: {first_line(error)}",
            "a file written by torch.export.save",
            "save it again",
        ) from error
    if symbolic:
        raise InputError(
            f"model {path}",
            "has symbolic sizes (dynamic_shapes)",
            "fixed sizes and a batch of 1: the chip runs one picture at a time",
            "torch.export.export(model, (example,)) without dynamic_shapes",
        )
    if calls:
        raise InputError(
            f"model {path}",
            f"calls {', '.join(calls[:3])}",
            "ATen operators (torch.ops.aten) only: nothing else in a model file is run",
            "replace the call by standard torch operators and export again",
        )


def _dicts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in the tree."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _dicts(child)


def _targets(program: Any) -> Iterator[str]:
    """What the nodes of all graphs call."""
    for entry in _dicts(program):
        if "target" in entry and "inputs" in entry and "outputs" in entry:
            yield str(entry["target"])


def _mentions(program: Any, key: str) -> bool:
    return any(key in entry for entry in _dicts(program))


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch.export.load asks torch.load for whole objects; this switch of torch's own overrules it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
