"""The steps that quantize: post-training quantization, and where asked for training of its result."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.cache import Cache
from passes import graph as graphs
from passes.errors import EnvironmentFault

if TYPE_CHECKING:
    from calib.qat.choice import Choice
    from calib.representative import RepresentativeSet

MCT_PTQ, BREVITAS_QAT = "mct-ptq", "brevitas-qat"
QUANTIZERS = (MCT_PTQ, BREVITAS_QAT)

TRAINING_PICTURES = 512
"""Crops that brevitas-qat draws; an eighth of them (Recipe.choose) decides whether its result is kept."""

QAT_VERSION = "brevitas-qat-1"
"""Part of the key under which a trained graph is cached: change it when calib/qat changes the result."""

TRAINING_PACKAGES = ("torch", "brevitas", "onnx", "onnx-ir", "onnxscript", "numpy")
"""Distributions whose versions decide the result of a training."""

_GRAPH = "model_quant.onnx"
"""The member of a cache entry."""

OnProgress = Callable[[str, float | None], None]


def require_brevitas() -> None:
    """Raises EnvironmentFault where Brevitas is not installed."""
    if importlib.util.find_spec("brevitas") is None:
        raise EnvironmentFault(
            f"--quantizer {BREVITAS_QAT}",
            "Brevitas is not installed",
            "the distribution brevitas",
            "pip install -e . in the project's environment, or --quantizer mct-ptq",
        )


def post_training(
    model: ir.Model,
    sets: Sequence[RepresentativeSet],
    seed: int,
    versions: Mapping[str, str],
    cache: Cache,
    progress: OnProgress,
) -> tuple[ir.Model, bool]:
    """MCT's post-training quantization of the float graph, and whether it came from the cache.

    `versions` are those that decide the result.
    """
    from calib.ptq import PTQ_VERSION, mct_ptq

    key = cache.key(
        PTQ_VERSION,
        graphs.to_bytes(model),
        *(one.pictures.tobytes() for one in sets),
        *(one.contract.dumps().encode() for one in sets),
        str(seed).encode(),
        *(f"{name}=={version}".encode() for name, version in versions.items()),
    )
    return _cached(cache, key, lambda: mct_ptq(model, sets, seed=seed, progress=progress))


def trained(
    float_model: ir.Model,
    quantized: ir.Model,
    seconds: float | None,
    sets: Sequence[RepresentativeSet],
    seed: int,
    versions: Mapping[str, str],
    cache: Cache,
    progress: OnProgress,
) -> tuple[ir.Model, Choice]:
    """Train the quantized graph; what comes back is the better of the two on pictures kept aside.

    Args:
        float_model: folded, the reference.
        quantized: of `post_training`, which took `seconds` (None: from the cache).
        sets: one per input, with the pictures to train on; their last share decides.
        versions: of the distributions that decide the result.

    A killed training goes on from its state, which lies in the cache's folder.

    Raises, before the training, what `compile_program` and calib.qat.network.to_network raise; InputError for
    a loss that is no number.
    """
    import torch

    from calib.qat.choice import Candidate, choose
    from calib.qat.recipe import Recipe
    from calib.qat.train import train
    from calib.representative import delivered
    from compiler.simulator.engine import compile_program

    compile_program(quantized)  # what the comparison cannot execute is said before the minutes of training
    recipe = Recipe(seed=seed)
    arrays = [delivered(one.pictures, one.contract) for one in sets]
    arrays = [_as_input(array, value) for array, value in zip(arrays, float_model.graph.inputs, strict=True)]
    count = len(arrays[0])
    learnt = count - max(1, round(count * recipe.choose))
    shown, aside = [one[:learnt] for one in arrays], [one[learnt:] for one in arrays]
    key = cache.key(
        QAT_VERSION,
        graphs.to_bytes(float_model),
        graphs.to_bytes(quantized),
        *(one.tobytes() for one in shown),
        recipe.dumps().encode(),
        str(torch.get_num_threads()).encode(),
        *(f"{name}=={version}".encode() for name, version in versions.items()),
    )
    state = cache.folder / f"{key}.training"
    began = time.perf_counter()
    model, cached = _cached(
        cache, key, lambda: train(quantized, float_model, shown, recipe, progress=progress, state=state)
    )
    spent = None if cached else time.perf_counter() - began
    progress("comparing with mct-ptq", None)
    reference = _float_outputs(float_model, aside)
    return choose(
        [Candidate(MCT_PTQ, quantized, seconds), Candidate(BREVITAS_QAT, model, spent)],
        lambda graph: exact_agreement(graph, reference, aside),
        len(aside[0]),
    )


def _cached(cache: Cache, key: str, make: Callable[[], ir.Model]) -> tuple[ir.Model, bool]:
    """What `make` makes, or made earlier; and whether it was there."""
    if (entry := cache.get(key)) is not None:
        return graphs.parse(entry[_GRAPH]), True
    model = make()
    cache.put(key, {_GRAPH: graphs.to_bytes(model)})
    return model, False


def exact_agreement(
    quantized: ir.Model, reference: Mapping[str, NDArray[np.float32]], pictures: Sequence[NDArray[np.float32]]
) -> float:
    """Mean over the outputs of the agreement with the float network, 0..1, by the exact simulator.

    For an output without a winner or a mask the share of its power that is no quantization noise, at least 0.
    """
    from compiler.agreement import compare_output
    from compiler.simulator.engine import compile_program

    program = compile_program(quantized)
    found = program.run(dict(zip(program.inputs, pictures, strict=True)))
    values = []
    for name, real in reference.items():
        result = compare_output(name, real, found[name].real())
        noise = 10.0 ** (-result.snr_db / 10.0)
        values.append(max(0.0, 1.0 - noise) if result.value is None else result.value)
    return float(np.mean(values))


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


def _as_input(array: NDArray[np.float32], value: ir.Value) -> NDArray[np.float32]:
    """[N, C, H, W] in the shape of the graph's input."""
    shape = graphs.static_shape(value) or ()
    return array.reshape(len(array), *(size for size in shape[1:] if size is not None))
