"""Checkpoints: the round trip, the authors' way of loading, and one clear message for each bad file."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from passes.contract import centred
from passes.errors import ExitCode, InputError
from student.checkpoint import load_checkpoint, save_checkpoint
from student.crops import PROTOCOLS
from student.cropset import load_crops
from student.evaluate import evaluate, predictor
from student.instances import load_instances
from student.networks import NETWORKS, PicoSAM2

CONTRACT = centred(3, 96, 96)
CHECKPOINTS = Path(__file__).parents[2] / "student" / "checkpoints"
SHIPPED = [("picosam2", "point-native-96"), ("picosam2-roi", "roi-pad10")]
"""The shipped checkpoints and the protocol each was trained for."""


@pytest.fixture(params=sorted(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def network_of(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETWORKS[name]()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_round_trip(tmp_path: Path, name: str) -> None:
    network = network_of(name)
    save_checkpoint(tmp_path / "a.pt", network, CONTRACT)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.network_name == name
    assert checkpoint.contract == CONTRACT
    built = checkpoint.build()
    assert not built.training
    assert same(built.state_dict(), network.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_same_weights_same_bytes(tmp_path: Path, name: str) -> None:
    network = network_of(name)
    save_checkpoint(tmp_path / "a.pt", network, CONTRACT)
    rearranged = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_checkpoint(tmp_path / "another-name.pt", rearranged, CONTRACT)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another-name.pt").read_bytes()


def test_the_authors_code_loads_ours(tmp_path: Path, name: str) -> None:
    """They call model.load_state_dict(torch.load(path)), which is strict about names and shapes."""
    save_checkpoint(tmp_path / "a.pt", network_of(name), CONTRACT)
    theirs = NETWORKS[name]()
    theirs.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert same(theirs.state_dict(), network_of(name).state_dict())


def test_we_load_the_authors_files(tmp_path: Path, name: str) -> None:
    torch.save(network_of(name).state_dict(), tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert (checkpoint.network_name, checkpoint.contract) == (name, None)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": state, "loss": 0.5},
        lambda state: OrderedDict((f"module.{key}", value) for key, value in state.items()),
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {
            key: value.half() if value.is_floating_point() else value for key, value in state.items()
        },
        lambda state: dict(reversed(state.items())),
    ],
    ids=["state_dict", "model", "model_state_dict", "module.", "both", "half", "other order"],
)
def test_common_wrappers(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    network = network_of("picosam2")
    torch.save(wrap(network.state_dict()), tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    expected = network.state_dict()
    assert checkpoint.network_name == "picosam2"
    assert set(checkpoint.state_dict) == set(expected)
    for key, tensor in checkpoint.state_dict.items():
        assert tensor.dtype == expected[key].dtype
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-6)


def test_the_contract_survives_a_wrapper(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", network_of("picosam2"), CONTRACT)
    torch.save({"state_dict": torch.load(tmp_path / "a.pt", weights_only=True)}, tmp_path / "b.pt")
    assert load_checkpoint(tmp_path / "b.pt").contract == CONTRACT


def test_the_protocol_is_kept_and_an_unknown_one_is_none(tmp_path: Path) -> None:
    network = network_of("picosam2")
    for protocol, known in (("roi-pad10", "roi-pad10"), (None, None), ("of-a-later-version", None)):
        save_checkpoint(tmp_path / "a.pt", network, CONTRACT, protocol)
        checkpoint = load_checkpoint(tmp_path / "a.pt")
        assert (checkpoint.contract, checkpoint.protocol) == (CONTRACT, known)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    state._metadata["picosam2.prompt_protocol"] = ["roi-pad10"]
    torch.save(state, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").protocol is None


def refused(path: Path) -> str:
    """The message of the refusal, with its exit code checked."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert caught.value.exit_code == ExitCode.USER
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    assert "no such file" in refused(tmp_path / "missing.pt")
    assert "empty file" in refused(tmp_path / "empty.pt")
    assert "folder" in refused(tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9, 0.9999])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, network_of("picosam2"), CONTRACT)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "truncated or corrupt" in refused(path)


@pytest.mark.parametrize(
    "content", [b"hello, this is text\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04", b"\x80"]
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert "no PyTorch file" in refused(tmp_path / "a.pt")


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_module_and_code(tmp_path: Path) -> None:
    torch.save(network_of("picosam2"), tmp_path / "module.pt")
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "payload.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    for file in ("module.pt", "payload.pt", "plain.pkl", "script.pt"):
        message = refused(tmp_path / file)
        assert "pickled module" in message
        assert "state_dict()" in message
        assert "torch.export" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.zeros(3), "a Tensor"),
        ([torch.zeros(3)], "a list"),
        ({}, "an empty dict"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "'epoch': int, 'weights': dict"),
        ({0: torch.zeros(3)}, "0: Tensor"),
    ],
)
def test_not_a_state_dict(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    message = refused(tmp_path / "a.pt")
    assert found in message
    assert "state_dict" in message


def test_another_network(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "a.pt")
    message = refused(tmp_path / "a.pt")
    assert "another network" in message
    assert "missing: encoder_stage1.0.weight, encoder_stage1.1.weight" in message
    assert "unexpected: features.0.weight, features.0.bias" in message
    assert ".onnx" in message


def test_the_nearest_network_is_named(tmp_path: Path, name: str) -> None:
    state = network_of(name).state_dict()
    del state["down2.weight"]
    state["extra"] = torch.zeros(2)
    state["skip_conn1.weight"] = torch.zeros(40, 47, 1, 1)
    torch.save(state, tmp_path / "a.pt")
    message = refused(tmp_path / "a.pt")
    assert f"nearest, {name}: 1 missing: down2.weight; 1 unexpected: extra; 1 of another shape" in message
    assert "skip_conn1.weight is float [40, 47, 1, 1] instead of float [40, 48, 1, 1]" in message


def test_integer_weights_are_not_taken_for_floats(tmp_path: Path) -> None:
    state = network_of("picosam2").state_dict()
    state["down1.weight"] = state["down1.weight"].to(torch.int8)
    torch.save(state, tmp_path / "a.pt")
    assert "down1.weight is integer" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    network = network_of("picosam2")
    with torch.no_grad():
        network.get_parameter("bottleneck.3.weight").view(-1)[:5] = value
    save_checkpoint(tmp_path / "a.pt", network, CONTRACT)
    message = refused(tmp_path / "a.pt")
    assert "in 1 parameters (bottleneck.3.weight: 5 of 81920)" in message


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path / "missing" / "a.pt", PicoSAM2(), CONTRACT)


@pytest.mark.parametrize(("name", "protocol"), SHIPPED)
def test_a_shipped_checkpoint_is_what_its_card_says(name: str, protocol: str) -> None:
    file = CHECKPOINTS / f"{name}.pt"
    checkpoint, card = load_checkpoint(file), json.loads(file.with_suffix(".json").read_text())
    assert checkpoint.network_name == card["training"]["recipe"]["network"] == "picosam2"
    assert card["training"]["recipe"]["protocol"] == protocol
    assert checkpoint.contract == CONTRACT
    assert hashlib.sha256(file.read_bytes()).hexdigest() == card["checkpoint"]["sha256"]
    assert file.stat().st_size <= 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "protocol"), SHIPPED)
def test_a_shipped_checkpoint_reaches_its_numbers(name: str, protocol: str, real_data: Path) -> None:
    file = CHECKPOINTS / f"{name}.pt"
    checkpoint, card = load_checkpoint(file), json.loads(file.with_suffix(".json").read_text())
    crops = load_crops(load_instances(f"coco:{real_data / 'coco'}"), PROTOCOLS[protocol])
    ious = evaluate(predictor(checkpoint.build(), CONTRACT), crops)
    stated = card["evaluation"][f"coco val2017 subset, {protocol}"]["model"]["overall"]["miou"]
    assert ious.mean() == pytest.approx(stated["mean"], abs=5e-4)
