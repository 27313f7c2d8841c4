"""The ways to a quantized graph. Each gives a graph with the same quantizers at the same places."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from compiler.cache import Cache
from compiler.quantizing.options import BREVITAS_QAT, MCT_GPTQ, MCT_PTQ
from compiler.versions import REFINING_PACKAGES, TRAINING_PACKAGES, versions
from passes import graph as graphs
from passes.imx500.limits import MEMORY_BUDGET

if TYPE_CHECKING:
    from calib.representative import RepresentativeSet
    from calib.widths import Means
    from compiler.quantizing.yardstick import Yardstick

SEARCHED, WIDE, LONGER = "searched thresholds", "16-bit activations", "longer brevitas-qat"

WIDER_CALIBRATION = 256
"""Crops of the way that calibrates on more of them."""

LONGER_TIMES = 3
"""As many passes over the crops in the longest way."""

MCT_VERSION = "representable-1"
"""Part of the key under which MCT's graphs are cached: change it when what is done to them here changes."""

SEARCHABLE = 96
"""Quantizers, of weights and activations, up to which training starts with a search of thresholds."""

SEARCH_VERSION, WIDE_VERSION = "searched-1", "wide-1"
"""Parts of the keys under which graphs with searched thresholds and with 16-bit activations are cached."""

QAT_VERSION = "brevitas-qat-2"
"""Part of the key under which a trained graph is cached: change it when calib/qat changes the result."""

_GRAPH = "model_quant.onnx"
"""The member of a cache entry."""

OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Material:
    """What the ways work with.

    Attributes:
        float_model: folded; takes the sensor's integers.
        sets: one per input. `pictures` are those to calibrate on, or more: the first `calibrate` of them are.
        calibrate: number of crops of the plain post-training quantization.
        widths: weight quantizer -> bits, of those that are not 8.
        bits: the one width of all layers that can have it; None where they differ.
        means: of the layers' inputs, for the biases of narrower layers; None without any.
        memory_limit: bytes the network may need, as `picosam2 check` adds them up.
        persistency: the input stays in memory.
    """

    float_model: ir.Model
    sets: tuple[RepresentativeSet, ...]
    calibrate: int
    seed: int
    cache: Cache
    progress: OnProgress
    widths: Mapping[str, int] = field(default_factory=dict)
    bits: int | None = 8
    means: Means | None = None
    memory_limit: int = MEMORY_BUDGET
    persistency: bool = True

    @property
    def narrowest(self) -> int:
        """Bits of the narrowest weights."""
        return min((*self.widths.values(), 8))

    def first(self, count: int) -> tuple[RepresentativeSet, ...]:
        """The sets with their first `count` crops."""
        return tuple(dataclasses.replace(one, pictures=one.pictures[:count]) for one in self.sets)


@dataclass(frozen=True)
class Made:
    """A candidate: its graph, and the seconds it took to make (None: from the cache)."""

    graph: ir.Model
    seconds: float | None


@dataclass(frozen=True)
class Way:
    """One way to a quantized graph.

    Attributes:
        name: of the way; names are unique.
        settings: what it works on and how long, in words.
        make: from the best graph so far to another.
    """

    name: str
    settings: str
    make: Callable[[ir.Model], Made]


def post_training(material: Material, count: int) -> Made:
    """MCT's quantization on the first `count` crops, at the widths of the material."""
    from calib.ptq import PTQ_VERSION, mct_ptq
    from calib.widths import with_widths

    sets = material.first(count)
    made = _of_mct(
        material,
        sets,
        PTQ_VERSION,
        lambda: mct_ptq(material.float_model, sets, seed=material.seed, progress=material.progress),
    )
    return dataclasses.replace(made, graph=with_widths(made.graph, material.widths, material.means))


def _gradient_based(material: Material, bits: int) -> Made:
    """MCT's gradient-based rounding at `bits` bits, on the calibration crops."""
    import torch

    from calib.gptq import GPTQ_VERSION, mct_gptq

    sets = material.first(material.calibrate)
    return _of_mct(
        material,
        sets,
        f"{GPTQ_VERSION} {bits} {torch.get_num_threads()}",
        lambda: mct_gptq(
            material.float_model, sets, seed=material.seed, bits=bits, progress=material.progress
        ),
    )


def _of_mct(
    material: Material,
    sets: Sequence[RepresentativeSet],
    version: str,
    make: Callable[[], ir.Model],
) -> Made:
    """What MCT makes of these, or made earlier, with thresholds the chip represents."""
    from calib.ptq import PTQ_PACKAGES
    from calib.thresholds import with_representable_thresholds

    key = material.cache.key(
        MCT_VERSION,
        version.encode(),
        graphs.to_bytes(material.float_model),
        *(one.pictures.tobytes() for one in sets),
        *(one.contract.dumps().encode() for one in sets),
        str(material.seed).encode(),
        *(f"{name}=={version}".encode() for name, version in versions(PTQ_PACKAGES).items()),
    )
    return _cached(material.cache, key, lambda: with_representable_thresholds(make()))


def ladder(material: Material) -> tuple[Way, ...]:
    """Every way but the plain post-training quantization, in order of cost."""
    few, all_of = material.calibrate, len(material.sets[0].pictures)
    ways = []
    if (more := min(WIDER_CALIBRATION, all_of)) > few:
        name = f"{MCT_PTQ}, more crops"
        ways.append(Way(name, f"{more} crops", lambda _: post_training(material, more)))
    ways.append(Way(SEARCHED, f"{few} crops", lambda best: _searched(material, best)))
    ways.append(Way(WIDE, f"{few} crops", lambda best: _widened(material, best)))
    if (bits := material.bits) is not None:
        ways.append(Way(MCT_GPTQ, f"{few} crops", lambda _: _gradient_based(material, bits)))
    ways.append(Way(BREVITAS_QAT, f"{all_of} crops", lambda best: _trained(material, best, 1)))
    longer = f"{all_of} crops, {LONGER_TIMES} times as long"
    ways.append(Way(LONGER, longer, lambda best: _trained(material, best, LONGER_TIMES)))
    return tuple(ways)


def _searched(material: Material, best: ir.Model) -> Made:
    """Other activation thresholds for the best graph so far, searched on the calibration crops."""
    from compiler.quantizing.activation_thresholds import search_thresholds

    return _refined(material, best, SEARCH_VERSION, search_thresholds)


def _widened(material: Material, best: ir.Model) -> Made:
    """The best graph so far with 16 bits for the activations that need them, by the calibration crops."""
    from compiler.quantizing.wide_activations import widen_activations

    limit, persistency = material.memory_limit, material.persistency
    return _refined(
        material,
        best,
        f"{WIDE_VERSION} {limit} {persistency}",
        lambda graph, yardstick, progress: widen_activations(graph, yardstick, limit, persistency, progress),
    )


def _refined(
    material: Material,
    best: ir.Model,
    version: str,
    refine: Callable[[ir.Model, Yardstick, OnProgress], ir.Model],
) -> Made:
    """What `refine` makes of the best graph so far, by its distance on the calibration crops."""
    import torch

    from calib.representative import delivered
    from compiler.quantizing.yardstick import Yardstick

    sets = material.first(material.calibrate)
    key = material.cache.key(
        version,
        graphs.to_bytes(material.float_model),
        graphs.to_bytes(best),
        *(one.pictures.tobytes() for one in sets),
        *(one.contract.dumps().encode() for one in sets),
        str(torch.get_num_threads()).encode(),
        *(f"{name}=={version}".encode() for name, version in versions(REFINING_PACKAGES).items()),
    )

    def make() -> ir.Model:
        pictures = [delivered(one.pictures, one.contract) for one in sets]
        return refine(best, Yardstick(material.float_model, pictures), material.progress)

    return _cached(material.cache, key, make)


def _trained(material: Material, best: ir.Model, times: int) -> Made:
    """Training of the best graph so far, with searched thresholds, which it does not change.

    A graph of many quantizers starts with its own thresholds: the search takes longer than the training.
    A killed training goes on from its state, in the cache's folder.
    """
    import torch

    from calib.qat.recipe import Recipe
    from calib.qat.train import train
    from calib.representative import delivered
    from compiler.quantizing.yardstick import in_shape

    quantizers = sum(graphs.is_quantizer(node) for node in best.graph)
    start = _searched(material, best) if quantizers <= SEARCHABLE else Made(best, 0.0)
    recipe = Recipe.of_bits(material.narrowest, material.seed)
    recipe = dataclasses.replace(recipe, epochs=recipe.epochs * times)
    arrays = in_shape(material.float_model, [delivered(one.pictures, one.contract) for one in material.sets])
    key = material.cache.key(
        QAT_VERSION,
        graphs.to_bytes(material.float_model),
        graphs.to_bytes(start.graph),
        *(one.tobytes() for one in arrays),
        recipe.dumps().encode(),
        str(torch.get_num_threads()).encode(),
        *(f"{name}=={version}".encode() for name, version in versions(TRAINING_PACKAGES).items()),
    )
    state = material.cache.folder / f"{key}.training"

    def make() -> ir.Model:
        return train(
            start.graph, material.float_model, arrays, recipe, progress=material.progress, state=state
        )

    made = _cached(material.cache, key, make)
    return made if made.seconds is None else Made(made.graph, made.seconds + (start.seconds or 0.0))


def _cached(cache: Cache, key: str, make: Callable[[], ir.Model]) -> Made:
    """What `make` makes, or made earlier."""
    if (entry := cache.get(key)) is not None:
        return Made(graphs.parse(entry[_GRAPH]), None)
    began = time.perf_counter()
    model = make()
    cache.put(key, {_GRAPH: graphs.to_bytes(model)})
    return Made(model, time.perf_counter() - began)
