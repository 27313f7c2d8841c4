"""What the ways make, and what the cache saves."""

from __future__ import annotations

import dataclasses

import numpy as np

from calib.thresholds import WEIGHTS, representable
from calib.widths import narrowable, with_widths
from compiler.quantizing import ways
from compiler.quantizing.options import BREVITAS_QAT, MCT_GPTQ
from compiler.quantizing.ways import LONGER, SEARCHED, WIDE, ladder, post_training
from passes.graph import const_array, set_constant, to_bytes
from tests.calib.qat.small_graphs import everywhere
from tests.compiler.quantizing.small import material


def way(ladder, name):
    return next(one for one in ladder if one.name == name)


def test_the_ways_are_in_order_of_cost(tmp_path):
    one, _ = material(tmp_path)
    names = [each.name for each in ladder(one)]
    assert names == ["mct-ptq, more crops", SEARCHED, WIDE, MCT_GPTQ, BREVITAS_QAT, LONGER]
    assert MCT_GPTQ not in [each.name for each in ladder(dataclasses.replace(one, bits=None))]
    few = dataclasses.replace(one, calibrate=64)
    assert ladder(few)[0].name == SEARCHED


def test_training_comes_from_the_cache_the_second_time(tmp_path):
    one, quantized = material(tmp_path)
    coarse = everywhere(quantized, 2)
    one = dataclasses.replace(one, widths=dict.fromkeys(narrowable(quantized), 2))
    train = way(ladder(one), BREVITAS_QAT)
    made = train.make(coarse)
    assert made.seconds > 0
    assert not list(tmp_path.glob("*.training"))
    again = train.make(coarse)
    assert again.seconds is None
    assert to_bytes(again.graph) == to_bytes(made.graph)
    assert to_bytes(made.graph) != to_bytes(coarse)


def test_post_training_is_narrowed_snapped_and_cached(tmp_path, monkeypatch):
    one, quantized = material(tmp_path)
    for node in quantized.graph:
        if node.op_type in WEIGHTS:
            thresholds = const_array(node.inputs[1]) * np.float32(1.003)
            set_constant(quantized.graph, node, 1, f"{node.name}/odd", thresholds)
    calls = []

    def mct(model, sets, *, seed, progress):
        calls.append(len(sets[0].pictures))
        return quantized

    monkeypatch.setattr("calib.ptq.mct_ptq", mct)
    made = post_training(one, 16)
    assert made.seconds is not None
    for node in made.graph.graph:
        if node.op_type in WEIGHTS:
            thresholds = const_array(node.inputs[1])
            np.testing.assert_array_equal(thresholds, representable(thresholds))
    widths = dict.fromkeys(narrowable(quantized), 4)
    narrow = post_training(dataclasses.replace(one, widths=widths), 16)
    assert narrow.seconds is None  # the widths do not change what MCT does
    assert to_bytes(narrow.graph) == to_bytes(with_widths(made.graph, widths))
    post_training(one, 32)
    assert calls == [16, 32]


def test_the_longer_training_has_more_passes(tmp_path, monkeypatch):
    one, quantized = material(tmp_path)
    epochs = []

    def train(graph, real, pictures, recipe, **_):
        epochs.append((recipe.epochs, len(pictures[0])))
        return graph

    monkeypatch.setattr("calib.qat.train.train", train)
    steps = ladder(one)
    for name in (BREVITAS_QAT, LONGER):
        way(steps, name).make(quantized)
    assert epochs[1] == (ways.LONGER_TIMES * epochs[0][0], 64)
