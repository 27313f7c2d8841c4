"""Training of the quantized network against the float network's outputs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from calib.importer import to_torch
from calib.qat.export import export
from calib.qat.losses import distillation
from calib.qat.network import to_network
from calib.qat.recipe import Recipe
from passes.errors import InputError
from passes.files import write_beside
from passes.graph import to_bytes
from student.allocator import keep_freed_memory

Pictures = Sequence[NDArray[np.float32]]
"""For each input of the network [N, ...]: the integers the sensor delivers; N is the same."""

OnProgress = Callable[[str, float | None], None]
"""Called with the phase and the share of it that is done."""

SAVE_EVERY_S = 20.0
"""Between two writings of the state; a killed training loses at most this much."""


def train(
    quantized: ir.Model,
    float_model: ir.Model,
    pictures: Pictures,
    recipe: Recipe,
    *,
    progress: OnProgress,
    state: Path | None = None,
) -> ir.Model:
    """Train the weights, their thresholds and the biases of a quantized graph; the same nodes come back.

    Activation quantizers stay as they are. Pictures, order and mirroring of a step depend on the seed and the
    step alone, so a run that was killed goes on as if it had not been. The order of torch's float sums, and
    so the result, depends on its number of threads and on the processor's vector instructions.

    Args:
        quantized: vendor dialect, for instance of calib.ptq.
        float_model: the float graph it was made from, same inputs and outputs.
        pictures: what is trained on.
        state: file in which the run is kept while it lasts; a run whose file is there goes on, another
            file is replaced. None: not kept.

    Raises:
        InputError: a loss that is no number.
        TargetViolation: an operator the importer does not know.
    """
    keep_freed_memory()
    network, teacher = to_network(quantized), to_torch(float_model)
    parameters = network.parameters()
    if not parameters:
        return quantized
    batch = recipe.batch if network.batch_free and teacher.batch_free else 1
    a_pass = math.ceil(len(pictures[0]) / batch)
    steps = recipe.epochs * a_pass
    run = _Run(parameters, recipe, steps, _fingerprint(quantized, float_model, pictures, recipe), state)
    started = time.monotonic()
    for step in range(run.done, steps):
        progress(f"training, loss {run.loss:.4f}" if step else "training", step / steps)
        inputs = _batch(pictures, recipe, batch, *divmod(step, a_pass))
        with torch.no_grad():
            real = _outputs(teacher.module, inputs)
        run.step(distillation(_outputs(network.module, inputs), real))
        if time.monotonic() - started > SAVE_EVERY_S:
            run.save()
            started = time.monotonic()
    run.finish()
    return export(network, quantized)


class _Run:
    """Optimizer, moving average and place in the schedule: what has to survive a kill."""

    def __init__(
        self, parameters: list[nn.Parameter], recipe: Recipe, steps: int, identity: str, state: Path | None
    ) -> None:
        self._parameters = parameters
        self._recipe = recipe
        self._steps = steps
        self._identity = identity
        self._state = state
        self._average = [parameter.detach().clone() for parameter in parameters]
        self._optimizer = torch.optim.Adam(parameters, lr=recipe.rate)
        self.done = 0
        self.loss = 0.0
        if state is not None:
            self._load(state)

    def step(self, loss: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.rate * self._share()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.done += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                "quantization-aware training",
                f"the loss of step {self.done} is {value}",
                "finite outputs of both networks",
                "use mct-ptq, and look for values that leave the range of float32",
            )
        # The average follows closely at first, so that it does not remember the start.
        decay = min(self._recipe.average, self.done / (self.done + 9.0))
        self.loss += (value - self.loss) * (1.0 - decay)
        with torch.no_grad():
            for average, parameter in zip(self._average, self._parameters, strict=True):
                average.lerp_(parameter, 1.0 - decay)

    def _share(self) -> float:
        """The learning rate of this step as a share of the highest."""
        risen = max(1.0, self._recipe.warm_up * self._steps)
        place = self.done / max(1, self._steps)
        return min(1.0, (self.done + 1) / risen) * 0.5 * (1.0 + math.cos(math.pi * place))

    def save(self) -> None:
        if self._state is None:
            return
        buffer = io.BytesIO()
        content = {
            "identity": self._identity,
            "done": self.done,
            "loss": self.loss,
            "parameters": [parameter.detach() for parameter in self._parameters],
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(content, buffer)
        with contextlib.suppress(OSError):  # a state that cannot be kept is no reason to stop
            self._state.parent.mkdir(parents=True, exist_ok=True)
            write_beside(self._state, buffer.getvalue())

    def _load(self, state: Path) -> None:
        """Go on from a state of this run; a damaged or unreadable one, or another run's, counts as absent."""
        try:
            content: dict[str, Any] = torch.load(state, weights_only=True)
        except Exception:  # torch.load raises whatever the damage leads to
            return
        if content.get("identity") != self._identity:
            return
        self.done, self.loss = content["done"], content["loss"]
        self._optimizer.load_state_dict(content["optimizer"])
        with torch.no_grad():
            for kept, held in (("parameters", self._parameters), ("average", self._average)):
                for tensor, value in zip(held, content[kept], strict=True):
                    tensor.copy_(value)

    def finish(self) -> None:
        """The average becomes the parameters; the state has served."""
        with torch.no_grad():
            for average, parameter in zip(self._average, self._parameters, strict=True):
                parameter.copy_(average)
        if self._state is not None:
            with contextlib.suppress(OSError):  # in a folder that cannot be used there is none
                self._state.unlink()


def _fingerprint(quantized: ir.Model, real: ir.Model, pictures: Pictures, recipe: Recipe) -> str:
    digest = hashlib.sha256(recipe.dumps().encode())
    for part in (to_bytes(quantized), to_bytes(real), *(array.tobytes() for array in pictures)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _batch(pictures: Pictures, recipe: Recipe, batch: int, epoch: int, place: int) -> list[Tensor]:
    """The pictures of a step; inputs of rank 4 may be mirrored, all alike."""
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(pictures[0]))
    chosen = order[place * batch : (place + 1) * batch]
    mirrored = np.random.default_rng([recipe.seed, epoch, place]).random(len(chosen)) < 0.5
    inputs = []
    for array in pictures:
        taken = array[chosen].copy()
        if recipe.mirror and taken.ndim == 4:
            taken[mirrored] = taken[mirrored, ..., ::-1]
        inputs.append(torch.from_numpy(taken))
    return inputs


def _outputs(module: fx.GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    result = module(*inputs)
    return [result] if isinstance(result, Tensor) else list(result)
