"""Simplify: constant folding and onnxsim's shape-preserving rewrites, with constants as initializers.

Batch norms are left to their own pass (`fold_batchnorm`), which also takes the cases that onnxsim leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from passes.errors import InputError, first_line
from passes.graph import STANDARD_DOMAINS, from_proto, to_proto
from passes.names import NameEverything

SKIPPED = (
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_preceding_mul_into_conv",
    "fuse_consecutive_mul",
)
"""Rewrites of onnxsim that the target does not want: the first flattens a rank-4 linear layer into the batch
axis, which is refused; the others move GELU's factor 0.5 into the next weights and hide the GELU."""


class Simplify(ir.passes.FunctionalPass):
    """onnxsim, then constants as initializers and names again (onnxsim makes nodes without names).

    Post-condition: no Constant, Identity or Dropout nodes, and every value has an inferred shape where ONNX
    can tell it.
    """

    def requires(self, model: ir.Model) -> None:
        foreign = sorted(
            f"{node.domain}::{node.op_type} ({node.name})"
            for node in model.graph
            if node.domain not in STANDARD_DOMAINS and node.op_identifier() not in model.functions
        )
        if foreign:
            raise InputError(
                "model",
                f"custom operators: {', '.join(foreign[:5])}" + (" ..." if len(foreign) > 5 else ""),
                "operators of the ONNX standard",
                "export without the custom operators, or replace them by standard ones",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        proto = to_proto(model)
        with _without_torch():
            import onnxsim
        try:
            simple, _ = onnxsim.simplify(
                proto,
                skip_fuse_bn=True,
                skipped_optimizers=list(SKIPPED),
                inline_functions=True,
                certify=False,
            )
        except Exception as error:  # onnxsim raises the C++ kinds of several libraries
            raise InputError(
                "model",
                f"cannot be simplified: {first_line(error)}",
                "a graph that onnx.checker accepts",
                "run onnx.checker.check_model on it and export it again",
            ) from error
        simple.producer_name, simple.producer_version = proto.producer_name, proto.producer_version
        del simple.metadata_props[:]
        simple.metadata_props.extend(proto.metadata_props)
        result = from_proto(onnx.shape_inference.infer_shapes(simple, data_prop=True))
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
        common.IdentityEliminationPass()(result)
        NameEverything()(result)
        return ir.passes.PassResult(result, modified=True)

    def ensures(self, model: ir.Model) -> None:
        left = [node.name for node in model.graph if node.op_type == "Constant"]
        if left:
            raise ir.passes.PostconditionError(f"constants that are no initializers: {left}")


@contextmanager
def _without_torch() -> Iterator[None]:
    """Import onnxsim without the torch bridges it offers.

    They are optional to onnxsim but cost 1.4 s of the 1.2 s that `check` may take; None in sys.modules is
    how Python spells "not importable". Where torch is loaded already there is nothing to gain.
    """
    if "torch" in sys.modules or "onnxsim" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
