"""The drift run: what it calls a difference, and three networks through the converter that is installed."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import pytest

from benchmarks.drift import Outcome, differences, entries, judge, listed, sample
from compiler.converter import VendorMemory, find_converter
from passes.errors import EnvironmentFault
from passes.imx500.memory import ESTIMATED, EXACT, MemoryForecast

MODEL, RUNTIME = 1_000_000, 2_000_000


def forecast(model_bytes: int = MODEL, runtime_bytes: int = RUNTIME, kind: str = EXACT) -> MemoryForecast:
    total = model_bytes + runtime_bytes + 1_024
    return MemoryForecast(
        model_bytes, runtime_bytes, total, 8_388_480, total <= 8_388_480, False, 0,
        MappingProxyType({"model_bytes": kind, "runtime_bytes": ESTIMATED, "total_bytes": ESTIMATED}),
        (), (), 0, (),
    )  # fmt: skip


def outcome(**changes) -> Outcome:
    report = VendorMemory(MODEL, RUNTIME, 1_024, MODEL + RUNTIME + 1_024, 8_388_480, 0, True)
    agreed = Outcome("conv_k5", True, True, True, "ours", "", forecast(), report)
    return dataclasses.replace(agreed, **changes)


def test_what_agrees_is_no_difference():
    assert differences(outcome()) == ()
    assert differences(outcome(ours=False, theirs=False, why="operator Elu")) == ()
    assert differences(outcome(theirs=None, why="took too long")) == ()


def test_verdicts_that_differ_say_who_refuses_and_why():
    (text,) = differences(outcome(theirs=False, why="USOP Elu"))
    assert "we accept it, the converter refuses it" in text
    assert "USOP Elu" in text
    assert "we refuse it" in differences(outcome(ours=False))[0]


@pytest.mark.parametrize(
    ("told", "count"),
    [
        (forecast(model_bytes=MODEL + 1), 1),  # called exact: one byte is a difference
        (forecast(model_bytes=MODEL + 10_000, kind=ESTIMATED), 0),
        (forecast(model_bytes=MODEL + 10_241, kind=ESTIMATED), 1),
        (forecast(runtime_bytes=RUNTIME - 20_000), 0),  # 1 %
        (forecast(runtime_bytes=RUNTIME - 20_001), 1),
        (forecast(model_bytes=MODEL + 7_000_000, kind=ESTIMATED), 2),  # and it would not fit
    ],
)
def test_memory_that_differs(told, count):
    assert len(differences(outcome(forecast=told))) == count


def test_the_known_differences_are_found_by_name():
    assert "back end" in listed(outcome(name="norm_gn4"))
    assert listed(outcome(name="conv_k5")) == ""


def test_the_sample_is_drawn_by_its_seed():
    assert sample(30, 1) == sample(30, 1)
    assert sample(30, 1) != sample(30, 2)
    assert len(set(sample(30, 1))) == 30
    assert set(sample(10**6, 0)) == set(entries())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet_64_w16_d2_cat_nearest", "act_elu", "Slice c_rng"])
def test_rules_and_converter_agree(name, tmp_path):
    try:
        install = find_converter()
    except EnvironmentFault as error:
        pytest.skip(str(error))
    found = judge(name, entries()[name], install, tmp_path)
    assert found.theirs is not None
    assert not differences(found) or listed(found), differences(found)
