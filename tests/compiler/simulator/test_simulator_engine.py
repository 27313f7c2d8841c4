"""The fast engine equals the exact reference on every bit of every tensor."""

from __future__ import annotations

import multiprocessing
import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.simulator.engine import CHUNK, compile_program
from compiler.simulator.native import build
from compiler.simulator.native import program as native
from compiler.simulator.native_steps import NativeStep
from compiler.simulator.reference import run_reference
from passes import graph as graphs
from passes.errors import EnvironmentFault, InputError
from tests.compiler.simulator.engines_agree import mismatches, programs
from tests.compiler.simulator.random_networks import pictures, random_network
from tests.compiler.simulator.simulator_graphs import Dialect

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.onnx"))


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_networks_that_mct_exported(path: Path) -> None:
    model = graphs.load(path)
    inputs = {"input": np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8))}
    for program in programs(model):
        assert mismatches(model, inputs, program, one_by_one=True) == {}


def refusal(run: Callable[[int], object]) -> tuple[int, str] | None:
    """The first of three pictures that is refused, and the node that refuses it."""
    for number in range(3):
        try:
            run(number)
        except InputError as error:
            return number, error.thing
    return None


def agree_on(seed: int, wide: float = 0.0) -> None:
    model, shape = random_network(seed, wide)
    inputs = {"input": pictures(seed, 3, shape)}
    if refused := refusal(lambda n: run_reference(model, {"input": inputs["input"][n : n + 1]})):
        # A rounding that no precision settles.
        program = compile_program(model)
        assert refusal(lambda n: program.run({"input": inputs["input"][n : n + 1]})) == refused
        return
    for program in programs(model):
        assert mismatches(model, inputs, program, one_by_one=True) == {}


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_random_networks(seed: int) -> None:
    agree_on(seed)


@given(st.integers(0, 1 << 32))
@settings(max_examples=30, deadline=None)
def test_random_networks_with_16_bit_tensors(seed: int) -> None:
    agree_on(seed, wide=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_a_thousand_random_networks(first: int) -> None:
    for seed in range(first, first + 100):
        agree_on(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 500, 100))
def test_five_hundred_random_networks_with_16_bit_tensors(first: int) -> None:
    for seed in range(first, first + 100):
        agree_on(seed, wide=0.4)


def small_network() -> Any:
    """A signed input, a fused ReLU, a residual sum; thresholds that make many exact ties."""
    numbers = np.random.default_rng(2)
    graph = Dialect()
    x = graph.quantize(graph.input([1, 5, 9, 7]), 128.0)
    weights = graph.weights(numbers.integers(-3, 4, (5, 1, 3, 3)), 0.5)
    depthwise = graph.node("Conv", x, weights, graph.constant([0.5] * 5), pads=[1] * 4, group=5)
    first = graph.quantize(graph.node("Relu", depthwise), 128.0, signed=False)
    dense = graph.node("Conv", first, graph.weights(numbers.integers(-128, 128, (5, 5, 1, 1)), 2.0**-6))
    return graph.model(graph.quantize(graph.node("Add", graph.quantize(dense, 64.0), x), 128.0))


def test_everything_of_a_usual_network_runs_in_kernels() -> None:
    steps = compile_program(small_network()).steps
    assert [type(step) is NativeStep for step in steps] == [False, True, True, True]


@given(st.integers(1, 2 * CHUNK + 5))
@settings(max_examples=8, deadline=None)
def test_a_batch_of_any_size_gives_the_bits_of_one_by_one(count: int) -> None:
    program = compile_program(small_network(), threads=2)
    inputs = np.random.default_rng(count).integers(-128, 128, (count, 5, 9, 7))
    (name,) = program.outputs
    whole = program.run({"input": inputs})[name].values
    assert np.array_equal(
        whole, np.concatenate([program.run({"input": inputs[n : n + 1]})[name].values for n in range(count)])
    )


def test_many_pictures_stream_through_in_constant_memory() -> None:
    program = compile_program(small_network(), threads=2)
    (name,) = program.outputs

    def peak(batches: int) -> int:
        numbers = np.random.default_rng(0)
        stream = (numbers.integers(-128, 128, (CHUNK, 5, 9, 7)) for _ in range(batches))
        tracemalloc.start()
        for batch in stream:
            assert program.run({"input": batch})[name].values.shape == (CHUNK, 5, 9, 7)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(2)
    assert peak(60) < 1.1 * peak(6) + 20_000


def test_one_program_serves_several_threads_at_once() -> None:
    program = compile_program(small_network(), threads=2)
    (name,) = program.outputs
    batches = [np.random.default_rng(n).integers(-128, 128, (n % 4 + 1, 5, 9, 7)) for n in range(24)]
    alone = [program.run({"input": batch})[name].values for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: program.run({"input": batch})[name].values, batches))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_real_pictures_are_quantized_as_the_reference_does() -> None:
    model = small_network()
    floats = np.random.default_rng(5).normal(0, 90, (2, 5, 9, 7)).astype(np.float32)
    floats[0, 0, 0, :4] = [0.5, 1.5, -0.5, 1e30]
    program = compile_program(model)
    (name,) = program.outputs
    exact = [run_reference(model, {"input": floats[n : n + 1]})[name].values for n in range(2)]
    assert np.array_equal(program.run({"input": floats})[name].values, np.concatenate(exact))


# Forms that once went wrong -------------------------------------------------------------------------------


def agrees(model: ir.Model, **inputs: np.ndarray) -> None:
    for program in programs(model):
        assert mismatches(model, inputs, program, one_by_one=True) == {}


def random_integers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(-128, 128, shape)


def test_two_transposed_convolutions_of_one_tensor_do_not_share_memory() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 5, 5]), 128.0)
    outputs = []
    for seed in range(2):
        weights = np.random.default_rng(seed).integers(-128, 128, (3, 4, 2, 2))
        made = graph.node("ConvTranspose", x, graph.weights(weights, [0.01] * 4, axis=1), strides=[2, 2])
        outputs.append(graph.quantize(made, 64.0))
    agrees(graph.model(*outputs), input=random_integers(5, 3, 5, 5))


@pytest.mark.parametrize("op_type", ["Add", "Mul"])
def test_a_convolution_may_meet_its_own_input_before_the_quantizer(op_type: str) -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 5, 5]), 128.0)
    made = graph.node("Conv", x, graph.weights(random_integers(3, 3, 1, 1), 0.01))
    agrees(graph.model(graph.quantize(graph.node(op_type, made, x), 64.0)), input=random_integers(2, 3, 5, 5))


@pytest.mark.parametrize("form", ["table", "pair", "sum", "linear", "clipped"])
def test_a_scalar_of_more_dimensions_than_the_data_adds_dimensions(form: str) -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3]), 128.0)
    deep = graph.constant(np.full((1, 1, 1, 1), 0.5))
    inputs = {"input": random_integers(2, 3)}
    if form in ("pair", "sum"):
        other = graph.quantize(graph.input([1, 3], "other"), 64.0)
        inputs["other"] = random_integers(2, 3)[::-1]
        value = graph.node("Mul" if form == "pair" else "Add", x, other)
    elif form == "table":
        value = x
    else:
        value = graph.node("Gemm", x, graph.weights(random_integers(3, 4), [0.01] * 4, axis=1))
    last = graph.node("Clip" if form in ("sum", "clipped") else "Mul", value, deep)
    agrees(graph.model(graph.quantize(last, 64.0)), **inputs)


def test_cancellation_behind_a_convolution_is_left_to_exact_arithmetic() -> None:
    """float64 drops the lower bits of x + 2^60: its result lies on the other side of the grid."""
    graph = Dialect()
    x = graph.quantize(graph.input([1, 1, 1, 256]), 128.0)
    value = graph.node("Conv", x, graph.weights(np.full((1, 1, 1, 1), 2)))
    for op_type, number in (("Add", 2.0**60), ("Mul", 2.0**10), ("Sub", 2.0**70), ("Sub", 2e5)):
        value = graph.node(op_type, value, graph.constant(number))
    agrees(graph.model(graph.quantize(value, 64.0)), input=np.arange(-128, 128).reshape(1, 1, 1, 256))


def test_a_bias_of_another_shape_is_broadcast_or_refused_as_in_the_reference() -> None:
    def model(channels: int, bias: tuple[int, ...]) -> ir.Model:
        graph = Dialect()
        x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
        weights = graph.weights(random_integers(channels, 3, 1, 1), 0.01)
        value = graph.node("Conv", x, weights, graph.constant(np.full(bias, 7.5)))
        return graph.model(graph.quantize(value, 64.0))

    for channels, bias in ((1, (3,)), (5, (1,)), (5, (5,)), (5, (1, 5)), (5, (5, 1))):
        agrees(model(channels, bias), input=random_integers(2, 3, 4, 4))
    with pytest.raises(InputError, match=r"\(Conv\)"):
        compile_program(model(5, (3,)))


def test_a_matrix_with_a_scale_for_each_input_is_multiplied_exactly() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3]), 128.0)
    weights = graph.weights(random_integers(3, 4), [0.1, 0.2, 0.3], axis=0)
    agrees(graph.model(graph.quantize(graph.node("MatMul", x, weights), 64.0)), input=random_integers(2, 3))


def test_a_resize_whose_size_shape_inference_misses_by_one() -> None:
    """31/7 in float32 makes 30 pixels of 7 there; the kernels would read a picture of another size."""
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 7, 7]), 128.0)
    resized = graph.node(
        "Resize", x, "", graph.constant([1.0, 1.0, 31 / 7, 31 / 7]),
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    value = graph.quantize(resized, 128.0)
    weights = graph.weights(random_integers(3, 3, 3, 3), 0.01)
    model = graph.model(graph.quantize(graph.node("Conv", value, weights, pads=[1] * 4), 64.0))
    agrees(model, input=random_integers(2, 3, 7, 7))


def test_whether_a_root_is_of_a_negative_number_is_left_to_the_pictures() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 1, 2, 2]), 128.0)
    value = graph.node("Sqrt", graph.node("Conv", x, graph.weights(np.full((1, 1, 1, 1), -2))))
    model = graph.model(graph.quantize(value, 64.0))
    agrees(model, input=np.full((1, 1, 2, 2), -50))
    with pytest.raises(InputError, match="negative"):
        compile_program(model).run({"input": np.full((1, 1, 2, 2), 50)})


def test_a_process_forked_while_another_thread_runs_does_not_wait_for_it() -> None:
    program = compile_program(small_network(), threads=2)
    inputs = {"input": random_integers(3, 5, 9, 7)}
    program.run(inputs)
    with native._LOCKS[os.getpid()]:
        child = multiprocessing.get_context("fork").Process(target=program.run, args=(inputs,))
        child.start()
        child.join(30)
        code = child.exitcode
        child.kill()
    assert code == 0


# What is refused, and when ------------------------------------------------------------------------------


def test_an_unknown_operator_is_named_before_the_first_picture() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    with pytest.raises(InputError, match=r"node node1 \(Softplus\).*operator Softplus"):
        compile_program(graph.model(graph.quantize(graph.node("Softplus", x), 8.0)))


def test_an_unknown_attribute_is_named() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    with pytest.raises(InputError, match="attribute exact"):
        compile_program(graph.model(graph.quantize(graph.node("Relu", x, exact=1), 8.0)))


def test_attributes_that_the_reference_refuses_are_refused_before_the_first_picture() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 8, 8]), 128.0)
    pool = graph.node("AveragePool", x, kernel_shape=[2, 2], dilations=[2, 2])
    with pytest.raises(InputError, match=r"AveragePool.*dilations"):
        compile_program(graph.model(graph.quantize(pool, 8.0)))


def test_an_output_without_a_quantizer_is_named() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    value = graph.node("Relu", x)
    with pytest.raises(InputError, match=f"tensor {value}.*grid"):
        compile_program(graph.model(value))


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_a_threshold_that_is_no_power_of_two_is_named(threshold: float) -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), threshold)
    with pytest.raises(InputError, match=f"threshold = {threshold}"):
        compile_program(graph.model(x))


def test_16_bit_tensors_are_simulated_exactly() -> None:
    graph = Dialect()
    x = graph.quantize(graph.input([1, 3, 4, 4]), 128.0)
    numbers = np.random.default_rng(0)
    weights = graph.weights(numbers.integers(-128, 128, (4, 3, 1, 1)), 0.01)
    wide = graph.quantize(graph.node("Conv", x, weights), 256.0, bits=16)
    again = graph.weights(numbers.integers(-128, 128, (4, 4, 1, 1)), 0.01)
    model = graph.model(graph.quantize(graph.node("Conv", wide, again), 128.0))
    program = compile_program(model)
    inputs = {"input": numbers.integers(-128, 128, (2, 3, 4, 4))}
    assert mismatches(model, inputs, program, one_by_one=True) == {}


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"other": np.zeros((1, 5, 9, 7), dtype=int)}, "other"),
        ({"input": np.zeros((1, 5, 9, 8), dtype=int)}, "shape"),
        ({"input": np.zeros((0, 5, 9, 7), dtype=int)}, "at least one"),
        ({"input": np.zeros((), dtype=int)}, "shape"),
        ({"input": np.full((1, 5, 9, 7), np.nan)}, "not finite"),
        ({"input": np.zeros((1, 5, 9, 7), dtype=complex)}, "complex"),
    ],
)
def test_unfitting_inputs_are_named(inputs: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match=found):
        compile_program(small_network()).run(inputs)


@pytest.mark.parametrize("shape", [(1, 4, 2, 2), (1, 3, 2)])
def test_inputs_of_open_size_are_checked_where_the_size_is_fixed(shape: tuple[int, ...]) -> None:
    graph = Dialect()
    model = graph.model(graph.quantize(graph.input([1, 3, "height", "width"]), 128.0))
    assert compile_program(model).run({"input": np.zeros((2, 3, 5, 4), dtype=int)})
    with pytest.raises(InputError, match="height, width"):
        compile_program(model).run({"input": np.zeros(shape, dtype=int)})


def test_a_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no tensor of integers is named 'nothing'"):
        compile_program(small_network()).run({"input": np.zeros((1, 5, 9, 7), dtype=int)}, keep=["nothing"])


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'internal error' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("PICOSAM2_CACHE", str(tmp_path / "cache"))
    build.kernels.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"internal error.*CC"):
        build.kernels()
    assert not list((tmp_path / "cache").rglob("*.so"))
    build.kernels.cache_clear()


def test_without_a_compiler_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    build.kernels.cache_clear()
    with pytest.raises(EnvironmentFault, match="no C compiler"):
        build.kernels()
    build.kernels.cache_clear()


def test_integers_beyond_float64_are_quantized_exactly() -> None:
    graph = Dialect()
    step = 2.0**40
    model = graph.model(graph.quantize(graph.input([1, 1, 1, 3]), 128 * step))
    tie = (1 << 60) + (1 << 39)  # a multiple of the step and a half; float64 cannot hold one less
    pictures = np.array([[[[tie - (1 << 60), 3 * (1 << 39) - 1, (1 << 39) + 1]]]])
    exact = run_reference(model, {"input": pictures})
    (name,) = exact
    assert np.array_equal(compile_program(model).run({"input": pictures})[name].values, exact[name].values)
    large = np.array([[[[(1 << 60) - 1, (1 << 54) + 1, -(1 << 54) - 1]]]])
    exact = run_reference(model, {"input": large})
    assert np.array_equal(compile_program(model).run({"input": large})[name].values, exact[name].values)
