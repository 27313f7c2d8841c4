"""ONNX teachers: the contract of SAM's export, checked with the real one and a tiny one; the command."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compiler.cli import run
from compiler.sam_onnx import SamOnnx
from compiler.teaching import TeachOptions, open_teacher, run_teaching
from passes.errors import InputError
from student.crops import prompt_point
from student.instances import load_instances, read_picture
from student.teach import TeachSettings
from student.teacher_cache import TeacherCache
from student.teachers import Prompt, picture_mask
from tests.pictures import write_coco

ROOT = Path(__file__).parents[2]
DECODER_INPUTS = {
    "image_embeddings": [1, 3, 64, 64],
    "point_coords": [1, "n", 2],
    "point_labels": [1, "n"],
    "mask_input": [1, 1, 256, 256],
    "has_mask_input": [1],
    "orig_im_size": [2],
}


@pytest.fixture(scope="module")
def data() -> Path:
    directory = Path(os.environ.get("PICOSAM2_DATA", ROOT / "../shared/data"))
    if not (directory / "teacher" / "sam.onnx").is_file():
        pytest.skip(f"no teacher at {directory / 'teacher'} (set PICOSAM2_DATA)")
    return directory


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    **constants: np.ndarray,
) -> None:
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", *values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny export whose answers can be computed by hand.

    The encoder averages blocks of 16 x 16; the decoder answers two masks, the sums over the embedding's
    channels enlarged to 256 x 256 times 1 and times -1, with the first and the second prompt's column as
    predicted IoU.
    """
    folder = tmp_path / "tiny"
    folder.mkdir()
    save(
        folder / "encoder.onnx",
        [helper.make_node("AveragePool", ["input"], ["out"], kernel_shape=[16, 16], strides=[16, 16])],
        {"input": ["n", 3, 1024, 1024]},
        {"out": ["n", 3, 64, 64]},
    )
    save(
        folder / "sam.onnx",
        [
            helper.make_node("ReduceSum", ["image_embeddings", "channels"], ["sum"], keepdims=1),
            helper.make_node("Resize", ["sum", "", "scales"], ["large"], mode="nearest"),
            helper.make_node("Neg", ["large"], ["negative"]),
            helper.make_node("Concat", ["large", "negative"], ["low_res_masks"], axis=1),
            helper.make_node("Slice", ["point_coords", "from", "to"], ["columns"]),
            helper.make_node("Reshape", ["columns", "pair"], ["iou_predictions"]),
        ],
        DECODER_INPUTS,
        {"low_res_masks": [1, 2, 256, 256], "iou_predictions": [1, 2]},
        **{
            "channels": np.array([1]),
            "scales": np.array([1, 1, 4, 4], np.float32),
            "from": np.array([0, 0, 0]),
            "to": np.array([1, 2, 1]),
            "pair": np.array([1, 2]),
        },
    )
    return folder


def test_the_tiny_export_answers_as_computed_by_hand(tiny: Path) -> None:
    """Scale, normalisation, padding, coordinates, choice among several masks and the cut to the picture."""
    picture = np.full((200, 512, 3), (255, 0, 100), np.uint8)
    picture[:, 256:] = (0, 255, 30)
    teacher = SamOnnx(tiny)
    assert teacher.stride(200, 512) == 2.0
    embedding = teacher.embed(picture)
    assert embedding.features.dtype == np.float16
    mean, deviation = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    left, right = (((np.array(c) - mean) / deviation).sum() for c in ((255, 0, 100), (0, 255, 30)))
    assert embedding.features[0, :, 25:].max() == 0.0  # 400 of 1024 rows are picture, the rest is zeros
    np.testing.assert_allclose(embedding.features[0, :, :25, :31].sum(0), left, atol=5e-3)
    # the point (x 100) is scaled by 2; without a box comes a padding point at 0, so the first mask is best
    without, boxed = teacher.prompt(embedding, [Prompt(50, 100), Prompt(50, 100, (150.0, 0.0, 9.0, 9.0))])
    assert without.predicted_iou == 200.0
    assert without.logits.shape == boxed.logits.shape == (100, 256)
    np.testing.assert_allclose(without.logits[:, :120], left, atol=5e-3)
    np.testing.assert_allclose(without.logits[:, 136:], right, atol=5e-3)
    # the box's first corner (x 150) comes second, so the second mask is best
    assert boxed.predicted_iou == 300.0
    np.testing.assert_array_equal(boxed.logits, -without.logits)


def test_answers_do_not_depend_on_threads(tiny: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    prompts = [Prompt(i, 10 * i) for i in range(20)]
    one, three = SamOnnx(tiny, threads=1), SamOnnx(tiny, threads=3)
    assert one.fingerprint == three.fingerprint
    first, second = (teacher.prompt(teacher.embed(picture), prompts) for teacher in (one, three))
    assert len({a.predicted_iou for a in first}) == 20
    for a, b in zip(first, second, strict=True):
        assert a.predicted_iou == b.predicted_iou
        np.testing.assert_array_equal(a.logits, b.logits)


def test_fingerprint_follows_the_files(tiny: Path) -> None:
    before = SamOnnx(tiny).fingerprint
    model = onnx.load(tiny / "sam.onnx")
    model.graph.name = "another"
    onnx.save(model, tiny / "sam.onnx")
    assert SamOnnx(tiny).fingerprint != before


def test_what_is_no_teacher_is_refused(tiny: Path, tmp_path: Path) -> None:
    for name in ("sam", "onnx", "onnx:", "torch:x"):
        with pytest.raises(InputError, match="names no teacher"):
            open_teacher(name)
    with pytest.raises(InputError, match=r"encoder\.onnx: is not there"):
        open_teacher(f"onnx:{tmp_path}")
    with pytest.raises(InputError, match=r"no config\.json"):
        open_teacher(f"sam2:{tmp_path}")
    (tmp_path / "encoder.onnx").write_bytes((tiny / "encoder.onnx").read_bytes())
    (tmp_path / "sam.onnx").write_bytes((tiny / "encoder.onnx").read_bytes())
    with pytest.raises(InputError, match=r"sam\.onnx: has no image_embeddings, point_coords"):
        open_teacher(f"onnx:{tmp_path}")
    (tmp_path / "sam.onnx").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a model onnxruntime opens"):
        open_teacher(f"onnx:{tmp_path}")
    save(
        tmp_path / "encoder.onnx",
        [helper.make_node("Identity", ["input"], ["out"])],
        {"input": [1, 3, 512, 512]},
        {"out": [1, 3, 512, 512]},
    )
    (tmp_path / "sam.onnx").write_bytes((tiny / "sam.onnx").read_bytes())
    with pytest.raises(InputError, match=r"input of shape \[1, 3, 512, 512\]"):
        open_teacher(f"onnx:{tmp_path}")


def test_the_command_makes_a_cache_and_says_what_is_next(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    generator = np.random.default_rng(0)
    for i in range(3):
        pixels = generator.integers(0, 100, (64, 80, 3), dtype=np.uint8)
        pixels[20:40, 20:50] = 250
        Image.fromarray(pixels).save(pool / f"{i}.png")
    broken = pool / "2.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    options = TeachOptions(
        data=None,
        teacher=f"onnx:{tiny}",
        out=tmp_path / "out",
        folders=(pool,),
        settings=TeachSettings(points=9),
        embeddings=tmp_path / "kept",
        threads=1,
    )
    with pytest.raises(InputError, match="add --points 64"):
        run_teaching(replace(options, settings=TeachSettings()))
    header = run_teaching(options)
    said = capsys.readouterr().err
    assert f"0 annotated and {header.unlabelled} unlabelled lessons of 3 pictures" in said
    assert "warning: 1 pictures are broken and were skipped: pool/2.png\n" in said
    command = shlex.split(said.rsplit("Next: ", 1)[1])
    asked = ("--data", "coco:DIR", "--unlabelled", pool, "--teacher-cache", tmp_path / "out")
    kept = ("--embeddings", tmp_path / "kept", "--out", "RUN")
    assert command == ["picosam2", "train", *map(str, (*asked, *kept))]
    assert header.unlabelled == len(TeacherCache(tmp_path / "out")) >= 2
    assert header.versions["onnxruntime"]
    assert len(list((tmp_path / "kept" / header.fingerprint[:16]).iterdir())) == 2
    before = (tmp_path / "out" / "header.json").read_bytes()
    run_teaching(options)
    assert (tmp_path / "out" / "header.json").read_bytes() == before


def test_the_default_split_is_that_for_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a val file lies beside: `teach` and `train` must not learn from it."""
    folder = write_coco(tmp_path / "lvis")
    annotations = folder / "annotations" / "instances_train2017.json"
    for part in ("train", "val"):
        (folder / f"lvis_v1_{part}.json").write_bytes(annotations.read_bytes())
    data = ["--data", f"lvis:{folder}", "--out", str(tmp_path / "out")]
    settings = ["--cpu", "--steps", "1", "--batch", "2", "--threads", "1", "--quiet", "--set", "held_out=2"]
    assert run(["train", *data, *settings]) == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["data"]["name"] == "lvis v1 train"
    (folder / "lvis_v1_train.json").unlink()
    capsys.readouterr()
    for command in (["train", *data], ["teach", *data, "--teacher", "onnx:nowhere"]):
        assert run(command) == 1
        assert "one file of split train" in capsys.readouterr().err


def test_the_real_teacher_finds_annotated_objects(data: Path) -> None:
    """Box and point on one whole picture: 0.734 mean IoU was measured on 176 instances, in another way."""
    teacher = open_teacher(f"onnx:{data / 'teacher'}")
    sets = load_instances(f"coco:{data / 'coco'}", "val2017")
    record = next(r for r in sets.pictures if 4 <= len(r.instances) <= 8)
    picture = read_picture(record)
    assert picture is not None
    embedding = teacher.embed(picture)
    assert embedding.features.shape == (1, 256, 64, 64)
    masks = [instance.mask() for instance in record.instances]
    prompts = [Prompt(*prompt_point(m), i.box) for m, i in zip(masks, record.instances, strict=True)]
    stride = teacher.stride(record.height, record.width)
    overlaps = []
    for mask, answer in zip(masks, teacher.prompt(embedding, prompts), strict=True):
        found = picture_mask(answer.logits, stride, record.height, record.width)
        overlaps.append((mask & found).sum() / (mask | found).sum())
        assert 0.3 < answer.predicted_iou < 1.1
    assert np.mean(overlaps) > 0.6
