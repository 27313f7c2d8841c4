"""Checkpoints: plain state_dicts in the authors' parameter names; the input contract and the prompt protocol
lie beside the weights.

The contract's JSON lies in the `_metadata` attribute that PyTorch itself gives every state_dict, under
`passes.contract.METADATA_KEY`, and the protocol's name under PROTOCOL_KEY. `load_state_dict` ignores entries
it does not know there, so the authors' code loads our files, and ours loads theirs (which have neither).
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passes.contract import METADATA_KEY, InputContract
from passes.errors import InputError
from passes.files import write_beside
from student.crops import PROTOCOLS
from student.instances import first_names
from student.networks import NETWORKS

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs commonly put the state_dict."""

PROTOCOL_KEY = "picosam2.prompt_protocol"
"""Under which a checkpoint's metadata names the protocol that it was trained under."""

PARALLEL_PREFIX = "module."
"""What nn.DataParallel and DistributedDataParallel put before every name."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits its network: same names, same shapes, finite float32 weights.

    Attributes:
        network_name: a key of NETWORKS.
        state_dict: without wrappers or prefixes.
        contract: None where the file carries none (the authors' files).
        protocol: a name in PROTOCOLS, what it was trained under; None where the file carries none.
    """

    network_name: str
    state_dict: OrderedDict[str, Tensor]
    contract: InputContract | None
    protocol: str | None = None

    def build(self) -> nn.Module:
        """The network with these weights, in evaluation mode."""
        network = NETWORKS[self.network_name]()
        network.load_state_dict(self.state_dict)
        return network.eval()


def save_checkpoint(
    path: Path, network: nn.Module, contract: InputContract, protocol: str | None = None
) -> None:
    """Writes `network`'s state_dict with its contract and protocol; identical weights give identical bytes.

    Args:
        protocol: a name in PROTOCOLS; None for a network that was not trained on prompts.
    """
    state = network.state_dict()
    # A clone, because `contiguous` keeps unusual strides of dimensions of size 1, which would be stored.
    weights = OrderedDict(
        (name, tensor.detach().cpu().clone(memory_format=torch.contiguous_format))
        for name, tensor in state.items()
    )
    named = {} if protocol is None else {PROTOCOL_KEY: protocol}
    vars(weights)["_metadata"] = {**vars(state)["_metadata"], METADATA_KEY: contract.dumps(), **named}
    buffer = io.BytesIO()  # given a path, torch.save would put the file's name into its bytes
    torch.save(weights, buffer)
    try:
        write_beside(path, buffer.getvalue())
    except OSError as error:
        raise InputError(
            str(path), f"cannot be written ({error.strerror})", "a writable folder", "give another path"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of any network in NETWORKS; only tensors are unpickled, never code.

    Accepts a state_dict, a state_dict under one of WRAPPERS, and names with PARALLEL_PREFIX.

    Raises:
        InputError: missing, empty or broken file, a pickle of anything but tensors, a state_dict of another
            network, or weights that are NaN or infinite.
    """
    state = _unwrapped(path, _read(path))
    metadata = getattr(state, "_metadata", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    contract_json, protocol = metadata.get(METADATA_KEY), metadata.get(PROTOCOL_KEY)
    weights = _tensors(path, state)
    network_name = _recognised(path, weights)
    weights = OrderedDict(
        (name, tensor.float() if tensor.is_floating_point() else tensor) for name, tensor in weights.items()
    )
    _require_finite(path, weights)
    contract = None if contract_json is None else InputContract.loads(str(contract_json))
    known = isinstance(protocol, str) and protocol in PROTOCOLS
    return Checkpoint(network_name, weights, contract, protocol if known else None)


def _read(path: Path) -> Any:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise InputError(str(path), found, "a checkpoint file", "correct the path")
    if path.stat().st_size == 0:
        raise InputError(str(path), "empty file (0 bytes)", "a checkpoint file", "copy or save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the outcome says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(
            str(path), f"cannot be read ({error.strerror})", "a readable file", "correct its permissions"
        ) from error
    except Exception as error:  # damaged pickles raise whatever the damaged bytes say
        refused = isinstance(error, pickle.UnpicklingError) and _is_whole(path)
        if refused or "TorchScript" in str(error):
            raise InputError(
                str(path),
                "a pickled module or other Python objects",
                "tensors only: unpickling anything else runs code from the file",
                "in the program that made it, torch.save(model.state_dict(), path), or "
                "torch.export.save(torch.export.export(model, (example,)), 'model.pt2')",
            ) from error
        raise InputError(
            str(path),
            "truncated or corrupt, or no PyTorch file",
            "a file written by torch.save",
            "copy or save it again",
        ) from error


def _is_whole(path: Path) -> bool:
    """The file is an undamaged zip archive (what torch.save writes) or starts with a complete pickle."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        with path.open("rb") as stream:
            for _ in pickletools.genops(stream):
                pass
    except Exception:  # both raise whatever damaged bytes lead to
        return False
    return True


def _unwrapped(path: Path, content: Any) -> dict[str, Any]:
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        found = "an empty dict" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(
            str(path),
            found,
            "a state_dict: parameter names and tensors",
            "save it with torch.save(model.state_dict(), path)",
        )
    return content


def _tensors(path: Path, state: dict[str, Any]) -> OrderedDict[str, Tensor]:
    others = [
        f"{key!r}: {type(value).__name__}" for key, value in state.items() if not _named_tensor(key, value)
    ]
    if others:
        raise InputError(
            str(path),
            f"a dict with {len(others)} entries that are no tensors ({first_names(others, 3)})",
            f"a state_dict, alone or under one of the keys {', '.join(WRAPPERS)}",
            "save it with torch.save(model.state_dict(), path)",
        )
    prefix = PARALLEL_PREFIX if all(name.startswith(PARALLEL_PREFIX) for name in state) else ""
    return OrderedDict((name.removeprefix(prefix), tensor) for name, tensor in state.items())


def _named_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


@dataclass(frozen=True)
class _Difference:
    """How a state_dict differs from a network's own; names and descriptions."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        parts = (
            (self.missing, "missing"),
            (self.unexpected, "unexpected"),
            (self.reshaped, "of another shape or type"),
        )
        return "; ".join(f"{len(names)} {what}: {first_names(names, 3)}" for names, what in parts if names)


def _recognised(path: Path, weights: dict[str, Tensor]) -> str:
    differences = {name: _difference(name, weights) for name in NETWORKS}
    nearest = min(differences, key=lambda name: differences[name].size)
    if differences[nearest].size:
        raise InputError(
            str(path),
            f"a state_dict of another network; against the nearest, {nearest}: {differences[nearest]}",
            f"the parameters of {' or '.join(sorted(NETWORKS))}",
            f"give a checkpoint of {nearest}; any other network goes in as .onnx or torch.export .pt2",
        )
    return nearest


def _difference(network_name: str, weights: dict[str, Tensor]) -> _Difference:
    with torch.device("meta"):
        expected = NETWORKS[network_name]().state_dict()
    return _Difference(
        tuple(name for name in expected if name not in weights),
        tuple(name for name in weights if name not in expected),
        tuple(
            f"{name} is {_kind(weights[name])} instead of {_kind(tensor)}"
            for name, tensor in expected.items()
            if name in weights and _kind(weights[name]) != _kind(tensor)
        ),
    )


def _kind(tensor: Tensor) -> str:
    return f"{'float' if tensor.is_floating_point() else 'integer'} {list(tensor.shape)}"


def _require_finite(path: Path, weights: dict[str, Tensor]) -> None:
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in weights.items()}
    bad = {name: count for name, count in bad.items() if count}
    if bad:
        described = [f"{name}: {count} of {weights[name].numel()}" for name, count in bad.items()]
        raise InputError(
            str(path),
            f"NaN or infinite weights in {len(bad)} parameters ({first_names(described, 3)})",
            "finite weights",
            "take a checkpoint from before the training diverged",
        )
