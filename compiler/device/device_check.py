"""The folder device-check/ of a package: inputs, expected integers, facts, scripts and a README."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.representative import BUILTIN, PICTURES, RepresentativeSet, load_representative
from compiler.converter.bridge import network_name
from compiler.device.dnn_params import ChipOutput, read_outputs
from compiler.device.expected import AllExpected, all_expected
from compiler.device.readme import check_readme, no_check_readme
from compiler.dialect import activation_grid
from compiler.inspection.mask_output import mask_outputs
from compiler.inspection.recording import write_recording
from compiler.result import Output
from compiler.simulator.fixedpoint import Grid
from compiler.simulator.numerics import label, slug
from passes.contract import InputContract
from passes.errors import EnvironmentFault, InputError
from passes.graph import consumers, is_quantizer, real_inputs

FOLDER = "device-check"

SCHEMA = 1
"""Version of check.json."""

COUNT = 4
"""Inputs of a check: held-out crops, and last a picture of blocks."""

INPUT_BYTES = 1 << 19
"""All inputs together stay below this, as long as there is one crop: the folder has to stay small."""

BLOCK = 4
"""Side of a block, in pixels. Of 1, 4, 8 and 16 the one at which numerics that saturate and numerics that do
not differ most under the shipped student: in 190 of 9,216 integers; crops differ in 0 to 2 (measured)."""

SCRIPTS = ("__init__.py", "outputs.py", "camera.py", "check.py", "demo.py")
"""Copied from `on_the_pi`."""

_INPUTS = "inputs.npz"


@dataclass(frozen=True, eq=False)
class Compiled:
    """What a check is made from.

    Attributes:
        model: the quantized graph.
        network: its name.
        contract: of its input.
        outputs: in the graph's order.
        representative: the drawn set of each input; where there is none (the model came quantized) the
            held-out pictures are drawn from `builtin`.
        seed: of the compile.
        protocol: the prompt protocol the model was trained under, None where it is not known.
        dnn_params: dnnParams.xml; None where nothing was converted.
        packed: the package has a packerOut.zip.
    """

    model: ir.Model
    network: str
    contract: InputContract
    outputs: tuple[Output, ...]
    representative: Sequence[RepresentativeSet]
    seed: int
    protocol: str | None
    dnn_params: bytes | None
    packed: bool


def files(
    compiled: Compiled, progress: Callable[[str, float], None] = lambda text, share: None
) -> dict[str, bytes]:
    """The files by their path in the package, `device-check/...`; the same inputs give the same bytes.

    Where there can be no check, the README says why and is the only file.
    """
    try:
        made = _check_files(compiled, progress)
    except (InputError, EnvironmentFault) as error:
        made = {"README.md": no_check_readme(str(error)).encode()}
    return {f"{FOLDER}/{name}": content for name, content in sorted(made.items())}


def _check_files(compiled: Compiled, progress: Callable[[str, float], None]) -> dict[str, bytes]:
    model, contract = compiled.model, compiled.contract
    name, grid = _input(model, contract)
    drawn = _drawn(compiled)
    crops = drawn.held_out[: _crops(contract)]
    integers = on_grid(np.concatenate([crops, blocks(contract, compiled.seed)]), grid)
    how = f"{len(crops)} held-out crops ({drawn.how}), then blocks of extreme colours, which saturate layers"
    expected = all_expected(model, name, integers, grid, progress)
    chip = None if compiled.dnn_params is None else read_outputs(compiled.dnn_params)
    network = network_name(compiled.network)
    named = [(f"expected-{slug(one.numerics[0])}.npz", one) for one in expected.answers]
    facts = {
        "schema": SCHEMA,
        "network": network,
        "protocol": compiled.protocol,
        "input": {
            "name": name,
            "channels": contract.channels,
            "height": contract.height,
            "width": contract.width,
            "signed": grid.signed,
            "colour_order": contract.colour_order,
        },
        "outputs": _output_facts(compiled.outputs, expected, chip),
        "listings": _listings(len(compiled.outputs), chip),
        "mask": _mask(model, contract),
        "inputs": {"file": _INPUTS, "count": len(integers), "how": how},
        "expected": [
            {"file": file, "numerics": [label(numerics) for numerics in one.numerics]} for file, one in named
        ],
        "missing": expected.missing,
    }
    made = {f"on_the_pi/{script}": _script(script) for script in SCRIPTS}
    made["check.json"] = (json.dumps(facts, indent=2) + "\n").encode()
    made[_INPUTS] = _recording({name: integers})
    for file, one in named:
        made[file] = _recording(one.outputs)
    made["README.md"] = check_readme(
        network=network,
        count=len(integers),
        how=how,
        inputs=_INPUTS,
        expected=[(file, "; ".join(map(label, one.numerics))) for file, one in named],
        missing=expected.missing,
        protocol=compiled.protocol,
        demo=facts["mask"] is not None,
        packed=compiled.packed,
    ).encode()
    return made


def _input(model: ir.Model, contract: InputContract) -> tuple[str, Grid]:
    """Name and grid of the one input. Raises InputError for inputs that picamera2 cannot inject."""
    inputs = real_inputs(model.graph)
    if len(inputs) != 1 or contract.colour_order not in ("RGB", "BGR"):
        raise InputError(
            "the network",
            f"has {len(inputs)} input{'s' * (len(inputs) != 1)}, {contract.channels} channels in order "
            f"{contract.colour_order}",
            "one RGB or BGR picture",
            "check such a network by hand: `picosam2 diff --record` writes expected integers",
        )
    quantizers = [node for node in consumers(inputs[0]) if is_quantizer(node)]
    grid = activation_grid(quantizers[0]) if quantizers else None
    if grid is None or grid.bits != 8:
        raise InputError(
            "the network's input", "has no 8-bit quantizer", "8-bit integers", "quantize its input to 8 bits"
        )
    return inputs[0].name or "", grid


def _drawn(compiled: Compiled) -> RepresentativeSet:
    if compiled.representative:
        return compiled.representative[0]
    return load_representative(BUILTIN, compiled.contract, PICTURES, compiled.seed)


def _crops(contract: InputContract) -> int:
    size = contract.channels * contract.height * contract.width
    return max(1, min(COUNT, INPUT_BYTES // size) - 1)


def blocks(contract: InputContract, seed: int) -> NDArray[np.uint8]:
    """One picture, uint8 [1, C, H, W]: in each block each channel is 0 or 255, at random."""
    rows, columns = -(-contract.height // BLOCK), -(-contract.width // BLOCK)
    bits = np.random.default_rng(seed).integers(0, 2, (1, contract.channels, rows, columns), dtype=np.uint8)
    large = (bits * 255).repeat(BLOCK, axis=2).repeat(BLOCK, axis=3)
    return large[:, :, : contract.height, : contract.width]


def on_grid(pictures: NDArray[np.uint8], grid: Grid) -> NDArray[Any]:
    """The integers that the camera delivers for pixels: p, or p - 128 (int8) where the input is signed."""
    moved = pictures.astype(np.int16) + grid.lowest
    return moved.astype(np.int8 if grid.signed else np.uint8)


def _output_facts(
    outputs: Sequence[Output], expected: AllExpected, chip: Sequence[ChipOutput] | None
) -> list[dict[str, Any]]:
    """What the converter says of each output; of one that was not converted what its quantizer says."""
    by_ordinal = {} if chip is None else {one.ordinal: one for one in chip}
    facts = []
    for number, output in enumerate(outputs):
        shape = expected.answers[0].outputs[output.name].shape[1:]
        order = output.order[1:] if len(output.order) == len(shape) + 1 else _dimensions(len(shape))
        grid, real = output.grid, by_ordinal.get(number)
        if real is not None and real.shape != shape:
            raise EnvironmentFault(
                "dnnParams.xml",
                f"output {number} of shape {list(real.shape)}",
                f"{list(shape)}, as the graph says",
                "`picosam2 doctor` names the converter's tried version",
            )
        if real is not None:
            step, bits, signed = real.scale, real.bits, real.signed
        elif grid is not None:
            step, bits, signed = grid.step, grid.bits, grid.signed
        else:  # indices
            step, bits, signed = 1.0, 16, False
        facts.append(
            {
                "name": output.name,
                "shape": list(shape),
                "order": list(order),
                "step": step,
                "bits": bits,
                "signed": signed,
            }
        )
    return facts


def _dimensions(count: int) -> tuple[str, ...]:
    return tuple(f"d{number}" for number in range(count))


def _listings(count: int, chip: Sequence[ChipOutput] | None) -> list[list[int]]:
    """In which order the camera may list the outputs: the graph's, else that of dnnParams.xml."""
    listings = [list(range(count))]
    listed = [] if chip is None else [one.ordinal for one in chip]
    return listings if not listed or listed in listings else [*listings, listed]


def _mask(model: ir.Model, contract: InputContract) -> dict[str, Any] | None:
    """The one output that is a map of the input's size."""
    shapes = {value.name: tuple(value.shape or ())[2:] for value in model.graph.outputs}
    found = [one for one in mask_outputs(model) if shapes[one.name] == (contract.height, contract.width)]
    return {"output": found[0].name, "level": found[0].level} if len(found) == 1 else None


def _recording(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="picosam2-") as folder:
        path = Path(folder) / "recording.npz"
        write_recording(path, tensors)
        return path.read_bytes()


def _script(name: str) -> bytes:
    return resources.files("compiler.device.on_the_pi").joinpath(name).read_bytes()
