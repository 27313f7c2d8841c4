"""device-check/ of a package: what is written, and what its script says of a chip that can be made to lie."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.device import device_check
from compiler.device.dnn_params import read_outputs
from compiler.device.on_the_pi import camera as pi_camera
from compiler.device.on_the_pi import check as pi_check
from compiler.device.on_the_pi.camera import Answer, InjectingCamera
from compiler.device.on_the_pi.outputs import Input, Problem, facts_from, read_arrays, read_facts
from compiler.inspection.recording import read_recording
from compiler.simulator.engine import compile_program
from compiler.simulator.numerics import DIALECT, UNKNOWNS, Imx500, label
from compiler.simulator.reference import run_reference
from compiler.simulator.requantization import Rounding
from passes.errors import EnvironmentFault
from tests.compiler.device.chip_stand_in import ChipStandIn, install
from tests.compiler.device.device_networks import (
    HEIGHT,
    SHAPE,
    WIDTH,
    compiled,
    dnn_params,
    two_outputs,
)

MASK, FEATURES = (1, HEIGHT, WIDTH), (8, HEIGHT, WIDTH)
LISTED = dnn_params((1, FEATURES, 4 / 128), (0, MASK, 4 / 128))
"""The converter lists the second output first."""


@pytest.fixture(scope="module")
def model():
    return two_outputs()


@pytest.fixture(scope="module")
def written(model) -> dict[str, bytes]:
    return device_check.files(compiled(model, protocol="point-native-96", dnn_params=LISTED))


@pytest.fixture(scope="module")
def folder(written, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("package")
    for name, content in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root / device_check.FOLDER


@pytest.fixture(scope="module")
def facts(folder):
    return read_facts(folder)


@pytest.fixture(scope="module")
def inputs(folder, facts):
    return read_arrays(folder / facts.inputs)[facts.input.name]


@pytest.fixture(scope="module")
def expected(folder, facts):
    return [(one.numerics, read_arrays(folder / one.file)) for one in facts.expected]


def replayed(facts, arrays) -> list[Answer]:
    """What a camera would hand over for recorded integers."""
    inputs = len(next(iter(arrays.values())))
    camera = pi_check.Replay(facts, arrays, inputs, "found.npz")
    return [camera.run(np.zeros(SHAPE)) for _ in range(inputs)]


def chip(model, numerics, **choices) -> ChipStandIn:
    return ChipStandIn(compile_program(model, numerics=numerics), SHAPE, **choices)


# What is written


def test_the_folder_is_complete_small_and_the_same_each_time(model, written):
    again = device_check.files(compiled(model, protocol="point-native-96", dnn_params=LISTED))
    assert again == written
    assert {name.split("/")[0] for name in written} == {"device-check"}
    assert sum(len(content) for content in written.values()) < 400_000
    content = json.loads(written["device-check/check.json"])
    assert content["protocol"] == "point-native-96"
    assert content["listings"] == [[0, 1], [1, 0]]
    assert content["mask"] == {"output": content["outputs"][0]["name"], "level": 0.0}
    for one in content["expected"]:
        assert f"device-check/{one['file']}" in written
        assert one["file"] in written["device-check/README.md"].decode()


def test_every_numerics_is_expected_and_equals_the_simulator(model, facts, inputs, expected):
    names = [name for numerics, _ in expected for name in numerics]
    assert names == [label(one) for one in (DIALECT, *UNKNOWNS)]
    assert len(expected) == len(names), "the inputs tell all numerics apart"
    reference = run_reference(model, {facts.input.name: inputs[:1]})
    for name, values in expected[0][1].items():
        assert np.array_equal(values[:1], reference[name].values)


def test_the_inputs_are_the_integers_that_the_camera_delivers(facts, inputs):
    assert inputs.dtype == np.int8
    assert inputs.shape == (device_check.COUNT, *SHAPE)
    assert inputs.min() < -64
    assert inputs.max() > 64
    assert facts.input == Input("input", *SHAPE, signed=True, colour_order="RGB")
    assert set(np.unique(inputs[-1])) == {-128, 127}, "the last is of blocks"
    assert all(len(np.unique(one)) > 20 for one in inputs[:-1]), "the others are photographs"


def test_blocks_fill_any_size_and_follow_the_seed(model):
    contract = compiled(model).contract
    made = device_check.blocks(contract, 0)
    assert made.shape == (1, *SHAPE)
    assert (made[0, :, :4, :4] == made[0, :, :1, :1]).all()
    assert 0.4 < (made == 255).mean() < 0.6
    assert not np.array_equal(made, device_check.blocks(contract, 1))


def test_expected_integers_are_recordings_that_diff_reads(folder, facts):
    for one in facts.expected:
        assert set(read_recording(folder / one.file)) == {output.name for output in facts.outputs}


def test_what_the_converter_says_of_an_output_goes_before_its_quantizer(model):
    params = dnn_params((0, MASK, 0.5), (1, FEATURES, 0.25))
    content = json.loads(device_check.files(compiled(model, dnn_params=params))["device-check/check.json"])
    assert [one["step"] for one in content["outputs"]] == [0.5, 0.25]
    assert content["listings"] == [[0, 1]]


def test_dnn_params_that_are_not_understood_are_named():
    for content in (b"<dnnParams>", dnn_params(), dnn_params((1, MASK, 1.0)), LISTED.replace(b"scale", b"x")):
        with pytest.raises(EnvironmentFault, match=r"dnnParams\.xml"):
            read_outputs(content)


def test_a_package_that_was_not_converted_says_how_to_get_the_missing_file(model, written):
    said = "packerOut.zip is not in this package"
    assert said not in written["device-check/README.md"].decode()
    assert said in device_check.files(compiled(model))["device-check/README.md"].decode()


def test_where_there_can_be_no_check_the_readme_says_why():
    grey = device_check.files(compiled(two_outputs(1), colours=1))
    assert list(grey) == ["device-check/README.md"]
    text = grey["device-check/README.md"].decode()
    assert "1 channels in order GREY" in text
    assert "picosam2 doctor" in text


# Comparing


@pytest.mark.parametrize("numerics", [DIALECT, *UNKNOWNS], ids=label)
def test_a_chip_is_told_by_its_numerics(model, facts, inputs, expected, numerics):
    """Through the driver's format: padded planes, frame counts over 255, the outputs in the other order."""
    stand_in = chip(model, numerics, listing=(1, 0), missed=(2, 20))
    answers = pi_check.run(inputs, InjectingCamera(stand_in, stand_in, facts.input))
    verdict = pi_check.judge(facts, inputs, answers, expected)
    assert verdict.agreeing == (label(numerics),)
    assert verdict.unseen is None
    said = "\n".join(pi_check.lines(facts, verdict))
    assert f"EQUAL. Every integer is the one of: {label(numerics)}" in said
    assert "median of 4: network 14.250 ms, pre-processing (DSP) 1.500 ms" in said
    assert stand_in.injections > len(inputs), "missed frames are asked for again"


def test_one_bit_flipped_is_found_where_it_is(facts, inputs, expected):
    name, output = facts.outputs[1].name, facts.outputs[1]
    arrays = {key: values.copy() for key, values in expected[4][1].items()}
    at = (2, 5, 17, 31)
    before = int(arrays[name][at])
    arrays[name][at] ^= 1
    verdict = pi_check.judge(facts, inputs, replayed(facts, arrays), expected)
    assert verdict.agreeing == ()
    nearest = min(verdict.comparisons, key=lambda one: one.differing)
    assert nearest.numerics == ("imx500: half_up, not saturating",)
    assert (nearest.differing, nearest.largest) == (1, 1)
    assert nearest.first == pi_check.Difference(2, output, (5, 17, 31), before, before ^ 1)
    said = "\n".join(pi_check.lines(facts, verdict))
    assert (
        f"First difference: input 2, output {name}, index [5, 17, 31] (C=5, H=17, W=31): "
        f"expected {before}, found {before ^ 1}" in said
    )


def test_a_wrong_shape_is_named(facts, inputs, expected):
    answers = [
        Answer((one.outputs[0][:, :-1], one.outputs[1]), None, None)
        for one in replayed(facts, expected[0][1])
    ]
    with pytest.raises(
        Problem, match=rf"shape \[1, {HEIGHT - 1}, {WIDTH}\]; expected \[1, {HEIGHT}, {WIDTH}\]"
    ):
        pi_check.judge(facts, inputs, answers, expected)
    with pytest.raises(Problem, match="1 tensors; expected 2"):
        pi_check.judge(facts, inputs, [Answer(answers[0].outputs[:1], None, None)], expected)


@pytest.mark.parametrize(
    ("value", "words"), [(0.01, "whole multiples"), (np.nan, "whole multiples"), (8.0, "integers")]
)
def test_values_that_are_no_integers_of_the_output_are_named(facts, value, words):
    output = facts.outputs[0]
    values = np.zeros(output.shape, np.float32)
    values[0, 3, 4] = value
    with pytest.raises(Problem, match=words):
        output.integers(values)


def test_outputs_with_height_and_width_exchanged_are_recognised(facts, inputs, expected):
    square = facts_from(
        {
            "schema": 1,
            "network": "n",
            "protocol": None,
            "mask": None,
            "missing": None,
            "input": {
                "name": "x",
                "channels": 3,
                "height": 4,
                "width": 4,
                "signed": True,
                "colour_order": "RGB",
            },
            "outputs": [
                {
                    "name": "y",
                    "shape": [1, 4, 4],
                    "order": ["C", "H", "W"],
                    "step": 0.5,
                    "bits": 8,
                    "signed": True,
                }
            ],
            "listings": [[0]],
            "inputs": {"file": "inputs.npz"},
            "expected": [],
        }
    )
    arrays = {"y": np.arange(16, dtype=np.int8).reshape(1, 1, 4, 4)}
    answers = replayed(square, {"y": arrays["y"].swapaxes(2, 3)})
    verdict = pi_check.judge(square, np.zeros((1, 3, 4, 4), np.int8), answers, [(("dialect",), arrays)])
    assert verdict.agreeing == ()
    said = "\n".join(pi_check.lines(square, verdict))
    assert "With height and width exchanged every integer is the one of: dialect" in said


def test_an_input_that_did_not_arrive_is_told_from_a_chip_that_computes_otherwise(
    model, facts, inputs, expected
):
    """network.rpk made for BGR, and a camera that does not say so: colours arrive exchanged."""
    stand_in = chip(model, DIALECT, planes="BGR")
    stand_in.config["input_tensor"]["input_format"] = "RGB"
    answers = pi_check.run(inputs, InjectingCamera(stand_in, stand_in, facts.input))
    assert pi_check.judge(facts, inputs, answers, expected).agreeing == ()
    lost = [Answer(one.outputs, one.seen[::-1], one.times_ms) for one in answers]
    verdict = pi_check.judge(facts, inputs, lost, expected)
    assert "the first at [0, 0, 0] (C, H, W)" in str(verdict.unseen)
    assert "the network saw something else" in "\n".join(pi_check.lines(facts, verdict))
    right = [
        Answer(one.outputs, lost.seen, None)
        for one, lost in zip(replayed(facts, expected[0][1]), lost, strict=True)
    ]
    said = "\n".join(pi_check.lines(facts, pi_check.judge(facts, inputs, right, expected)))
    assert "EQUAL" in said
    assert "hands another input back, though the outputs are those of the injected one" in said


def test_a_network_packaged_for_bgr_gets_its_planes_in_that_order(model, facts, inputs, expected):
    stand_in = chip(model, DIALECT, planes="BGR", reads_back=False)
    answers = pi_check.run(inputs, InjectingCamera(stand_in, stand_in, facts.input))
    assert pi_check.judge(facts, inputs, answers, expected).agreeing == ("dialect",)
    assert all(answer.seen is None for answer in answers)


def test_another_network_on_the_camera_is_refused_before_it_runs(model, facts):
    stand_in = chip(model, DIALECT, signed=False)
    with pytest.raises(Problem, match="an input of 33x30, unsigned; expected 33x30, signed"):
        InjectingCamera(stand_in, stand_in, facts.input)


def test_a_camera_that_never_answers_is_given_up(model, facts, inputs, monkeypatch):
    stand_in = chip(model, DIALECT)
    monkeypatch.setattr(stand_in, "get_outputs", lambda metadata: None)
    monkeypatch.setattr(pi_camera, "ATTEMPTS", 2)
    with pytest.raises(Problem, match="no outputs for an injected input after 2 attempts"):
        InjectingCamera(stand_in, stand_in, facts.input).run(inputs[0])


# The command, as it runs on the Raspberry Pi


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In the package's folder, without this project on the path."""
    return subprocess.run(
        [sys.executable, "-m", "on_the_pi.check", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_script_runs_by_itself_and_its_exit_code_is_the_verdict(folder, facts, tmp_path):
    recording = folder / facts.expected[5].file
    equal = command(folder, "--replay", recording, "--record", tmp_path / "found.npz")
    assert (equal.returncode, equal.stderr) == (0, "")
    assert facts.expected[5].numerics[0] in equal.stdout.split("EQUAL")[1]
    found = read_recording(tmp_path / "found.npz")
    assert set(found) == {facts.input.name, *(output.name for output in facts.outputs)}

    output = facts.outputs[0].name
    found[output][3, 0, 0, 0] += 1 if found[output][3, 0, 0, 0] < 127 else -1
    np.savez(tmp_path / "flipped.npz", **found)
    different = command(folder, "--replay", tmp_path / "flipped.npz")
    assert different.returncode == 1
    assert "First difference: input 3, output" in different.stdout


def test_what_cannot_run_is_one_message_and_exit_code_1(folder, facts, tmp_path):
    assert "give network.rpk" in command(folder).stderr
    (tmp_path / "broken.npz").write_bytes(b"PK")
    whole_file = folder / "expected-dialect.npz"
    whole = whole_file.read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "one.npy", np.zeros(3, np.int8))
    np.savez(tmp_path / "other.npz", **{one.name: np.zeros((4, 2), np.int8) for one in facts.outputs})
    np.savez(tmp_path / "short.npz", **{name: found[:1] for name, found in read_arrays(whole_file).items()})
    np.savez(
        tmp_path / "short-raw.npz", **{"input 0, tensor 0": np.zeros(3), "input 0, tensor 1": np.zeros(3)}
    )
    (tmp_path / "network.rpk").write_bytes(b"")
    for arguments, words in (
        ([tmp_path / "network.rpk"], "picamera2"),
        (["missing.rpk"], "missing.rpk: no such file"),
        (["--replay", tmp_path / "broken.npz"], "cannot be read"),
        (["--replay", tmp_path / "truncated.npz"], "cannot be read"),
        (["--replay", tmp_path / "one.npy"], "cannot be read"),
        (["--replay", tmp_path / "other.npz"], "int8 [4, 2]; expected integers [N, 1, 30, 33]"),
        (["--replay", tmp_path / "short.npz"], f"{tmp_path}/short.npz: answers to 1 inputs; expected 4, one"),
        (["--replay", tmp_path / "short-raw.npz"], "short-raw.npz: answers to 1 inputs; expected 4, one"),
        (["--replay", folder / "inputs.npz"], "inputs.npz: no output"),
        (["--replay", folder / "inputs.npz", "--folder", tmp_path], "check.json"),
    ):
        done = command(folder, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_damaged_package_is_one_message(written, folder, tmp_path):
    for name, change, words in (
        ("check.json", lambda content: b"[]", "check.json: cannot be read"),
        ("check.json", lambda content: content.replace(b'"listings"', b'"lists"'), "listings"),
        ("inputs.npz", lambda content: content[:-30], "inputs.npz: cannot be read"),
        ("inputs.npz", lambda content: written["device-check/expected-dialect.npz"], "no array input"),
    ):
        package = tmp_path / "package"
        shutil.copytree(folder, package, dirs_exist_ok=True)
        (package / name).write_bytes(change((package / name).read_bytes()))
        done = command(folder, "--replay", folder / "expected-dialect.npz", "--folder", package)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_recording_that_cannot_be_written_costs_no_verdict(folder, facts, tmp_path):
    recording = folder / facts.expected[5].file
    done = command(folder, "--replay", recording, "--record", tmp_path / "missing" / "found.npz")
    assert done.returncode == 1
    assert f"EQUAL. Every integer is the one of: {facts.expected[5].numerics[0]}" in done.stdout
    assert done.stderr.startswith("error: --record")
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_compared_are_recorded_as_they_came(
    monkeypatch, model, folder, inputs, tmp_path, capsys
):
    """A network.rpk of another network with an input of the same kind: its numbers are between the steps."""
    stand_in = chip(model, DIALECT)
    real = stand_in.get_outputs
    monkeypatch.setattr(
        stand_in, "get_outputs", lambda metadata: (values := real(metadata)) and [one / 3 for one in values]
    )
    install(monkeypatch, lambda *_, **__: stand_in, lambda number: stand_in)
    (tmp_path / "network.rpk").write_bytes(b"")
    found = tmp_path / "found.npz"
    given = ["--folder", str(folder), "--record", str(found)]
    assert pi_check.main([str(tmp_path / "network.rpk"), *given]) == 1
    said = capsys.readouterr()
    assert "whole multiples" in said.err
    assert f"{found} holds what the camera put out" in said.out
    kept = read_arrays(found)
    assert np.array_equal(kept["input"], inputs)
    assert kept["input 3, tensor 1"].shape == FEATURES
    again = command(folder, "--replay", found)
    assert again.returncode == 1
    assert again.stderr == said.err
    assert pi_check.main(["--replay", str(found), "--folder", str(folder), "--record", str(tmp_path)]) == 1
    both = capsys.readouterr().err
    assert "--record" in both
    assert "whole multiples" in both


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TypeError("unexpected keyword argument 'tensor_injection'"), "0.3.32 or later"),
        (RuntimeError("dev-node not found"), "camera: RuntimeError: dev-node not found"),
        (PermissionError(13, "Permission denied"), "camera: PermissionError"),
    ],
)
def test_what_picamera2_raises_is_one_message(monkeypatch, folder, tmp_path, capsys, error, words):
    def refuses(*_: object, **__: object) -> None:
        raise error

    install(monkeypatch, refuses, refuses)
    (tmp_path / "network.rpk").write_bytes(b"")
    assert pi_check.main([str(tmp_path / "network.rpk"), "--folder", str(folder)]) == 1
    assert words in capsys.readouterr().err


def test_the_check_opens_the_camera_and_prints_the_verdict(monkeypatch, model, folder, tmp_path, capsys):
    stand_in, given = chip(model, DIALECT, listing=(1, 0)), {}

    def imx500(network: str, **options: bool) -> ChipStandIn:
        given[network] = options
        return stand_in

    install(monkeypatch, imx500, lambda number: stand_in)
    (tmp_path / "network.rpk").write_bytes(b"")
    assert pi_check.main([str(tmp_path / "network.rpk"), "--folder", str(folder)]) == 0
    assert given == {str(tmp_path / "network.rpk"): {"tensor_injection": True}}
    assert "EQUAL. Every integer is the one of: dialect" in capsys.readouterr().out


def test_the_scripts_need_numpy_and_picamera2_only(written):
    """What they import at their top, and inside functions."""
    import ast

    for name, content in written.items():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = [str(node.module)]
            elif isinstance(node, ast.Import):
                roots = [one.name for one in node.names]
            else:
                continue
            for root in {one.split(".")[0] for one in roots}:
                assert root in sys.stdlib_module_names | {"numpy", "picamera2", "PIL"}, f"{name}: {root}"


def test_no_numerics_of_the_chip_where_a_layer_is_not_decoded(monkeypatch, model):
    from compiler.device import expected as expected_module
    from passes.errors import InputError

    def refuse(model, *, numerics=DIALECT, graph=None):
        if isinstance(numerics, Imx500):
            raise InputError("node up (ConvTranspose)", "is not decoded", "-", "-")
        return compile_program(model, numerics=numerics, graph=graph)

    monkeypatch.setattr(expected_module, "compile_program", refuse)
    made = device_check.files(compiled(model))
    content = facts_from(json.loads(made["device-check/check.json"]))
    assert [one.numerics for one in content.expected] == [("dialect",)]
    assert content.missing == "node up (ConvTranspose): is not decoded"
    assert "ConvTranspose" in made["device-check/README.md"].decode()


def test_rounding_names_are_those_of_the_page():
    page = (Path(__file__).parents[3] / "docs" / "device-check.md").read_text()
    for rounding in Rounding:
        assert f"`{rounding.value}`" in page


def test_arrays_are_npz_without_pickles(written):
    for name, content in written.items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                assert all(archive[key].dtype.kind in "iu" for key in archive.files)
