"""What a user can ask of the quantization."""

from __future__ import annotations

import importlib.util

from passes.errors import EnvironmentFault, InputError

MCT_PTQ, MCT_GPTQ, BREVITAS_QAT = "mct-ptq", "mct-gptq", "brevitas-qat"
QUANTIZERS = (MCT_PTQ, MCT_GPTQ, BREVITAS_QAT)

MIXED = "mixed"
WEIGHT_BITS = ("8", "4", MIXED)

TRAINING_PICTURES = 512
"""Crops that training sees, and that the wider calibration draws from."""

DECIDING_PICTURES = 512
"""Crops that candidates are compared on; no candidate was fitted to them."""

SCORED_CROPS = 256
"""Crops with masks on which a compile without a search reports mIoU: some 3 seconds (measured)."""


DECIDING_PICTURES_LEAST = 8
"""Pictures from which an interval over pictures means something; --max-drop asks for as many."""


def require_brevitas(asked: str) -> None:
    """Raises EnvironmentFault where Brevitas is not installed; `asked` is the option that needs it."""
    if importlib.util.find_spec("brevitas") is None:
        raise EnvironmentFault(
            asked,
            "Brevitas is not installed",
            "the distribution brevitas",
            f"pip install -e . in the project's environment, or leave {asked} out",
        )


def require_consistent(
    quantizer: str, weight_bits: str, memory_target: int | None, max_drop: float | None
) -> None:
    """Raises InputError for values that mean nothing, or not together."""
    if quantizer == MCT_GPTQ and weight_bits == MIXED:
        raise InputError(
            f"--quantizer {MCT_GPTQ}",
            f"with --weight-bits {MIXED}",
            "one width for all layers",
            f"--quantizer {BREVITAS_QAT}, or --weight-bits 4",
        )
    if memory_target is not None and weight_bits != MIXED:
        raise InputError(
            "--memory-target",
            f"with --weight-bits {weight_bits}",
            f"--weight-bits {MIXED}: only then there are widths to choose",
            f"--weight-bits {MIXED}, or leave --memory-target out",
        )
    if memory_target is not None and memory_target < 1:
        raise InputError(
            "--memory-target", str(memory_target), "bytes above 0", "give the chip's 8388480 or less"
        )
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise InputError("--max-drop", str(max_drop), "points from 0 to 100", "for example --max-drop 0.5")
