"""A search of the activations' thresholds with the exact simulator: what matters is what comes out.

MCT chooses each threshold by the squared error of its own tensor. Here one that is half or twice as large is
kept where it brings the network's outputs nearer to the float network's on the calibration crops.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.quantizing.ways import OnProgress
from compiler.quantizing.yardstick import Yardstick
from passes.graph import from_proto, is_activation_quantizer, real_inputs, to_proto

FACTORS = (0.5, 2.0)


def search_thresholds(quantized: ir.Model, yardstick: Yardstick, progress: OnProgress) -> ir.Model:
    """A copy with other power-of-two thresholds, after one pass; no worse on the yardstick's pictures.

    The quantizers of the inputs, and of what only moves their integers, have the sensor's step and stay.
    """
    best = from_proto(to_proto(quantized))
    least = yardstick.distance(best)
    names = _searchable(best.graph)
    for place, name in enumerate(names):
        progress(f"thresholds, distance {least:.3g}", place / len(names))
        for factor in FACTORS:
            tried = from_proto(to_proto(best))
            node = next(node for node in tried.graph if node.name == name)
            threshold = node.attributes["threshold"].as_float() * factor
            node.attributes["threshold"] = ir.AttrFloat32("threshold", threshold)
            distance = yardstick.distance(tried)
            if distance < least:
                best, least = tried, distance
                break
    return best


def _searchable(graph: ir.Graph) -> list[str]:
    """Activation quantizers of computed tensors, in graph order."""
    from calib.mct.input_steps import MOVING

    sensors, names = set(real_inputs(graph)), []
    for node in graph:
        moved = any(value in sensors for value in node.inputs if value is not None)
        if is_activation_quantizer(node) and not moved and "threshold" in node.attributes:
            names.append(node.name or "")
        elif moved and (is_activation_quantizer(node) or node.op_type in MOVING):
            sensors.update(node.outputs)
    return names
