"""How far a quantized graph is from the float network, on the same pictures, by the exact simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.inspection.mask_output import mask_outputs
from passes import graph as graphs

SMALLEST = 1e-12
"""Keeps the division by the size of an output that is zero everywhere."""


class Yardstick:
    """The float network's outputs on some pictures.

    Attributes:
        pictures: for each input float32 [N, ...], the integers the sensor delivers.
        real: output name -> float32 [N, ...].
        levels: name of a mask output -> the value above which a pixel is mask.
    """

    def __init__(self, float_model: ir.Model, pictures: Sequence[NDArray[np.float32]]) -> None:
        """`float_model`: folded, batch 1 or symbolic; it runs in onnxruntime."""
        self.pictures = in_shape(float_model, pictures)
        self.real = _float_outputs(float_model, self.pictures)
        self.levels = {mask.name: mask.level for mask in mask_outputs(float_model)}

    def __len__(self) -> int:
        return len(self.pictures[0])

    def quantized(self, graph: ir.Model) -> dict[str, NDArray[np.float32]]:
        """The graph's outputs, exactly, in the float network's order.

        Raises what `compile_program` raises: InputError for what the simulator cannot execute.
        """
        from compiler.simulator.engine import compile_program

        program = compile_program(graph)
        found = program.run(dict(zip(program.inputs, self.pictures, strict=True)))
        return {name: found[name].real().astype(np.float32) for name in self.real}

    def distance(self, graph: ir.Model) -> float:
        """calib.qat.losses.distillation: smooth, 0 where all outputs are equal; what small changes move."""
        import torch

        from calib.qat.losses import distillation

        found = self.quantized(graph)
        given = [torch.from_numpy(found[name]) for name in self.real]
        return float(distillation(given, [torch.from_numpy(real) for real in self.real.values()]))

    def agreement(self, found: Mapping[str, NDArray[np.float32]]) -> tuple[NDArray[np.float64], bool]:
        """Of each picture 0..1, and whether 1 - agreement bounds the loss of accuracy.

        Mean IoU of the masks, or the share of equal winners; both distances obey the triangle inequality
        (Kosub 2019, arXiv 1612.02696, for IoU), so accuracy against any truth changes by at most
        1 - agreement. An output that is neither counts with the share of its power that is no noise, which
        bounds nothing. Of several outputs the one that agrees least counts.
        """
        from compiler.agreement import agreement_by_picture

        values, bounds = [], True
        for name, real in self.real.items():
            _, value = agreement_by_picture(real, found[name], self.levels.get(name, 0.0))
            bounds = bounds and value is not None
            values.append(_without_noise(real, found[name]) if value is None else value)
        least: NDArray[np.float64] = np.min(values, axis=0)
        return least, bounds


def _without_noise(real: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    axes = tuple(range(1, real.ndim))
    signal = np.square(real, dtype=np.float64).sum(axis=axes)
    noise = np.square(found.astype(np.float64) - real).sum(axis=axes)
    share: NDArray[np.float64] = np.maximum(0.0, 1.0 - noise / np.maximum(signal, SMALLEST))
    return share


def in_shape(model: ir.Model, pictures: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], ...]:
    """Each [N, C, H, W] in the shape of the graph's input of its place."""
    shaped = []
    for array, value in zip(pictures, model.graph.inputs, strict=True):
        shape = graphs.static_shape(value) or ()
        shaped.append(array.reshape(len(array), *(size for size in shape[1:] if size is not None)))
    return tuple(shaped)


def _float_outputs(
    model: ir.Model, pictures: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Every output on every picture, by name."""
    from compiler.agreement import session

    ran = session(model)
    inputs, names = [given.name for given in ran.get_inputs()], [out.name for out in ran.get_outputs()]
    rows = [
        ran.run(names, {name: array[index : index + 1] for name, array in zip(inputs, pictures, strict=True)})
        for index in range(len(pictures[0]))
    ]
    return {name: np.concatenate([row[column] for row in rows]) for column, name in enumerate(names)}
