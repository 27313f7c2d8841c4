"""A network that post-training quantization breaks, and what equalisation makes of it: docs/equalisation.md.

    python -m benchmarks.hard_ranges CHECKPOINT --data coco:DIR --out FILE.json

Channels of the network's tensors are scaled by 10 to 100 and their readers' weights divided by as much, so
the float function stays the same but for rounding. `depthwise`: behind every depthwise layer whose only
reader is a dense one. `sums`: the sums of the skip connections, in both operands. `clipped`: as `depthwise`,
with Clip(0, M) in place of the Relu behind each, M above all the tensor's values: no scale passes a Clip.
Each network, and the ordinary one, is quantized with and without equalisation at 8 and 4 bits, and scored on
the validation crops by the exact simulator, paired by picture with the float network. The record is written
after every row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.activation_ranges import per_channel_ranges
from calib.ptq import mct_ptq
from calib.representative import RepresentativeSet, delivered, load_representative
from calib.widths import with_weight_bits
from compiler.agreement import session
from compiler.frontend import load_model
from compiler.simulator.engine import compile_program
from passes.equalise import equalise, scalable_tensors
from passes.graph import (
    const_array,
    constant,
    consumers,
    from_proto,
    is_quantized,
    read_contract,
    real_inputs,
    set_constant,
    to_proto,
)
from passes.pipeline import apply_all
from student.crops import POINT_NATIVE_96
from student.cropset import CropSet, load_crops
from student.evaluate import Estimate, difference, estimate, evaluate, network_input
from student.instances import load_instances

SHARE = 0.25
"""Share of a tensor's channels that are scaled."""

FACTORS = (10.0, 100.0)
"""The scales are drawn between these, evenly in their logarithm."""

HEADROOM = 2.0
"""A Clip's maximum is this times the largest value on the calibration pictures."""


def factors(channels: int, random: np.random.Generator) -> NDArray[np.float32]:
    """One factor for each channel, 1 for most."""
    chosen = random.random(channels) < SHARE
    low, high = np.log(FACTORS).tolist()
    drawn = np.exp(random.uniform(low, high, channels))
    return np.where(chosen, drawn, 1.0).astype(np.float32)


def scale_output(node: ir.Node, scale: NDArray[np.floating]) -> None:
    """Multiply output channels of a convolution."""
    assert node.graph is not None
    for index, name in ((1, "weight"), (2, "bias")):
        array = const_array(node.inputs[index]) if index < len(node.inputs) else None
        if array is not None:
            spread = scale.reshape(-1, *(1,) * (array.ndim - 1))
            set_constant(node.graph, node, index, f"{node.name}/inflated_{name}", array * spread)


def scale_input(node: ir.Node, scale: NDArray[np.floating]) -> None:
    """Multiply what a dense or depthwise convolution makes of its input channels."""
    weight = const_array(node.inputs[1])
    assert node.graph is not None
    assert weight is not None
    depthwise = node.attributes.get_int("group", 1) > 1
    spread = scale.reshape(-1, 1, 1, 1) if depthwise else scale.reshape(1, -1, 1, 1)
    set_constant(node.graph, node, 1, f"{node.name}/deflated_weight", weight * spread)


def depthwise(model: ir.Model, seed: int) -> list[ir.Node]:
    """Scale what the depthwise layers put out, in place; the Relus behind them."""
    random, relus = np.random.default_rng(seed), []
    for node in list(model.graph):
        if node.op_type != "Conv" or node.attributes.get_int("group", 1) <= 3:
            continue
        (relu,) = consumers(node.outputs[0])
        (reader,) = consumers(relu.outputs[0])
        weight = const_array(node.inputs[1])
        assert weight is not None
        scale = factors(len(weight), random)
        scale_output(node, scale)
        scale_input(reader, 1 / scale)
        relus.append(relu)
    return relus


def sums(model: ir.Model, seed: int) -> None:
    """Scale the skip connections' sums and what is added, in place."""
    random = np.random.default_rng(seed)
    for node in [node for node in model.graph if node.op_type == "Add"]:
        makers = [value.producer() for value in node.inputs if value is not None]
        layers = [_through_relu(maker) for maker in makers if maker is not None]
        weight = const_array(layers[0].inputs[1])
        assert weight is not None
        scale = factors(len(weight), random)
        for layer in layers:
            scale_output(layer, scale)
        (reader,) = consumers(node.outputs[0])
        if reader.op_type == "Resize":
            (reader,) = consumers(reader.outputs[0])
        scale_input(reader, 1 / scale)


def _through_relu(node: ir.Node) -> ir.Node:
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    if node.op_type == "Conv":
        return node
    assert maker is not None
    return maker


def clipped(model: ir.Model, seed: int, pictures: NDArray[np.float32]) -> None:
    """`depthwise`, and a Clip for each Relu behind; in place."""
    relus = depthwise(model, seed)
    ranges = per_channel_ranges(model, [pictures], [relu.outputs[0].name or "" for relu in relus])
    for relu in relus:
        largest = np.array(HEADROOM * ranges[relu.outputs[0].name or ""].max(), np.float32)
        graph = relu.graph
        assert isinstance(graph, ir.Graph)
        relu.op_type = "Clip"
        relu.resize_inputs(3)
        relu.replace_input_with(1, constant(graph, f"{relu.name}/least", np.zeros((), np.float32)))
        relu.replace_input_with(2, constant(graph, f"{relu.name}/most", largest))


def networks(model: ir.Model, seed: int, pictures: NDArray[np.float32]) -> dict[str, ir.Model]:
    """The ordinary network and its inflated copies."""
    changes: dict[str, Callable[[ir.Model], object]] = {
        "ordinary": lambda one: None,
        "depthwise": lambda one: depthwise(one, seed),
        "sums": lambda one: sums(one, seed),
        "clipped": lambda one: clipped(one, seed, pictures),
    }
    made = {}
    for name, change in changes.items():
        made[name] = from_proto(to_proto(model))
        change(made[name])
    return made


def logits(model: ir.Model, threads: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Pictures [N, 3, H, W] of delivered integers -> the network's map; quantized graphs by the simulator."""
    name = real_inputs(model.graph)[0].name or ""
    if is_quantized(model):
        program = compile_program(model, threads=threads)
        return lambda x: program.run({name: x})[program.outputs[0]].real().astype(np.float32)
    running = session(model)
    return lambda x: np.concatenate([running.run(None, {name: one[None]})[0] for one in x])


def largest_difference(first: ir.Model, second: ir.Model, pictures: NDArray[np.float32]) -> float:
    """Of the two float networks' maps, as a share of the first one's largest magnitude."""
    ours, theirs = logits(first, 1)(pictures), logits(second, 1)(pictures)
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def points(value: Estimate) -> dict[str, float]:
    return {key: round(100 * number, 3) for key, number in dataclasses.asdict(value).items()}


class Record:
    """The rows so far, in a file."""

    def __init__(self, file: Path, crops: CropSet, threads: int) -> None:
        self._file, self._crops, self._threads = file, crops, threads
        self._content: dict[str, Any] = {"networks": {}, "rows": []}

    def describe(self, network: str, **facts: Any) -> None:
        self._content["networks"][network] = facts
        self._write()

    def ious(self, model: ir.Model) -> NDArray[np.float64]:
        contract = read_contract(model)
        assert contract is not None
        run = logits(model, self._threads)
        return evaluate(lambda pixels: run(network_input(pixels, contract)), self._crops)

    def row(
        self,
        ious: NDArray[np.float64],
        reference: NDArray[np.float64],
        plain: NDArray[np.float64],
        **case: Any,
    ) -> None:
        """Points of mIoU; `plain` is of the same network at the same width, not equalised."""
        ids = self._crops.picture_ids
        case["miou"] = points(estimate(ious, ids))
        case["difference_from_float"] = points(difference(ious, reference, ids).miou)
        case["difference_from_unequalised"] = points(difference(ious, plain, ids).miou)
        self._content["rows"].append(case)
        print(json.dumps(case), flush=True)
        self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self._content, indent=1) + "\n")


def measure(
    record: Record,
    name: str,
    model: ir.Model,
    representative: RepresentativeSet,
    reference: NDArray[np.float64],
    options: argparse.Namespace,
) -> None:
    """Quantize one network with and without equalisation, and score it at every width."""
    pictures = delivered(representative.pictures, representative.contract)
    plain: dict[int, NDArray[np.float64]] = {}
    for strength in [None, *options.strengths]:
        candidate = model
        if strength is not None:
            started = time.monotonic()
            ranges = per_channel_ranges(model, [pictures], scalable_tensors(model))
            candidate, facts = equalise(model, ranges, strength)
            seconds = time.monotonic() - started
            apart = largest_difference(
                model, candidate, delivered(representative.held_out, representative.contract)
            )
            record.describe(
                f"{name}, strength {strength}",
                seconds=round(seconds, 2),
                difference_from_unequalised=apart,
                tensors=[dataclasses.asdict(one) for one in facts.tensors],
            )
        quantized = mct_ptq(candidate, representative, seed=0, progress=lambda phase, share: None)
        for bits in options.bits:
            narrow = quantized if bits == 8 else with_weight_bits(quantized, bits)
            ious = record.ious(narrow)
            plain.setdefault(bits, ious)
            record.row(ious, reference, plain[bits], network=name, strength=strength, bits=bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="coco:DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["ordinary", "depthwise", "sums", "clipped"])
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.5])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the simulator")
    options = parser.parse_args()
    model = apply_all(load_model(options.checkpoint).model)
    contract = read_contract(model)
    assert contract is not None
    representative = load_representative(options.data, contract, 32)
    record = Record(options.out, load_crops(load_instances(options.data), POINT_NATIVE_96), options.threads)
    made = networks(model, options.seed, delivered(representative.pictures, contract))
    reference = record.ious(model)
    record.row(reference, reference, reference, network="ordinary", strength=None, bits=32)
    for name in options.networks:
        apart = largest_difference(model, made[name], delivered(representative.held_out, contract))
        record.describe(name, difference_from_ordinary=apart)
        if name != "ordinary":
            ious = record.ious(made[name])
            record.row(ious, reference, ious, network=name, strength=None, bits=32)
        measure(record, name, made[name], representative, reference, options)


if __name__ == "__main__":
    main()
