"""Start-up: the graph libraries without the heavy packages that they import and this project does not use.

Measured on one busy core: onnx_ir loads sympy for symbolic dimensions (0.3 s), onnxsim loads torch and rich
for bridges and tables of its own (1.4 s and 0.1 s). onnxsim asks for each with `try: import`, and onnx_ir
touches sympy in the arithmetic of symbolic dimensions alone. A graph with fixed sizes has none. onnxsim's
`__init__` re-exports 140 modules of other tools, which takes as long as the simplifier itself (0.08 s), and
its simplifier takes the types of two arguments from 50,000 lines of pruning (0.05 s), which it never calls,
and loads onnxruntime (0.02 s), which it needs for the constants of a graph alone.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

UNUSED = ("torch", "rich")
"""Optional imports of onnxsim; None in sys.modules is how Python spells "not importable"."""

DEFERRED = ("sympy", "onnxsim.pruning", "onnxruntime")
"""Loaded when something of them is first used: onnxsim's simplifier only names two types of the second, and
runs the third where a graph has constants to fold. One that is not installed is not deferred: onnxsim folds
constants without onnxruntime too, where its import says so at once."""


def installed(name: str) -> bool:
    """A package of this name can be imported, loaded or not."""
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a finder of somebody else's; None in sys.modules
        return False


class DeferredModule(ModuleType):
    """Stands for a module until something of it is used, and is then that module.

    While others are imported it hands out functions that look up the real one when they are called (a module
    may keep them in a table); afterwards every attribute is the real module's own.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.importing = True

    def __getattr__(self, name: str) -> Any:
        if not self.importing:
            return self._real(name)
        if name.startswith("__"):  # asked by the import system, not by the module's users
            raise AttributeError(name)
        return self._when_called(name)

    def _real(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]  # or the import below would find this stand-in
        return getattr(importlib.import_module(self.__name__), name)

    def _when_called(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            return self._real(name)(*arguments, **keywords)

        return call


@contextmanager
def light_imports() -> Iterator[None]:
    """Within it, imports find no torch and no rich, and what is DEFERRED is loaded when it is first used.

    Afterwards every import is as it was. A package that is loaded already stays: there is nothing to gain.
    Not for use beside other threads that import.
    """
    deferred = {
        name: DeferredModule(name)
        for name in DEFERRED
        if name not in sys.modules and installed(name.partition(".")[0])
    }
    changed: dict[str, Any] = {name: None for name in UNUSED if name not in sys.modules} | deferred
    sys.modules.update(changed)
    try:
        yield
    finally:
        for module in deferred.values():
            module.importing = False
        for name, stand_in in changed.items():
            if name in sys.modules and sys.modules[name] is stand_in:
                del sys.modules[name]


@contextmanager
def bare_package(name: str) -> Iterator[None]:
    """Within it, a module of the package is imported without running the package's `__init__`.

    For a package whose `__init__` only re-exports. Afterwards an import of the package itself runs it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        yield
        return
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def without_collector() -> Iterator[None]:
    """Python's cyclic garbage collector rests: for work of seconds whose memory is all in use to the end.

    With the libraries loaded, one collection takes 0.1 s and finds nothing. What was made meanwhile is old
    afterwards: it waits for a full collection, or the very next one would look through all of it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
            gc.enable()
