"""The input quantizers of a graph that takes the sensor's integers: step 1, whatever MCT chose."""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx_ir as ir

from passes.contract import InputContract
from passes.graph import const_array, consumers

MOVING = ("Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that put integers elsewhere and leave them as they are."""


def fix_input_steps(quantized: ir.Model, contracts: Sequence[InputContract]) -> None:
    """Give each input the step 1 of the sensor's integers, whatever the range of the pictures was.

    So up to the first arithmetic: behind a frame of constants, a slice or a reshape they are the same.
    """
    for given, contract in zip(quantized.graph.inputs, contracts, strict=True):
        threshold = float(max(contract.highest + 1, -contract.lowest))
        integers, reached = {given}, [given]
        while reached:
            for node in consumers(reached.pop()):
                if node.op_type == "ActivationPOTQuantizer":
                    node.attributes["threshold"] = ir.AttrFloat32("threshold", threshold)
                    node.attributes["signed"] = ir.AttrInt64("signed", int(contract.signed))
                elif node.op_type not in MOVING or not _all_in_range(node, integers, contract):
                    continue
                reached += [value for value in node.outputs if value not in integers]
                integers.update(node.outputs)


def _all_in_range(node: ir.Node, integers: Set[ir.Value], contract: InputContract) -> bool:
    """Every tensor the node moves holds the sensor's integers, or constants of their range."""
    constants = (const_array(value) for value in node.inputs if value is not None and value not in integers)
    return all(
        array is not None
        and (array.dtype.kind != "f" or (array.min() >= contract.lowest and array.max() <= contract.highest))
        for array in constants
    )
