"""The float graph as a torch module through one of MCT's methods, and back under the float graph's names."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.mct.input_steps import fix_input_steps
from calib.mct.listening import Progress, quiet
from calib.mct.naming import name_functions
from calib.mct.refusals import refused
from calib.mct.widths import check_width, set_width
from calib.representative import RepresentativeSet, delivered
from passes.errors import EnvironmentFault, InputError, ToolError
from passes.graph import load, real_inputs, static_shape

if TYPE_CHECKING:
    from torch import fx

Batches = Callable[[], Iterator[list[NDArray[np.float32]]]]
"""MCT's data generator: each call starts a pass, each item is one array [batch, ...] per input."""

BATCH = 16
"""Pictures per calibration batch; MCT's time hardly depends on it between 8 and 32."""

OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)

PACKAGES = (
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


@dataclass(frozen=True)
class Task:
    """What one of MCT's methods is given.

    Attributes:
        module: the float network.
        statistics: all pictures; a pass is reported as MCT's collecting of statistics.
        pictures: the same, not reported.
        count: number of pictures.
        batch: pictures at a time; the module may take no other number.
        config: MCT's CoreConfig.
        capabilities: MCT's description of the IMX500.
    """

    module: fx.GraphModule
    statistics: Batches
    pictures: Batches
    count: int
    batch: int
    config: Any
    capabilities: Any


Method = Callable[[Task], Any]
"""Gives MCT's quantized torch model."""


def quantize(
    model: ir.Model,
    representative: RepresentativeSet | Sequence[RepresentativeSet],
    method: Method,
    *,
    seed: int,
    bits: int,
    progress: Progress,
    log: TextIO | None,
) -> ir.Model:
    """Quantize a float graph that takes the sensor's integers; see calib.ptq.mct_ptq."""
    check_width(bits)
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
    with tempfile.TemporaryDirectory(prefix="picosam2-mct-") as folder, quiet(progress, log):
        path = Path(folder) / "quantized.onnx"
        try:
            _run_mct(module, arrays, batch, batch if spread_out else 1, bits, method, path, progress)
        except ToolError:
            raise
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
            raise refused(error, model, imported.names) from error
        quantized = load(path)
    if spread_out:
        gather(quantized, batch)
    placeholders = [node.name for node in imported.module.graph.nodes if node.op == "placeholder"]
    restore(quantized, model, imported.names, placeholders)
    fix_input_steps(quantized, [one.contract for one in sets])
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
    bits: int,
    method: Method,
    path: Path,
    progress: Progress,
) -> None:
    """Quantize `module` in batches of `batch`, and write the ONNX file traced with `exported` pictures."""
    progress("loading MCT", None)
    import model_compression_toolkit as mct
    from model_compression_toolkit.core.pytorch.pytorch_device_config import set_working_device

    set_working_device("cpu")  # the same bytes with and without a GPU
    total = len(arrays[0])

    def pictures() -> Iterator[list[NDArray[np.float32]]]:
        for start in range(0, total, batch):
            yield [array[start : start + batch] for array in arrays]

    def statistics() -> Iterator[list[NDArray[np.float32]]]:
        for index, one in enumerate(pictures()):
            progress("collecting statistics", index * batch / total)
            yield one

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
    set_width(config, module, bits)
    capabilities = mct.get_target_platform_capabilities("pytorch", "imx500")
    quantized = method(Task(module, statistics, pictures, total, batch, config, capabilities))
    progress("exporting", None)
    name_functions(quantized)
    mct.exporter.pytorch_export_model(quantized, str(path), example)
