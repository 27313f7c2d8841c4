"""Post-training quantization with MCT: float graph in, graph of the vendor's dialect out.

The float graph becomes a torch module (calib/importer), MCT chooses thresholds for its `imx500` target from
the representative pictures, its exporter writes the `mct_quantizers` dialect, and the float graph's names are
put back (calib/restore).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

import onnx_ir as ir

from calib.mct.listening import Progress
from calib.mct.run import PACKAGES, Task, quantize
from calib.representative import RepresentativeSet

PTQ_VERSION = "mct-ptq-1"
"""Part of the key under which a result is cached: change it when this room's code changes the result."""

PTQ_PACKAGES = PACKAGES
"""Distributions whose versions decide the result."""


def mct_ptq(
    model: ir.Model,
    representative: RepresentativeSet | Sequence[RepresentativeSet],
    *,
    seed: int,
    bits: int = 8,
    progress: Progress,
    log: TextIO | None = None,
) -> ir.Model:
    """Quantize a float graph that takes the sensor's integers.

    Args:
        model: named and simplified, batch 1 or symbolic. It is not changed.
        representative: one set, or one per graph input; as many pictures in each.
        seed: for Python's, NumPy's and torch's generators, which MCT may draw from.
        bits: of the weights: 8, 4 or 2. Convolutions of at most 3 input channels keep 8, because the chip
            stores them so (calib.widths.stored_narrow).
        progress: see calib.mct.listening.Progress.
        log: everything MCT prints goes there; nothing goes to stdout or stderr.

    Returns:
        A graph in the `mct_quantizers` dialect with the float graph's names, inputs, outputs and metadata;
        each input passes its integers through unchanged (quantizer step 1). The same arguments give the same
        bytes.

    Raises:
        TargetViolation: an operator the importer does not know, or MCT refuses the network; with the node's
            name where it is known.
        InputError: the pictures do not fit the inputs, or there are no weights of so many bits.
        EnvironmentFault: MCT is not installed.
    """
    return quantize(model, representative, _post_training, seed=seed, bits=bits, progress=progress, log=log)


def _post_training(task: Task) -> Any:
    import model_compression_toolkit as mct

    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        task.module,
        task.statistics,
        core_config=task.config,
        target_platform_capabilities=task.capabilities,
    )
    return quantized
