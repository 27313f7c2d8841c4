"""Checking a file: other input sizes, and a cost that grows as the graph does."""

from __future__ import annotations

import cProfile
import time

import numpy as np
import onnx
import pytest

from benchmarks.check_time import network
from compiler.checking import check_graph, check_model
from compiler.reports.terminal import check_rows
from passes import contract as contracts
from passes import graph as graphs
from passes.errors import InputError
from passes.light_imports import without_collector
from tests.graphs import model, node


def save(tmp_path, built, name="net.onnx"):
    path = tmp_path / name
    graphs.save(built, path)
    return path


def weight(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def unet(size, contract=contracts.centred):
    """Down by a stride, up by a scale factor, added to a skip: nothing holds the size."""
    return model(
        [
            node("Conv", ["x", "a"], ["full"], name="full", pads=[1] * 4),
            node("Conv", ["full", "b"], ["half"], name="half", pads=[1] * 4, strides=[2, 2]),
            node("Resize", ["half", "", "s"], ["up"], name="up", mode="nearest",
                 coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
            node("Add", ["up", "full"], ["y"], name="skip"),
        ],
        {"x": [1, 3, *size]},
        ["y"],
        {"a": weight(8, 3, 3, 3), "b": weight(8, 8, 3, 3), "s": np.array([1, 1, 2, 2], np.float32)},
        contract(3, *size),
    )  # fmt: skip


@pytest.mark.parametrize("size", [(16, 16), (64, 32), (128, 128)])
def test_another_size_is_what_an_export_at_that_size_gives(tmp_path, size):
    there = save(tmp_path, unet((32, 32)), "there.onnx")
    here = check_model(save(tmp_path, unet(size), "here.onnx"))
    result = check_model(there, what_if=[size])
    (row,) = result.what_if
    assert row.check is not None
    assert (row.height, row.width) == size
    assert row.check.memory == here.memory
    assert row.check.costs == here.costs
    assert row.check.diagnostics == here.diagnostics
    assert result.memory == check_model(there).memory


def test_an_exported_checkpoint_is_exported_again(tmp_path):
    torch = pytest.importorskip("torch")
    from student.networks import PicoSAM2

    path = tmp_path / "student.pt"
    torch.manual_seed(0)
    torch.save(PicoSAM2().state_dict(), path)
    result = check_model(path, declared="raw", what_if=[(64, 64), (96, 96), (40, 40)])
    small, same, odd = result.what_if
    assert small.check is not None
    assert same.check is not None
    assert same.check.memory == result.memory
    assert small.check.macs * 9 == same.check.macs * 4  # 64x64 is 4/9 of 96x96 pixels
    assert odd.check is None
    assert "multiples of 16" in odd.problem
    assert "--what-if 32x32" in odd.problem
    assert "--input-size" not in odd.problem


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        (
            [node("Resize", ["x", "", "", "sizes"], ["y"], name="up", mode="nearest",
                  coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
            {"sizes": np.array([1, 3, 32, 32])},
            ("up", "Resize"),
        ),
        ([node("Reshape", ["x", "shape"], ["y"], name="flat")], {"shape": np.array([1, 768])}, ("flat",)),
        ([node("Reshape", ["x", "shape"], ["y"], name="rows")], {"shape": np.array([-1, 192])}, ("rows",)),
        ([node("Add", ["x", "place"], ["y"], name="embed")], {"place": weight(1, 3, 16, 16)}, ("embed",)),
        (
            [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"], ["y"], name="head")],
            {"w": weight(768, 4)},
            ("head",),
        ),
        (
            [node("Slice", ["x", "zero", "old", "axis"], ["y"], name="crop")],
            {"zero": np.array([0]), "old": np.array([16]), "axis": np.array([2])},
            ("crop", "Slice", "16"),
        ),
        (
            [node("MaxPool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
             node("Slice", ["x", "zero", "old", "axis"], ["cut"], name="crop"),
             node("Resize", ["half", "", "s"], ["up"], mode="nearest",
                  coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
             node("Neg", ["up"], ["y"]), node("Abs", ["cut"], ["z"])],
            {"zero": np.array([0]), "old": np.array([8]), "axis": np.array([-1]),
             "s": np.array([1, 1, 2, 2], np.float32)},
            ("crop", "Slice", "8"),
        ),
        (
            [node("Gather", ["x", "places"], ["y"], name="flip", axis=3)],
            {"places": np.arange(16)[::-1].copy()},
            ("flip", "Gather"),
        ),
        ([node("Gather", ["x", "last"], ["y"], name="edge", axis=2)], {"last": np.array([15])}, ("edge",)),
        (
            [node("Split", ["x", "parts"], ["y", "z"], name="halves", axis=2)],
            {"parts": np.array([8, 8])},
            ("halves", "plit"),
        ),
    ],
)  # fmt: skip
def test_a_size_that_the_graph_holds_is_named(tmp_path, nodes, constants, words):
    outputs = [name for name in ("y", "z") if any(name in one.output for one in nodes)]
    built = model(nodes, {"x": [1, 3, 16, 16]}, outputs, constants, contracts.raw(3, 16, 16))
    path = save(tmp_path, built)
    check_model(path)
    with pytest.raises(InputError) as caught:
        check_model(path, what_if=[(24, 24)])
    for word in ("--what-if 24x24", *words):
        assert word in str(caught.value)


def sizes_by_arithmetic(source, *lengths):
    """The exporter's form of x.reshape(x.shape[0], ...) with a symbolic batch; makes `to`."""
    return [
        node("Shape", [source], ["shape"]),
        node("Gather", ["shape", "first"], ["batch"]),
        node("Unsqueeze", ["batch", "axis"], ["batches"]),
        node("Concat", ["batches", *lengths], ["to"], axis=0),
    ]


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        (
            [*sizes_by_arithmetic("x", "rest"), node("Reshape", ["x", "to"], ["f"]),
             node("Gemm", ["f", "w"], ["y"], name="head")],
            {"rest": np.array([-1]), "w": weight(768, 4)},
            ("head", "768"),
        ),
        (
            [*sizes_by_arithmetic("x", "rest"), node("Reshape", ["x", "to"], ["y"], name="view")],
            {"rest": np.array([768])},
            ("view", "Reshape"),
        ),
        (
            [*sizes_by_arithmetic("x", "three", "rest"), node("Reshape", ["x", "to"], ["f"]),
             node("Add", ["f", "w"], ["y"], name="positions")],
            {"three": np.array([3]), "rest": np.array([-1]), "w": weight(1, 3, 256)},
            ("positions",),
        ),
    ],
)  # fmt: skip
def test_a_size_behind_arithmetic_on_shapes_is_named(tmp_path, nodes, constants, words):
    constants = constants | {"first": np.array(0), "axis": np.array([0])}
    built = model(nodes, {"x": ["n", 3, 16, 16]}, ["y"], constants, contracts.raw(3, 16, 16))
    path = save(tmp_path, built)
    check_model(path)
    with pytest.raises(InputError) as caught:
        check_model(path, what_if=[(24, 24)])
    for word in ("--what-if 24x24", *words):
        assert word in str(caught.value)


def test_a_size_that_shape_inference_cannot_follow_is_named(tmp_path):
    """Before operator set 13 it does not follow a Slice of a shape; the transforms do."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "zero", "two"], ["kept"]),
        node("Concat", ["kept", "rest"], ["tokens"], axis=0),
        node("Reshape", ["x", "tokens"], ["f"]),
        node("Reshape", ["f", "old"], ["y"], name="back"),
    ]
    constants = {name: np.array(given) for name, given in (("zero", [0]), ("two", [2]), ("rest", [-1]))}
    constants["old"] = np.array([1, 3, 16, 16])
    built = model(nodes, {"x": [1, 3, 16, 16]}, ["y"], constants, contracts.raw(3, 16, 16))
    built.opset_imports[""] = 12
    path = save(tmp_path, built)
    check_model(path)
    with pytest.raises(InputError, match=r"--what-if 24x24.*back: a Reshape"):
        check_model(path, what_if=[(24, 24)])


def test_a_resize_to_sizes_that_follow_the_input_is_no_hindrance(tmp_path):
    """The exporter's form of interpolate(x, size=y.shape[2:]) with dynamic axes."""
    nodes = [
        node("MaxPool", ["x"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["x"], ["sizes"]),
        node("Resize", ["small", "", "", "sizes"], ["y"], name="up", mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]  # fmt: skip
    path = save(tmp_path, model(nodes, {"x": [1, 3, 16, 16]}, ["y"], {}, contracts.raw(3, 16, 16)))
    (row,) = check_model(path, what_if=[(48, 48)]).what_if
    assert row.check is not None
    assert row.check.memory is not None
    assert max(tensor.bytes for tensor in row.check.memory.tensors) >= 3 * 48 * 48


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """CPU seconds of a check, by the number of nodes; the smallest of three."""
    folder = tmp_path_factory.mktemp("growing")
    seconds = {}
    for count in (500, 5_000):
        path = folder / f"{count}.onnx"
        onnx.save(network(count), str(path))
        times = []
        with without_collector():
            for _ in range(3):
                started = time.process_time()
                assert check_model(path).memory is not None
                times.append(time.process_time() - started)
        seconds[count] = min(times)
    return seconds


@pytest.mark.slow
def test_five_thousand_nodes(growing):
    """1.7 s of a core measured (docs/performance.md); the limit leaves room for one that is shared."""
    assert growing[5_000] < 4.0


@pytest.mark.slow
def test_the_cost_is_nearly_linear(growing):
    """onnxsim itself takes 19 times as long for 10 times the nodes; a quadratic pass of ours would show."""
    assert growing[5_000] < 20 * growing[500]


def test_an_input_smaller_than_a_kernel_is_not_called_legal(tmp_path):
    nodes = [node("Conv", ["x", "a"], ["c"], name="stem"), node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2])]
    built = model(nodes, {"x": [1, 3, 32, 32]}, ["y"], {"a": weight(4, 3, 5, 5)}, contracts.raw(3, 32, 32))
    rows = check_model(save(tmp_path, built), what_if=[(2, 2), (5, 5), (6, 6)]).what_if
    told = [row.check is not None and not row.check.ok for row in rows]
    assert told == [True, True, False]


def test_a_rewrite_that_a_batch_forbids_is_not_offered():
    def told(batch):
        nodes = [node("DepthToSpace", ["x"], ["y"], name="it", blocksize=2)]
        found = check_graph(model(nodes, {"x": [batch, 8, 4, 4]}, ["y"])).diagnostics
        return [one.fix for one in found if one.node == "it" and one.rule == "imx500/operator"]

    assert "run again with --fix" in told(1)[0]
    assert "--fix" not in told(2)[0]


@pytest.mark.parametrize(
    ("start", "end", "step"), [(1, 2**31 - 1, 1), (0, 2**31 - 1, 2), (0, 5, 1), (-1, -(2**31), -1)]
)
def test_a_cut_that_any_size_takes_is_no_hindrance(tmp_path, start, end, step):
    bounds = {name: np.array([number]) for name, number in zip("abc", (start, end, step), strict=True)}
    nodes = [node("Slice", ["x", "a", "b", "axis", "c"], ["y"], name="cut")]
    constants = bounds | {"axis": np.array([2])}
    path = save(tmp_path, model(nodes, {"x": [1, 3, 16, 16]}, ["y"], constants, contracts.raw(3, 16, 16)))
    (row,) = check_model(path, what_if=[(24, 24)]).what_if
    assert row.problem == ""


def test_every_complaint_about_another_size_names_its_option(tmp_path):
    vector = model([node("Relu", ["x"], ["y"])], {"x": [1, 8]}, ["y"], {}, contracts.raw(8, 1, 1))
    two = model(
        [node("Relu", ["a"], ["y"]), node("Relu", ["b"], ["z"])],
        {"a": [1, 3, 16, 16], "b": [1, 3, 8, 8]},
        ["y", "z"],
        {},
        contracts.raw(3, 16, 16),
    )
    for built in (vector, two):
        with pytest.raises(InputError, match="--what-if") as caught:
            check_model(save(tmp_path, built), what_if=[(24, 24)])
        assert "--input-size" not in str(caught.value)


def shared(readers, kind):
    """One tensor that many nodes read, joined one after the other."""
    nodes, last = [node("Conv", ["x", "w"], ["v"])], "v"
    for index in range(readers):
        if kind == "Add":
            operand = "v"
        else:
            operand = f"r{index}"
            nodes.append(node(kind, ["v", "w"] if kind == "Conv" else ["v"], [operand]))
        nodes.append(node("Add", [last, operand], [f"a{index}"]))
        last = f"a{index}"
    return model(nodes, {"x": [1, 8, 4, 4]}, [last], {"w": weight(8, 8, 1, 1)})


def calls_of_a_check(built):
    """Function calls, which are the same on every machine."""
    profile = cProfile.Profile()
    profile.runcall(check_graph, built)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("kind", ["Add", "Relu", "Sigmoid", "Conv"])
def test_a_tensor_with_many_readers_costs_no_more_than_many_tensors(kind):
    assert calls_of_a_check(shared(1_000, kind)) < 5 * calls_of_a_check(shared(250, kind))


def test_without_a_size_there_is_no_forecast():
    built = model(
        [node("Conv", ["x", "w"], ["y"])], {"x": [1, 3, "H", "W"]}, ["y"], {"w": weight(4, 3, 3, 3)}
    )
    result = check_graph(built)
    assert result.memory is None
    assert "imx500/input-dynamic" in [one.rule for one in result.diagnostics]
    assert result.to_json()["memory"] is None
    assert "Memory" not in [name for name, _ in check_rows(result)]
