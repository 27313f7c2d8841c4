"""Where our rules and memory forecast part from the converter that is installed.

    python -m benchmarks.drift [--sample 20] [--seed 0] [--only NAME ...] [--timeout 600]

Takes a seeded sample of the oracle's cases and probes (tests/oracle), quantizes each network as a compile
does, runs the converter's memory report on the result, and compares verdict, model bytes and runtime bytes
with ours. A network that our own path refuses is quantized by MCT from the torch module, as the oracle's
were. Prints a Markdown table; the exit code is 1 where a difference is not in tests/oracle/known.json.
docs/drift.md says how a new version of the converter is adopted with it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from calib.ptq import mct_ptq
from calib.representative import RepresentativeSet
from compiler.converter import (
    ConverterFailed,
    ConverterInstall,
    ConverterRejected,
    VendorMemory,
    convert,
    find_converter,
)
from passes import contract as contracts
from passes import graph as graphs
from passes.errors import InputError, TargetViolation, first_line
from passes.imx500.limits import CONVERTER
from passes.imx500.memory import EXACT, MemoryForecast, forecast_memory
from tests.oracle import loader

RUNTIME_TOLERANCE, BYTES_TOLERANCE = 0.01, 10_240
"""What the forecast promises: runtime (and a model that is only estimated) within 1 %, or within 10 KB."""

PICTURES = 8


@dataclass(frozen=True)
class Outcome:
    """One network, judged by us and by the converter.

    Attributes:
        name: of the case or probe.
        oracle: the verdict when the oracle was made.
        ours: we accept it, rules and memory.
        theirs: the converter accepts it; None where it gave no verdict.
        route: what quantized it: `ours`, `MCT`, or `none` where both refuse it (a refusal of the tool chain).
        why: the first reason against it, "" where it is accepted.
        forecast: ours, of the quantized graph; None where there is none.
        memory: the converter's report; None where there is none, and where it tiled the network.
    """

    name: str
    oracle: bool
    ours: bool
    theirs: bool | None
    route: str
    why: str
    forecast: MemoryForecast | None
    memory: VendorMemory | None


def entries() -> dict[str, dict[str, Any]]:
    """Every case and probe by its name; each with `snippet`, `inputs` and `oracle`."""
    found = {
        case["name"]: {
            "snippet": case["snippet"],
            "inputs": case["inputs"],
            "oracle": case["verdict"] == "accepted",
        }
        for case in loader.cases()
    }
    for probe in loader.probes():
        found[probe["name"]] = {
            "snippet": loader.snippet_of(probe),
            "inputs": [probe["input"]],
            "oracle": probe["ok"],
        }
    return found


def judge(
    name: str,
    entry: Mapping[str, Any],
    install: ConverterInstall,
    folder: Path,
    *,
    seed: int = 0,
    timeout_s: float = 600.0,
) -> Outcome:
    """Both verdicts on one network; its files are written to `folder`.

    Raises:
        EnvironmentFault: the converter cannot be started.
    """
    graph = loader.export(entry["snippet"], entry["inputs"])
    ours = loader.accepts(graph, with_memory=True)
    path = folder / "drift.onnx"
    route, why = _quantize(graph, entry, path, seed)
    if route == "none":
        return Outcome(name, entry["oracle"], ours, False, route, why, None, None)
    forecast = forecast_memory(graphs.load(path))
    try:
        done = convert(path, install=install, memory_report_only=True, timeout_s=timeout_s)
    except ConverterRejected as error:
        return Outcome(name, entry["oracle"], ours, False, route, error.found, forecast, None)
    except ConverterFailed as error:
        return Outcome(name, entry["oracle"], ours, None, route, error.found, forecast, None)
    memory = None if done.tiled else done.memory
    return Outcome(name, entry["oracle"], ours, True, route, "", forecast, memory)


def _quantize(graph: ir.Model | None, entry: Mapping[str, Any], path: Path, seed: int) -> tuple[str, str]:
    """Write the quantized network; (what quantized it, why nothing could)."""
    if graph is not None:
        try:
            sets = [_noise(value, seed) for value in graphs.real_inputs(graph.graph)]
            quantized = mct_ptq(graph, sets, seed=seed, progress=lambda phase, share: None)
        except (TargetViolation, InputError):
            pass  # an operator that our importer does not know; MCT may know the torch module
        else:
            graphs.save(quantized, path)
            return "ours", ""
    try:
        quantize_by_mct(entry, path, seed)
    except Exception as error:  # MCT and the exporter raise bare Exceptions: a refusal by the tool chain
        return "none", first_line(error)
    return "MCT", ""


def _noise(value: ir.Value, seed: int) -> RepresentativeSet:
    """Pictures of noise of the input's size."""
    sides = [side or 1 for side in (graphs.static_shape(value) or ())[1:]]
    shape = tuple(sides) if len(sides) == 3 else (math.prod(sides), 1, 1)
    contract = contracts.raw(*shape, signed=True)
    pictures = np.random.default_rng(seed).integers(0, 256, (2 * PICTURES, *shape), dtype=np.uint8)
    return RepresentativeSet(pictures[:PICTURES], pictures[PICTURES:], contract, (), seed, "noise")


def quantize_by_mct(entry: Mapping[str, Any], path: Path, seed: int = 0) -> None:
    """Write what MCT makes of the torch module with the settings the oracle was made with."""
    import model_compression_toolkit as mct

    numbers = torch.Generator().manual_seed(seed)
    pictures = [torch.rand(1, *shape, generator=numbers) * 2 - 1 for shape in entry["inputs"]]

    def representative() -> Iterator[list[torch.Tensor]]:
        yield pictures

    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        quantized, _ = mct.ptq.pytorch_post_training_quantization(
            loader.network(entry["snippet"]),
            representative,
            target_platform_capabilities=mct.get_target_platform_capabilities("pytorch", "imx500"),
        )
        mct.exporter.pytorch_export_model(quantized, str(path), representative)


def differences(outcome: Outcome) -> tuple[str, ...]:
    """Where the two part: verdict, model bytes, runtime bytes; nothing where there is no verdict."""
    if outcome.theirs is None:
        return ()
    if outcome.ours != outcome.theirs:
        us, them = ("accept", "refuses") if outcome.ours else ("refuse", "accepts")
        return (f"we {us} it, the converter {them} it" + (f" ({outcome.why})" if outcome.why else ""),)
    forecast, memory = outcome.forecast, outcome.memory
    if forecast is None or memory is None or not outcome.theirs:
        return ()
    found = []
    for name in ("model_bytes", "runtime_bytes"):
        told, true = getattr(forecast, name), getattr(memory, name)
        allowed = 0 if forecast.exactness[name] == EXACT else max(RUNTIME_TOLERANCE * true, BYTES_TOLERANCE)
        if abs(told - true) > allowed:
            found.append(f"{name.replace('_', ' ')} {told:,}, the converter says {true:,}")
    if forecast.fits != memory.fits:
        found.append(f"fits {forecast.fits}, the converter says {memory.fits}")
    return tuple(found)


def listed(outcome: Outcome) -> str:
    """The reason in known.json for a difference on this network, "" where it is not there."""
    return next((names[outcome.name] for names in loader.known().values() if outcome.name in names), "")


def sample(count: int, seed: int) -> list[str]:
    """`count` names, drawn without replacement; the same seed draws the same."""
    names = sorted(entries())
    return random.Random(seed).sample(names, min(count, len(names)))


def row(outcome: Outcome) -> str:
    words = {True: "accepted", False: "refused", None: "no verdict"}
    told, true = outcome.forecast, outcome.memory
    memory = [
        "" if told is None or true is None else f"{getattr(told, name):,} / {getattr(true, name):,}"
        for name in ("model_bytes", "runtime_bytes")
    ]
    parted = "; ".join(differences(outcome))
    if parted and (reason := listed(outcome)):
        parted += f" - known: {reason}"
    verdicts = [words[verdict] for verdict in (outcome.ours, outcome.theirs, outcome.oracle)]
    cells = (outcome.name, *verdicts, outcome.route, *memory, parted or outcome.why)
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=20, help="how many cases and probes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these instead of a sample")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one conversion")
    arguments = parser.parse_args()
    known_entries = entries()
    names = arguments.only or sample(arguments.sample, arguments.seed)
    if unknown := sorted(set(names) - set(known_entries)):
        print(f"no such case or probe: {', '.join(unknown)}", file=sys.stderr)
        return 1
    install = find_converter()
    print(f"Installed: imx500-converter {install.version}. The rules were measured on {CONVERTER}.\n")
    print("| network | ours | converter | oracle | quantized by | model, ours / theirs "
          "| runtime, ours / theirs | |")  # fmt: skip
    print("|---|---|---|---|---|---:|---:|---|")
    outcomes = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="picosam2-drift-") as folder:
            entry = known_entries[name]
            outcomes.append(judge(name, entry, install, Path(folder), timeout_s=arguments.timeout))
        print(row(outcomes[-1]), flush=True)
    parted = [outcome for outcome in outcomes if differences(outcome)]
    new = [outcome.name for outcome in parted if not listed(outcome)]
    changed = [o.name for o in outcomes if o.theirs is not None and o.theirs != o.oracle]
    agree, as_known = len(outcomes) - len(parted), len(parted) - len(new)
    print(f"\n{len(outcomes)} networks, {agree} agree, {as_known} differ as known.")
    if changed:
        print(f"Another verdict than the oracle's: {', '.join(changed)}.")
    if new:
        print(f"Not in known.json: {', '.join(new)}.")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
