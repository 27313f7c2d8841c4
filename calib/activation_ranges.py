"""How large each channel of a tensor gets on representative pictures, and its mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from passes.errors import InputError
from passes.graph import static_shape, to_proto


def per_channel_ranges(
    model: ir.Model, pictures: Sequence[NDArray[np.float32]], names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """The largest magnitude of each channel of the named tensors over all positions of all pictures.

    The float network runs in onnxruntime, one picture at a time: memory does not grow with their number.

    Args:
        model: float graph with inferred shapes.
        pictures: for each input [N, C, H, W], the integers the sensor delivers
            (`calib.representative.delivered`); N is the same. Reshaped to the input's rank where it differs.
        names: tensors that nodes compute, with their channels on axis 1.

    Returns:
        Name -> max |x[:, c]|, float64 [C], in the order of `names`.

    Raises:
        InputError: a name the graph does not compute or whose rank is below 2, or values that are NaN or
            infinite.
    """
    largest: dict[str, NDArray[np.float64]] = {}
    for name, array in _computed(model, pictures, names):
        found = np.abs(array).max(axis=(0, *range(2, array.ndim))).astype(np.float64)
        largest[name] = np.maximum(largest[name], found) if name in largest else found
    return largest


def per_channel_means(
    model: ir.Model, pictures: Sequence[NDArray[np.float32]], names: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of the named tensors; all else as in `per_channel_ranges`."""
    sums: dict[str, NDArray[np.float64]] = {}
    for name, array in _computed(model, pictures, names):
        mean = array.mean(axis=(0, *range(2, array.ndim)), dtype=np.float64)
        sums[name] = sums.get(name, np.zeros_like(mean)) + mean
    return {name: total / len(pictures[0]) for name, total in sums.items()}


def _computed(
    model: ir.Model, pictures: Sequence[NDArray[np.float32]], names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every named tensor of every picture; raises what `per_channel_ranges` does."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        shape = static_shape(values.get(name))
        if shape is None or len(shape) < 2:
            raise InputError(
                f"tensor {name}",
                "the graph does not compute it" if name not in values else f"has shape {shape}",
                "a tensor that a node computes, with channels on axis 1",
                "correct the name",
            )
    if not names:
        return
    running = _with_outputs(model, names)
    for index in range(len(pictures[0])):
        feed = {
            given.name: one[index].reshape([1, *given.shape[1:]])
            for given, one in zip(running.get_inputs(), pictures, strict=True)
        }
        for name, array in zip(names, running.run(list(names), feed), strict=True):
            finite = np.isfinite(array).all(axis=(0, *range(2, array.ndim)))
            if not finite.all():
                raise InputError(
                    f"tensor {name}",
                    f"NaN or infinite in channel {int(np.argmin(finite))} on a picture",
                    "finite values",
                    "look for a division, root or exponential that leaves the range",
                )
            yield name, array


def _with_outputs(model: ir.Model, names: Sequence[str]) -> Any:
    """An onnxruntime session that puts out the named tensors too."""
    import onnxruntime

    proto = to_proto(model)
    there = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
