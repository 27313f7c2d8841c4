"""The fast engine beside the exact reference, bit by bit, and beside onnxruntime's float32 run of the same
file.

    python -m benchmarks.simulator_exactness PACKAGE --data coco:DIR [--first 0] [--count N] [--classified 2]

Every quantized tensor of every crop of the data set is computed by both simulators; differing integers are
counted by tensor. The outputs of onnxruntime (quantizers as standard float32 operators) are compared with
them: the share that differs, and by how many steps. For the first `--classified` crops each segment between
quantizers is run in onnxruntime with the vendor's operators on the simulator's integers, and every difference
has to be explained by float32's error bound.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from compiler.agreement import session
from compiler.dialect import to_standard
from compiler.driver import INT8_GRAPH
from compiler.frontend import load_model
from compiler.simulator.engine import compile_program
from compiler.simulator.reference import run_reference
from passes import graph as graphs
from passes.contract import InputContract
from student.crops import PROTOCOLS
from student.cropset import CropSet, load_crops
from student.evaluate import network_input
from student.instances import load_instances
from tests.compiler.simulator.onnxruntime_segments import compare


def _delivered(crops: CropSet, number: int, contract: InputContract) -> np.ndarray:
    return network_input(crops.pictures[number : number + 1].transpose(0, 3, 1, 2), contract)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default=None)
    parser.add_argument("--protocol", default="point-native-96")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1 << 30)
    parser.add_argument("--classified", type=int, default=2)
    arguments = parser.parse_args()
    loaded = load_model(arguments.package / INT8_GRAPH)
    model = loaded.model
    crops = load_crops(
        load_instances(arguments.data, arguments.split), PROTOCOLS[arguments.protocol], lambda *_: None
    )
    program, running = compile_program(model), session(to_standard(model))
    (given,), (output,) = program.inputs, program.outputs
    last = min(len(crops), arguments.first + arguments.count)
    integers, wrong = 0, Counter[str]()
    steps = Counter[int]()
    for number in range(arguments.first, last):
        picture = {given: _delivered(crops, number, loaded.contract)}
        exact = run_reference(model, picture, keep=program.tensors)
        fast = program.run(picture, keep=program.tensors)
        for name, tensor in exact.items():
            integers += tensor.values.size
            wrong[name] += int(np.count_nonzero(tensor.values != fast[name].values))
        float32 = np.asarray(running.run([output], picture)[0]) / float(exact[output].step)
        steps.update(np.abs(float32.astype(np.int64) - exact[output].values).reshape(-1).tolist())
        if sys.stderr.isatty() or number % 100 == 0:
            print(f"{number + 1 - arguments.first} of {last - arguments.first}", file=sys.stderr, flush=True)
    total = sum(steps.values())
    print(f"{last - arguments.first} crops, {integers:,} integers in {len(program.tensors)} tensors")
    print(f"fast engine against exact reference: {sum(wrong.values())} differ {dict(+wrong) or ''}")
    share = 100 * (1 - steps[0] / total)
    print(f"onnxruntime end to end, {total:,} outputs: {share:.3f} % differ, by steps:")
    print("  " + ", ".join(f"{n}: {count:,}" for n, count in sorted(steps.items()) if n))
    compared = explained = unexplained = largest = 0
    for number in range(arguments.first, min(last, arguments.first + arguments.classified)):
        pixels = _delivered(crops, number, loaded.contract)
        result = compare(graphs.to_proto(model), {given: pixels.astype(np.int64)})
        compared += result.compared
        explained += sum(d.explained for d in result.differences)
        unexplained += sum(not d.explained for d in result.differences)
        largest = max([largest, *(abs(d.ours - d.theirs) for d in result.differences)])
    print(
        f"segment by segment, {compared:,} integers: {explained} differ and are explained by float32, "
        f"{unexplained} are not; the largest difference is {largest} steps"
    )


if __name__ == "__main__":
    main()
