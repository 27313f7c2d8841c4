"""report.json: everything the result holds, for programs. docs/report.schema.json is its schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compiler.reports.figures import finite
from compiler.reports.verdict import verdict
from compiler.result import SCHEMA, CompileResult

if TYPE_CHECKING:
    from compiler.agreement import Agreement
    from compiler.quantizing.judge import Accuracy, Drop
    from compiler.quantizing.search import Choice
    from passes.equalise import Equalisation


def to_json(result: CompileResult, created: str) -> str:
    """report.json; `created` is an ISO time (timestamps and timings live in the report only)."""
    check = result.check
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "created": created,
        "tool": result.tool_version,
        "target": result.target,
        "model": {
            "file": result.model_name,
            "sha256": result.model_sha256,
            "kind": result.model_kind,
            "network": result.network,
        },
        "verdict": verdict(result).to_json(),
        "failure": None if result.failure is None else asdict(result.failure),
        "input_contract": None if result.contract is None else result.contract.to_json(),
        "seed": result.seed,
        "quantizer": result.quantizer,
        "quantization": None if result.choice is None else _choice_json(result.choice),
        "equalised": None if result.equalised is None else _equalised_json(result.equalised),
        "weights": None
        if result.widths is None
        else asdict(result.widths) | {"kind": {"loss": "measured", "saved": "estimated"}},
        "calibration": None if result.calibration is None else dict(result.calibration),
        "check": None if check is None else check.to_json(),
        "memory_tensors": []
        if check is None or check.memory is None
        else [asdict(tensor) for tensor in check.memory.tensors],
        "what_if": None if result.what_if is None else result.what_if.to_json(),
        "outputs": [output.to_json() for output in result.outputs],
        "agreement": None if result.agreement is None else _agreement_json(result.agreement),
        "accuracy": None if isinstance(result.accuracy, str) else _accuracy_json(result.accuracy),
        "facts": None if result.facts is None else result.facts.to_json(),
        "converter": _converter_json(result),
        "steps": [asdict(step) for step in result.steps],
        "versions": dict(result.versions),
    }
    return json.dumps(document, indent=2, sort_keys=False, allow_nan=False) + "\n"


def _converter_json(result: CompileResult) -> dict[str, Any] | None:
    """The figures only where it took the model; what it said either way."""
    if result.vendor is None and not result.vendor_diagnostics:
        return None
    figures = {} if result.vendor is None else asdict(result.vendor)
    said = [diagnostic.to_json() for diagnostic in result.vendor_diagnostics]
    return figures | {"kind": "measured", "diagnostics": said}


def _agreement_json(agreement: Agreement) -> dict[str, Any]:
    outputs = []
    for output in agreement.outputs:
        ratio = finite(output.snr_db)
        outputs.append(asdict(output) | {"snr_db": None if ratio is None else round(ratio, 3)})
    return {"kind": "measured", "pictures": agreement.pictures, "outputs": outputs}


def _choice_json(choice: Choice) -> dict[str, Any]:
    tried = [
        {
            "quantizer": one.quantizer,
            "settings": one.settings,
            "agreement": one.agreement,
            "drop": _drop_json(one.drop),
            "seconds": one.seconds,
        }
        for one in choice.tried
    ]
    return asdict(choice) | {"tried": tried, "kind": "measured"}


def _drop_json(drop: Drop) -> dict[str, Any]:
    ends = {name: finite(getattr(drop, name)) for name in ("points", "low", "high")}
    return ends | {"kind": drop.kind}


def _accuracy_json(found: Accuracy) -> dict[str, Any]:
    return {
        "kind": "measured",
        "miou": found.miou.to_json(),
        "drop": _drop_json(found.drop),
        "crops": found.crops,
        "pictures": found.pictures,
    }


def _equalised_json(done: Equalisation) -> dict[str, Any]:
    tensors = [asdict(one) for one in done.tensors if one.scaled]
    return {"channels": done.scaled, "tensors": tensors, "kind": "measured"}
