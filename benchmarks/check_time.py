"""How long `picosam2 check` takes: as a whole process and inside one, from 50 to 5,000 nodes.

    python -m benchmarks.check_time [MODEL ...] [--runs 5] [--vendor]

Prints a Markdown table (docs/performance.md holds the last one). Wall-clock and CPU time (user + system) are
told apart, because on a busy machine the first says little; each is the smallest of several runs. `--vendor`
also quantizes each MODEL and runs the converter's own memory report on it, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

ROOT = Path(__file__).parents[1]
NODES = (50, 500, 5_000)
CHANNELS, SIDE = 16, 24

INSIDE = """
import json, sys, time
from pathlib import Path
from passes.light_imports import light_imports, without_collector
with light_imports():
    from compiler.checking import check_model
times = []
with without_collector():
    for _ in range(int(sys.argv[2]) + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        check_model(Path(sys.argv[1]))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
print(json.dumps([min(column) for column in zip(*times[1:])]))
"""


def network(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """A residual network of `nodes` nodes before any fold: depthwise 3x3, batch norm, ReLU, 1x1, addition.

    Every eighth block halves and restores the size and joins the two by a concatenation.
    """
    numbers = np.random.default_rng(seed)
    made: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}

    def weight(*shape: int) -> str:
        name = f"w{len(constants)}"
        constants[name] = (numbers.normal(size=shape) * 0.2).astype(np.float32)
        return name

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"/block{len(made) // 8}/{operator}_{len(made)}"
        made.append(oh.make_node(operator, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def norm(value: str) -> str:
        gain, shift, mean, spread = (weight(CHANNELS) for _ in range(4))
        constants[spread] = np.abs(constants[spread]) + 0.5
        return add("BatchNormalization", value, gain, shift, mean, spread)

    constants["scales"] = np.array([1, 1, 2, 2], dtype=np.float32)
    value = add("Conv", "input", weight(CHANNELS, 3, 3, 3), pads=[1] * 4)
    block = 0
    while len(made) < nodes - 8:
        block += 1
        inner = add("Conv", value, weight(CHANNELS, 1, 3, 3), pads=[1] * 4, group=CHANNELS)
        inner = add("Relu", norm(inner))
        if block % 8 == 0:
            small = add("MaxPool", inner, kernel_shape=[2, 2], strides=[2, 2])
            large = add("Resize", small, "", "scales", mode="nearest",
                        coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
            joined = add("Concat", large, inner, axis=1)
            inner = add("Conv", joined, weight(CHANNELS, 2 * CHANNELS, 1, 1))
        else:
            inner = norm(add("Conv", inner, weight(CHANNELS, CHANNELS, 1, 1)))
        value = add("Add", inner, value)
    while len(made) < nodes:
        value = add("Relu" if len(made) % 2 else "Sigmoid", value)
    graph = oh.make_graph(
        made,
        f"nodes{nodes}",
        [oh.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [oh.make_empty_tensor_value_info(value)],
        [onh.from_array(array, name) for name, array in constants.items()],
    )
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


def whole_process(model: Path, runs: int) -> tuple[float, float]:
    """Smallest wall and CPU seconds of `picosam2 check MODEL` as a process of its own."""
    walls, cpus = [], []
    for _ in range(runs + 1):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "compiler.cli", "check", str(model)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode not in (0, 2):
            raise SystemExit(f"picosam2 check {model} ended with exit code {done.returncode}")
    return min(walls[1:]), min(cpus[1:])


def inside(model: Path, runs: int) -> tuple[float, float]:
    """Smallest wall and CPU seconds from the file to the finding, imports left out."""
    done = subprocess.run(
        [sys.executable, "-c", INSIDE, str(model), str(runs)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def vendor_seconds(model: Path, work: Path) -> float:
    """Wall seconds of the converter's memory report on our quantized graph of the model."""
    out = work / f"{model.stem}-package"
    subprocess.run(
        [sys.executable, "-m", "compiler.cli", "compile", str(model), "--out", str(out), "--quiet",
         "--memory-report-only"],
        cwd=ROOT, check=True, env=os.environ | {"PICOSAM2_CACHE": str(work / "cache")},
    )  # fmt: skip
    steps = json.loads((out / "report.json").read_text())["steps"]
    return float(next(step["seconds"] for step in steps if step["name"] == "convert"))


def _models(given: list[Path], work: Path) -> Iterator[tuple[str, Path]]:
    for count in NODES:
        path = work / f"nodes{count}.onnx"
        onnx.save(network(count), str(path))
        yield f"{count:,} nodes", path
    for path in given:
        yield f"{path.name}, {len(onnx.load(str(path)).graph.node)} nodes", path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vendor", action="store_true", help="also the converter's memory report of MODELs")
    arguments = parser.parse_args()
    given = [path.resolve() for path in arguments.models]
    print("| model | process, wall | process, CPU | inside, wall | inside, CPU | vendor's memory report |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="picosam2-bench-") as folder:
        for name, path in _models(given, Path(folder)):
            process, inner = whole_process(path, arguments.runs), inside(path, arguments.runs)
            vendor = ""
            if arguments.vendor and path in given:
                seconds = vendor_seconds(path, Path(folder))
                vendor = f"{seconds:.1f} s, {seconds / process[0]:.0f} x"
            print(
                f"| {name} | {process[0]:.2f} s | {process[1]:.2f} s "
                f"| {1000 * inner[0]:.0f} ms | {1000 * inner[1]:.0f} ms | {vendor} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
