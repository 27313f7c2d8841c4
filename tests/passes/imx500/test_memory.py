"""The memory forecast: its geometry, its schedule, and figures that the real converter reported."""

from __future__ import annotations

import io
import time
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from passes import contract as contracts
from passes import graph as graphs
from passes.diagnostics import Severity
from passes.imx500.check import check_operators
from passes.imx500.geometry import is_polyphase
from passes.imx500.layers import layers_of
from passes.imx500.limits import MEMORY_BUDGET
from passes.imx500.macs import count_macs
from passes.imx500.memory import forecast_memory
from passes.imx500.schedule import Buffer, Layout, Schedule, Step, bytes_of, input_persistency
from passes.imx500.weights import dense_kernel
from passes.pipeline import FLOAT_TRANSFORMS, apply_all
from student.networks import PicoSAM2, PicoSAM3
from tests.graphs import model, node

TRANSFORMS = tuple(t for t in FLOAT_TRANSFORMS if t.name != "fold-input")


def exported(network: torch.nn.Module, rows: int = 96, columns: int | None = None) -> ir.Model:
    buffer = io.BytesIO()
    picture = torch.zeros(1, 3, rows, columns or rows)
    torch.onnx.export(network.eval(), (picture,), buffer, dynamo=False, opset_version=17)
    return apply_all(graphs.from_proto(onnx.load_from_string(buffer.getvalue())), TRANSFORMS)


@pytest.fixture(scope="module")
def student() -> ir.Model:
    torch.manual_seed(0)
    return exported(PicoSAM2())


def test_the_student_as_the_converter_reports_it(student: ir.Model):
    """imxconv-pt --memory-report of the quantized student: model 1,322,336, runtime 2,403,424 bytes."""
    forecast = forecast_memory(student)
    assert forecast.model_bytes == 1_322_336
    assert forecast.runtime_bytes == 2_403_424
    assert forecast.input_persistency_bytes == 31_744
    assert forecast.total_bytes == 1_322_336 + 2_403_424 + 1_024
    assert forecast.budget_bytes == 8_388_480
    assert forecast.fits
    assert forecast.diagnostics == ()
    assert dict(forecast.exactness) == {
        "model_bytes": "exact",
        "runtime_bytes": "estimated",
        "total_bytes": "estimated",
    }


def test_the_student_without_input_persistency(student: ir.Model):
    """imxconv-pt --memory-report --no-input-persistency: runtime 2,371,680 bytes."""
    forecast = forecast_memory(student, input_persistency=False)
    assert forecast.runtime_bytes == 2_371_680
    assert forecast.input_persistency_bytes == 0


def test_the_rows_explain_the_sums(student: ir.Model):
    forecast = forecast_memory(student)
    assert sum(row.bytes for row in forecast.weights) == forecast.model_bytes
    assert all(0 <= row.first_step <= row.last_step < len(forecast.steps) for row in forecast.tensors)
    alive = [row.bytes for row in forecast.tensors if row.first_step <= forecast.peak_step <= row.last_step]
    scratch = forecast.runtime_bytes - forecast.input_persistency_bytes - sum(alive)
    assert scratch == 12_384  # of the depthwise convolution of 80 channels: (8 * 16 + 1) * 96
    assert sorted(alive) == [589_824, 884_736, 884_736]


def test_picosam3_is_legal_and_fits():
    torch.manual_seed(0)
    built = exported(PicoSAM3())
    assert check_operators(built) == ()
    assert forecast_memory(built).fits


def test_check_and_forecast_take_milliseconds(student: ir.Model):
    best = min(_seconds(student) for _ in range(3))
    assert best < 0.1


def _seconds(built: ir.Model) -> float:
    started = time.perf_counter()
    check_operators(built)
    forecast_memory(built)
    count_macs(built)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (Layout.CHANNELS, 64 * 20 * 30),
        (Layout.ROWS, 40 * 32 * 30),
        (Layout.WIDE, 40 * 20 * 32),
        (Layout.COLUMNS, 40 * 20 * 32),
        (Layout.PACKED, 40 * 20 * 30),
    ],
)
def test_layouts(layout: Layout, size: int):
    assert bytes_of((40, 20, 30), layout) == size


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 96, 96), 31_744), ((3, 31, 31), 4_096 + 3 * 32 * 32), ((16,), 4_128), ((2, 3, 32, 32), 10_240)],
)
def test_input_persistency(shape: tuple[int, ...], size: int):
    """Figures of the oracle's cases of these input shapes."""
    assert input_persistency(shape) == size


@pytest.mark.parametrize(
    ("inner", "out", "kernel", "strides", "size"),
    [
        (3, 48, (3, 3), (1, 1), 32 * 64 * 9),
        (48, 48, (3, 3), (2, 2), 64 * 64 * 9),
        (16, 16, (3, 3), (2, 2), 64 * 32 * 4),
        (32, 32, (3, 3), (2, 2), 128 * 32 * 4),
        (32, 64, (3, 3), (2, 2), 32 * 64 * 9),
        (32, 48, (3, 3), (2, 2), 32 * 64 * 9),
        (28, 48, (3, 3), (2, 2), 128 * 64 * 4),
        (36, 36, (3, 3), (2, 2), 160 * 64 * 4),
        (20, 40, (3, 3), (2, 2), 96 * 64 * 4),
        (40, 60, (3, 3), (2, 2), 64 * 64 * 9),
        (32, 64, (1, 1), (2, 2), 128 * 64),
        (48, 96, (1, 1), (2, 2), 64 * 96),
        (16, 16, (5, 5), (1, 1), 32 * 32 * 36),
        (3, 40, (5, 5), (1, 1), 32 * 64 * 36),
        (24, 12, (7, 7), (1, 1), 32 * 32 * 64),
        (33, 8, (5, 5), (1, 1), 64 * 32 * 25),
        (32, 32, (5, 5), (1, 1), 32 * 32 * 25),
    ],
)
def test_dense_kernels(inner, out, kernel, strides, size):
    """Kernels of 8 bits; each figure was read from a memory report."""
    assert dense_kernel(inner, out, kernel, strides) == size


def test_a_stride_of_one_has_no_phases():
    assert not is_polyphase(16, 16, (3, 3), (1, 1))


def w(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def chain(*channels: int, size: int = 16, kernel: int = 3) -> ir.Model:
    """Convolutions with ReLU one behind the other, channels[0] -> channels[1] -> ..."""
    nodes, constants = [], {}
    for index, (inner, out) in enumerate(pairwise(channels)):
        constants[f"k{index}"], constants[f"b{index}"] = w(out, inner, kernel, kernel), w(out)
        source = "x" if index == 0 else f"r{index - 1}"
        inputs = [source, f"k{index}", f"b{index}"]
        nodes.append(node("Conv", inputs, [f"c{index}"], pads=[kernel // 2] * 4))
        nodes.append(node("Relu", [f"c{index}"], [f"r{index}"]))
    return model(nodes, {"x": [1, channels[0], size, size]}, [f"r{len(channels) - 2}"], constants)


@pytest.mark.parametrize(
    ("built", "model_bytes", "runtime_bytes"),
    [
        (chain(3, 32), 9_440, 22_016),
        (chain(3, 32, 32, 32, 32), 37_664, 22_016),
    ],
    ids=["mem_chain1_c32k3", "mem_chain4_c32k3"],
)
def test_networks_of_the_oracle(built: ir.Model, model_bytes: int, runtime_bytes: int):
    forecast = forecast_memory(built)
    assert (forecast.model_bytes, forecast.runtime_bytes) == (model_bytes, runtime_bytes)


def skip(channels: int, size: int) -> ir.Model:
    """A convolution whose result is added to what a pool, a convolution and a resize make of it."""
    nodes = [
        node("Conv", ["x", "k0"], ["a"], pads=[1] * 4),
        node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "k1"], ["b"], pads=[1] * 4),
        node(
            "Resize",
            ["b", "", "scales"],
            ["u"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        node("Add", ["a", "u"], ["s"]),
        node("Conv", ["s", "k2"], ["y"]),
    ]
    constants = {
        "k0": w(channels, 3, 3, 3),
        "k1": w(channels, channels, 3, 3),
        "k2": w(1, channels, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    return model(nodes, {"x": [1, 3, size, size]}, ["y"], constants)


def test_a_skip_is_alive_until_it_is_added():
    forecast = forecast_memory(skip(64, 32))
    held = next(row for row in forecast.tensors if row.name == "a")
    added = next(index for index, name in enumerate(forecast.steps) if name == "s")
    assert held.last_step == added


def test_what_does_not_fit_is_an_error_with_the_place_and_the_largest_tensors():
    forecast = forecast_memory(skip(64, 256))
    (error,) = forecast.diagnostics
    assert not forecast.fits
    assert not forecast.may_tile
    assert error.rule == "imx500/memory"
    assert error.severity is Severity.ERROR
    assert f"{forecast.total_bytes:,} bytes" in error.found
    assert f"{MEMORY_BUDGET:,}" in error.limit
    assert forecast.steps[forecast.peak_step] in error.fix


def test_a_chain_that_does_not_fit_may_be_tiled():
    forecast = forecast_memory(chain(3, 64, 64, 1, size=384))
    assert not forecast.fits
    assert forecast.may_tile
    assert [d.severity for d in forecast.diagnostics] == [Severity.WARNING]


def test_a_chain_whose_output_does_not_fit_cannot_be_tiled():
    forecast = forecast_memory(chain(3, 16, 4, size=1024))
    assert not forecast.may_tile
    assert [d.severity for d in forecast.diagnostics] == [Severity.ERROR]


def test_weights_that_do_not_fit_are_named():
    (error,) = forecast_memory(chain(3, 1024, 1024, size=8)).diagnostics
    assert error.severity is Severity.ERROR
    assert "weights" in error.fix


def test_a_schedule_counts_what_is_alive():
    """a (10) is read by both steps behind it, b (20) by the last, which needs 5 besides."""
    a, b, c = (Buffer(None, name, size, Layout.PACKED) for name, size in (("a", 10), ("b", 20), ("c", 30)))
    schedule = Schedule([Step("1", [], [a]), Step("2", [a], [b]), Step("3", [a, b], [c], scratch=5)])
    schedule.settle()
    assert schedule.live_bytes() == [10, 30, 65]


def test_places_are_multiples_of_1024_but_for_the_smallest_buffer():
    sizes = (("a", 3_000), ("b", 1_500), ("c", 100))
    a, b, c = (Buffer(None, name, size, Layout.PACKED) for name, size in sizes)
    schedule = Schedule([Step("1", [], [a]), Step("2", [a], [b]), Step("3", [a, b], [c])])
    schedule.settle()
    assert schedule.placed_bytes([]) == (3_072 + 2_048 + 100, 2)
    assert schedule.placed_bytes([2_048]) == (3_072 + 2_048 + 2_048 + 100, 2)


def test_the_branch_that_shrinks_runs_first():
    """a(x) * sigmoid(b(x)[:, :1]) as the converter runs it: b, slice, sigmoid, a (oracle's ew_bmul_1hw)."""
    nodes = [
        node("Conv", ["x", "k0"], ["c"]),
        node("Conv", ["c", "ka"], ["a"]),
        node("Conv", ["c", "kb"], ["b"]),
        node("Slice", ["b", "start", "stop", "axis"], ["s"]),
        node("Sigmoid", ["s"], ["g"]),
        node("Mul", ["a", "g"], ["y"]),
    ]
    numbers = {"start": np.array([0]), "stop": np.array([1]), "axis": np.array([1])}
    constants = {"k0": w(16, 3, 1, 1), "ka": w(16, 16, 1, 1), "kb": w(16, 16, 1, 1), **numbers}
    built = model(nodes, {"x": [1, 3, 32, 32]}, ["y"], constants)
    outputs = [layer.outputs[0].name for layer in layers_of(built.graph)]
    assert outputs == ["c", "b", "s", "g", "a", "y"]


def test_an_addition_and_its_relu_run_with_the_convolution():
    nodes = [
        node("Conv", ["x", "k0"], ["a"]),
        node("Conv", ["a", "k1"], ["b"]),
        node("Add", ["b", "a"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    built = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"k0": w(32, 3, 1, 1), "k1": w(32, 32, 1, 1)})
    first, second = layers_of(built.graph)
    assert [part.op_type for part in second.parts] == ["Conv", "Add", "Relu"]
    assert second.adds
    assert first.outputs[0].name == "a"


def joined(channels: int, size: int) -> ir.Model:
    """Two pictures joined by rows and read by channels."""
    nodes = [
        node("Conv", ["x", "k0"], ["a"], pads=[1] * 4),
        node("Conv", ["a", "k1"], ["b"], pads=[1] * 4),
        node("Concat", ["a", "b"], ["j"], axis=1),
        node("Conv", ["j", "k2"], ["y"], pads=[1] * 4),
    ]
    constants = {
        "k0": w(channels, 3, 3, 3),
        "k1": w(channels, channels, 3, 3),
        "k2": w(channels, 2 * channels, 3, 3),
    }
    return model(nodes, {"x": [1, 3, size, size]}, ["y"], constants)


@pytest.mark.parametrize(("size", "copies"), [(104, 1), (168, 1), (208, 3), (224, 3)])
def test_large_pictures_reach_channels_by_three_copies(size: int, copies: int):
    """As the insight files of networks of these sizes show it."""
    names = forecast_memory(joined(20, size)).steps
    assert sum(name.startswith(("j to channels", "j turned")) for name in names) == copies


class Halved(torch.nn.Module):
    """A picture of few channels added to what a pool, a convolution and a resize make of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, channels, 3, padding=1)
        self.second = torch.nn.Conv2d(channels, channels, 1)
        self.head = torch.nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        half = self.second(functional.max_pool2d(x, 2))
        return self.head(x + functional.interpolate(half, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize(
    ("channels", "size", "runtime_bytes"),
    [
        (8, 100, 633_344),
        (8, 128, 979_968),
        (8, 160, 1_525_760),
        (12, 160, 1_628_160),
        (12, 224, 3_180_544),
    ],
)
def test_a_resize_needs_its_input_once_more_inside_a_frame(channels: int, size: int, runtime_bytes: int):
    """Measured with the converter 3.19.2."""
    assert forecast_memory(exported(Halved(channels), size)).runtime_bytes == runtime_bytes


class Doubled(torch.nn.Module):
    """Two pictures joined, and read by channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, channels, 3, padding=1)
        self.second = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.last = torch.nn.Conv2d(2 * channels, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.cat([x, torch.relu(self.second(x))], 1))


@pytest.mark.parametrize(
    ("channels", "rows", "columns", "runtime_bytes"),
    [(31, 192, 180, 4_538_368), (18, 192, 196, 4_950_016), (33, 160, 152, 4_021_248)],
    ids=["34,560 pixels", "37,632 pixels", "24,320 pixels"],
)
def test_three_copies_are_a_matter_of_pixels(channels: int, rows: int, columns: int, runtime_bytes: int):
    """Measured with the converter 3.19.2; the last has the most bytes by channels and takes one copy."""
    assert forecast_memory(exported(Doubled(channels), rows, columns)).runtime_bytes == runtime_bytes


class Separable(torch.nn.Module):
    """Depthwise convolutions and a fused addition whose other operand lies by columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, channels, 3, padding=1)
        self.first = self.unit(channels, channels)
        self.down = self.unit(channels, 2 * channels)
        self.rise = torch.nn.Conv2d(2 * channels, channels, 1)
        self.last = self.unit(channels, channels)
        self.head = torch.nn.Conv2d(channels, 1, 1)

    @staticmethod
    def unit(inner: int, out: int) -> torch.nn.Sequential:
        return torch.nn.Sequential(
            torch.nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
            torch.nn.ReLU(),
            torch.nn.Conv2d(inner, out, 1),
            torch.nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.relu(self.stem(x)))
        low = self.down(functional.max_pool2d(x, 2))
        low = self.rise(functional.interpolate(low, scale_factor=2, mode="nearest"))
        return self.head(self.last(low + x))


def test_the_other_operand_of_a_fused_addition_is_copied_before_a_resize():
    """Measured with the converter 3.19.2: 8 channels at 160x160."""
    assert forecast_memory(exported(Separable(8), 160)).runtime_bytes == 2_140_160


def test_each_reader_has_a_copy_of_its_own():
    """The pool and the transposed convolution with its addition read one picture by channels."""
    nodes = [
        node("Conv", ["x", "k0"], ["a"], pads=[1] * 4),
        node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", ["p", "k1"], ["u"], strides=[2, 2]),
        node("Add", ["u", "a"], ["s"]),
        node("Conv", ["s", "k2"], ["y"]),
    ]
    constants = {"k0": w(8, 3, 3, 3), "k1": w(8, 8, 2, 2), "k2": w(1, 8, 1, 1)}
    built = model(nodes, {"x": [1, 3, 32, 32]}, ["y"], constants)
    assert [layer.adds for layer in layers_of(built.graph)] == [False, False, True, False]
    names = forecast_memory(built).steps
    assert names.count("a to channels") == 2


@pytest.mark.parametrize(
    ("strides", "adder"),
    [
        ((1, 1), "e"),  # one convolution on the short way, two on the other
        ((2, 2), "d"),  # the short way samples its pixels first: as long, so the first operand's
    ],
)
def test_of_two_branches_the_shorter_takes_the_addition(strides: tuple[int, int], adder: str):
    nodes = [
        node("Conv", ["x", "k0"], ["a"]),
        node("Conv", ["a", "k1"], ["b"], strides=[*strides], pads=[1] * 4),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "k2"], ["d"], pads=[1] * 4),
        node("Conv", ["a", "k3"], ["e"], strides=[*strides]),
        node("Add", ["d", "e"], ["y"]),
    ]
    constants = {"k0": w(64, 3, 1, 1), "k1": w(96, 64, 3, 3), "k2": w(96, 96, 3, 3), "k3": w(96, 64, 1, 1)}
    built = model(nodes, {"x": [1, 3, 32, 32]}, ["y"], constants)
    (added,) = [layer for layer in layers_of(built.graph) if layer.adds]
    assert added.main.outputs[0].name == adder


@pytest.mark.parametrize("axes", [1, 3])
def test_a_strided_convolution_of_no_picture_is_forecast(axes: int):
    """Refused by a rule of its own; the forecast and the fused addition have to live with it."""
    sides = [9] * axes
    nodes = [
        node("Conv", ["x", "k0"], ["a"], strides=[2] * axes),
        node("Conv", ["x", "k1"], ["b"], strides=[2] * axes),
        node("Add", ["a", "b"], ["y"]),
    ]
    constants = {"k0": w(4, 3, *[1] * axes), "k1": w(4, 3, *[1] * axes)}
    built = model(nodes, {"x": [1, 3, *sides]}, ["y"], constants)
    assert forecast_memory(built).fits
    assert {found.rule for found in check_operators(built)} == {"imx500/conv-rank"}


def test_a_network_that_fits_barely_is_warned_of():
    forecast = forecast_memory(joined(28, 248))
    (warning,) = forecast.diagnostics
    assert forecast.fits
    assert warning.severity is Severity.WARNING
    assert f"{forecast.total_bytes:,} bytes" in warning.found


def test_the_forecast_is_linear_in_nodes():
    """5,000 nodes take well below a second of one processor."""
    built = chain(3, *[16] * 2_500, size=32)
    forecast_memory(built)
    started = time.process_time()
    forecast_memory(built)
    assert time.process_time() - started < 1.5


@given(
    channels=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    size=st.integers(1, 40),
    kernel=st.sampled_from([1, 3, 5, 9]),
)
@settings(max_examples=60, deadline=None)
def test_more_channels_never_take_less(channels: list[int], size: int, kernel: int):
    small = forecast_memory(chain(3, *channels, size=size, kernel=kernel))
    large = forecast_memory(chain(3, *(c + 32 for c in channels), size=size, kernel=kernel))
    assert large.model_bytes >= small.model_bytes
    assert small.runtime_bytes >= small.input_persistency_bytes
    assert forecast_memory(chain(3, *channels, size=size, kernel=kernel)) == small


def test_a_constant_read_twice_is_stored_once():
    """The frame of a folded ImageNet normalisation at 96x96: 736 bytes more in the converter's report."""
    frame, plain = (
        forecast_memory(
            apply_all(
                model(
                    [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=3)],
                    {"x": [1, 3, 96, 96]},
                    ["y"],
                    {"w": np.ones((3, 1, 3, 3), np.float32)},
                    contract,
                )
            )
        )
        for contract in (contracts.imagenet(96, 96), contracts.centred(3, 96, 96))
    )
    assert frame.model_bytes - plain.model_bytes == 736
