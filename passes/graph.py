"""The graph vocabulary: thin helpers over onnx_ir, and the only place that reads or writes ONNX files."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from passes.contract import METADATA_KEY, InputContract
from passes.errors import InputError, first_line
from passes.files import PACKAGE_MANIFEST, write_beside

MODULE_KEY = "picosam2.module"
"""Key in a node's metadata_props: dotted path of the torch module the node came from."""

LINE_KEY = "picosam2.line"
"""Key in a node's metadata_props: `FILE:LINE` of the user's torch code that the node came from."""

STANDARD_DOMAINS = ("", "ai.onnx")
FILE_KEY = "picosam2.file"
"""Key in the meta of a model that was loaded: its file, for messages. It is never stored."""

QUANTIZER_DOMAIN = "mct_quantizers"
"""Domain of the vendor dialect's quantizer nodes."""


def load(path: Path) -> ir.Model:
    """Read an ONNX file whole, external data included.

    Raises InputError for a missing, empty or unreadable file and for missing external data.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"model {path}", found, "an ONNX file", "correct the path")
    if path.stat().st_size == 0:
        raise InputError(f"model {path}", "is empty (0 bytes)", "an ONNX file", made_again(path))
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds, which differ between its versions
        raise InputError(
            f"model {path}",
            f"cannot be read as ONNX ({first_line(error)})",
            "a complete ONNX file",
            made_again(path),
        ) from error
    try:
        onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except Exception as error:  # the library raises ValidationError, OSError or ValueError alike
        names = sorted(
            {
                entry.value
                for tensor in proto.graph.initializer
                for entry in tensor.external_data
                if entry.key == "location"
            }
        )
        raise InputError(
            f"model {path}",
            f"its external data cannot be read: {', '.join(names) or error}",
            f"the data files beside the model, in {path.parent}",
            "copy them there, or save the model in one file: onnx.save(onnx.load(PATH), NEW)",
        ) from error
    if not proto.graph.node and not proto.graph.output:
        raise InputError(f"model {path}", "holds no graph", "an ONNX model", made_again(path))
    try:
        return from_proto(proto)
    except Exception as error:  # onnx_ir raises several kinds on graphs that contradict themselves
        raise InputError(
            f"model {path}",
            f"is no valid graph: {first_line(error)}",
            "a model that onnx.checker.check_model accepts",
            made_again(path),
        ) from error


def made_again(path: Path) -> str:
    """How to come by a model file that is damaged: one in a package was compiled, another was exported."""
    if (path.parent / PACKAGE_MANIFEST).is_file():
        return "compile it again, or copy the package again"
    return "export the model again, or copy it again"


def message_name(model: ir.Model) -> str:
    """The model as a message names it: by its file, where it came from one."""
    file = model.meta.get(FILE_KEY)
    return "model" if file is None else f"model {file}"


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """ModelProto -> onnx_ir, weights in memory, with the metadata kept."""
    return ir.serde.deserialize_model(proto)


def parse(data: bytes) -> ir.Model:
    """The model that `to_bytes` wrote."""
    return from_proto(onnx.load_from_string(data))


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """ir.Model -> ModelProto; initializers get no value_info beside their own shape.

    The converter transposes the weights of linear layers in place and then finds the second shape wrong.
    """
    proto = ir.serde.serialize_model(model)
    stored = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.value_info if info.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return proto


def to_bytes(model: ir.Model) -> bytes:
    """Serialize deterministically: the same graph gives the same bytes."""
    return bytes(to_proto(model).SerializeToString(deterministic=True))


def save(model: ir.Model, path: Path) -> None:
    """Write the model beside `path`, then rename: a reader sees the old file or the whole new one."""
    write_beside(path, to_bytes(model))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def const_array(value: ir.Value | None) -> np.ndarray | None:
    """The constant a value holds (initializer or Constant node), else None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def unique_name(name: str, taken: set[str]) -> str:
    """`name`, with a number where it is taken; the result is added to `taken`."""
    candidate = _free_name(name, taken)
    taken.add(candidate)
    return candidate


def _free_name(name: str, taken: Container[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; a number is appended where the name is taken."""
    unique = _free_name(name, graph.initializers)
    value = ir.val(unique, const_value=ir.Tensor(array, name=unique))
    graph.register_initializer(value)
    return value


def set_constant(graph: ir.Graph, node: ir.Node, index: int, name: str, array: np.ndarray) -> None:
    """Give the node a constant of its own as input `index`; a constant shared with others stays as it is."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, constant(graph, name, array))


def static_shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Dimensions of a value, None for a symbolic one; None as a whole where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple([dim if isinstance(dim, int) else None for dim in value.shape.dims])


def picture_shape(value: ir.Value) -> tuple[int, int, int] | None:
    """(channels, height, width) of one float32 picture that `value` takes, missing sides as 1.

    None where it takes no such thing: another type, a batch other than 1, rank 1 or above 4, or a size that
    is not fixed. Only such inputs have an input contract.
    """
    shape = static_shape(value)
    if shape is None or not 2 <= len(shape) <= 4 or shape[0] not in (1, None):
        return None
    if value.dtype not in (None, ir.DataType.FLOAT):
        return None
    sides = [side for side in shape[1:] if side is not None]
    if len(sides) != len(shape) - 1:
        return None
    channels, height, width = (*sides, 1, 1)[:3]
    return channels, height, width


def real_inputs(graph: ir.Graph) -> list[ir.Value]:
    """Graph inputs that are no initializers (old exporters list both)."""
    return [value for value in graph.inputs if value.name not in graph.initializers]


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, each once, in graph order of their first use."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def module_of(node: ir.Node) -> str:
    """Dotted path of the torch module the node came from, "" where unknown."""
    return node.metadata_props.get(MODULE_KEY, "")


def line_of(node: ir.Node) -> str:
    """`FILE:LINE` of the user's torch code that the node came from, "" where the export does not tell."""
    return node.metadata_props.get(LINE_KEY, "")


def is_quantizer(node: ir.Node) -> bool:
    """A quantizer node of the vendor dialect."""
    return node.domain == QUANTIZER_DOMAIN


def is_activation_quantizer(node: ir.Node) -> bool:
    """A quantizer node that rounds a computed tensor, not weights."""
    return is_quantizer(node) and node.op_type.startswith("Activation")


def is_quantized(model: ir.Model) -> bool:
    """The model is in the vendor dialect: it holds quantizer nodes."""
    return any(is_quantizer(node) for node in model.graph)


def read_contract(model: ir.Model) -> InputContract | None:
    """The input contract in the model's metadata, None where it has none."""
    text = model.metadata_props.get(METADATA_KEY)
    return None if text is None else InputContract.loads(text)


def write_contract(model: ir.Model, contract: InputContract) -> None:
    model.metadata_props[METADATA_KEY] = contract.dumps()


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every named value once: inputs, initializers, node outputs (graph order)."""
    seen: set[int] = set()
    for group in (graph.inputs, graph.initializers.values(), *(node.outputs for node in graph)):
        for value in group:
            if id(value) not in seen:
                seen.add(id(value))
                yield value
