"""Gradient-based post-training quantization with MCT: whether a weight is rounded up or down is learned.

As calib.ptq, with quantizers at the same places. Then MCT compares the output of every convolution and linear
layer with the float network's on the representative pictures and learns, by gradient descent, each weight's
direction of rounding (AdaRound: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization",
2020) and the biases. No weight ends more than one step from where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import onnx_ir as ir

from calib.mct.listening import Progress
from calib.mct.run import Task, quantize
from calib.representative import RepresentativeSet
from passes.errors import InputError

GPTQ_VERSION = "mct-gptq-1"
"""Part of the key under which a result is cached: change it when this room's code changes the result."""

PHASE = "running gptq optimization"
"""As MCT's own bar is called."""


@dataclass(frozen=True)
class _Settings:
    """Checked settings of a run.

    Attributes:
        epochs: passes over the pictures, at least 1.
        rate: Adam's learning rate for the directions of rounding, in the argument of their sigmoid; above 0.
        decide: how much an undecided weight costs; above 0.
    """

    epochs: int
    rate: float
    decide: float

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError("mct-gptq", f"{self.epochs} epochs", "at least 1", "use mct-ptq for none")
        for name, value in (("rate", self.rate), ("decide", self.decide)):
            if not (math.isfinite(value) and value > 0):
                raise InputError("mct-gptq", f"{name} {value}", "a finite number above 0", "raise it")


def mct_gptq(
    model: ir.Model,
    representative: RepresentativeSet | Sequence[RepresentativeSet],
    *,
    seed: int,
    epochs: int = 30,
    rate: float = 0.1,
    decide: float = 3e-3,
    bits: int = 8,
    progress: Progress,
    log: TextIO | None = None,
) -> ir.Model:
    """Quantize a float graph that takes the sensor's integers, and learn how its weights are rounded.

    A run that is killed starts over: MCT keeps no state. The order of torch's float sums, and so the result,
    depends on its number of threads and on the processor's vector instructions. The process keeps its freed
    memory from here on (student.allocator).

    Args:
        model: as for calib.ptq.mct_ptq; it is not changed.
        representative: as there; every picture is learned from in each epoch, always in the same order.
        seed: as there.
        epochs: passes over the pictures, at least 1.
        rate: Adam's learning rate for the direction of rounding, sigmoid(a) stretched to [-0.1, 1.1] and
            clipped to 0..1, where a is learned.
        decide: weight of the mean indecision of all weights (0 decided, 1 halfway) in the loss; the rest of
            the loss is the mean relative squared error of the layers' outputs, divided by their number.
        bits: of the weights: 8, 4 or 2. Convolutions of at most 3 input channels keep 8, because the chip
            stores them so (calib.widths.stored_narrow).
        progress: see calib.mct.listening.Progress; told after every step.
        log: everything MCT prints goes there; nothing goes to stdout or stderr.

    Returns:
        A graph as of mct_ptq: the same nodes, names and attributes, other numbers; `bits` where it applies.
        A network without convolutions and linear layers comes back as mct_ptq gives it.

    Raises:
        What mct_ptq raises; InputError also for a setting out of range and for a loss that is no number.
    """
    settings = _Settings(epochs, rate, decide)
    return quantize(
        model,
        representative,
        lambda task: _gradient_based(task, settings, progress),
        seed=seed,
        bits=bits,
        progress=progress,
        log=log,
    )


def _gradient_based(task: Task, settings: _Settings, progress: Progress) -> Any:
    import model_compression_toolkit as mct
    import torch
    from torch import nn

    from student.allocator import keep_freed_memory

    keep_freed_memory()
    layers = [m for m in task.module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    steps = settings.epochs * math.ceil(task.count / task.batch)
    done = 0

    def after_step(loss: float, *_: object) -> None:
        nonlocal done
        done += 1
        if not math.isfinite(loss):
            raise InputError(
                "mct-gptq",
                f"the loss of step {done} is {loss}",
                "finite outputs of both networks",
                "use mct-ptq, and look for values that leave the range of float32",
            )
        progress(PHASE, done / steps)

    config = mct.gptq.get_pytorch_gptq_config(
        settings.epochs if layers else 0,
        optimizer=torch.optim.Adam([torch.zeros(0)], lr=settings.rate),
        # The Hessian's 100 random backward passes for each layer's weight in the loss take many times as long
        # as the training (docs/gptq.md).
        use_hessian_based_weights=False,
        use_hessian_sample_attention=False,
        # Every step sees the activations rounded as they will be: there are too few steps to blend them in.
        gradual_activation_quantization=False,
        # MCT sums over the weights, so that its default drowns the error of a network of a million.
        regularization_factor=settings.decide / max(1, sum(layer.weight.numel() for layer in layers)),
        log_function=after_step,
    )
    quantized, _ = mct.gptq.pytorch_gradient_post_training_quantization(
        task.module,
        task.statistics,
        core_config=task.config,
        gptq_config=config,
        gptq_representative_data_gen=task.pictures,
        target_platform_capabilities=task.capabilities,
    )
    return quantized
