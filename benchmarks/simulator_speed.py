"""How fast the simulator is, beside everything else that can run the same network on this machine.

    python -m benchmarks.simulator_speed PACKAGE [--threads 2] [--pictures 32]

PACKAGE is the compiled student (`make compile`: out/picosam2). Every row runs in this one process, one after
the other; a figure is the fastest of several runs, in milliseconds a picture. The last rows compute the
convolutions only, without the steps between them: the alternatives that were weighed for the engine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

from compiler.dialect import to_standard
from compiler.driver import INT8_GRAPH
from compiler.simulator.engine import compile_program
from compiler.simulator.native_steps import NativeStep
from compiler.simulator.reference import run_reference
from passes import graph as graphs

SIDE = 96


def fastest(run: Callable[[], object], seconds: float) -> float:
    """The fastest of at least 3 runs within about `seconds`, in milliseconds; one run to warm up."""
    run()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return 1000 * min(times)


def with_batch(model: Any, count: int) -> onnx.ModelProto:
    """The model for pictures [count, ...]; shapes inside are dropped, the runtime finds its own."""
    proto = graphs.to_proto(model)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = count
    del proto.graph.value_info[:]
    return proto


def onnxruntime_session(proto: onnx.ModelProto, threads: int, *, vendor: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if vendor:
        import mct_quantizers

        options = mct_quantizers.get_ort_session_options()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def float_network(threads: int) -> Callable[[np.ndarray], object]:
    """The float32 student in torch: batch norms fused, channels last, inference mode."""
    import torch

    from student.networks import PicoSAM2

    torch.set_num_threads(threads)
    network = PicoSAM2().eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = torch.jit.freeze(torch.jit.script(network))

    def run(pictures: np.ndarray) -> object:
        data = torch.from_numpy(pictures).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            return fused(data)

    return run


def convolutions(steps: tuple[Any, ...]) -> list[NativeStep]:
    return [step for step in steps if isinstance(step, NativeStep) and step.weights is not None]


def onednn_convolutions(layers: list[NativeStep], count: int, threads: int) -> Callable[[], object]:
    """`torch.ops.onednn.qconv2d_pointwise`: int8 in, int8 out, float32 requantization inside."""
    import torch

    torch.set_num_threads(threads)
    calls: list[tuple[Any, ...]] = []
    for layer in layers:
        window, image = layer.window, layer.inputs[0]
        assert layer.weights is not None
        data = torch.randint(0, 256, (count, image.channels, image.height, image.width), dtype=torch.uint8)
        scales = torch.full((len(layer.weights),), 0.01)
        zeros = torch.zeros(len(layer.weights), dtype=torch.int64)
        geometry = (list(window.stride), list(window.pad), list(window.dilation), layer.groups)
        packed = torch.ops.onednn.qconv_prepack(
            torch.from_numpy(layer.weights), scales, 0.1, 0, *geometry, list(data.shape)
        )
        bias = torch.zeros(len(layer.weights))
        calls.append(
            (
                data.to(memory_format=torch.channels_last),
                0.1,
                0,
                packed,
                scales,
                zeros,
                bias,
                *geometry,
                1.0,
                0,
                torch.uint8,
                "none",
                [],
                "",
            )
        )
    operator = torch.ops.onednn.qconv2d_pointwise
    return lambda: [operator(*call) for call in calls]


def onnxruntime_convolutions(layers: list[NativeStep], count: int, threads: int) -> Callable[[], object]:
    """onnxruntime's QLinearConv: int8 in, int8 out."""
    nodes, constants, inputs, outputs, feeds = [], [], [], [], {}

    def constant(name: str, array: Any) -> str:
        constants.append(onh.from_array(np.asarray(array), name))
        return name

    one, zero = constant("one", np.float32(0.1).reshape(())), constant("zero", np.uint8(0).reshape(()))
    signed_zero = constant("signed", np.int8(0).reshape(()))
    for number, layer in enumerate(layers):
        image, window = layer.inputs[0], layer.window
        assert layer.weights is not None
        shape = [count, image.channels, image.height, image.width]
        x, y = f"x{number}", f"y{number}"
        feeds[x] = np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)
        inputs.append(oh.make_tensor_value_info(x, onnx.TensorProto.UINT8, shape))
        outputs.append(oh.make_tensor_value_info(y, onnx.TensorProto.UINT8, None))
        weights = constant(f"w{number}", layer.weights)
        top, left, bottom, right = layer.border(image)
        nodes.append(
            oh.make_node(
                "QLinearConv",
                [x, one, zero, weights, one, signed_zero, one, zero],
                [y],
                group=layer.groups,
                strides=list(window.stride),
                dilations=list(window.dilation),
                pads=[top, left, bottom, right],
            )
        )
    graph = oh.make_graph(nodes, "convolutions", inputs, outputs, constants)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime_session(proto, threads)
    return lambda: session.run(None, feeds)


def float_convolutions(layers: list[NativeStep], count: int, threads: int) -> Callable[[], object]:
    """float32 convolutions: exact integers too, wherever all sums stay below 2**24."""
    import torch

    torch.set_num_threads(threads)
    calls = []
    for layer in layers:
        image, window = layer.inputs[0], layer.window
        assert layer.weights is not None
        data = torch.randint(0, 256, (count, image.channels, image.height, image.width)).float()
        weights = torch.from_numpy(layer.weights.astype(np.float32)).to(memory_format=torch.channels_last)
        calls.append(
            (data.to(memory_format=torch.channels_last), weights, None, window.stride, window.pad,
             window.dilation, layer.groups)
        )  # fmt: skip

    def run() -> object:
        with torch.inference_mode():
            return [torch.conv2d(*call) for call in calls]

    return run


def int8_limit(threads: int) -> float:
    """Multiply-accumulates a second of the machine's best int8 matrix product (oneDNN, 2048 x 2048)."""
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randint(-128, 128, (2048, 2048), dtype=torch.int8) for _ in range(2))
    return float(2048.0**3 / (fastest(lambda: torch._int_mm(a, b), 1.0) / 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    arguments = parser.parse_args()
    threads, many = arguments.threads, arguments.pictures
    model = graphs.load(arguments.package / INT8_GRAPH)
    numbers = np.random.default_rng(0)
    batches = {n: numbers.integers(-128, 128, (n, 3, SIDE, SIDE)).astype(np.int8) for n in (1, many)}
    floats = {n: batch.astype(np.float32) for n, batch in batches.items()}
    rows: list[tuple[str, dict[int, float]]] = []

    def row(name: str, make: Callable[[int], Callable[[], object]]) -> None:
        figures = {n: fastest(make(n), arguments.seconds) / n for n in batches}
        rows.append((name, figures))
        print(f"  {name}: {figures[1]:.2f} and {figures[many]:.2f} ms", flush=True)

    def vendor(n: int) -> Callable[[], object]:
        session = onnxruntime_session(with_batch(model, n), threads, vendor=True)
        return lambda: session.run(None, {"input": floats[n]})

    def standard(n: int) -> Callable[[], object]:
        session = onnxruntime_session(with_batch(to_standard(model), n), threads)
        return lambda: session.run(None, {"input": floats[n]})

    network = float_network(threads)
    programs = {
        "this engine": compile_program(model, threads=threads),
        "this engine, one thread": compile_program(model, threads=1),
        "this engine, without VNNI (AVX2)": compile_program(model, threads=threads, variant="without-vnni"),
        "this engine, plain C": compile_program(model, threads=threads, variant="portable"),
    }
    layers = convolutions(programs["this engine"].steps)
    row("onnxruntime with mct_quantizers' operators", vendor)
    single = fastest(lambda: run_reference(model, {"input": batches[1]}), arguments.seconds)
    rows.append(("the exact reference, picture by picture", {1: single, many: single}))
    row("onnxruntime, quantizers as standard operators", standard)
    row("torch, float32, channels last", lambda n: lambda: network(floats[n]))
    for name, program in programs.items():
        row(name, lambda n, program=program: lambda: program.run({"input": batches[n]}))  # type: ignore[misc]
    alternatives = {
        "convolutions only: oneDNN qconv2d_pointwise": onednn_convolutions,
        "convolutions only: onnxruntime QLinearConv": onnxruntime_convolutions,
        "convolutions only: torch float32": float_convolutions,
    }
    for name, make in alternatives.items():
        row(name, lambda n, make=make: make(layers, n, threads))  # type: ignore[misc]
    limit, ours = int8_limit(threads), dict(rows)["this engine"]
    macs = sum(
        layer.output.height * layer.output.width * layer.weights.size
        for layer in layers
        if layer.weights is not None
    )

    base, base_float = rows[0][1], dict(rows)["torch, float32, channels last"]
    print(
        f"\n| {threads} threads, ms a picture | batch 1 | batch {many} | x vendor's, 1 | x vendor's, {many} |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, figures in rows:
        one, batch = figures[1], figures[many]
        print(f"| {name} | {one:.2f} | {batch:.2f} | {base[1] / one:.0f} | {base[many] / batch:.0f} |")
    print(
        f"\nagainst torch float32: {base_float[1] / ours[1]:.1f} "
        f"and {base_float[many] / ours[many]:.1f} times as fast"
    )
    print(
        f"{macs / 1e6:.1f} M MACs: {macs / ours[1] / 1e6:.0f} and {macs / ours[many] / 1e6:.0f} GMAC/s; "
        f"oneDNN's int8 matrix product reaches {limit / 1e9:.0f} GMAC/s, {1000 * macs / limit:.2f} ms"
    )


if __name__ == "__main__":
    main()
