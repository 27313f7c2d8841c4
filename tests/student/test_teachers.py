"""The teachers' common ground, and SAM 2 by its real code with small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from passes.errors import InputError
from student.teachers import (
    SAM2_FILES,
    Prompt,
    Sam2,
    _square_cells,
    fingerprint,
    picture_mask,
    stability,
)


def test_stability_is_the_overlap_of_two_masks() -> None:
    logits = np.array([[3.0, 1.5, 0.5, -0.5, -1.0, -3.0]], np.float32)
    assert stability(logits) == 2 / 4
    assert stability(np.full((3, 3), -5.0)) == 0.0


def test_picture_mask_agrees_with_torch() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32))
    expected = torch.nn.functional.interpolate(logits[None, None], (48, 64), mode="bilinear")[0, 0] > 0
    np.testing.assert_array_equal(picture_mask(logits.numpy(), 4.0, 48, 64), expected.numpy())


def test_picture_mask_leaves_out_the_part_of_the_last_cell_beyond_the_picture() -> None:
    columns = np.arange(10, dtype=np.float32)[None, :].repeat(3, 0) - 4.5  # inside from picture column 20 on
    mask = picture_mask(columns, 4.0, 10, 38)
    assert mask.shape == (10, 38)
    np.testing.assert_array_equal(mask, np.arange(38)[None, :].repeat(10, 0) >= 20)


def test_square_cells_keeps_a_linear_ramp_where_it_was() -> None:
    height, width = 60, 100
    stretched = (np.arange(32, dtype=np.float32) + 0.5)[None, :].repeat(32, 0) * width / 32
    square = _square_cells(stretched, height, width, height / 32)
    assert square.shape == (32, 54)
    centres = (np.arange(54) + 0.5) * height / 32
    inside = (centres > stretched[0, 0]) & (centres < stretched[0, -1])
    np.testing.assert_allclose(square[0, inside], centres[inside], rtol=1e-5)
    np.testing.assert_array_equal(square[0], square[-1])


def test_fingerprint_depends_on_contents_order_and_texts(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    prints = {
        fingerprint([one, two]),
        fingerprint([two, one]),
        fingerprint([one]),
        fingerprint([one, two], "v1"),
        fingerprint([one, two], "v", "1"),
    }
    assert len(prints) == 5


def parts() -> dict[str, object]:
    """Configurations of a SAM 2 of 128 x 128 pixels with few channels."""
    import transformers as hf

    backbone = hf.Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[128, 128],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = hf.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 32,
            "iou_head_hidden_dim": 16,
            "num_attention_heads": 2,
        },
    }


def save(model: torch.nn.Module, directory: Path) -> None:
    """Random weights and the preprocessing, as Hugging Face saves them."""
    import transformers as hf

    with torch.no_grad():  # transformers starts near zero, where every answer looks alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    processor = hf.Sam2ImageProcessorFast(
        size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32}
    )
    hf.Sam2Processor(processor).save_pretrained(directory)


@pytest.fixture(scope="module")
def sam2_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers as hf

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("sam2")
    save(hf.Sam2Model(hf.Sam2Config(**parts())), directory)
    return directory


PICTURE = np.random.default_rng(1).integers(0, 256, (90, 130, 3), dtype=np.uint8)
PROMPTS = [Prompt(10, 12), Prompt(30, 40, (20.0, 20.0, 40.0, 30.0)), Prompt(50, 100)]


def test_sam2_answers_as_transformers_does(sam2_directory: Path) -> None:
    """On a square picture of the network's own size nothing is resampled, so the logits are the network's."""
    import transformers as hf

    picture = np.ascontiguousarray(np.pad(PICTURE, ((0, 38), (0, 0), (0, 0)))[:, :128])
    teacher = Sam2(sam2_directory)
    model = hf.Sam2Model.from_pretrained(sam2_directory).eval()
    processor = hf.Sam2Processor.from_pretrained(sam2_directory)
    for prompt, answer in zip(PROMPTS, teacher.prompt(teacher.embed(picture), PROMPTS), strict=True):
        asked = {"input_points": [[[[prompt.column, prompt.row]]]], "input_labels": [[[1]]]}
        if prompt.box is not None:
            left, top, width, height = prompt.box
            asked["input_boxes"] = [[[left, top, left + width, top + height]]]
        inputs = processor(images=picture, return_tensors="pt", **asked)
        inputs.pop("original_sizes")
        with torch.inference_mode():
            expected = model(**inputs, multimask_output=prompt.box is None)
        scores = expected.iou_scores[0, 0]
        assert scores.shape == ((3,) if prompt.box is None else (1,))
        best = int(scores.argmax())
        assert answer.predicted_iou == pytest.approx(float(scores[best]), abs=1e-3)
        logits = expected.pred_masks[0, 0, best].numpy()
        # embeddings are rounded to float16
        np.testing.assert_allclose(answer.logits, logits, atol=0.02 * float(np.abs(logits).max()))


def test_sam2_opens_the_video_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The published checkpoints are of type sam2_video: the image model's weights and more."""
    import transformers as hf

    torch.manual_seed(1)
    config = hf.Sam2VideoConfig(
        **parts(),
        image_size=128,
        memory_attention_hidden_size=32,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=32,
        mask_downsampler_embed_dim=32,
    )
    model = hf.Sam2VideoModel(config)
    save(model, tmp_path)
    capfd.readouterr()
    teacher = Sam2(tmp_path)
    assert capfd.readouterr().err == ""
    for name, weight in model.mask_decoder.state_dict().items():
        assert torch.equal(teacher._model.mask_decoder.state_dict()[name], weight)
    assert teacher.prompt(teacher.embed(PICTURE), PROMPTS)[0].logits.shape == (32, 47)


def test_sam2_covers_the_picture_with_square_cells(sam2_directory: Path) -> None:
    teacher = Sam2(sam2_directory)
    stride = teacher.stride(*PICTURE.shape[:2])
    assert stride == 90 / 32
    for answer in teacher.prompt(teacher.embed(PICTURE), PROMPTS):
        assert answer.logits.shape == (32, 47)
        assert answer.logits.dtype == np.float32
        assert np.isfinite(answer.logits).all()
        assert np.ptp(answer.logits) > 0


def test_sam2_answers_do_not_depend_on_the_batch(sam2_directory: Path) -> None:
    teacher = Sam2(sam2_directory)
    embedding = teacher.embed(PICTURE)
    assert embedding.features.dtype == np.float16
    many = [Prompt(i, 2 * i) for i in range(20)] + PROMPTS
    answers = teacher.prompt(embedding, many)
    assert len(answers) == len(many)
    for prompt, answer in list(zip(many, answers, strict=True))[::6]:
        alone = teacher.prompt(embedding, [prompt])[0]
        np.testing.assert_allclose(answer.logits, alone.logits, atol=1e-4)
    again = Sam2(sam2_directory).prompt(embedding, many)
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(answers, again, strict=True))


def test_sam2_fingerprint_is_that_of_the_weights(sam2_directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in sam2_directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert Sam2(tmp_path).fingerprint == Sam2(sam2_directory).fingerprint
    weights = load_file(tmp_path / "model.safetensors")
    weights["no_memory_embedding"] = weights["no_memory_embedding"] + 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert Sam2(tmp_path).fingerprint != Sam2(sam2_directory).fingerprint
    # transformers would fill a missing weight with random numbers
    del weights["no_memory_embedding"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing .*no_memory_embedding"):
        Sam2(tmp_path)


def test_what_is_no_sam2_is_refused(sam2_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json, model\.safetensors.*`huggingface-cli download"):
        Sam2(tmp_path)
    (tmp_path / "sam2.1_hiera_tiny.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="convert_sam2_to_hf"):
        Sam2(tmp_path)
    for name in SAM2_FILES:
        (tmp_path / name).write_bytes((sam2_directory / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="a SAM 2 checkpoint"):
        Sam2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(InputError, match="a SAM 2 checkpoint"):
        Sam2(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_absent_gpu_is_told(sam2_directory: Path) -> None:
    with pytest.raises(InputError, match=r"device cuda: no such device here \(cpu, or cuda:N for one of 0"):
        Sam2(sam2_directory, "cuda")


@pytest.mark.parametrize("device", ["foo", "cuda:77", "", "cpu:1", "meta"])
def test_what_is_no_device_is_told(sam2_directory: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device {device}: no such device here"):
        Sam2(sam2_directory, device)
