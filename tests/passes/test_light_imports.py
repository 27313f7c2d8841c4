"""Light imports: nothing heavy is loaded, and everything still works, symbolic dimensions included."""

from __future__ import annotations

import gc
import subprocess
import sys

from passes.light_imports import installed, light_imports, without_collector

CODE = """
import sys
from passes.light_imports import bare_package, light_imports
with light_imports(), bare_package("onnxsim"):
    import onnx_ir
    from onnxsim.onnx_simplifier import simplify
heavy = {"sympy", "torch", "rich", "onnxsim", "onnxsim.pruning", "onnxruntime"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
size = onnx_ir.SymbolicDim("max(N, 4)") * 2 + 1
assert size.evaluate({"N": 9}) == 19, size
import sympy, rich
assert isinstance(size._expr, sympy.Expr)
assert sympy.__version__
assert sympy is sys.modules["sympy"]
with light_imports():
    import sympy as again
    import onnxsim
assert again is sympy
with bare_package("onnxsim"):
    import onnxsim as once
assert once is onnxsim
assert onnxsim.simplify is simplify
import onnxsim.pruning
assert isinstance(onnxsim.pruning.EmbeddingPruningResult, type)
"""


def test_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_not_deferred(monkeypatch):
    """Or `try: import` would find a stand-in, and the program miss its back end in the middle of its work."""
    monkeypatch.setattr("passes.light_imports.DEFERRED", ("nowhere", "nowhere.part"))
    with light_imports():
        assert not {"nowhere", "nowhere.part"} & set(sys.modules)
    assert installed("numpy")
    assert not installed("nowhere")


def test_the_collector_rests_and_wakes():
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_was_made_meanwhile_is_not_looked_through_at_once():
    gc.collect()
    with without_collector():
        made = [[] for _ in range(50_000)]
    assert gc.isenabled()
    young = (*gc.get_objects(generation=0), *gc.get_objects(generation=1))
    assert sum(isinstance(one, list) for one in young) < 1_000
    assert len(made) == 50_000
