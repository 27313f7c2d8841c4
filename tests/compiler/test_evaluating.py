"""Every form of a model is scored alike; results are stable records and tables."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from pycocotools import mask as codes
from rich.console import Console
from torch import nn

from calib.representative import content_hashes
from compiler import evaluating
from compiler.evaluating import EvaluationResult, evaluate_model, tables
from compiler.package import FORMAT
from passes import graph as graphs
from passes.contract import InputContract, centred, raw
from passes.errors import InputError
from student.checkpoint import save_checkpoint
from student.crops import PROTOCOLS
from student.cropset import CropSet, load_crops
from student.evaluate import iou, predictor
from student.instances import load_instances
from student.networks import PicoSAM2
from tests.compiler.simulator.simulator_graphs import Dialect
from tests.compiler.small_packages import packaged, red_finder
from tests.graphs import model, node
from tests.pictures import write_coco

SHIPPED = Path(__file__).parents[2] / "student" / "checkpoints" / "picosam2.pt"
SIGNED = raw(3, 96, 96, signed=True)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def crops(coco: Path) -> CropSet:
    return load_crops(load_instances(f"coco:{coco}", "train2017"), PROTOCOLS["point-native-96"])


@pytest.fixture(scope="module")
def red(crops: CropSet) -> np.ndarray:
    """IoU of each crop for the network that finds what is red: more than 128 in the red channel."""
    ious = iou(crops.pictures[..., 0] > 128, crops.masks)
    assert 0.3 < ious.mean() < 0.999  # squares that compete in a crop are found too
    return ious


def red_graph(
    contract: InputContract, batch: int | str = 1, size: int = 96, tail: str | None = None, channel: int = 0
) -> Any:
    """A 1x1 convolution that gives one of the three channels, and what follows it."""
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, channel] = 1.0
    nodes = [node("Conv", ["x", "w"], ["conv" if tail else "y"])]
    if tail:
        nodes.append(node(tail, ["conv"], ["y"]))
    return model(nodes, {"x": [batch, 3, size, size]}, ["y"], {"w": weight}, contract)


def saved(built: Any, path: Path) -> Path:
    path.write_bytes(graphs.to_bytes(built))
    return path


def scored(path: Path, coco: Path, **options: Any) -> EvaluationResult:
    return evaluate_model(path, source=f"coco:{coco}", split="train2017", **options)


def quantized_red() -> onnx.ModelProto:
    builder = Dialect()
    pixels = builder.quantize(builder.input([1, 3, 96, 96]), 128.0)
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, 0] = 0.5
    found = builder.node("Conv", pixels, builder.quantized_weights(weight, [1.0]))
    return builder.proto(builder.quantize(found, 64.0))


@pytest.mark.parametrize("batch", [1, "N"])
def test_a_float_graph(tmp_path: Path, coco: Path, red: np.ndarray, batch: int | str) -> None:
    path = saved(red_graph(SIGNED, batch), tmp_path / "red.onnx")
    told: list[tuple[int, int, str]] = []
    result = scored(path, coco, on_progress=lambda *said: told.append(said))
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())
    assert (result.model.file, result.model.kind, result.model.contract) == ("red.onnx", "float ONNX", SIGNED)
    assert (result.available, result.crowds, result.empty) == (12, 1, 1)
    assert [one.name for one, _ in result.baselines] == ["all ones", "best centred disc"]
    assert any("no training set" in note for note in result.notes)
    assert (12, 12, "running red.onnx") in told
    assert (6, 6, "reading pictures") in told


@pytest.mark.parametrize(
    "contract",
    [
        dataclasses.replace(SIGNED, colour_order="BGR"),
        dataclasses.replace(SIGNED, scale=(0.25,) * 3, offset=(0.0, 0.0, 0.0)),
        dataclasses.replace(raw(3, 96, 96), offset=(-128.0,) * 3),
    ],
    ids=["BGR", "scaled", "unsigned"],
)
def test_the_contract_is_followed(
    tmp_path: Path, coco: Path, red: np.ndarray, contract: InputContract
) -> None:
    channel = 2 if contract.colour_order == "BGR" else 0
    result = scored(saved(red_graph(contract, channel=channel), tmp_path / "m.onnx"), coco)
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())


def test_probabilities_are_cut_at_one_half(tmp_path: Path, coco: Path, red: np.ndarray) -> None:
    result = scored(saved(red_graph(SIGNED, tail="Sigmoid"), tmp_path / "m.onnx"), coco)
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())


def test_an_exported_program(tmp_path: Path, coco: Path, red: np.ndarray) -> None:
    network = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 96, 96),)), tmp_path / "red.pt2")
    result = scored(tmp_path / "red.pt2", coco, declared="raw-signed")
    assert result.model.kind == "torch.export program"
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())


def test_a_quantized_graph_and_a_package(tmp_path: Path, coco: Path, red: np.ndarray) -> None:
    int8 = tmp_path / "int8.onnx"
    int8.write_bytes(quantized_red().SerializeToString())
    result = scored(int8, coco)
    assert result.model.kind == "quantized ONNX"
    assert result.model.contract is not None
    assert result.model.contract.signed
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())
    package = tmp_path / "package"
    package.mkdir()
    with pytest.raises(InputError, match=r"has no manifest\.json of ours"):
        scored(package, coco)
    (package / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": {}}))
    with pytest.raises(InputError, match=r"has no model_quant\.onnx"):
        scored(package, coco)
    int8.rename(package / "model_quant.onnx")
    saved(red_graph(SIGNED, tail="Neg"), package / "model.onnx")
    assert scored(package, coco).model.file == "package/model_quant.onnx"
    inverted = scored(package, coco, float_graph=True, against=package)
    assert inverted.model.file == "package/model.onnx"


def test_pictures_that_were_calibrated_on_are_told(tmp_path: Path, coco: Path) -> None:
    source = f"coco:{coco}"
    first = min(content_hashes(source, "train2017"))
    card = {
        "sources": [{"name": "train/7.jpg", "content": first}, {"name": "other.jpg", "content": "0" * 64}]
    }
    told = packaged(tmp_path / "told", red_finder(), calibration=card)
    notes = scored(told, coco).notes
    assert [
        note
        for note in notes
        if "1 of these pictures were calibrated on, trained on or decided by (train/7.jpg)" in note
    ]
    card["sources"][0]["content"] = "1" * 64
    apart = packaged(tmp_path / "apart", red_finder(), calibration=card)
    assert not [note for note in scored(apart, coco).notes if "calibrated" in note]


def test_the_numbers_of_the_compiled_file(tmp_path: Path, coco: Path, red: np.ndarray) -> None:
    """This network rounds nothing, so every reading of its compiled file is the file's exact meaning."""
    int8 = tmp_path / "int8.onnx"
    int8.write_bytes(quantized_red().SerializeToString())
    result = scored(int8, coco, chip=True)
    assert [(one.numerics.rounding.value, one.numerics.saturate) for one in result.chip] == [
        (rounding, saturate)
        for rounding in ("nearest_even", "half_up", "floor")
        for saturate in (True, False)
    ]
    for one in result.chip:
        assert one.reached.miou.mean == pytest.approx(red.mean())
        assert one.difference.miou.mean == 0
    assert len(result.to_json()["chip"]) == 6
    titles = [str(table.title) for table in tables(result)]
    assert sum("compiled file" in title for title in titles) == 1
    assert scored(int8, coco).chip == ()


def test_a_float_graph_has_no_compiled_file(tmp_path: Path, coco: Path) -> None:
    path = saved(red_graph(SIGNED), tmp_path / "red.onnx")
    with pytest.raises(InputError, match=r"--chip: red\.onnx is no quantized graph"):
        scored(path, coco, chip=True)


def test_layers_whose_numbers_are_not_known_are_named_before_any_picture(tmp_path: Path) -> None:
    builder = Dialect()
    pixels = builder.quantize(builder.input([1, 3, 96, 96]), 128.0)
    weights = builder.quantized_weights(np.ones((3, 1, 1, 1), np.float32), [1.0], axis=1)
    found = builder.node("ConvTranspose", pixels, weights)
    path = tmp_path / "int8.onnx"
    path.write_bytes(builder.proto(builder.quantize(found, 64.0)).SerializeToString())
    with pytest.raises(InputError, match=r"ConvTranspose.*numerics imx500"):
        evaluate_model(path, source=f"coco:{tmp_path / 'absent'}", chip=True)


def test_a_checkpoint_is_scored_as_torch_does(tmp_path: Path, coco: Path, crops: CropSet) -> None:
    torch.manual_seed(1)
    network = PicoSAM2().eval()
    contract = centred(3, 96, 96)
    save_checkpoint(tmp_path / "a.pt", network, contract)
    logits = predictor(network, contract)(np.ascontiguousarray(crops.pictures.transpose(0, 3, 1, 2)))
    expected = iou(logits[:, 0] > 0, crops.masks).mean()
    result = scored(tmp_path / "a.pt", coco)
    assert result.model.figures.overall.miou.mean == pytest.approx(expected, abs=1e-3)
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    theirs = scored(tmp_path / "theirs.pt", coco)
    assert any("assumed imagenet" in note for note in theirs.notes)


def write_predictions(folder: Path, masks: np.ndarray, ids: list[int]) -> Path:
    entries = []
    for number, mask in zip(ids, masks, strict=True):
        code = codes.encode(np.asfortranarray(mask, np.uint8))
        counts = code["counts"].decode()
        entries.append(
            {"annotation_id": number, "segmentation": {"size": code["size"], "counts": counts}, "score": 0.5}
        )
    (folder / "stored.json").write_text(json.dumps(entries))
    return folder / "stored.json"


def test_a_network_against_stored_predictions(
    tmp_path: Path, coco: Path, crops: CropSet, red: np.ndarray
) -> None:
    """Perfect masks of five instances: both are scored on these five, the difference is paired."""
    chosen = np.isin(crops.annotation_ids, [2, 3, 7, 8, 11])
    stored = write_predictions(tmp_path, crops.masks[chosen], crops.annotation_ids[chosen].tolist())
    network = saved(red_graph(SIGNED), tmp_path / "red.onnx")
    result = scored(network, coco, against=stored)
    assert result.against is not None
    assert result.difference is not None
    assert (result.against.kind, result.against.contract) == ("stored predictions", None)
    assert result.against.figures.overall.miou.mean == 1.0
    assert result.against.figures.overall.samples == result.difference.samples == 5
    assert result.model.figures.overall.miou.mean == pytest.approx(red[chosen].mean())
    assert result.difference.miou.mean == pytest.approx(red[chosen].mean() - 1.0)
    assert "only the 5 of 12 instances that stored.json names" in result.notes
    undeclared = "stored.json does not say its protocol: scored as if made under point-native-96"
    assert undeclared in result.notes
    assert not any("red.onnx does not say" in note for note in result.notes)
    (tmp_path / "list.json").write_text(json.dumps({"rows": [{"ann_id": 7}, {"ann_id": 99}]}))
    result = scored(network, coco, against=stored, only=tmp_path / "list.json")
    assert result.model.figures.overall.samples == 1
    assert "1 of the 2 instances that list.json names are not in the data set" in result.notes


def test_the_prompts_are_those_the_model_was_trained_on(tmp_path: Path, coco: Path) -> None:
    boxes = packaged(tmp_path / "boxes", red_finder(), protocol="roi-pad10")
    unknown = packaged(tmp_path / "unknown", red_finder())
    note = "boxes/model_quant.onnx was trained on roi-pad10, and this is its score on point-native-96"
    own = scored(boxes, coco)
    assert own.protocol.name == scored(unknown, coco, against=boxes).protocol.name == "roi-pad10"
    assert not any("trained on" in one for one in own.notes)
    assert scored(unknown, coco).protocol.name == "point-native-96"
    assert note in scored(boxes, coco, protocol="point-native-96").notes
    graph = boxes / "model_quant.onnx"
    assert scored(graph, coco).protocol.name == "roi-pad10"
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(graph.read_bytes())
    said = "alone.onnx does not say its protocol: scored as if made under roi-pad10"
    assert said in scored(alone, coco, against=boxes).notes
    assert scored(alone, coco).protocol.name == "point-native-96"


def test_the_record_and_the_tables(tmp_path: Path, coco: Path) -> None:
    network = saved(red_graph(SIGNED), tmp_path / "re[d].onnx")
    result = scored(network, coco, against=network, training=f"coco:{coco}", protocol="roi-pad10")
    record = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert record["schema"] == 1
    assert list(record) == [
        "schema",
        "data",
        "protocol",
        "model",
        "against",
        "difference",
        "baselines",
        "chip",
        "notes",
    ]
    assert record["data"] == {
        "name": "coco train2017",
        "instances": 12,
        "crowds_left_out": 1,
        "empty_left_out": 1,
    }
    assert record["protocol"]["name"] == "roi-pad10"
    assert record["difference"]["miou"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert [one["name"] for one in record["baselines"]][2] == "mean training mask"
    assert record["model"]["overall"]["samples"] == 12
    assert set(record["model"]["coco_ap"]) == {"ap", "ap50", "ap75", "small", "medium", "large"}
    assert record == json.loads(
        json.dumps(
            scored(network, coco, against=network, training=f"coco:{coco}", protocol="roi-pad10").to_json()
        )
    )
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    for table in tables(result):
        console.print(table)
    text = stream.getvalue()
    assert "re[d].onnx" in text
    assert "coco train2017, roi-pad10: 12 instances, 6 pictures" in text
    assert "+0.0000" in text
    for baseline in record["baselines"]:
        assert f"{baseline['name']}: " in text
    assert f"{record['model']['overall']['miou']['mean']:.4f}" in text


def test_a_large_training_set_gives_a_part_of_its_masks(
    tmp_path: Path, coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = saved(red_graph(SIGNED), tmp_path / "red.onnx")
    whole = scored(network, coco, training=f"coco:{coco}").baselines[2][0]
    assert whole.description.startswith("mean of 12 training masks at level")
    monkeypatch.setattr(evaluating, "TRAINING_MASKS", 5)
    part = scored(network, coco, training=f"coco:{coco}").baselines[2][0]
    assert part.description.startswith("mean of 5 training masks drawn from 12 at level")


def test_boxes_that_were_replaced_are_told(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][3]["bbox"] = [0, 0, 1e6, 1e6]
    file.write_text(json.dumps(content))
    network = saved(red_graph(SIGNED), tmp_path / "red.onnx")
    result = scored(network, folder, protocol="roi-pad10")
    assert "1 annotated boxes do not fit their masks; the masks' own are used" in result.notes
    sound = scored(network, write_coco(tmp_path / "sound"), protocol="roi-pad10")
    assert result.model.figures == sound.model.figures


def test_a_network_of_another_size_sees_crops_of_its_own(tmp_path: Path, coco: Path) -> None:
    contract = dataclasses.replace(SIGNED, height=64, width=64)
    small = saved(red_graph(contract, size=64), tmp_path / "small.onnx")
    result = scored(small, coco)
    assert (result.protocol.name, result.protocol.size) == ("point-native-64", 64)
    with pytest.raises(InputError, match="inputs of 64x64 and 96x96 pixels"):
        scored(small, coco, against=saved(red_graph(SIGNED), tmp_path / "red.onnx"))


def two_outputs() -> Any:
    nodes = [node("Conv", ["x", "w"], ["y"]), node("Neg", ["y"], ["z"])]
    return model(nodes, {"x": [1, 3, 96, 96]}, ["y", "z"], {"w": np.ones((1, 3, 1, 1), np.float32)}, SIGNED)


def two_inputs() -> Any:
    shape = [1, 3, 96, 96]
    return model([node("Add", ["x", "p"], ["y"])], {"x": shape, "p": shape}, ["y"], None, SIGNED)


def three_channels() -> Any:
    return model([node("Neg", ["x"], ["y"])], {"x": [1, 3, 96, 96]}, ["y"], None, SIGNED)


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (two_outputs, "2 outputs, 2 of them one map"),
        (two_inputs, "2 inputs"),
        (three_channels, r"output of shape \[N, 3, 96, 96\]"),
    ],
)
def test_networks_that_give_no_mask(tmp_path: Path, coco: Path, built: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scored(saved(built(), tmp_path / "m.onnx"), coco)


def test_an_output_whose_size_the_graph_leaves_open(tmp_path: Path, coco: Path, red: np.ndarray) -> None:
    built = red_graph(SIGNED)
    built.graph.outputs[0].shape = ir.Shape(["n", 1, "h", "w"])
    result = scored(saved(built, tmp_path / "m.onnx"), coco)
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())


def test_a_mask_among_other_outputs(tmp_path: Path, coco: Path, red: np.ndarray) -> None:
    weight = np.float32([1, 0, 0]).reshape(1, 3, 1, 1)
    nodes = [node("GlobalAveragePool", ["x"], ["p"]), node("Conv", ["x", "w"], ["y"])]
    built = model(nodes, {"x": [1, 3, 96, 96]}, ["p", "y"], {"w": weight}, SIGNED)
    result = scored(saved(built, tmp_path / "m.onnx"), coco)
    assert result.model.figures.overall.miou.mean == pytest.approx(red.mean())


def test_what_cannot_be_scored(tmp_path: Path, coco: Path, crops: CropSet) -> None:
    network = saved(red_graph(SIGNED), tmp_path / "red.onnx")
    with pytest.raises(InputError, match="--protocol"):
        scored(network, coco, protocol="box")
    with pytest.raises(InputError, match="does not exist"):
        scored(tmp_path / "absent.onnx", coco)
    others = write_predictions(tmp_path, crops.masks[:2], [900, 901])
    with pytest.raises(InputError, match="none of its instances"):
        scored(network, coco, against=others)
    (tmp_path / "text.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="unreadable as predictions"):
        scored(tmp_path / "text.json", coco)


@pytest.mark.parametrize(
    ("name", "published"), [("Trained", 0.3607), ("Distilled", 0.3955), ("Quantized", 0.3952)]
)
def test_the_authors_numbers(data_dir: Path, name: str, published: float) -> None:
    stored = data_dir / "picosam2_reference" / f"PicoSAM2_{name}_pred.json"
    result = evaluate_model(stored, source=f"coco:{data_dir / 'coco'}", protocol="point-native-96-clip")
    assert result.model.figures.overall.samples == 441
    assert result.model.figures.overall.miou.mean == pytest.approx(published, abs=5e-4)


@pytest.mark.slow
def test_the_shipped_checkpoint_against_the_authors(data_dir: Path) -> None:
    """Their best network on the reference's instances and crops; the interval is the paired one."""
    folder = data_dir / "picosam2_reference"
    result = evaluate_model(
        SHIPPED,
        source=f"coco:{data_dir / 'coco'}",
        protocol="point-native-96-clip",
        against=folder / "PicoSAM2_Distilled_pred.json",
    )
    assert result.difference is not None
    assert result.difference.samples == 441
    assert result.difference.miou.low > 0
    assert result.model.figures.overall.miou.mean >= 0.46
