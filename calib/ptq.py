"""Post-training quantization with MCT: float graph in, graph of the vendor's dialect out.

The float graph becomes a torch module (calib/importer), MCT chooses thresholds for its `imx500` target from
the representative pictures, its exporter writes the `mct_quantizers` dialect, and the float graph's names are
put back (calib/restore).
"""

from __future__ import annotations

import io
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.representative import RepresentativeSet, delivered
from passes.contract import InputContract
from passes.diagnostics import Diagnostic, Severity
from passes.errors import EnvironmentFault, InputError, TargetViolation
from passes.graph import const_array, consumers, load, module_of, real_inputs, static_shape

if TYPE_CHECKING:
    from torch import fx

Progress = Callable[[str, float | None], None]
"""Called with the phase and the share of it that is done, None where that is not known."""

BATCH = 16
"""Pictures per calibration batch; MCT's time hardly depends on it between 8 and 32."""

RULE = "mct/refused"

OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)

PTQ_VERSION = "mct-ptq-1"
"""Part of the key under which a result is cached: change it when this room's code changes the result."""

PTQ_PACKAGES = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "model-compression-toolkit",
    "mct-quantizers",
    "edge-mdt-tpc",
    "numpy",
)
"""Distributions whose versions decide the result."""


def mct_ptq(
    model: ir.Model,
    representative: RepresentativeSet | Sequence[RepresentativeSet],
    *,
    seed: int,
    progress: Progress,
    log: TextIO | None = None,
) -> ir.Model:
    """Quantize a float graph that takes the sensor's integers.

    Args:
        model: named and simplified, batch 1 or symbolic. It is not changed.
        representative: one set, or one per graph input; as many pictures in each.
        seed: for Python's, NumPy's and torch's generators, which MCT may draw from.
        progress: see Progress.
        log: everything MCT prints goes there; nothing goes to stdout or stderr.

    Returns:
        A graph in the `mct_quantizers` dialect with the float graph's names, inputs, outputs and metadata;
        each input passes its integers through unchanged (quantizer step 1). The same arguments give the same
        bytes.

    Raises:
        TargetViolation: an operator the importer does not know, or MCT refuses the network; with the node's
            name where it is known.
        InputError: the pictures do not fit the inputs.
        EnvironmentFault: MCT is not installed.
    """
    sets = [representative] if isinstance(representative, RepresentativeSet) else list(representative)
    inputs = real_inputs(model.graph)
    arrays = _arrays(inputs, sets)
    progress("importing", None)
    import torch

    from calib.importer import to_torch
    from calib.importer.batch import gather, spread
    from calib.restore import restore

    imported = to_torch(model)
    module, batch, spread_out = imported.module, BATCH, False
    if not imported.batch_free:
        # A number that divides the pictures: every batch has to be full, and every picture counts.
        batch = next(n for n in range(min(BATCH, len(arrays[0])), 0, -1) if len(arrays[0]) % n == 0)
        first = [torch.from_numpy(array[:1]) for array in arrays]
        repeated = spread(module, first, batch) if batch > 1 else None
        module, batch, spread_out = (module, 1, False) if repeated is None else (repeated, batch, True)
    _seed(seed)
    with tempfile.TemporaryDirectory(prefix="picosam2-ptq-") as folder, _quiet(progress, log):
        path = Path(folder) / "quantized.onnx"
        try:
            _run_mct(module, arrays, batch, batch if spread_out else 1, path, progress)
        except ImportError as error:
            raise EnvironmentFault(
                "model-compression-toolkit",
                f"cannot be imported ({error})",
                "model-compression-toolkit 2.5.1 with torch 2.6",
                "pip install -e . in the project's environment",
            ) from error
        except (OSError, MemoryError) as error:
            raise EnvironmentFault(
                "quantization",
                f"the machine ran out of something ({type(error).__name__}: {error})",
                "memory, and disk space in the temporary folder",
                "free some, or set TMPDIR to a folder with space",
            ) from error
        except Exception as error:  # MCT raises bare Exceptions, and torch its own kinds through it
            if OUT_OF_MEMORY.search(str(error)):  # torch's allocator has no kind of its own
                raise EnvironmentFault(
                    "quantization",
                    "the machine ran out of memory",
                    "room for MCT",
                    "free some, or --calib-count 16",
                ) from error
            raise _refused(error, model, imported.names) from error
        quantized = load(path)
    if spread_out:
        gather(quantized, batch)
    placeholders = [node.name for node in imported.module.graph.nodes if node.op == "placeholder"]
    restore(quantized, model, imported.names, placeholders)
    _fix_input_steps(quantized, [one.contract for one in sets])
    return quantized


def _arrays(inputs: Sequence[ir.Value], sets: Sequence[RepresentativeSet]) -> list[NDArray[np.float32]]:
    """What the sensor delivers, one array [N, ...] per graph input."""
    if len(sets) != len(inputs):
        raise InputError(
            "calibration",
            f"{len(sets)} sets of pictures",
            f"one per input of the network: {', '.join(str(value.name) for value in inputs)}",
            "give a set for each input",
        )
    arrays = []
    for value, one in zip(inputs, sets, strict=True):
        array = delivered(one.pictures, one.contract)
        shape = static_shape(value) or ()
        if None in shape[1:] or int(np.prod([s for s in shape[1:] if s is not None])) != array[0].size:
            raise InputError(
                f"calibration of input {value.name}",
                f"pictures of shape {array.shape[1:]}",
                f"the input's shape {value.shape}",
                "make the input contract fit the network's input",
            )
        arrays.append(array.reshape(len(array), *(s for s in shape[1:] if s is not None)))
    return arrays


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _run_mct(
    module: fx.GraphModule,
    arrays: Sequence[NDArray[np.float32]],
    batch: int,
    exported: int,
    path: Path,
    progress: Progress,
) -> None:
    """Quantize `module` in batches of `batch`, and write the ONNX file traced with `exported` pictures."""
    progress("loading MCT", None)
    import model_compression_toolkit as mct
    from model_compression_toolkit.core.pytorch.pytorch_device_config import set_working_device

    set_working_device("cpu")  # the same bytes with and without a GPU

    def batches() -> Iterator[list[NDArray[np.float32]]]:
        total = len(arrays[0])
        for start in range(0, total, batch):
            progress("collecting statistics", start / total)
            yield [array[start : start + batch] for array in arrays]

    def example() -> Iterator[list[NDArray[np.float32]]]:
        yield [array[:exported] for array in arrays]

    config = mct.core.CoreConfig(
        quantization_config=mct.core.QuantizationConfig(
            # Each layer of the float graph stays one layer of the quantized graph, with 8-bit activations, so
            # that what was checked and forecast is what is shipped. The shift correction would put a Pad, an
            # Add and a 16-bit activation behind each HardSwish, SiLU and GELU (mobilenet_v3_small with random
            # weights: 11 % more runtime memory, 1.1 dB less quantization noise).
            linear_collapsing=False,
            residual_collapsing=False,
            shift_negative_activation_correction=False,
        )
    )
    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        module,
        batches,
        core_config=config,
        target_platform_capabilities=mct.get_target_platform_capabilities("pytorch", "imx500"),
    )
    progress("exporting", None)
    _name_functions(quantized)
    mct.exporter.pytorch_export_model(quantized, str(path), example)


def _name_functions(quantized: Any) -> None:
    """Make a module of every torch function in MCT's model, so that the exporter writes its name.

    The ONNX exporter names a node after the modules around it; a function's nodes would come out as `/Add_3`.
    """
    from torch import nn

    class Named(nn.Module):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            return self.function(*arguments, **keywords)

    for node in quantized.node_sort:
        operation = getattr(quantized, node.name)
        if not isinstance(operation, nn.Module):
            delattr(quantized, node.name)
            quantized.add_module(node.name, Named(operation))


MOVING = ("Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that put integers elsewhere and leave them as they are."""


def _fix_input_steps(quantized: ir.Model, contracts: Sequence[InputContract]) -> None:
    """Give each input the step 1 of the sensor's integers, whatever the range of the pictures was.

    So up to the first arithmetic: behind a frame of constants, a slice or a reshape they are the same.
    """
    for given, contract in zip(quantized.graph.inputs, contracts, strict=True):
        threshold = float(max(contract.highest + 1, -contract.lowest))
        integers, reached = {given}, [given]
        while reached:
            for node in consumers(reached.pop()):
                if node.op_type == "ActivationPOTQuantizer":
                    node.attributes["threshold"] = ir.AttrFloat32("threshold", threshold)
                    node.attributes["signed"] = ir.AttrInt64("signed", int(contract.signed))
                elif node.op_type not in MOVING or not _all_in_range(node, integers, contract):
                    continue
                reached += [value for value in node.outputs if value not in integers]
                integers.update(node.outputs)


def _all_in_range(node: ir.Node, integers: Set[ir.Value], contract: InputContract) -> bool:
    """Every tensor the node moves holds the sensor's integers, or constants of their range."""
    constants = (const_array(value) for value in node.inputs if value is not None and value not in integers)
    return all(
        array is not None
        and (array.dtype.kind != "f" or (array.min() >= contract.lowest and array.max() <= contract.highest))
        for array in constants
    )


# What MCT prints, and what it raises


class _Listener(io.TextIOBase):
    """Takes what MCT prints; its tqdm bars become progress."""

    BAR = re.compile(r"([A-Z][\w ]+): +(\d+)%")

    def __init__(self, progress: Progress, log: TextIO | None) -> None:
        self._progress = progress
        self._log = log

    def write(self, text: str) -> int:
        if self._log is not None:
            self._log.write(text)
        for phase, percent in self.BAR.findall(text):
            self._progress(phase.lower(), int(percent) / 100)
        return len(text)


@contextmanager
def _quiet(progress: Progress, log: TextIO | None) -> Iterator[None]:
    listener = _Listener(progress, log)
    with redirect_stdout(listener), redirect_stderr(listener), warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def _refused(error: Exception, model: ir.Model, names: Mapping[str, str]) -> TargetViolation:
    """The exception as a violation, with the ONNX node where MCT's frames or message tell it."""
    name = _node_at_fault(error.__traceback__, str(error), names)
    node = next((n for n in model.graph if n.name == name), None)
    found = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    limit = "networks that MCT 2.5.1 can quantize for the IMX500"
    fix = "replace the operator, or report it with the model"
    return TargetViolation(
        f"node {name}" if node else "model",
        f"MCT refuses it: {found}",
        limit,
        fix,
        [
            Diagnostic(
                RULE,
                Severity.ERROR,
                name if node else "",
                module_of(node) if node else "",
                found,
                limit,
                fix,
                "model-compression-toolkit 2.5.1",
            )
        ],
    )


def _node_at_fault(trace: TracebackType | None, message: str, names: Mapping[str, str]) -> str:
    """The ONNX node MCT was at: that of the innermost frame that has one, else one the message names."""
    found = ""
    while trace is not None:
        for local in trace.tb_frame.f_locals.values():
            name = str(getattr(local, "name", ""))
            if type(local).__module__.startswith(("model_compression_toolkit", "torch.fx")) and name in names:
                found = names[name]
        trace = trace.tb_next
    if found:
        return found
    mentioned = [name for name in names if re.search(rf"\b{re.escape(name)}\b", message)]
    return names[max(mentioned, key=len)] if mentioned else ""
