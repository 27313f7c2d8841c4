"""From a quantized ONNX file to the vendor's packerOut.zip: run the converter, read what it wrote and said.

What it writes is the same for the same input apart from three places, measured over repeated runs: the "Date
Info" line of manifest.json inside packerOut.zip, the time stamps of that zip's members, and hence the
compressed bytes that hold them. Nothing in the zip is changed here.

The converter calls the network after the file's stem and hands that name through shell scripts, so every
character but letters, digits, `_`, `-` becomes `_`.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from compiler.cache import Cache
from compiler.converter.findings import diagnose
from compiler.converter.install import JVM_FLAGS, ConverterInstall, require_temp_dir
from compiler.converter.messages import parse_log
from compiler.converter.process import Finished, run_group
from compiler.converter.verdict import fault_of, last_line
from passes.diagnostics import Diagnostic, Severity
from passes.errors import EnvironmentFault, InputError, TargetViolation

PACKER_OUT, DNN_PARAMS, MEMORY_REPORT = "packerOut.zip", "dnnParams.xml", "MemoryReport.json"
OUTCOME, LOG = "outcome.json", "converter.log"
CACHE_VERSION = "converter-1"
"""Part of every cache key: change it when what is stored changes."""

ProgressCallback = Callable[[str, float | None], None]
"""Called with the phase's name and the share done (0..1), None where that is not known."""


@dataclass(frozen=True)
class VendorMemory:
    """The converter's memory report, in bytes.

    Attributes:
        model_bytes: weights and other constants.
        runtime_bytes: activations at their peak, the persistent input included.
        reserved_bytes: kept by the firmware.
        total_bytes: the three together.
        budget_bytes: what the chip has.
        input_persistency_bytes: part of `runtime_bytes`; 0 without input persistency.
        fits: the converter's own verdict.
    """

    model_bytes: int
    runtime_bytes: int
    reserved_bytes: int
    total_bytes: int
    budget_bytes: int
    input_persistency_bytes: int
    fits: bool


@dataclass(frozen=True)
class Conversion:
    """An accepted network.

    Attributes:
        files: dnnParams.xml and MemoryReport.json, and packerOut.zip unless only memory was asked for.
        memory: what MemoryReport.json says (after tiling, if it was tiled).
        log: everything the converter printed.
        diagnostics: warnings and notes; `converter/ism` where it fits only because the converter tiled it.
        seconds: wall time of the converter (of the original run where `cached`).
        cached: taken from the cache, nothing ran.
        tiled: too large at first, accepted after the converter's tiling advisor cut it into pieces.
        converter_version: of the wheel imx500-converter.
    """

    files: Mapping[str, bytes]
    memory: VendorMemory
    log: str
    diagnostics: tuple[Diagnostic, ...]
    seconds: float
    cached: bool
    tiled: bool
    converter_version: str


class ConverterRejected(TargetViolation):
    """The converter judged the model and refused it (exit 2); `diagnostics` is all it said, `log` all lines.

    `memory` is the memory report where it got that far: of its last attempt, in tiles if it tried them.
    """

    def __init__(
        self, model: str, diagnostics: tuple[Diagnostic, ...], log: str, memory: VendorMemory | None
    ):
        errors = [d for d in diagnostics if d.severity is Severity.ERROR]
        first = errors[0]
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        where = f"{first.node}: " if first.node else ""
        super().__init__(
            f"model {model}",
            f"refused by the converter: {where}{first.found}{more}",
            first.limit,
            first.fix,
            diagnostics,
        )
        self.log = log
        self.memory = memory


class ConverterFailed(EnvironmentFault):
    """The converter broke, was killed or took too long: no verdict on the model (exit 4)."""

    def __init__(self, found: str, limit: str, fix: str, log: str) -> None:
        super().__init__("the vendor's converter", found, limit, fix)
        self.log = log


def convert(
    model: Path,
    *,
    install: ConverterInstall,
    input_persistency: bool = True,
    memory_report_only: bool = False,
    timeout_s: float = 1800.0,
    progress: ProgressCallback = lambda phase, share: None,
    cache: Cache | None = None,
) -> Conversion:
    """Convert a quantized ONNX file (vendor dialect) with the vendor's tool.

    Works in a private temporary directory and process group; whether it ends well, fails, times out or is
    interrupted (Ctrl-C, SIGTERM), no process and no file of the tool is left behind. With `cache`, accepted
    and refused networks are remembered by the file's content, name, flags and versions; failures never are.

    Args:
        input_persistency: the input tensor keeps its place in memory during the whole inference.
        memory_report_only: stop after memory allocation (half the time, no packerOut.zip).
        timeout_s: wall seconds; the student takes about 55 on 2 cores.
        progress: called at each phase and about twice a second in between.

    Raises:
        InputError: the model file cannot be read, or is empty (exit 1).
        ConverterRejected: the converter refuses the network (exit 2).
        ConverterFailed: it crashed, was killed, ran out of time, memory or disk (exit 4).
        EnvironmentFault: it cannot be started, or the temporary directory is of no use (exit 4).
    """
    data = _read(model)
    name = network_name(model.stem)
    flags = [
        *("--report-size-unit", "B"),
        "--input-persistency" if input_persistency else "--no-input-persistency",
        *(["--memory-report"] if memory_report_only else []),
    ]
    key = ""
    if cache is not None:
        versions = (install.version.encode(), install.java_version.encode())
        key = cache.key(CACHE_VERSION, data, name.encode(), *versions, *(flag.encode() for flag in flags))
        entry = cache.get(key)
        if entry is not None:
            return _outcome(model.name, entry, install.version, cached=True)
    finished, written = _run(data, name, flags, install, timeout_s, progress, memory_report_only)
    entry = _judge(finished, written, memory_report_only)
    if cache is not None:
        cache.put(key, entry)
    return _outcome(model.name, entry, install.version, cached=False)


def network_name(stem: str) -> str:
    """The name the network gets on the chip: the file's stem, without what the vendor's scripts choke on."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem).lstrip("-") or "network"


def _read(model: Path) -> bytes:
    try:
        data = model.read_bytes()
    except OSError as error:
        raise InputError(
            f"model {model}", f"cannot be read ({error.strerror})", "an ONNX file", "check the path"
        ) from error
    if not data:
        raise InputError(f"model {model}", "is empty", "an ONNX file", "write it again")
    return data


def _run(
    data: bytes,
    name: str,
    flags: list[str],
    install: ConverterInstall,
    timeout_s: float,
    progress: ProgressCallback,
    memory_report_only: bool,
) -> tuple[Finished, dict[str, bytes]]:
    """Run the tool in a folder that is gone afterwards; how it ended, and the files it wrote."""
    phases = _Phases(progress, memory_report_only)
    temp = require_temp_dir()
    try:
        with tempfile.TemporaryDirectory(
            prefix="picosam2-convert-", dir=temp, ignore_cleanup_errors=True
        ) as private:
            folder = Path(private)
            (folder / "tmp").mkdir()
            (folder / f"{name}.onnx").write_bytes(data)
            finished = run_group(
                [install.executable, "-i", f"{name}.onnx", "-o", "out", *flags],
                folder=folder,
                environment=_environment(install, folder / "tmp"),
                timeout_s=timeout_s,
                on_line=phases.line,
                on_tick=phases.report,
            )
            written = _written(folder / "out", name)
    except OSError as error:
        raise EnvironmentFault(
            f"{install.executable}",
            f"cannot be run ({error})",
            "a program that starts, and a temporary directory with room",
            "`picosam2 doctor`; without the converter `--no-convert` does everything else",
        ) from error
    if finished.timed_out:
        raise ConverterFailed(
            f"was still busy with '{phases.phase}' after {timeout_s:g} s (last: {last_line(finished.log)})",
            f"{timeout_s:g} s",
            "allow more seconds with --timeout, or free the machine of other work",
            finished.log,
        )
    return finished, written


def _written(out: Path, name: str) -> dict[str, bytes]:
    """The files of interest that are there, under the names they have in a package."""
    theirs = {PACKER_OUT: PACKER_OUT, DNN_PARAMS: DNN_PARAMS, MEMORY_REPORT: f"{name}_{MEMORY_REPORT}"}
    return {ours: (out / file).read_bytes() for ours, file in theirs.items() if (out / file).is_file()}


def _environment(install: ConverterInstall, temp: Path) -> dict[str, str]:
    """The user's environment with our Java first, and every temporary file in `temp`.

    Java and its JNA library do not heed TMPDIR; without the two properties they write to /tmp and ~/.cache.
    """
    environment = dict(os.environ)
    flags = f"{JVM_FLAGS} -Djava.io.tmpdir={temp} -Djna.tmpdir={temp}"
    return environment | {
        "TMPDIR": str(temp),
        "JAVA_HOME": str(install.java_home),
        "PATH": os.pathsep.join([str(install.java_home / "bin"), environment.get("PATH", os.defpath)]),
        "JAVA_TOOL_OPTIONS": f"{flags} {environment.get('JAVA_TOOL_OPTIONS', '')}".strip(),
    }


class _Phases:
    """Where the tool is, by the lines it prints; the shares are those measured for the student's 55 s."""

    def __init__(self, progress: ProgressCallback, memory_report_only: bool) -> None:
        self._progress = progress
        conversion, back_end = (0.2, 1.0) if memory_report_only else (0.08, 0.38)
        self._marks: tuple[tuple[str, str, float | None], ...] = (
            ("CODE: [START]", "conversion and memory allocation", conversion),
            ("CODE: [IMCF]", "does not fit: tiling", None),
            ("ConvFe conversion finished", "reports" if memory_report_only else "back end", back_end),
            ("Converter Backend successfully", "packaging", 0.98),
        )
        self.phase = "front end"
        self._share: float | None = 0.0
        self.report()

    def line(self, text: str) -> None:
        for mark, phase, share in self._marks:
            if mark in text:
                self.phase, self._share = phase, share
                self.report()

    def report(self) -> None:
        self._progress(self.phase, self._share)


def _judge(finished: Finished, written: Mapping[str, bytes], memory_report_only: bool) -> dict[str, bytes]:
    """The verdict as it is cached: the files of an accepted network, or the report of a refused one."""
    assert finished.returncode is not None  # a time-out does not get here
    fault = fault_of(finished.returncode, finished.log)
    if fault is not None:
        raise ConverterFailed(fault.found, fault.limit, fault.fix, finished.log)
    accepted = finished.returncode == 0
    kept: tuple[str, ...] = (MEMORY_REPORT,)
    if accepted:
        kept = (DNN_PARAMS, MEMORY_REPORT) if memory_report_only else (PACKER_OUT, DNN_PARAMS, MEMORY_REPORT)
    damage = {name: _damage(name, written.get(name)) for name in kept}
    for name, problem in damage.items():
        if accepted and problem is not None:
            raise ConverterFailed(
                f"ended with exit code 0, but {name} {problem} (last: {last_line(finished.log)})",
                f"a whole {name}",
                "run it again, then `picosam2 doctor`",
                finished.log,
            )
    return {
        OUTCOME: json.dumps({"accepted": accepted, "seconds": finished.seconds}).encode(),
        LOG: finished.log.encode(),
        **{name: written[name] for name in kept if damage[name] is None},
    }


def _damage(name: str, data: bytes | None) -> str | None:
    """What is wrong with a file the tool left, None if nothing is."""
    if data is None:
        return "is missing"
    try:
        if name == MEMORY_REPORT:
            memory_report(data)
        elif name == DNN_PARAMS:
            ElementTree.fromstring(data)
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                bad = archive.testzip()
            return None if bad is None else f"has a damaged member {bad}"
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # not a report of that form
        return f"cannot be read ({error!r})"
    except (ElementTree.ParseError, zipfile.BadZipFile, zlib.error) as error:
        return f"cannot be read ({error})"
    return None


def _outcome(model: str, entry: Mapping[str, bytes], version: str, *, cached: bool) -> Conversion:
    """An accepted network's Conversion; raises ConverterRejected for a refused one."""
    outcome: dict[str, Any] = json.loads(entry[OUTCOME])
    log = entry[LOG].decode()
    messages = parse_log(log)
    diagnostics = diagnose(messages, accepted=outcome["accepted"], version=version)
    memory = memory_report(entry[MEMORY_REPORT]) if MEMORY_REPORT in entry else None
    if not outcome["accepted"]:
        raise ConverterRejected(model, diagnostics, log, memory)
    assert memory is not None  # an accepted network has its report
    return Conversion(
        files={name: data for name, data in entry.items() if name not in (OUTCOME, LOG)},
        memory=memory,
        log=log,
        diagnostics=diagnostics,
        seconds=outcome["seconds"],
        cached=cached,
        tiled=any(message.code == "ISM" for message in messages),
        converter_version=version,
    )


def memory_report(report: bytes) -> VendorMemory:
    """What MemoryReport.json says.

    Raises LookupError, TypeError, ValueError or AttributeError where it is no memory report in bytes.
    """
    data = json.loads(report)["Memory Report"]

    def size(holder: Mapping[str, str], field: str) -> int:
        return int(holder[field].removesuffix("B"))

    return VendorMemory(
        model_bytes=size(data, "Model Memory Physical Size"),
        runtime_bytes=size(data, "Runtime Memory Physical Size"),
        reserved_bytes=size(data, "Reserved Memory"),
        total_bytes=size(data, "Memory Usage"),
        budget_bytes=size(data, "Total Memory Available On Chip"),
        input_persistency_bytes=sum(size(net, "Input Persistence Cost") for net in data["Networks"]),
        fits=bool(data["Fit In Chip"]),
    )
