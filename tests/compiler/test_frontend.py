"""Whatever comes in becomes one graph with a contract; whatever cannot is one clear error."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compiler.exported_program import PROGRAM
from compiler.frontend import ModelKind, declared_contract, load_model, parse_size
from passes import contract as contracts
from passes import graph as graphs
from passes.errors import InputError
from passes.pipeline import apply_all
from student.checkpoint import save_checkpoint
from student.networks import NETWORKS
from student.shipped import CHECKPOINTS
from tests.graphs import model, node, relative_error, run
from tests.networks import randomised


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("declares", [True, False])
def test_a_checkpoint_becomes_a_graph_on_sensor_pixels(tmp_path, name, declares):
    """torch on normalised pixels == the folded graph on raw ones, for our contract and the authors'."""
    network = randomised(NETWORKS[name]())
    path = tmp_path / "model.pt"
    if declares:
        save_checkpoint(path, network, contracts.centred(3, 96, 96))
    else:
        torch.save(dict(network.state_dict()), path)
    loaded = load_model(path)
    assert (loaded.kind, loaded.network) == (ModelKind.STATE_DICT, name)
    assert loaded.contract == (contracts.centred if declares else lambda _, h, w: contracts.imagenet(h, w))(
        3, 96, 96
    )
    assert [note.rule for note in loaded.notes] == ([] if declares else ["input/contract-assumed"])
    contract = loaded.contract
    folded = apply_all(loaded.model)
    q = (
        np.random.default_rng(0)
        .integers(contract.lowest, contract.highest + 1, (1, 3, 96, 96))
        .astype(np.float32)
    )
    x = q * np.reshape(contract.scale, (1, 3, 1, 1)) + np.reshape(contract.offset, (1, 3, 1, 1))
    with torch.no_grad():
        expected = network(torch.from_numpy(x.astype(np.float32))).numpy()
    assert relative_error(expected, run(folded, q)[0]) <= 1e-5
    assert "BatchNormalization" not in {n.op_type for n in folded.graph}
    assert all(graphs.module_of(n) for n in folded.graph if n.op_type == "Conv")


def test_a_checkpoint_at_another_size(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, NETWORKS["picosam2"](), contracts.centred(3, 96, 96))
    loaded = load_model(path, size=(64, 80))
    assert (loaded.contract.height, loaded.contract.width) == (64, 80)
    with pytest.raises(InputError, match=r"multiples of 16.*--input-size 96x96"):
        load_model(path, size=(100, 90))


def test_a_checkpoint_brings_the_protocol_it_was_trained_under(tmp_path):
    network, contract = randomised(NETWORKS["picosam2"]()), contracts.centred(3, 96, 96)
    for protocol in ("roi-pad10", None):
        save_checkpoint(tmp_path / "a.pt", network, contract, protocol)
        assert load_model(tmp_path / "a.pt").protocol == protocol
    assert load_model(CHECKPOINTS / "picosam2-roi.pt").protocol == "roi-pad10"  # by its digest


def test_an_exported_program(tmp_path):
    network = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()))
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 16, 16),)), path)
    loaded = load_model(path, declared="raw")
    assert loaded.kind is ModelKind.EXPORTED_PROGRAM
    q = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(q)).numpy()
    folded = apply_all(loaded.model)
    assert relative_error(expected, run(folded, q)[0]) <= 1e-5
    assert next(n for n in folded.graph if n.op_type == "Conv").metadata_props[graphs.MODULE_KEY] == "0"


def test_an_exported_program_with_code_in_it_is_refused(tmp_path, monkeypatch):
    """A .pt2 whose tensors were replaced by a pickle that runs code: the code must not run."""

    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    network = nn.Conv2d(3, 4, 3)
    path, evil = tmp_path / "model.pt2", tmp_path / "evil.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), path)
    torch.save(Bomb(), tmp_path / "bomb.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            weights = name.endswith("serialized_state_dict.pt")
            target.writestr(name, (tmp_path / "bomb.pt").read_bytes() if weights else source.read(name))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(evil)
    assert not (tmp_path / "ran").exists()


def rewritten(path: Path, target: Path, change) -> Path:
    """A copy of a .pt2 whose program JSON went through `change`."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, change(content.decode()) if name == PROGRAM else content)
    return target


def test_an_exported_program_that_calls_or_evaluates_is_refused_before_torch_sees_it(tmp_path):
    """torch resolves any name below `torch` and evaluates strings of symbolic sizes."""
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(1, 3, 8, 8),)), path)
    calls = rewritten(
        path, tmp_path / "a.pt2", lambda s: s.replace("torch.ops.aten.relu.default", "torch.os.system")
    )
    with pytest.raises(InputError, match=r"calls torch\.os\.system"):
        load_model(calls)
    ran = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{ran}').touch()"
    evil = json.dumps({"as_expr": {"expr_str": code, "hint": None}})
    expression = rewritten(path, tmp_path / "b.pt2", lambda s: s.replace('{"as_int": 8}', evil))
    with pytest.raises(InputError, match="symbolic sizes"):
        load_model(expression)
    assert not ran.exists()


def test_an_exported_program_with_a_dynamic_batch_says_so(tmp_path):
    path = tmp_path / "model.pt2"
    shapes = {"input": {0: torch.export.Dim("batch", min=2, max=8)}}
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(4, 3, 8, 8),), dynamic_shapes=shapes), path)
    with pytest.raises(InputError, match="without dynamic_shapes"):
        load_model(path)


def save_onnx(path: Path, size: list[int | str], **keywords) -> Path:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    built = model(
        [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], {"x": size}, ["y"], {"w": weight}, **keywords
    )
    graphs.save(built, path)
    return path


def test_onnx_with_a_stored_contract_an_assumed_one_and_a_declared_one(tmp_path):
    stored = contracts.centred(3, 8, 8)
    with_contract = save_onnx(tmp_path / "a.onnx", [1, 3, 8, 8], contract=stored)
    assert load_model(with_contract).contract == stored
    overridden = load_model(with_contract, declared="unit")
    assert overridden.contract == contracts.unit(3, 8, 8)
    (note,) = overridden.notes
    assert (note.rule, note.severity.value) == ("input/contract-overridden", "warning")
    assert "--input unit" in note.found
    assert load_model(with_contract, declared="centred").notes == ()
    without = load_model(save_onnx(tmp_path / "b.onnx", [1, 3, 8, 8]))
    assert without.contract == contracts.imagenet(8, 8)
    assert [note.severity.value for note in without.notes] == ["warning"]


def test_a_symbolic_size_is_set_by_the_option(tmp_path):
    path = save_onnx(tmp_path / "a.onnx", ["n", 3, "h", "w"])
    loaded = load_model(path, size=(32, 48))
    folded = apply_all(loaded.model)
    assert graphs.static_shape(folded.graph.outputs[0]) == (1, 4, 32, 48)


def test_a_size_that_contradicts_the_graph(tmp_path):
    path = save_onnx(tmp_path / "a.onnx", [1, 3, 8, 8])
    with pytest.raises(InputError, match="fixed at 8x8"):
        load_model(path, size=(16, 16))


def test_external_data(tmp_path):
    path = save_onnx(tmp_path / "whole.onnx", [1, 3, 8, 8])
    proto = onnx.load(path)
    external = tmp_path / "external.onnx"
    onnx.save(proto, external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert load_model(external).kind is ModelKind.FLOAT_ONNX
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin"):
        load_model(external)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path, bad):
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[0, 0, 0, :2] = bad
    built = model([node("Conv", ["x", "stem.w"], ["y"])], {"x": [1, 3, 8, 8]}, ["y"], {"stem.w": weight})
    graphs.save(built, tmp_path / "a.onnx")
    with pytest.raises(InputError, match=r"a\.onnx, weight stem\.w: 2 of 108"):
        load_model(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.onnx", b"", "empty"),
        ("a.onnx", b"no model at all, only words", "cannot be read as ONNX|holds no graph"),
        ("a.pt", b"PK\x03\x04 then nothing", "truncated|corrupt"),
        ("a.pt2", b"PK\x03\x04 then nothing", "truncated|corrupt"),
        ("a.pt2", b"nothing", "truncated|corrupt"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_a_file_that_was_cut_off_is_called_so_at_every_length(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    whole = {name: tmp_path / name for name in ("whole.pt2", "whole.pt")}
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), whole["whole.pt2"])
    torch.save(network.state_dict(), whole["whole.pt"])
    for name, file in whole.items():
        content = file.read_bytes()
        path = tmp_path / f"cut-{name}"
        # every region: within the first header, between members, and behind archives within the archive
        ends = [len(content) - missing for missing in (1, 2, 22, 99)]
        for length in (1, 2, 3, 5, 22, 100, *range(150, len(content), 450), *ends):
            path.write_bytes(content[:length])
            with pytest.raises(InputError, match="truncated or corrupt") as caught:
                load_model(path)
            assert "permission" not in str(caught.value), length
            assert str(path) in str(caught.value), length


def test_a_file_that_one_may_not_read(tmp_path, monkeypatch):
    path = save_onnx(tmp_path / "a b.onnx", [1, 3, 8, 8])
    monkeypatch.setattr("os.access", lambda file, mode: False)  # root may read everything
    with pytest.raises(InputError, match=rf"not readable.*chmod u\+rX '{path}'"):
        load_model(path)


def test_a_damaged_graph_of_a_package_is_compiled_again_and_another_exported(tmp_path):
    path = save_onnx(tmp_path / "model_quant.onnx", [1, 3, 8, 8])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="Fix: export the model again, or copy it again"):
        load_model(path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="Fix: compile it again, or copy the package again"):
        load_model(path)


def test_a_transform_that_refuses_a_model_names_its_file(tmp_path):
    path = save_onnx(tmp_path / "strange.onnx", ["n", 3, 8, 8])
    proto = onnx.load(path)
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "mine", "Strange"
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    onnx.save(proto, path)
    with pytest.raises(InputError, match=rf"^model {path}: custom operators: mine::Strange"):
        apply_all(load_model(path).model)


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="is a folder"):
        load_model(tmp_path)


def test_torchscript_and_packages_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), path)
    with pytest.raises(InputError, match=r"TorchScript.*state_dict"):
        load_model(path)
    with zipfile.ZipFile(tmp_path / "packerOut.zip", "w") as archive:
        archive.writestr("dnnParams.xml", "<dnnParams/>")
    with pytest.raises(InputError, match="compiled package"):
        load_model(tmp_path / "packerOut.zip")


def test_declared_contracts(tmp_path):
    assert declared_contract("raw-signed", 3, 4, 4) == contracts.raw(3, 4, 4, signed=True)
    file = tmp_path / "contract.json"
    file.write_text(contracts.imagenet(4, 4).dumps())
    assert declared_contract(str(file), 3, 4, 4) == contracts.imagenet(4, 4)
    with pytest.raises(InputError, match="imagenet, unit, centred, raw, raw-signed or a JSON file"):
        declared_contract("imagnet", 3, 4, 4)
    with pytest.raises(InputError, match="1 channels"):
        declared_contract("imagenet", 1, 4, 4)


def test_sizes():
    assert parse_size("96") == (96, 96)
    assert parse_size("64x80") == (64, 80)
    assert parse_size(None) is None
    for text in ("0x4", "96,96", "-1", "x", "96x"):
        with pytest.raises(InputError, match="HEIGHTxWIDTH"):
            parse_size(text)
