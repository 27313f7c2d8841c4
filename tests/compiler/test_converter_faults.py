"""A converter that misbehaves: killed, hanging, lying, not there. Scripts play the part of the tool here, and
only here; test_converter.py runs the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from compiler.cache import Cache
from compiler.converter import ConverterFailed, ConverterInstall, ConverterRejected, convert
from passes.errors import EnvironmentFault, ExitCode, InputError


class Scene:
    """A model, an installation whose tool is a shell script, and what is left afterwards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.temp = folder / "temp"
        self.temp.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(self.temp))
        self.model = folder / "net.onnx"
        self.model.write_bytes(b"the scripts do not look into it")
        self.cache = Cache(folder / "cache")

    def install(self, script: str) -> ConverterInstall:
        executable = self.folder / "imxconv-pt"
        executable.write_text("#!/bin/bash\n" + textwrap.dedent(script))
        executable.chmod(0o755)
        return ConverterInstall(executable, self.folder / "java", "0.0.1", "0")

    def convert(self, script: str, timeout_s: float = 30.0, **options):
        return convert(
            self.model, install=self.install(script), timeout_s=timeout_s, cache=self.cache, **options
        )

    def assert_clean(self) -> None:
        assert list(self.temp.iterdir()) == []
        assert processes_with(str(self.temp)) == []
        assert not self.cache.folder.exists()


def processes_with(text: str) -> list[str]:
    """Command lines of the live processes whose environment mentions `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


@pytest.fixture
def scene(tmp_path, monkeypatch):
    return Scene(tmp_path, monkeypatch)


def test_time_out_kills_the_whole_group(scene):
    start = time.monotonic()
    with pytest.raises(ConverterFailed) as caught:
        scene.convert("echo begun; (sleep 60; echo late) & sleep 60", timeout_s=0.5)
    assert time.monotonic() - start < 10
    assert caught.value.exit_code is ExitCode.ENVIRONMENT
    assert "0.5 s" in caught.value.found
    assert "front end" in caught.value.found
    assert caught.value.log == "begun\n"
    scene.assert_clean()


def test_one_that_ignores_signals_dies_too(scene):
    with pytest.raises(ConverterFailed):
        scene.convert("trap '' TERM INT HUP; while true; do sleep 1; done", timeout_s=0.5)
    scene.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_killed_halfway_is_told_apart_from_refused(scene, number):
    """The log already has a reason to refuse the model, and still there is no verdict."""
    script = f"echo 'CODE: [USOP] The network contains unsupported ops: Elu'; kill -{number.value} $$"
    with pytest.raises(ConverterFailed, match=number.name):
        scene.convert(script)
    scene.assert_clean()


@pytest.mark.parametrize("status", [0, 42])
def test_who_outlives_the_tool_is_killed(scene, status):
    start = time.monotonic()
    with pytest.raises(ConverterFailed):
        scene.convert(f"sleep 60 & echo done; exit {status}")
    assert time.monotonic() - start < 10
    scene.assert_clean()


def test_closing_the_output_is_not_the_end(scene):
    with pytest.raises(ConverterFailed, match="exit code 42"):
        scene.convert("echo last words; exec >&- 2>&-; sleep 0.5; exit 42")
    scene.assert_clean()


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("exit 0", "dnnParams.xml is missing"),
        ("exit 42", "exit code 42"),
        ("echo 'java: command not found'; exit 127", "java: command not found"),
        ("head -c 100000 /dev/urandom; exit 1", "exit code 1"),
        (
            "mkdir out; echo '<a/>' > out/dnnParams.xml; echo '{}' > out/net_MemoryReport.json",
            "MemoryReport.json cannot be read",
        ),
        (
            "mkdir out; echo '<a/>' > out/dnnParams.xml; "
            'echo \'{"Memory Report": {"Model Memory Physical Size": 5}}\' > out/net_MemoryReport.json',
            "MemoryReport.json cannot be read",
        ),
        (
            "mkdir out; echo '<a' > out/dnnParams.xml; echo '[]' > out/net_MemoryReport.json",
            "dnnParams.xml cannot be read",
        ),
    ],
)
def test_garbage_is_a_fault(scene, script, part):
    with pytest.raises(ConverterFailed) as caught:
        scene.convert(script, memory_report_only=True)
    assert part in caught.value.found
    assert caught.value.fix
    scene.assert_clean()


def test_half_a_zip_is_a_fault(scene):
    report = (
        '{"Memory Report": {"Runtime Memory Physical Size": "1B", "Model Memory Physical Size": "2B", '
        '"Reserved Memory": "3B", "Memory Usage": "6B", "Total Memory Available On Chip": "9B", '
        '"Fit In Chip": true, "Networks": []}}'
    )
    script = f"""
        mkdir out; echo '<a/>' > out/dnnParams.xml; echo '{report}' > out/net_MemoryReport.json
        echo PK > out/packerOut.zip
    """
    with pytest.raises(ConverterFailed, match=r"packerOut\.zip cannot be read"):
        scene.convert(script)
    scene.assert_clean()
    assert scene.convert(script, memory_report_only=True).memory.total_bytes == 6


def test_a_refusal_is_remembered_and_a_failure_is_not(scene):
    message = "echo 'CODE: [USOP] The network contains unsupported ops: Elu'"
    counted = f"echo x >> {scene.folder}/count; "
    with pytest.raises(ConverterFailed):
        scene.convert(counted + "exit 9")
    for _ in range(2):
        with pytest.raises(ConverterRejected) as caught:
            scene.convert(f"{counted}{message}; exit 2")
        assert caught.value.exit_code is ExitCode.TARGET
        assert [d.found for d in caught.value.diagnostics] == ["operator Elu"]
        assert "unsupported ops" in caught.value.log
    assert (scene.folder / "count").read_text() == "x\nx\n"
    (scene.folder / "net.onnx").write_bytes(b"another model")
    with pytest.raises(ConverterRejected):
        scene.convert(f"{counted}{message}; exit 2")
    assert (scene.folder / "count").read_text() == "x\nx\nx\n"


def test_everything_temporary_is_private(scene):
    with pytest.raises(ConverterFailed) as caught:
        scene.convert("pwd; echo $TMPDIR; echo $JAVA_TOOL_OPTIONS; echo $PATH; echo $JAVA_HOME; exit 9")
    folder, temp, flags, path, java_home = caught.value.log.splitlines()
    assert Path(folder).parent == scene.temp
    assert Path(temp).parent == Path(folder)
    assert f"-Djava.io.tmpdir={temp}" in flags
    assert f"-Djna.tmpdir={temp}" in flags
    assert path.startswith(f"{scene.folder}/java/bin:")
    assert java_home == f"{scene.folder}/java"


def test_the_log_has_both_streams_in_order_and_no_colours(scene):
    with pytest.raises(ConverterFailed) as caught:
        scene.convert("echo one; echo two >&2; printf '\\033[0;93mthree\\033[m\\n'; printf four; exit 9")
    assert caught.value.log == "one\ntwo\nthree\nfour"


def test_progress_follows_the_printed_lines(scene):
    seen = []
    script = """
        echo 'x INFO : CODE: [START] Starting SDSPconv'; sleep 1.2
        echo 'x INFO : CODE: [IMCF] ConvFe failed with insufficient memory'
        echo 'x INFO : ConvFe conversion finished successfully'
        echo 'x INFO : Converter Backend successfully completed!'
        exit 9
    """
    with pytest.raises(ConverterFailed):
        scene.convert(script, progress=lambda phase, share: seen.append((phase, share)))
    assert list(dict.fromkeys(seen)) == [
        ("front end", 0.0),
        ("conversion and memory allocation", 0.08),
        ("does not fit: tiling", None),
        ("back end", 0.38),
        ("packaging", 0.98),
    ]
    assert seen.count(("conversion and memory allocation", 0.08)) >= 2  # a sign of life while it is silent


def test_an_interrupt_leaves_nothing(scene):
    def interrupt(phase: str, share: float | None) -> None:
        if phase.startswith("conversion"):
            assert processes_with(str(scene.temp))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.convert("echo 'CODE: [START] Starting'; sleep 60 & sleep 60", progress=interrupt)
    scene.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_signal_leaves_nothing(scene, number):
    """A process that converts is told to end: it ends, its caller's clean-up runs, nothing stays."""
    install = scene.install("echo 'CODE: [START] Starting'; sleep 60 & sleep 60")
    code = f"""
from pathlib import Path
from compiler.converter import ConverterInstall, convert
try:
    convert(
        Path({str(scene.model)!r}),
        install=ConverterInstall(Path({str(install.executable)!r}), Path("/nowhere"), "0", "0"),
        progress=lambda phase, share: print(phase, flush=True),
    )
finally:
    print("cleaned up", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scene.temp)},
    )
    assert process.stdout is not None
    while "conversion" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert rest.endswith("cleaned up\n")
    scene.assert_clean()


def test_signal_handlers_are_put_back(scene):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConverterFailed):
        scene.convert("exit 9")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_tool_that_cannot_start(scene):
    install = scene.install("exit 0")
    install.executable.chmod(0o644)
    with pytest.raises(EnvironmentFault, match="cannot be run"):
        convert(scene.model, install=install)
    install.executable.unlink()
    with pytest.raises(EnvironmentFault, match="cannot be run"):
        convert(scene.model, install=install)
    scene.assert_clean()


@pytest.mark.parametrize(("content", "part"), [(None, "cannot be read"), (b"", "is empty")])
def test_a_model_that_is_not_there(scene, content, part):
    scene.model.unlink()
    if content is not None:
        scene.model.write_bytes(content)
    with pytest.raises(InputError, match=part):
        scene.convert("exit 0")
    scene.assert_clean()


def test_two_threads_convert_at_once(scene):
    """Handlers of signals belong to the main thread; others do without."""
    import threading

    faults = []

    def work() -> None:
        try:
            convert(scene.model, install=install, timeout_s=20)
        except ConverterFailed as fault:
            faults.append(fault.found)

    install = scene.install("sleep 0.3; exit 9")
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 2
    scene.assert_clean()
