"""Two executions are compared integer by integer; the first layer that differs is the one named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from compiler.cli import run
from compiler.device.expected import all_expected
from compiler.inspection.difference_map import HIGHER, LOWER, SAME, difference_map
from compiler.inspection.difference_report import bars, table, verdict
from compiler.inspection.differences import (
    SOURCES,
    Differences,
    compared_tensors,
    find_differences,
    open_source,
    recorded,
)
from compiler.inspection.opened_package import OpenedPackage, open_package
from compiler.inspection.recording import read_recording, write_recording
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.numerics import Imx500, slug
from passes.errors import InputError
from tests.compiler.small_packages import SIZE, float_twin, packaged, segmenter

LAYERS = ["input", "stem", "body", "body (2)", "node13", "head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = segmenter()
    return packaged(tmp_path_factory.mktemp("package") / "small", model, float_twin(model))


@pytest.fixture(scope="module")
def package(folder: Path) -> OpenedPackage:
    return open_package(folder)


@pytest.fixture(scope="module")
def inputs() -> dict[str, NDArray[Any]]:
    pixels = np.random.default_rng(0).integers(-128, 128, (2, 3, SIZE, SIZE))
    return {"input": pixels.astype(np.float32)}


@pytest.fixture(scope="module")
def exact(package: OpenedPackage, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return SOURCES["reference"](package, inputs)


@pytest.fixture(scope="module")
def names(package: OpenedPackage) -> list[str]:
    return list(compared_tensors(package.model))


def against(
    package: OpenedPackage,
    inputs: Mapping[str, NDArray[Any]],
    one: Mapping[str, NDArray[Any]],
    other: Mapping[str, NDArray[Any]],
) -> Differences:
    return find_differences(package, ("one", recorded(one)), ("other", recorded(other)), inputs)


def changed(tensors: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    """Channel 1 two higher at (3, 4) of the first picture, channel 4 one lower at (5, 6) of both."""
    values = tensors[name].astype(np.int64)
    values[0, 1, 3, 4] = values[0, 1, 3, 4] + 2 if values[0, 1, 3, 4] < 200 else values[0, 1, 3, 4] - 2
    values[:, 4, 5, 6] += np.where(values[:, 4, 5, 6] > 0, -1, 1)
    return {**tensors, name: values}


# Comparing


def test_what_is_equal(
    package: OpenedPackage, inputs: Mapping[str, NDArray[Any]], exact: Mapping[str, NDArray[Any]]
) -> None:
    found = against(package, inputs, exact, exact)
    assert found.first_differing is None
    assert found.map is None
    assert difference_map(found) is None
    assert [tensor.layer for tensor in found.tensors] == LAYERS
    assert found.to_json()["equal"] is True
    (said,) = verdict(found)
    assert said.startswith(f"equal: {sum(v.size for v in exact.values())} integers of 6 tensors")


def test_the_first_difference_by_hand(
    package: OpenedPackage,
    inputs: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
    names: list[str],
) -> None:
    other = changed(changed(exact, names[4]), names[2])
    steps = other[names[2]] - exact[names[2]].astype(np.int64)
    found = against(package, inputs, exact, other)
    first = found.first_differing
    assert first is not None
    assert (first.layer, first.tensor, first.shape) == ("body", names[2], (2, 6, SIZE, SIZE))
    assert (first.differing, first.values, first.largest) == (3, 2 * 6 * SIZE * SIZE, 2)
    assert first.channels == (0, 1, 0, 0, 2, 0)
    assert first.histogram == {int(step): int((steps == step).sum()) for step in np.unique(steps)}
    assert found.map is not None
    assert found.map.shape == (6, SIZE, SIZE)
    assert set(zip(*(axis.tolist() for axis in np.nonzero(found.map)), strict=True)) == {(1, 3, 4), (4, 5, 6)}
    assert found.map[1, 3, 4] == steps[0, 1, 3, 4]
    assert [tensor.layer for tensor in found.tensors if tensor.differing] == ["body", "node13"]
    content = found.to_json()
    assert content["first_differing"] == {"tensor": names[2], "layer": "body"}
    assert content["tensors"][2]["channels"] == {"1": 1, "4": 2}
    json.dumps(content, allow_nan=False)
    assert "layer body" in verdict(found)[0]
    assert table(found).row_count == 6


@given(arrays.arrays(np.int64, (2, 3, 4, 5), elements=st.integers(-9, 9)))
def test_counts_of_any_difference(steps: NDArray[np.int64]) -> None:
    from compiler.inspection.differences import _difference, _map

    found = _difference("t", "layer", steps)
    assert found.values == steps.size
    assert found.differing == np.count_nonzero(steps) == sum(found.channels)
    assert found.largest == np.abs(steps).max()
    where = _map(steps)
    assert np.array_equal(np.abs(where), np.abs(steps).max(axis=0))
    assert ((where == steps[0]) | (where == steps[1])).all()


def test_the_histogram_as_bars() -> None:
    assert bars({0: 90, 1: 8, -1: 4, -7: 1}) == "▁  ▄·█   "


def test_the_picture_shows_the_places(
    package: OpenedPackage,
    inputs: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
    names: list[str],
) -> None:
    other = {name: values.astype(np.int64) for name, values in exact.items()}
    other[names[2]][:, 1, 3, 4] = np.where(exact[names[2]][:, 1, 3, 4] < 255, 255, 0)
    found = against(package, inputs, exact, other)
    drawn = difference_map(found)
    assert drawn is not None
    assert found.map is not None
    colour = HIGHER if found.map[1, 3, 4] > 0 else LOWER
    rows, columns = np.nonzero((drawn == colour).all(axis=2))
    scale = 192 // SIZE  # one channel is shown, 192 pixels wide
    assert len(rows) == scale * scale
    tops, lefts = rows.min() - 3 * scale, columns.min() - 4 * scale
    assert (drawn[tops : tops + 3 * scale, lefts : lefts + 192] == SAME).all()


# Sources


def test_every_source_knows_every_tensor(
    package: OpenedPackage,
    inputs: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
    names: list[str],
) -> None:
    for name, source in SOURCES.items():
        found = source(package, inputs)
        assert set(names) <= set(found), name
        for tensor in names:
            assert found[tensor].shape == exact[tensor].shape, (name, tensor)
    for name in ("fast", "onnxruntime"):
        found = find_differences(package, (name, SOURCES[name]), ("exact", recorded(exact)), inputs)
        limit = 0 if name == "fast" else 1
        assert all(tensor.largest <= limit and tensor.share < 1e-3 for tensor in found.tensors), name


def test_each_numerics_of_a_device_check_is_a_source(
    package: OpenedPackage, inputs: Mapping[str, NDArray[Any]]
) -> None:
    """By the name of its expected file; the default of `imx500` is one of them."""
    name = package.model.graph.outputs[0].name or ""
    (pictures,) = inputs.values()
    grid = Grid(0, 8, signed=True)
    answers = all_expected(package.model, next(iter(inputs)), np.asarray(pictures), grid).answers
    for answer in answers:
        for numerics in answer.numerics:
            source = SOURCES[slug(numerics)]
            assert np.array_equal(source(package, inputs)[name], answer.outputs[name])
    assert slug(Imx500()) in SOURCES


def test_the_float_source_rounds_the_float_network(
    package: OpenedPackage, inputs: Mapping[str, NDArray[Any]], names: list[str]
) -> None:
    from compiler.agreement import session

    assert package.float_model is not None
    running = session(package.float_model)
    output = package.float_model.graph.outputs[0].name
    real = np.concatenate([running.run([output], {"input": one[None]})[0] for one in inputs["input"]])
    grid = compared_tensors(package.model)[names[-1]]
    assert grid is not None
    by_hand = np.clip(np.round(real / grid.step), -128, 127)
    assert np.array_equal(SOURCES["float"](package, inputs)[names[-1]], by_hand)


def test_sources_that_do_not_fit(
    package: OpenedPackage,
    inputs: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
    names: list[str],
    tmp_path: Path,
) -> None:
    offered = r"one of float, onnxruntime, fast, imx500, reference, dialect, imx500-.*, or an \.npz"
    with pytest.raises(InputError, match=offered):
        open_source("chip", package)
    write_recording(tmp_path / "other.npz", {"conv7": np.zeros((1, 2), np.int8)})
    with pytest.raises(InputError, match="'conv7' is no tensor of small"):
        open_source(str(tmp_path / "other.npz"), package)
    last = names[-1]
    with pytest.raises(InputError, match="one shape"):
        against(package, inputs, exact, {last: exact[last][:1]})
    with pytest.raises(InputError, match="-128 to 127, the range of its quantizer"):
        against(package, inputs, exact, {last: exact[last].astype(np.int64) + 300})
    with pytest.raises(InputError, match="no tensor in common"):
        against(package, inputs, {last: exact[last]}, {names[0]: exact[names[0]]})


# Recordings


@given(
    st.dictionaries(
        st.sampled_from(["/conv/out", "input", "a b", "Add_3"]),
        arrays.arrays(st.sampled_from([np.int8, np.uint8, np.int16]), (2, 3)),
        min_size=1,
    )
)
def test_recordings_come_back_and_are_reproducible(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, NDArray[Any]]
) -> None:
    folder = tmp_path_factory.mktemp("recordings")
    write_recording(folder / "a.npz", tensors)
    write_recording(folder / "b.npz", dict(reversed(tensors.items())))
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    found = read_recording(folder / "a.npz")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"output": np.zeros((1, 2), np.float32)}, "output: float32"),
        ({}, "no array"),
        ({"a": np.zeros((1, 2), np.int8), "b": np.zeros((2, 2), np.int8)}, "the same number of pictures"),
        ({"a": np.zeros((), np.int8)}, "the same number of pictures"),
    ],
)
def test_recordings_that_are_none(tmp_path: Path, tensors: dict[str, NDArray[Any]], words: str) -> None:
    np.savez(tmp_path / "recording.npz", **tensors)
    with pytest.raises(InputError, match=words):
        read_recording(tmp_path / "recording.npz")


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 broken"])
def test_files_that_are_no_recordings(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recording.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"recording\.npz: cannot be read"):
        read_recording(path)


# The command


def test_the_command_finds_what_a_device_did_differently(
    folder: Path, tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept, device = tmp_path / "kept.npz", tmp_path / "device.npz"
    same = ["diff", str(folder), "reference", "reference", "--pictures", "2", "--record", str(kept), "-q"]
    assert run(same) == 0
    assert "equal: " in capsys.readouterr().out
    tensors = read_recording(kept)
    assert set(tensors) == {"input", *names}
    assert tensors["input"].shape == (2, 3, SIZE, SIZE)
    assert run(["diff", str(folder), "reference", str(kept), "--require-equal", "-q"]) == 0

    write_recording(device, changed(tensors, names[3]))
    picture = tmp_path / "map.png"
    capsys.readouterr()
    command = ["diff", str(folder), "reference", str(device), "-q", "--require-equal", "--map", str(picture)]
    assert run([*command, "--format", "json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["first_differing"]["layer"] == "body (2)"
    assert found["pictures"] == 2
    assert found["second"] == "device.npz"
    with Image.open(picture) as image:
        shown = {colour for _, colour in image.getcolors(image.width * image.height) or []}
    assert shown & {HIGHER, LOWER}
    assert run(command[:5]) == 0
    assert "first difference: layer body (2)" in " ".join(capsys.readouterr().out.split())


def test_recordings_of_different_input_are_not_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = [str(tmp_path / f"{name}.npz") for name in ("one", "other")]
    for recording, data in zip(recordings, (0, 1), strict=True):
        pixels = np.full((1, 3, SIZE, SIZE), data, np.int16)
        write_recording(Path(recording), {"input": pixels})
    assert run(["diff", str(folder), *recordings, "-q"]) == 1
    assert "recordings of different input" in capsys.readouterr().err


def test_the_command_takes_a_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    kept = tmp_path / "kept.npz"
    command = ["diff", str(folder), "reference", "onnxruntime", "-q", "--picture", str(tmp_path / "a.png")]
    assert run([*command, "--point", "20,25", "--record", str(kept)]) == 0
    window = pixels[25 - 16 : 25 + 16, 20 - 16 : 20 + 16].transpose(2, 0, 1).astype(np.int16) - 128
    assert np.array_equal(read_recording(kept)["input"][0], window)
    capsys.readouterr()
    assert run([*command, "--point", "60,25"]) == 1
    assert "outside the picture" in capsys.readouterr().err
    assert run(["diff", str(folder), "reference", "chip"]) == 1
    assert "'chip'" in capsys.readouterr().err
