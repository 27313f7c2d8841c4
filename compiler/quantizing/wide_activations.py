"""16 bits for the few activations that need them, found with the exact simulator.

Where one tensor has both large and small values that matter, no 8-bit step fits it; the chip takes 16 bits
at some places (calib.wide_activations). Each costs runtime memory, so only those that bring the network's
outputs clearly nearer to the float network's are widened.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.quantizing.ways import OnProgress
from compiler.quantizing.yardstick import Yardstick
from passes.imx500.memory import forecast_memory

MOST = 3
"""Activations that are widened, at most."""

WORTH = 0.1
"""Share of the distance that a wide activation has to take away, 0..1."""


def widen_activations(
    quantized: ir.Model, yardstick: Yardstick, limit: int, persistency: bool, progress: OnProgress
) -> ir.Model:
    """A copy with up to MOST 16-bit activations, chosen one after the other; the graph where none helps.

    The outputs keep 8 bits, which is what the device's readers expect.

    Args:
        limit: bytes the network may need, as `picosam2 check` adds them up.
        persistency: the input stays in memory.
    """
    from calib.wide_activations import candidates, with_wide_activation

    outputs = {value.producer() for value in quantized.graph.outputs}
    ends = {node.name for node in outputs if node is not None}
    best, least = quantized, yardstick.distance(quantized)
    for number in range(MOST):
        names = [name for name in candidates(best) if name not in ends]
        tried = []
        for place, name in enumerate(names):
            progress(f"16-bit activations, distance {least:.3g}", (number + place / len(names)) / MOST)
            wide = with_wide_activation(best, name)
            if forecast_memory(wide, persistency).total_bytes <= limit:
                tried.append((yardstick.distance(wide), wide))
        nearest, wide = min(tried, key=lambda one: one[0], default=(least, best))
        if nearest > (1.0 - WORTH) * least:
            break
        best, least = wide, nearest
    return best
