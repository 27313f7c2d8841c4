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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import package
from compiler.cache import Cache
from compiler.checking import check_graph, fix_model
from compiler.frontend import Loaded, ModelKind, input_contracts, load_model
from compiler.progress import Progress
from compiler.quantizing.options import (
    BREVITAS_QAT,
    DECIDING_PICTURES,
    DECIDING_PICTURES_LEAST,
    MCT_GPTQ,
    MCT_PTQ,
    MIXED,
    QUANTIZERS,
    SCORED_CROPS,
    TRAINING_PICTURES,
    WEIGHT_BITS,
    require_brevitas,
    require_consistent,
)
from compiler.reports.failed_run import failed_place, failure_of, remove_failed, write_failed
from compiler.result import CheckResult, CompileResult, Input, Output, StepTime, VendorFigures
from compiler.versions import PACKAGES, versions
from passes import graph as graphs
from passes.diagnostics import Severity, about_input
from passes.errors import InputError, TargetViolation, ToolError, first_line
from passes.files import write_beside
from passes.imx500.limits import MEMORY_BUDGET
from passes.pipeline import FLOAT_TRANSFORMS, QUANTIZED_TRANSFORMS, Transform, apply

if TYPE_CHECKING:
    import onnx_ir as ir

    from calib.representative import RepresentativeSet
    from calib.widths import Means
    from compiler.agreement import Agreement
    from compiler.converter import Conversion, ConverterInstall
    from compiler.quantizing.judge import Accuracy
    from compiler.quantizing.search import Choice
    from compiler.quantizing.ways import Made, Material, Way
    from compiler.quantizing.widths import Widths
    from compiler.reports.facts import Facts
    from compiler.reports.what_if import WhatIf
    from passes.equalise import Equalisation
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
    exclude: str | None = None
    protocol: str | None = None
    quantizer: str = MCT_PTQ
    weight_bits: str = "8"
    memory_target: int | None = None
    max_drop: float | None = None
    seed: int = 0
    declared: str | None = None
    size: tuple[int, int] | None = None
    convert: bool = True
    memory_report_only: bool = False
    input_persistency: bool = True
    fix: bool = False
    timeout_s: float = 1800.0
    dump_dir: Path | None = None

    @property
    def searches(self) -> bool:
        """Candidates are made and compared, not only the plain post-training quantization."""
        return self.quantizer != MCT_PTQ or self.max_drop is not None

    @property
    def trains(self) -> bool:
        """A way of the search may be a training."""
        return self.searches and (self.quantizer != MCT_GPTQ or self.max_drop is not None)

    @property
    def narrowest(self) -> int:
        """Bits of the narrowest weights that this compile may choose."""
        return 2 if self.weight_bits == MIXED else int(self.weight_bits)


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
    equalised: Equalisation | None = None
    made: Made | None = None
    """Of the plain post-training quantization, at the chosen widths."""
    widths: Widths | None = None
    means: Means | None = None
    choice: Choice | None = None
    agreement: Agreement | None = None
    accuracy: Accuracy | str = ""
    """Of the network that is kept, or why it is not known."""
    facts: Facts | None = None
    what_if: WhatIf | None = None
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
    _require_choice("--weight-bits", options.weight_bits, WEIGHT_BITS)
    require_consistent(options.quantizer, options.weight_bits, options.memory_target, options.max_drop)
    if options.dump_dir is not None:
        _make_dump_dir(options.dump_dir)
    with progress_factory(len(PIPELINE)) as progress:
        state = State(options, progress, Cache())
        for number, step in enumerate(PIPELINE, start=1):
            try:
                state = _run_step(state, step, number)
            except (Exception, KeyboardInterrupt) as error:
                if not isinstance(error, InputError) or state.quantized is not None:
                    _report_failure(state, step, error)
                raise  # of a mistake in the command the message is all there is to say
    remove_failed(options.out)
    return _result(state)


def _report_failure(state: State, step: Step, error: BaseException) -> None:
    """The reports of a run that ended in `step`. Whatever happens here, `error` stays what is told."""
    try:
        first = write_failed(
            state.options.out, _failed_result(state, step, error), state.options.model, _now()
        )
    except (Exception, KeyboardInterrupt) as another:
        error.add_note(f"there is no report of this run ({first_line(another)})")
        return
    folder = failed_place(state.options.out)
    missing = f"there is no report of this run: {folder} cannot be written"
    error.add_note(missing if first is None else f"the report of this run: {first}")


def _failed_result(state: State, step: Step, error: BaseException) -> CompileResult:
    """What is known of a run that ended."""
    if isinstance(error, Refused):
        state = dataclasses.replace(state, check=error.check)
    try:
        result = _result(state)
    except ToolError:  # the outputs of a graph that is broken
        result = _result(dataclasses.replace(state, quantized=None))
    if step.name == "convert" and isinstance(error, TargetViolation):
        result = dataclasses.replace(result, vendor_diagnostics=error.diagnostics)
    memory = None if result.check is None else result.check.memory
    if memory is not None and not memory.fits:
        with suppress(ToolError, OSError):  # the report without it is better than none
            result = dataclasses.replace(result, what_if=_what_if(state))
    return dataclasses.replace(result, failure=failure_of(error, step.name, step.purpose))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


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
    from student.crops import named_protocol

    if state.options.trains:
        asked = f"--quantizer {state.options.quantizer}"
        require_brevitas(asked if state.options.max_drop is None else "--max-drop")
    if state.options.protocol is not None and named_protocol(state.options.protocol).border == "clip":
        raise InputError(
            "--protocol",
            repr(state.options.protocol),
            "what networks are trained on; clip is for comparing with the PicoSAM2 authors' numbers",
            "point-native-96, or roi-pad10",
        )
    if not state.options.convert:
        return state
    return dataclasses.replace(state, install=find_converter())


def _load(state: State) -> State:
    from calib.representative import require_source

    options = state.options
    loaded = _prompted(load_model(options.model, declared=options.declared, size=options.size), options)
    if loaded.kind is ModelKind.QUANTIZED_ONNX:
        _require_plain(options)
        return dataclasses.replace(state, loaded=loaded, quantized=loaded.model)
    require_source(options.calib)
    return dataclasses.replace(state, loaded=loaded, float_model=loaded.model)


def _prompted(loaded: Loaded, options: CompileOptions) -> Loaded:
    """With the protocol that --protocol names; a warning where the checkpoint says another."""
    own, named = loaded.protocol, options.protocol
    if named is None or named == own:
        return loaded
    warning = about_input(
        "protocol-overridden",
        Severity.WARNING,
        found=f"--protocol {named}, in place of {own}",
        limit="the prompts that the checkpoint says it was trained on",
        fix="leave --protocol out, unless the file is wrong",
        source="student/crops.py",
    )
    return dataclasses.replace(
        loaded, protocol=named, notes=loaded.notes if own is None else (*loaded.notes, warning)
    )


def _require_plain(options: CompileOptions) -> None:
    """Raises InputError for options that would have no effect on a graph that came quantized."""
    for option, given in (
        ("--quantizer", options.quantizer != MCT_PTQ),
        ("--weight-bits", options.weight_bits != "8"),
        ("--max-drop", options.max_drop is not None),
    ):
        if given:
            raise InputError(
                option,
                f"{options.model.name} is quantized already",
                "a float network: a .pt, .pt2 or float .onnx",
                f"compile the float network, or leave {option} out",
            )


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
    check = check_graph(
        model,
        input_persistency=persistency,
        weight_bits=state.options.narrowest,
        notes=notes,
        fixes=state.fixes,
    )
    if state.check is not None:  # the cost is of the network the user gave: MCT adds biases that are zero
        check = dataclasses.replace(check, costs=state.check.costs)
    if not check.ok:
        raise Refused(state.options.model.name, check)
    target = state.options.memory_target
    needed = 0 if check.memory is None else check.memory.total_bytes
    if state.quantized is not None and target is not None and needed > target:
        found, limit = f"the quantized network needs {needed} bytes", f"at most {target}"
        raise TargetViolation("--memory-target", found, limit, "give a larger target")
    return dataclasses.replace(state, check=check)


class Refused(TargetViolation):
    """The check refuses the model; the error carries every finding, and the whole check for the reports."""

    def __init__(self, name: str, check: CheckResult) -> None:
        count = sum(diagnostic.severity == "error" for diagnostic in check.diagnostics)
        super().__init__(
            f"model {name}",
            f"violates the target in {count} place{'s' * (count != 1)}",
            "none is allowed",
            "apply the fix of each finding; `picosam2 check MODEL` repeats them in a second",
            check.diagnostics,
        )
        self.check = check


def _calibration(state: State) -> State:
    from calib.representative import PICTURES, content_hashes, load_representative

    assert state.loaded is not None
    assert state.float_model is not None
    options = state.options
    contracts = input_contracts(state.float_model, state.loaded.contract)
    count = options.calib_count or PICTURES
    exclude = content_hashes(options.exclude, progress=state.progress.update) if options.exclude else ()
    protocol = state.loaded.protocol

    def drawn(crops: int, deciding: int = 0) -> tuple[RepresentativeSet, ...]:
        return tuple(
            load_representative(
                options.calib,
                one,
                crops,
                options.seed,
                deciding=deciding,
                exclude=exclude,
                protocol=protocol,
                progress=state.progress.update,
            )
            for one in contracts
        )

    # What int8 reaches is measured on crops kept apart; a search has them already.
    scored = 0 if options.searches or _unscored(state) else SCORED_CROPS
    # The first of the training crops are the calibration crops.
    training = drawn(max(count, TRAINING_PICTURES), DECIDING_PICTURES) if options.searches else ()
    if options.max_drop is not None:
        _require_pictures(len(set(training[0].deciding_pictures.tolist())), options.calib)
    try:
        representative = drawn(count, scored)
    except InputError:  # too few pictures to keep any apart: then the mIoU is not known
        if not scored:
            raise
        representative = drawn(count)
    return dataclasses.replace(state, representative=representative, training=training)


def _require_pictures(found: int, source: str) -> None:
    """Raises InputError where too few pictures are kept aside for --max-drop."""
    if found < DECIDING_PICTURES_LEAST:
        raise InputError(
            "--max-drop",
            f"{found} pictures of {source} are kept aside to measure it",
            f"at least {DECIDING_PICTURES_LEAST}: the crops of one picture are not independent",
            f"give at least {4 * DECIDING_PICTURES_LEAST} pictures, or coco:DIR, with --calib",
        )


def _equalise(state: State) -> State:
    from calib.activation_ranges import per_channel_ranges
    from calib.representative import delivered
    from passes.equalise import equalise, scalable_tensors

    assert state.float_model is not None
    model = state.float_model
    pictures = [delivered(one.pictures, one.contract) for one in state.representative]
    equal, done = equalise(model, per_channel_ranges(model, pictures, scalable_tensors(model)))
    return dataclasses.replace(state, float_model=equal, equalised=done)


def _material(state: State) -> Material:
    from compiler.quantizing.ways import Material

    assert state.float_model is not None
    return Material(
        state.float_model,
        state.training or state.representative,
        len(state.representative[0].pictures),
        state.options.seed,
        state.cache,
        state.progress.update,
        {} if state.widths is None else state.widths.narrow,
        8 if state.widths is None else state.widths.uniform,
        state.means,
        state.options.memory_target or MEMORY_BUDGET,
        state.options.input_persistency,
    )


def _quantize(state: State) -> State:
    from compiler.quantizing.ways import post_training

    material = _material(state)
    made = post_training(material, material.calibrate)
    return dataclasses.replace(state, quantized=made.graph, made=made, cached=made.seconds is None)


def _widths(state: State) -> State:
    from calib.representative import delivered
    from calib.widths import input_means, with_widths
    from compiler.quantizing.widths import mixed, uniform
    from compiler.quantizing.yardstick import Yardstick

    assert state.quantized is not None
    assert state.made is not None
    options, material = state.options, _material(state)
    pictures = [delivered(one.pictures, one.contract) for one in material.first(material.calibrate)]
    means = input_means(material.float_model, pictures)
    if options.weight_bits != MIXED:
        widths = uniform(state.quantized, int(options.weight_bits), state.progress.update)
    else:
        yardstick = Yardstick(material.float_model, pictures)
        target, persistency = material.memory_limit, material.persistency
        widths = mixed(state.quantized, yardstick, means, target, persistency, state.progress.update)
    made = dataclasses.replace(state.made, graph=with_widths(state.quantized, widths.narrow, means))
    return dataclasses.replace(state, quantized=made.graph, made=made, widths=widths, means=means)


def _search(state: State) -> State:
    from compiler.quantizing.judge import Judge
    from compiler.quantizing.search import search
    from compiler.quantizing.ways import Way, ladder

    assert state.float_model is not None
    assert state.made is not None
    made, options, material = state.made, state.options, _material(state)
    first = Way(MCT_PTQ, f"{material.calibrate} crops", lambda _: made)
    judge = Judge(state.float_model, state.training, made.graph)
    quantized, choice = search(
        first,
        made,
        _asked(ladder(material), options),
        judge.verdict,
        judge.crops,
        judge.pictures,
        options.max_drop,
        state.progress.update,
    )
    cached = len(choice.tried) > 1 and all(one.seconds is None for one in choice.tried[1:])
    return dataclasses.replace(state, quantized=quantized, choice=choice, cached=cached)


def _asked(ways: tuple[Way, ...], options: CompileOptions) -> tuple[Way, ...]:
    """With --max-drop every way from the one that --quantizer names on, else that one."""
    names = [way.name for way in ways]
    if options.quantizer != MCT_PTQ and options.quantizer not in names:
        raise InputError(
            f"--quantizer {options.quantizer}",
            f"with --weight-bits {options.weight_bits}, which saves no memory in some of the layers",
            "one width for all layers",
            f"--quantizer {BREVITAS_QAT}, or --weight-bits 8",
        )
    start = 0 if options.quantizer == MCT_PTQ else names.index(options.quantizer)
    return ways[start:] if options.max_drop is not None else ways[start : start + 1]


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


def _facts(state: State) -> State:
    from compiler.reports.facts import measure_facts

    assert state.float_model is not None
    assert state.quantized is not None
    facts = measure_facts(state.float_model, state.quantized, state.representative, state.progress.update)
    return dataclasses.replace(state, facts=facts, accuracy=_accuracy(state), what_if=_what_if(state))


def _accuracy(state: State) -> Accuracy | str:
    """Of the network that is kept, measured in the search or else here; or why it is not known."""
    from compiler.quantizing.judge import accuracy, accuracy_of

    assert state.loaded is not None
    assert state.float_model is not None
    assert state.quantized is not None
    if reason := _unscored(state):
        return reason
    if (choice := state.choice) is None:
        state.progress.update("mIoU against annotated masks", None)
        return accuracy(state.float_model, state.representative, state.quantized)
    kept = next(one for one in choice.tried if one.quantizer == choice.kept)
    return accuracy_of(kept.miou, kept.drop, choice.crops, choice.pictures)


def _unscored(state: State) -> str:
    """Why the calibration source says nothing of the network's mIoU; "" where it does."""
    from calib.representative import COCO_PREFIX, protocol_for

    assert state.loaded is not None
    own, contract = state.loaded.protocol, state.loaded.contract
    if not state.options.calib.startswith(COCO_PREFIX):
        return "no annotated masks were given (--calib coco:DIR)"
    if own is None:
        return "which prompts it was trained on is not known (--protocol says it)"
    if own != (shown := protocol_for(contract, own).name):
        size = f"{contract.width}x{contract.height}"
        return f"it was trained on {own}, and crops of {size} are prompts of {shown}"
    return ""


def _what_if(state: State) -> WhatIf:
    from compiler.reports.what_if import what_if

    checked = state.quantized or state.float_model
    assert checked is not None
    assert state.loaded is not None
    return what_if(
        checked,
        state.loaded.model,
        state.loaded.contract,
        state.options.input_persistency,
        state.options.narrowest,
    )


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
    assert state.loaded is not None
    facts = {
        **_manifest_facts(result, state.options.input_persistency),
        "protocol": state.loaded.protocol,
    }
    package.write_package(state.options.out, _files(state, result), facts)
    return state


def _files(state: State, result: CompileResult) -> dict[str, bytes]:
    from compiler import raspberry_pi
    from compiler.device import device_check
    from compiler.reports.files import report_files

    files: dict[str, bytes] = {}
    if state.float_model is not None:
        files[FLOAT_GRAPH] = graphs.to_bytes(state.float_model)
    assert state.loaded is not None
    assert state.quantized is not None
    files[INT8_GRAPH] = graphs.to_bytes(state.quantized)
    if state.conversion is not None:
        files.update(state.conversion.files)
        files["converter.log"] = state.conversion.log.encode()
    files.update(report_files(result, state.options.model, _now()))
    packed = "packerOut.zip" in files
    files["raspberry-pi.md"] = raspberry_pi.instructions(result, packed=packed).encode()
    compiled = device_check.Compiled(
        model=state.quantized,
        network=result.network,
        contract=state.loaded.contract,
        outputs=result.outputs,
        representative=state.representative,
        seed=result.seed,
        protocol=state.loaded.protocol,
        dnn_params=files.get("dnnParams.xml"),
        packed=packed,
    )
    return files | device_check.files(compiled, state.progress.update)


def _manifest_facts(result: CompileResult, input_persistency: bool) -> Mapping[str, Any]:
    """What the manifest says beside the checksums; no times, no paths."""
    assert result.contract is not None  # a package has one
    return {
        "tool": result.tool_version,
        "target": result.target,
        "network": result.network,
        "model": {"kind": result.model_kind, "sha256": result.model_sha256},
        "input_contract": result.contract.to_json(),
        "outputs": [output.to_json() for output in result.outputs],
        "quantizer": result.quantizer if result.choice is None else result.choice.kept,
        "weight_bits": {} if result.widths is None else result.widths.narrow,
        "input_persistency": input_persistency,
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
        "are the converter with its Java, and Brevitas, there, where asked for",
        _preflight,
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
    Step(
        "equalise",
        "channels of one tensor get ranges that are closer together; the function stays bit for bit",
        _equalise,
        _is_float,
        graph=True,
    ),
    Step("quantize", "int8 post-training quantization (MCT)", _quantize, _is_float, graph=True, vendor=True),
    Step(
        "widths",
        "bits of each layer's weights (--weight-bits)",
        _widths,
        lambda state: state.options.weight_bits != "8" and _is_float(state),
        graph=True,
    ),
    Step(
        "search",
        "other ways to quantize, kept where they are better (--quantizer, --max-drop)",
        _search,
        lambda state: state.options.searches and _is_float(state),
        graph=True,
    ),
    Step("check-quantized", "bit widths, thresholds and memory of the quantized graph", _check),
    Step("agreement", "float against int8 on the held-out pictures", _agreement, _is_float),
    Step("facts", "what each layer loses, the masks, what-if: for the reports", _facts, _is_float),
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
    """What is known so far; of a run that ended well, all of it."""
    conversion, loaded = state.conversion, state.loaded
    return CompileResult(
        tool_version=importlib.metadata.version("picosam2-compile"),
        target=state.options.target,
        model_name=state.options.model.name,
        model_sha256="" if loaded is None else loaded.sha256,
        model_kind="" if loaded is None else loaded.kind.value,
        network=state.options.model.stem if loaded is None else loaded.network,
        contract=None if loaded is None else loaded.contract,
        seed=state.options.seed,
        quantizer=state.options.quantizer if _is_float(state) else None,
        choice=state.choice,
        widths=state.widths,
        equalised=state.equalised,
        calibration=_calibration_card(state),
        check=state.check,
        inputs=() if loaded is None else _inputs(loaded),
        outputs=() if state.quantized is None else _outputs(state.quantized),
        agreement=state.agreement,
        accuracy=state.accuracy,
        vendor=None if conversion is None else _vendor_figures(state, conversion),
        vendor_diagnostics=() if conversion is None else conversion.diagnostics,
        steps=state.times,
        facts=state.facts,
        what_if=state.what_if,
        versions=versions(PACKAGES if state.choice is None else (*PACKAGES, "brevitas")),
    )


def _calibration_card(state: State) -> dict[str, Any] | None:
    if not state.representative:
        return None
    from calib.representative import card

    return card(state.representative[0], state.training[0] if state.training else None)


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


def _inputs(loaded: Loaded) -> tuple[Input, ...]:
    values = graphs.real_inputs(loaded.model.graph)
    contracts = input_contracts(loaded.model, loaded.contract)
    return tuple(
        Input(value.name or "", graphs.static_shape(value) or (), contract)
        for value, contract in zip(values, contracts, strict=True)
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
