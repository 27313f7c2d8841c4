"""Light imports: nothing heavy is loaded, and everything still works, symbolic dimensions included."""

from __future__ import annotations

import gc
import subprocess
import sys

from passes.light_imports import without_collector

CODE = """
import sys
from passes.light_imports import bare_package, light_imports
with light_imports(), bare_package("onnxsim"):
    import onnx_ir
    from onnxsim.onnx_simplifier import simplify
heavy = {"sympy", "torch", "rich", "onnxsim"}
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
"""


def test_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_collector_rests_and_wakes():
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
