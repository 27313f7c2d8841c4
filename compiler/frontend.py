"""The front end: whatever comes in becomes one ONNX graph with an input contract.

Kinds: a PicoSAM2/PicoSAM3 state_dict, a torch.export program (.pt2), a float .onnx of any network, or a
quantized .onnx of the vendor's dialect. What a file is, is told from its bytes, not from its name. No
pickled code is ever run: torch loads weights only.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.dialect import ACTIVATION_QUANTIZERS, activation_grid
from compiler.exported_program import PROGRAM
from compiler.traced_scopes import restore_places, trace_in_scopes
from passes import contract as contracts
from passes import graph as graphs
from passes.contract import InputContract
from passes.diagnostics import Diagnostic, Severity, about_input
from passes.errors import InputError, first_line, not_readable
from passes.fix_batch import forget_shapes
from passes.imx500.geometry import constant_ints, input_at, int_attribute, ints_attribute
from passes.imx500.stage import LARGE, float_view
from student.shipped import shipped_protocol

if TYPE_CHECKING:
    import torch

OPSET = 17
"""Operator set of our exports: the newest whose Resize, LayerNormalization and HardSwish the tools share."""

PROMPT_SIZE = 96
"""Height and width of the PicoSAM input where nothing else is declared (arXiv 2506.18807)."""


SENSOR_HEIGHT, SENSOR_WIDTH = 3040, 4056
"""Pixels of the IMX500 (Sony's product brief): no input is larger."""


class ModelKind(StrEnum):
    STATE_DICT = "state_dict"
    EXPORTED_PROGRAM = "torch.export program"
    FLOAT_ONNX = "float ONNX"
    QUANTIZED_ONNX = "quantized ONNX"


@dataclass(frozen=True)
class _Wanted:
    """What the user said about the input; see `load_model`."""

    declared: str | None
    size: tuple[int, int] | None
    replace_size: bool


@dataclass(frozen=True)
class Loaded:
    """A model as the passes take it.

    Attributes:
        model: the graph, its contract in the metadata.
        kind: what the file was.
        network: name of the known network, else the file's stem.
        contract: what an integer sensor pixel becomes.
        notes: what was assumed.
        sha256: of the file, as it was when it was read.
        protocol: the prompt protocol (`student.crops`) that a checkpoint was trained under; None where it is
            not known, and for other kinds of files.
    """

    model: ir.Model
    kind: ModelKind
    network: str
    contract: InputContract
    notes: tuple[Diagnostic, ...]
    sha256: str = ""
    protocol: str | None = None


def load_model(
    path: Path,
    *,
    declared: str | None = None,
    size: tuple[int, int] | None = None,
    replace_size: bool = False,
) -> Loaded:
    """Read a model file of any kind.

    Args:
        path: the file.
        declared: the user's input contract (`--input`): imagenet, unit, centred, raw, raw-signed, or a JSON
            file; None takes the one in the file, else the convention of its kind (with a note).
        size: height and width (`--input-size`), for state_dicts and for graphs with a symbolic size.
        replace_size: `size` replaces a fixed one too, where nothing in the graph depends on the old one.

    Raises:
        InputError: for every file that is not one of the kinds, or that is broken.
    """
    if not path.exists():
        raise InputError(f"model {path}", "does not exist", "a model file", "correct the path")
    if path.is_dir():
        raise InputError(f"model {path}", "is a folder", "a model file", "name the file in it")
    if path.stat().st_size == 0:
        raise InputError(f"model {path}", "is empty (0 bytes)", "a model file", graphs.made_again(path))
    if not os.access(path, os.R_OK):
        raise not_readable(f"model {path}", str(path))
    digest = graphs.sha256(path.read_bytes())
    read = {"torch": _from_state_dict, "pt2": _from_exported_program, "onnx": _from_onnx}[_sniff(path)]
    loaded = read(path, _Wanted(declared, size, replace_size))
    return dataclasses.replace(loaded, sha256=digest, protocol=loaded.protocol or shipped_protocol(digest))


def _sniff(path: Path) -> str:
    """`torch`, `pt2` or `onnx`; refuses what is recognisably something else."""
    with path.open("rb") as file:
        head = file.read(4)
    if zipfile.is_zipfile(path):
        return _sniff_archive(path)
    if head[:1] == b"\x08":
        return "onnx"  # a ModelProto starts with its ir_version: field 1, a varint
    if head[:2] == b"PK":
        raise _cut_off(path)  # an archive's list of members is at its end
    if head[:1] == b"\x80":
        return "torch"  # an old pickle: the checkpoint reader says whether it is whole
    return "onnx" if path.suffix.lower() == ".onnx" else "torch"


def _sniff_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise _cut_off(path) from error
    if min((one.header_offset for one in members), default=0) > 0:
        raise _cut_off(path)  # what was found is an archive within: the tensors of a .pt2 are such
    names = [one.filename for one in members]
    way_out = "torch.save(model.state_dict(), PATH), or torch.export.save(PROGRAM, PATH)"
    wanted = "a state_dict, a torch.export program (.pt2) or ONNX"
    if any(name.endswith(PROGRAM) for name in names):
        return "pt2"
    if any(name.endswith("models/model.json") for name in names):
        raise InputError(
            f"model {path}",
            "is a torch.export program of a newer torch",
            "one saved by torch 2.6",
            "export it with torch 2.6, or to ONNX",
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise InputError(f"model {path}", "is a TorchScript archive", wanted, way_out)
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    compiled = " (a compiled package?)" if "dnnParams.xml" in names else ""
    raise InputError(
        f"model {path}",
        f"is a zip archive of another kind{compiled}",
        wanted,
        "give the model that the archive was made from",
    )


def _cut_off(path: Path) -> InputError:
    return InputError(
        f"model {path}",
        "is truncated or corrupt: a zip archive whose end is missing",
        "a whole file, as torch.save or torch.export.save wrote it",
        "copy or save it again",
    )


def _from_state_dict(path: Path, wanted: _Wanted) -> Loaded:
    from student.checkpoint import load_checkpoint
    from student.networks import NETWORKS

    checkpoint = load_checkpoint(path)
    notes: tuple[Diagnostic, ...] = ()
    size = wanted.size
    if wanted.declared is not None:
        contract = declared_contract(wanted.declared, 3, *(size or (PROMPT_SIZE, PROMPT_SIZE)))
        if size is not None and wanted.replace_size:
            contract = _resized(contract, *size)
        notes = _overridden(checkpoint.contract, contract, wanted.declared)
    elif checkpoint.contract is not None:
        contract = checkpoint.contract
        contract = _resized(contract, *(size or (contract.height, contract.width)))
    else:
        contract = contracts.imagenet(*(size or (PROMPT_SIZE, PROMPT_SIZE)))
        notes = (_assumed("imagenet", "the PicoSAM authors' convention, (p/255 - mean)/std in RGB"),)
    if contract.channels != 3:
        takes = f"3: {checkpoint.network_name} takes RGB"
        raise InputError("--input", f"{contract.channels} channels", takes, "give a contract of 3 channels")
    height, width = contract.height, contract.width
    if size is not None and (height, width) != size:
        raise InputError(
            "--input",
            f"a contract for {height}x{width}",
            f"--input-size says {size[0]}x{size[1]}",
            "drop one of the two",
        )
    if height % 16 or width % 16:
        option = "--what-if" if wanted.replace_size else "--input-size"
        raise InputError(
            f"input size of {path.name}",
            f"{height}x{width}",
            f"multiples of 16: {checkpoint.network_name} halves its input four times",
            f"{option} {max(16, round(height / 16) * 16)}x{max(16, round(width / 16) * 16)}",
        )
    network = NETWORKS[checkpoint.network_name]()
    network.load_state_dict(checkpoint.state_dict)
    model = _export(path, network, (_zeros(contract),))
    loaded = _finish(path, model, ModelKind.STATE_DICT, checkpoint.network_name, contract, notes)
    return dataclasses.replace(loaded, protocol=checkpoint.protocol)


def _from_exported_program(path: Path, wanted: _Wanted) -> Loaded:
    from compiler.exported_program import load_program

    module, arguments = load_program(path)
    return _onnx_model(_export(path, module, arguments), path, ModelKind.EXPORTED_PROGRAM, wanted)


def _from_onnx(path: Path, wanted: _Wanted) -> Loaded:
    model = graphs.load(path)
    kind = ModelKind.QUANTIZED_ONNX if graphs.is_quantized(model) else ModelKind.FLOAT_ONNX
    return _onnx_model(model, path, kind, wanted)


def _onnx_model(model: ir.Model, path: Path, kind: ModelKind, wanted: _Wanted) -> Loaded:
    inputs = graphs.real_inputs(model.graph)
    if not inputs:
        raise InputError(f"model {path}", "has no input", "at least one input", "export it with its input")
    if not model.graph.outputs:
        raise InputError(f"model {path}", "has no output", "at least one output", "export it with its output")
    if wanted.size is not None:
        if wanted.replace_size:
            resize_input(model, inputs, wanted.size)
        else:
            for value in inputs:
                _set_size(path, value, wanted.size)
            forget_shapes(model.graph)
    stored = graphs.read_contract(model)
    # The contract is about the picture: the first input of rank 4, else the first of all.
    picture = next(
        (value for value in inputs if value.shape is not None and len(value.shape) == 4), inputs[0]
    )
    channels, height, width = graphs.picture_shape(picture) or (_channels(picture), 1, 1)
    fixed = graphs.picture_shape(picture) is not None
    notes: tuple[Diagnostic, ...] = ()
    if wanted.declared is not None:
        contract = declared_contract(wanted.declared, channels, height, width)
        if wanted.replace_size:
            contract = _resized(contract, height, width)
        notes = _overridden(stored, contract, wanted.declared)
    elif stored is not None:
        contract = _resized(stored, height, width)
    elif kind is ModelKind.QUANTIZED_ONNX:
        contract = _from_input_quantizer(picture, channels, height, width)
    elif channels == 3 and picture.shape is not None and len(picture.shape) == 4:
        contract = contracts.imagenet(height, width)
        notes = (_assumed("imagenet", "torchvision's convention, (p/255 - mean)/std in RGB"),)
    else:
        contract = contracts.raw(channels, height, width, signed=True)
        notes = (_assumed("raw-signed", "the integers -128..127 themselves"),)
    if fixed and (contract.channels, contract.height, contract.width) != (channels, height, width):
        raise InputError(
            "--input",
            f"a contract for {contract.channels}x{contract.height}x{contract.width}",
            f"the model's input is {channels}x{height}x{width}",
            "give a contract of the model's own shape",
        )
    return _finish(path, model, kind, path.stem, contract, notes)


def _channels(value: ir.Value) -> int:
    shape = graphs.static_shape(value) or ()
    return (shape[1] if len(shape) > 1 else None) or 1


def _finish(
    path: Path,
    model: ir.Model,
    kind: ModelKind,
    network: str,
    contract: InputContract,
    notes: tuple[Diagnostic, ...],
) -> Loaded:
    _require_finite(path, model)
    graphs.write_contract(model, contract)
    model.meta[graphs.FILE_KEY] = str(path)
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
    try:
        if path.is_file():
            return InputContract.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            "--input", f"{text[:80]!r} cannot be read ({first_line(error)})", "a JSON file", "correct it"
        ) from error
    raise InputError(
        "--input",
        f"{text[:80]!r}",
        "imagenet, unit, centred, raw, raw-signed or a JSON file",
        "`picosam2 compile --help` explains each",
    )


def input_contracts(model: ir.Model, contract: InputContract) -> tuple[InputContract, ...]:
    """The contract of every input: the declared one where the shape is its own, else the plain integers.

    A second input that is no such picture (a mask, a vector) gets the integers -128..127 as they are.
    """
    found = []
    for value in graphs.real_inputs(model.graph):
        shape = graphs.picture_shape(value)
        if shape == (contract.channels, contract.height, contract.width):
            found.append(contract)
        else:
            found.append(contracts.raw(*(shape or (1, 1, 1)), signed=True))
    return tuple(found)


def parse_sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    """Sizes with commas between, in the order given, each once."""
    found = (parse_size(part, "--what-if") for part in (text or "").split(",") if text is not None)
    return tuple(dict.fromkeys(size for size in found if size is not None))


def parse_size(text: str | None, option: str = "--input-size") -> tuple[int, int] | None:
    """`96` or `96x128` (height x width)."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if match is None or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise InputError(option, f"{text!r}", "HEIGHTxWIDTH in pixels", f"for instance {option} 96x96")
    height, width = int(match[1]), int(match[2] or match[1])
    if height > SENSOR_HEIGHT or width > SENSOR_WIDTH:
        raise InputError(
            option,
            f"{height}x{width}",
            f"the sensor has {SENSOR_HEIGHT}x{SENSOR_WIDTH} pixels",
            "give a smaller size, for instance 96x96",
        )
    return height, width


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


def resize_input(model: ir.Model, inputs: Sequence[ir.Value], size: tuple[int, int]) -> None:
    """Give the pictures among the inputs another size, in place, and forget every shape behind them.

    Raises:
        InputError: where no input is a picture, and where the graph holds the old size somewhere: shapes that
            no longer agree, or a Resize to fixed sizes.
    """
    pictures = [value for value in inputs if value.shape is not None and len(value.shape) == 4]
    if not pictures:
        raise InputError(
            "--what-if", "no input has the shape N,C,H,W", "a picture as input", "drop the option"
        )
    sizes = {tuple(value.shape or ())[2:] for value in pictures}
    if len(sizes) > 1:
        raise InputError(
            "--what-if",
            f"inputs of {len(sizes)} sizes",
            "one picture size",
            "export the model at the sizes you want and check that file",
        )
    before = _inferred(model)
    for value in pictures:
        value.shape = ir.Shape([*list(value.shape or ())[:2], *size])
    forget_shapes(model.graph)
    wanted = f"{size[0]}x{size[1]}"
    try:
        after = _inferred(model, strict=True)
    except onnx.shape_inference.InferenceError as error:
        raise _fixed_size(wanted, f"shapes that no longer agree: {_complaint(error)}") from error
    extents = _old_extents(before, after)
    for node in float_view(model).model.graph:
        held = _held_size(node, before, after) or _held_place(node, extents, before, after)
        if held is not None:
            raise _fixed_size(wanted, f"{node.name or node.outputs[0].name}: {held}")


_Shapes = Mapping[str, tuple[int | None, ...]]


def _held_size(node: ir.Node, before: _Shapes, after: _Shapes) -> str | None:
    """How the node holds the old input size without the shape inference minding; None where it does not."""
    source = node.inputs[0] if node.inputs else None
    read, made = (source.name or "" if source is not None else ""), node.outputs[0].name or ""
    given, result = after.get(read, ()), after.get(made, ())
    match node.op_type:
        case "Resize" if len(node.inputs) > 3 and node.inputs[3] is not None:
            if before.get(read) != given and before.get(made) == result:
                return "a Resize to sizes that are constants of the graph"
        case "Reshape" if given and result and None not in (*given, *result):
            if math.prod(filter(None, given)) != math.prod(filter(None, result)):
                return f"a Reshape of {list(given)} to {list(result)}"
            if before.get(made, result)[0] != result[0]:
                return f"a Reshape to a batch of {result[0]}"
        case "Gemm" if given and not node.attributes.get_int("transA", 0):
            weight = graphs.static_shape(node.inputs[1]) or ()
            wanted = weight[1 if node.attributes.get_int("transB", 0) else 0] if len(weight) == 2 else None
            if None not in (wanted, given[-1]) and wanted != given[-1]:
                return f"a linear layer of {wanted} inputs, which would get {given[-1]}"
    return None


def require_free_size(model: ir.Model, size: tuple[int, int]) -> None:
    """Refuse a network that was resized and transformed, and still has a layer made for the old size.

    `resize_input` looks at the graph as it was exported, where arithmetic on shapes may hide such a layer.

    Raises:
        InputError: naming the layer.
    """
    shapes = {value.name or "": graphs.static_shape(value) or () for value in graphs.all_values(model.graph)}
    for node in model.graph:
        if (held := _held_size(node, {}, shapes)) is not None:
            raise _fixed_size(f"{size[0]}x{size[1]}", f"{node.name}: {held}")


def _old_extents(before: _Shapes, after: _Shapes) -> frozenset[int]:
    """Heights and widths of the pictures that were another size; 1 is no size that a graph would hold."""
    return frozenset(
        old
        for name, shape in before.items()
        if len(shape) == len(after.get(name, ())) == 4
        for old, new in zip(shape[2:], after[name][2:], strict=True)
        if old is not None and old > 1 and old != new
    )


def _held_place(node: ir.Node, extents: frozenset[int], before: _Shapes, after: _Shapes) -> str | None:
    """How a Slice, Gather or Split holds an old height or width as a bound, a place or a length.

    Only along an axis whose length follows the input, which is where a traced `x.shape[2]` ends up. A bound
    may equal an old height by chance; the network is then named although it takes the size.
    """
    if node.op_type not in ("Slice", "Gather", "Split"):
        return None
    source = node.inputs[0]
    name = "" if source is None else source.name or ""
    old, new = before.get(name, ()), after.get(name, ())
    if len(old) != len(new):
        return None
    moved = {axis for axis in range(len(old)) if old[axis] != new[axis]}
    if not moved:
        return None
    if node.op_type == "Slice":
        starts, ends, given = (
            constant_ints(input_at(node, index)) or ints_attribute(node, name) or ()
            for index, name in enumerate(("starts", "ends", "axes"), start=1)
        )
        axes = given or range(max(len(starts), len(ends)))
        for bounds in (starts, ends):
            for axis, bound in zip(axes, bounds, strict=False):
                if axis % len(old) in moved and bound in {*extents, old[axis]} - {1}:
                    return f"a Slice of axis {axis} at {bound}, a constant of the graph"
        return None
    axis = int_attribute(node, "axis", 0)
    if axis % len(old) not in moved:
        return None
    if node.op_type == "Split":
        sizes = constant_ints(input_at(node, 1)) or ints_attribute(node, "split")
        return f"a Split of axis {axis} into {list(sizes)}, constants of the graph" if sizes else None
    places = constant_ints(input_at(node, 1))
    if places and {max(places) + 1, len(places)} & ({*extents, old[axis]} - {1}):
        return f"a Gather of places up to {max(places)} of axis {axis}, constants of the graph"
    return None


def _fixed_size(wanted: str, found: str) -> InputError:
    return InputError(
        f"--what-if {wanted}",
        found,
        "a graph whose only given size is its input's (scale factors instead of sizes, no fixed reshapes)",
        "export the model at that size and check that file, or give the checkpoint, which is exported anew",
    )


def _inferred(model: ir.Model, strict: bool = False) -> dict[str, tuple[int | None, ...]]:
    """Shape of every value by its name, inferred from the inputs; a symbolic length is None.

    A symbolic batch counts as 1, or it would hide what arithmetic on shapes comes to.
    """
    proto = graphs.to_proto(float_view(model).model)
    for given in proto.graph.input:
        for batch in given.type.tensor_type.shape.dim[:1]:
            batch.dim_value = batch.dim_value or 1
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) >= LARGE:
            tensor.ClearField("raw_data")  # no shape is that large
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=True).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.WhichOneof("value") == "dim_value" else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _complaint(error: Exception) -> str:
    """The first complaint of the shape inference, without its counts and tags."""
    text = " ".join(str(error).split())
    return re.sub(r"\[\w+\]\s*", "", text.split("Inference error(s):")[-1]).strip()[:200]


def _from_input_quantizer(value: ir.Value, channels: int, height: int, width: int) -> InputContract:
    """The contract a quantized graph implies: the sensor's integer times the input quantizer's step."""
    for node in graphs.consumers(value):
        if node.op_type in ACTIVATION_QUANTIZERS:
            try:
                grid = activation_grid(node)
            except InputError:
                break  # the check says what is wrong with the quantizer, with every other finding
            plain = contracts.raw(channels, height, width, signed=grid.signed)
            return dataclasses.replace(plain, scale=(grid.step,) * channels)
    return contracts.raw(channels, height, width)


def _assumed(name: str, meaning: str) -> Diagnostic:
    return about_input(
        "contract-assumed",
        Severity.WARNING,
        found="the model declares no input contract",
        limit=f"assumed {name}: {meaning}",
        fix=f"declare it: --input {name} (or unit, centred, raw, raw-signed, FILE.json)",
        source="passes/contract.py",
    )


def _overridden(
    stored: InputContract | None, contract: InputContract, declared: str
) -> tuple[Diagnostic, ...]:
    """A warning where --input contradicts what the file itself says; sizes apart."""
    if stored is None or _resized(stored, contract.height, contract.width) == contract:
        return ()
    return (
        about_input(
            "contract-overridden",
            Severity.WARNING,
            found=f"--input {declared}, {_formula(contract)}, in place of {_formula(stored)}",
            limit="the contract that the file carries",
            fix="leave --input out, unless the file is wrong",
            source="passes/contract.py",
        ),
    )


def _formula(contract: InputContract) -> str:
    """What becomes of a pixel, in the words of `passes.contract`: numbers to four digits."""
    scale, offset = (
        "/".join(f"{number:.4g}" for number in dict.fromkeys(numbers))
        for numbers in (contract.scale, contract.offset)
    )
    return f"{contract.colour_order} {'-128..127' if contract.signed else '0..255'} * {scale} + {offset}"


def _symbolic_batches(model: ir.Model) -> tuple[Diagnostic, ...]:
    symbolic = [
        value.name or ""
        for value in graphs.real_inputs(model.graph)
        if (shape := graphs.static_shape(value)) and shape[0] is None
    ]
    return tuple(
        about_input(
            "symbolic-batch",
            Severity.NOTE,
            found=f"input {name} has a symbolic batch",
            limit="the chip runs one picture at a time: compiled for a batch of 1",
            fix="nothing to do; export with a batch of 1 to say so yourself",
            source="passes/fix_batch.py",
        )
        for name in symbolic
    )


def _require_finite(path: Path, model: ir.Model) -> None:
    """Refuse NaN anywhere, and infinities in arrays (a scalar bound may be infinite)."""
    constants = [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    for value in (*model.graph.initializers.values(), *constants):
        name = value.name
        try:
            array = graphs.const_array(value)
        except Exception as error:  # the tensor's bytes and its shape contradict each other
            raise InputError(
                f"model {path}, weight {name}",
                f"cannot be read: {first_line(error)}",
                "a whole tensor",
                graphs.made_again(path),
            ) from error
        if array is None or array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        bad = np.isnan(array) if array.ndim == 0 else ~np.isfinite(array)
        if bad.any():
            raise InputError(
                f"model {path}, weight {name}",
                f"{int(bad.sum())} of {array.size} values are NaN or infinite",
                "finite weights",
                "the training diverged: take an earlier checkpoint",
            )


def _zeros(contract: InputContract) -> torch.Tensor:
    import torch

    return torch.zeros(1, contract.channels, contract.height, contract.width)


def _export(path: Path, module: torch.nn.Module, arguments: tuple[Any, ...]) -> ir.Model:
    """torch.onnx.export of a module in evaluation mode, batch norms unfolded where the exporter lets us.

    `path` is the file that the module is from.
    """
    import warnings

    import torch

    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL
    program = module if isinstance(module, torch.fx.GraphModule) else None
    if program is not None:
        # An exported program is in inference form and says no to eval().
        mode = torch.onnx.TrainingMode.PRESERVE
        trace_in_scopes(program)
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
            f"model {path}",
            f"torch cannot export it to ONNX: {first_line(error)}",
            f"operators of ONNX opset {OPSET}",
            "replace the operator in the torch model",
        ) from error
    model = graphs.from_proto(onnx.load_from_string(buffer.getvalue()))
    if program is not None:
        restore_places(model.graph, program)
    for index, value in enumerate(model.graph.outputs):  # the exporter numbers them
        value.name = "output" if len(model.graph.outputs) == 1 else f"output_{index}"
    return model
