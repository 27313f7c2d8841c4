"""Simplify: constant folding and onnxsim's shape-preserving rewrites, with constants as initializers.

Batch norms are left to their own pass (`fold_batchnorm`), which also takes the cases that onnxsim leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from passes.errors import InputError, first_line
from passes.graph import STANDARD_DOMAINS, from_proto, message_name, to_proto
from passes.light_imports import bare_package, light_imports
from passes.names import NameEverything

SKIPPED = (
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_preceding_mul_into_conv",
    "fuse_consecutive_mul",
    "eliminate_nop_reduce",
    "fuse_qkv",
)
"""Rewrites of onnxsim that the target does not want: the first flattens a rank-4 linear layer into the batch
axis, which is refused; the next two move GELU's factor 0.5 into the next weights and hide the GELU; the
fourth makes a Squeeze of the batch of a reduction over it, which MCT exports as If; the last joins the linear
layers of several modules into one without a name."""

FUSE_PAD = ("fuse_pad_into_conv", "fuse_pad_into_pool")
"""Left out where they make more padding than the target takes (a Pad alone it takes whatever its size)."""


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
                message_name(model),
                f"custom operators: {', '.join(foreign[:5])}" + (" ..." if len(foreign) > 5 else ""),
                "operators of the ONNX standard",
                "export without the custom operators, or replace them by standard ones",
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        proto = to_proto(model)
        simple = _simplified(message_name(model), proto, SKIPPED)
        padded = _overpadded(simple)
        if padded and padded - _overpadded(proto):
            simple = _simplified(message_name(model), proto, (*SKIPPED, *FUSE_PAD))
        simple.producer_name, simple.producer_version = proto.producer_name, proto.producer_version
        del simple.metadata_props[:]
        simple.metadata_props.extend(proto.metadata_props)
        result = from_proto(onnx.shape_inference.infer_shapes(simple, data_prop=True))
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
        common.IdentityEliminationPass()(result)
        _keep_metadata(model.graph, result.graph)
        NameEverything()(result)
        return ir.passes.PassResult(result, modified=True)

    def ensures(self, model: ir.Model) -> None:
        left = [node.name for node in model.graph if node.op_type == "Constant"]
        if left:
            raise ir.passes.PostconditionError(f"constants that are no initializers: {left}")


@cache
def _simplifier() -> Callable[..., tuple[onnx.ModelProto, bool]]:
    """onnxsim's `simplify`, loaded at its first use."""
    with light_imports(), bare_package("onnxsim"):
        from onnxsim.onnx_simplifier import simplify
    found: Callable[..., tuple[onnx.ModelProto, bool]] = simplify
    return found


def _simplified(named: str, proto: onnx.ModelProto, skipped: Sequence[str]) -> onnx.ModelProto:
    simplify = _simplifier()
    try:
        simple = simplify(
            proto,
            skip_fuse_bn=True,
            skipped_optimizers=list(skipped),
            inline_functions=bool(proto.functions),
            certify=False,
            import_custom_schemas=False,
        )[0]
    except Exception as error:  # onnxsim raises the C++ kinds of several libraries
        raise InputError(
            named,
            f"cannot be simplified: {first_line(error)}",
            "a graph that onnx.checker accepts",
            "run onnx.checker.check_model on it and export it again",
        ) from error
    return simple


def _overpadded(proto: onnx.ModelProto) -> set[str]:
    """Names of the convolutions with even padding that reaches the effective kernel, (k - 1) d + 1, and of
    the pools whose padding is above half the kernel."""
    found, weights = set(), {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "MaxPool", "AveragePool"):
            continue
        given = {attribute.name: attribute.ints for attribute in node.attribute}
        kernel = given.get("kernel_shape") or weights.get(node.input[1], ())[2:]
        axes, pads = len(kernel), given.get("pads", ())
        if len(pads) != 2 * axes:
            continue
        if node.op_type == "Conv":
            dilations = given.get("dilations") or [1] * axes
            even = pads[:axes] == pads[axes:]
            sides = zip(pads[:axes], kernel, dilations, strict=True)
            too_much = even and any(pad >= (k - 1) * dilation + 1 for pad, k, dilation in sides)
        else:
            too_much = any(2 * pad > k for pad, k in zip(pads, [*kernel, *kernel], strict=True))
        if too_much:
            found.add(node.name)
    return found


def _keep_metadata(before: ir.Graph, after: ir.Graph) -> None:
    """onnxsim drops what nodes carry (module path, source line) and keeps their names."""
    carried = {node.name: node.metadata_props for node in before if node.name}
    for node in after:
        node.metadata_props.update(carried.get(node.name or "", {}))
