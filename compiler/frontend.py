"""The front end: whatever comes in becomes one ONNX graph with an input contract.

Kinds: a PicoSAM2/PicoSAM3 state_dict, a torch.export program (.pt2), a float .onnx of any network, or a
quantized .onnx of the vendor's dialect. What a file is, is told from its bytes, not from its name. No
pickled code is ever run: torch loads weights only.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from compiler.dialect import ACTIVATION_QUANTIZERS, activation_grid
from passes import contract as contracts
from passes import graph as graphs
from passes.contract import InputContract
from passes.diagnostics import Diagnostic, Severity
from passes.errors import InputError
from passes.fix_batch import forget_shapes

if TYPE_CHECKING:
    import torch

OPSET = 17
"""Operator set of our exports: the newest whose Resize, LayerNormalization and HardSwish the tools share."""

PROMPT_SIZE = 96
"""Height and width of the PicoSAM input where nothing else is declared (arXiv 2506.18807)."""


class ModelKind(StrEnum):
    STATE_DICT = "state_dict"
    EXPORTED_PROGRAM = "torch.export program"
    FLOAT_ONNX = "float ONNX"
    QUANTIZED_ONNX = "quantized ONNX"


@dataclass(frozen=True)
class Loaded:
    """A model as the passes take it.

    Attributes:
        model: the graph, its contract in the metadata.
        kind: what the file was.
        network: name of the known network, else the file's stem.
        contract: what an integer sensor pixel becomes.
        notes: what was assumed.
    """

    model: ir.Model
    kind: ModelKind
    network: str
    contract: InputContract
    notes: tuple[Diagnostic, ...]


def load_model(path: Path, *, declared: str | None = None, size: tuple[int, int] | None = None) -> Loaded:
    """Read a model file of any kind.

    Args:
        path: the file.
        declared: the user's input contract (`--input`): imagenet, unit, centred, raw, raw-signed, or a JSON
            file; None takes the one in the file, else the convention of its kind (with a note).
        size: height and width (`--input-size`), for state_dicts and for graphs with a symbolic size.

    Raises:
        InputError: for every file that is not one of the kinds, or that is broken.
    """
    if not path.exists():
        raise InputError(f"model {path}", "does not exist", "a model file", "correct the path")
    if path.is_dir():
        raise InputError(f"model {path}", "is a folder", "a model file", "name the file in it")
    if path.stat().st_size == 0:
        raise InputError(f"model {path}", "is empty (0 bytes)", "a model file", "export or save it again")
    match _sniff(path):
        case "torch":
            return _from_state_dict(path, declared, size)
        case "pt2":
            return _from_exported_program(path, declared, size)
        case _:
            return _from_onnx(path, declared, size)


def _sniff(path: Path) -> str:
    """`torch`, `pt2` or `onnx`; refuses what is recognisably something else."""
    with path.open("rb") as file:
        head = file.read(4)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("serialized_exported_program.json") for name in names):
            return "pt2"
        if any(name.endswith("constants.pkl") for name in names):
            raise InputError(
                f"model {path}",
                "is a TorchScript archive",
                "a state_dict, a torch.export program (.pt2) or ONNX",
                "torch.save(model.state_dict(), PATH), or torch.export.save(PROGRAM, PATH)",
            )
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        raise InputError(
            f"model {path}",
            "is a zip archive of another kind"
            + (" (a compiled package?)" if "dnnParams.xml" in names else ""),
            "a state_dict, a torch.export program (.pt2) or ONNX",
            "give the model that the archive was made from",
        )
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if head[:2] == b"PK" or head[:1] == b"\x80" or path.suffix.lower() in {".pt", ".pth", ".bin", ".ckpt"}:
        return "torch"  # a truncated archive or an old pickle: the checkpoint reader says which
    if path.suffix.lower() == ".pt2":
        raise InputError(
            f"model {path}", "is no complete zip archive", "a torch.export program", "save it again"
        )
    return "onnx"


def _from_state_dict(path: Path, declared: str | None, size: tuple[int, int] | None) -> Loaded:
    from student.checkpoint import load_checkpoint
    from student.networks import NETWORKS

    checkpoint = load_checkpoint(path)
    height, width = size or (PROMPT_SIZE, PROMPT_SIZE)
    if checkpoint.contract is not None and size is None:
        height, width = checkpoint.contract.height, checkpoint.contract.width
    if height % 16 or width % 16:
        raise InputError(
            "--input-size",
            f"{height}x{width}",
            f"multiples of 16: {checkpoint.network_name} halves its input four times",
            f"--input-size {max(16, round(height / 16) * 16)}x{max(16, round(width / 16) * 16)}",
        )
    notes: tuple[Diagnostic, ...] = ()
    if declared is not None:
        contract = declared_contract(declared, 3, height, width)
    elif checkpoint.contract is not None:
        contract = _resized(checkpoint.contract, height, width)
    else:
        contract = contracts.imagenet(height, width)
        notes = (_assumed("imagenet", "the PicoSAM authors' convention, (p/255 - mean)/std in RGB"),)
    network = NETWORKS[checkpoint.network_name]()
    network.load_state_dict(checkpoint.state_dict)
    model = _export(network, (_zeros(contract),))
    return _finish(model, ModelKind.STATE_DICT, checkpoint.network_name, contract, notes)


def _from_exported_program(path: Path, declared: str | None, size: tuple[int, int] | None) -> Loaded:
    import torch

    try:
        with _weights_only():
            program = torch.export.load(path)
        arguments, keywords = program.example_inputs
    except Exception as error:  # torch.export raises its own kinds and pickle's
        raise InputError(
            f"model {path}",
            f"cannot be loaded as a torch.export program: {_first_line(error)}",
            f"a program saved by torch {torch.__version__} with example inputs, tensors only",
            "torch.export.save(torch.export.export(model.eval(), (example,)), PATH)",
        ) from error
    if keywords:
        raise InputError(
            f"model {path}", f"takes keyword inputs {sorted(keywords)}", "positional inputs only", "wrap it"
        )
    model = _export(program.module(), tuple(arguments))
    return _onnx_model(model, path, ModelKind.EXPORTED_PROGRAM, declared, size)


def _from_onnx(path: Path, declared: str | None, size: tuple[int, int] | None) -> Loaded:
    model = graphs.load(path)
    kind = ModelKind.QUANTIZED_ONNX if graphs.is_quantized(model) else ModelKind.FLOAT_ONNX
    return _onnx_model(model, path, kind, declared, size)


def _onnx_model(
    model: ir.Model, path: Path, kind: ModelKind, declared: str | None, size: tuple[int, int] | None
) -> Loaded:
    inputs = graphs.real_inputs(model.graph)
    if not inputs:
        raise InputError(f"model {path}", "has no input", "at least one input", "export it with its input")
    if size is not None:
        for value in inputs:
            _set_size(path, value, size)
        forget_shapes(model.graph)
    stored = graphs.read_contract(model)
    shape = graphs.static_shape(inputs[0]) or ()
    channels = (shape[1] if len(shape) > 1 else None) or 1
    height, width = ((shape[2] or 1), (shape[3] or 1)) if len(shape) == 4 else (1, 1)
    notes: tuple[Diagnostic, ...] = ()
    if declared is not None:
        contract = declared_contract(declared, channels, height, width)
    elif stored is not None:
        contract = _resized(stored, height, width)
    elif kind is ModelKind.QUANTIZED_ONNX:
        contract = _from_input_quantizer(inputs[0], channels, height, width)
    elif channels == 3 and len(shape) == 4:
        contract = contracts.imagenet(height, width)
        notes = (_assumed("imagenet", "torchvision's convention, (p/255 - mean)/std in RGB"),)
    else:
        contract = contracts.raw(channels, height, width, signed=True)
        notes = (_assumed("raw-signed", "the integers -128..127 themselves"),)
    if contract.channels != channels or (
        len(shape) == 4 and (contract.height, contract.width) != (height, width)
    ):
        raise InputError(
            "--input",
            f"a contract for {contract.channels}x{contract.height}x{contract.width}",
            f"the model's input is {channels}x{height}x{width}",
            "give a contract of the model's own shape",
        )
    return _finish(model, kind, path.stem, contract, notes)


def _finish(
    model: ir.Model, kind: ModelKind, network: str, contract: InputContract, notes: tuple[Diagnostic, ...]
) -> Loaded:
    _require_finite(model)
    graphs.write_contract(model, contract)
    return Loaded(model, kind, network, contract, (*notes, *_symbolic_batches(model)))


def declared_contract(text: str, channels: int, height: int, width: int) -> InputContract:
    """The contract that `--input TEXT` declares for an input of this shape."""
    if text == "imagenet":
        if channels != 3:
            raise InputError(
                "--input imagenet", f"{channels} channels", "3 channels", "use unit, raw or JSON"
            )
        return contracts.imagenet(height, width)
    if text == "unit":
        return contracts.unit(channels, height, width)
    if text == "centred":
        return contracts.centred(channels, height, width)
    if text in ("raw", "raw-signed"):
        return contracts.raw(channels, height, width, signed=text == "raw-signed")
    path = Path(text)
    if not path.is_file():
        raise InputError(
            "--input",
            f"{text!r}",
            "imagenet, unit, centred, raw, raw-signed or a JSON file",
            "`picosam2 compile --help` explains each",
        )
    return InputContract.loads(path.read_text(encoding="utf-8"))


def input_contracts(model: ir.Model, contract: InputContract) -> tuple[InputContract, ...]:
    """The contract of every input: the declared one where the shape is its own, else the plain integers.

    A second input that is no such picture (a mask, a vector) gets the integers -128..127 as they are.
    """
    found = []
    for value in graphs.real_inputs(model.graph):
        shape = graphs.static_shape(value) or ()
        channels, height, width = (*(dim or 1 for dim in shape[1:4]), 1, 1, 1)[:3]
        if (channels, height, width) == (contract.channels, contract.height, contract.width):
            found.append(contract)
        else:
            found.append(contracts.raw(channels, height, width, signed=True))
    return tuple(found)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`96` or `96x128` (height x width)."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if match is None or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise InputError(
            "--input-size", f"{text!r}", "HEIGHTxWIDTH in pixels", "for instance --input-size 96x96"
        )
    return int(match[1]), int(match[2] or match[1])


def _resized(contract: InputContract, height: int, width: int) -> InputContract:
    return dataclasses.replace(contract, height=height, width=width)


def _set_size(path: Path, value: ir.Value, size: tuple[int, int]) -> None:
    shape = graphs.static_shape(value)
    if shape is None or len(shape) != 4:
        raise InputError(
            "--input-size", f"input {value.name} has shape {shape}", "an input N,C,H,W", "drop it"
        )
    fixed = shape[2:]
    if any(have is not None and have != want for have, want in zip(fixed, size, strict=True)):
        raise InputError(
            "--input-size",
            f"{size[0]}x{size[1]}",
            f"{path.name} is fixed at {fixed[0]}x{fixed[1]}",
            "export the model at the size you want",
        )
    value.shape = ir.Shape([*list(value.shape or ())[:2], *size])


def _from_input_quantizer(value: ir.Value, channels: int, height: int, width: int) -> InputContract:
    """The contract a quantized graph implies: the sensor's integer times the input quantizer's step."""
    for node in graphs.consumers(value):
        if node.op_type in ACTIVATION_QUANTIZERS:
            grid = activation_grid(node)
            plain = contracts.raw(channels, height, width, signed=grid.signed)
            return dataclasses.replace(plain, scale=(grid.step,) * channels)
    return contracts.raw(channels, height, width)


def _assumed(name: str, meaning: str) -> Diagnostic:
    return Diagnostic(
        rule="input/contract-assumed",
        severity=Severity.WARNING,
        node="",
        module="",
        found="the model declares no input contract",
        limit=f"assumed {name}: {meaning}",
        fix=f"declare it: --input {name} (or unit, centred, raw, raw-signed, FILE.json)",
        source="passes/contract.py",
    )


def _symbolic_batches(model: ir.Model) -> tuple[Diagnostic, ...]:
    symbolic = [
        value.name or ""
        for value in graphs.real_inputs(model.graph)
        if (shape := graphs.static_shape(value)) and shape[0] is None
    ]
    return tuple(
        Diagnostic(
            rule="input/symbolic-batch",
            severity=Severity.NOTE,
            node="",
            module="",
            found=f"input {name} has a symbolic batch",
            limit="the chip runs one picture at a time: compiled for a batch of 1",
            fix="nothing to do; export with a batch of 1 to say so yourself",
            source="passes/fix_batch.py",
        )
        for name in symbolic
    )


def _require_finite(model: ir.Model) -> None:
    """Refuse NaN anywhere, and infinities in arrays (a scalar bound may be infinite)."""
    for name, value in model.graph.initializers.items():
        array = graphs.const_array(value)
        if array is None or array.dtype.kind != "f":
            continue
        bad = np.isnan(array) if array.ndim == 0 else ~np.isfinite(array)
        if bad.any():
            raise InputError(
                f"weight {name}",
                f"{int(bad.sum())} of {array.size} values are NaN or infinite",
                "finite weights",
                "the training diverged: take an earlier checkpoint",
            )


def _zeros(contract: InputContract) -> torch.Tensor:
    import torch

    return torch.zeros(1, contract.channels, contract.height, contract.width)


def _export(module: torch.nn.Module, arguments: tuple[Any, ...]) -> ir.Model:
    """torch.onnx.export of a module in evaluation mode, batch norms unfolded where the exporter lets us."""
    import warnings

    import onnx
    import torch

    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL
    if isinstance(module, torch.fx.GraphModule):
        mode = (
            torch.onnx.TrainingMode.PRESERVE
        )  # an exported program is in inference form and says no to eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                arguments,
                buffer,  # type: ignore[arg-type]  # the path without dynamo takes a buffer
                dynamo=False,
                opset_version=OPSET,
                training=mode,
                input_names=["input"] if len(arguments) == 1 else None,
            )
    except Exception as error:  # the exporter raises many kinds
        raise InputError(
            "model",
            f"torch cannot export it to ONNX: {_first_line(error)}",
            f"operators of ONNX opset {OPSET}",
            "replace the operator in the torch model",
        ) from error
    model = graphs.from_proto(onnx.load_from_string(buffer.getvalue()))
    for index, value in enumerate(model.graph.outputs):  # the exporter numbers them
        value.name = "output" if len(model.graph.outputs) == 1 else f"output_{index}"
    return model


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch.export.load asks torch.load for whole objects; this switch of torch's own overrules it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
