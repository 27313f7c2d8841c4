"""How the warning threshold of `picosam2 sensitivity` was chosen: broken layers against the mIoU they cost.

    python -m benchmarks.sensitivity_threshold PACKAGE --data coco:DIR --out FILE.json

One quantizer of one layer gets a threshold that is too small (it saturates) or too large (it rounds
coarsely), by powers of two. For each: the layer's ratio at the output, quantized alone, as the command
measures it on its 16 pictures; and the mIoU against annotated masks that the whole int8 network loses by it.
The record is written after every point.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calib.representative import delivered, load_representative
from compiler.agreement import session
from compiler.dialect import to_standard
from compiler.inspection.layers import quantized_layers
from compiler.inspection.opened_package import open_package
from compiler.inspection.sensitivity import layers_alone
from passes.graph import const_array, from_proto, set_constant, to_proto
from student.crops import POINT_NATIVE_96, mask_iou
from student.cropset import CropSet, load_crops
from student.evaluate import network_input
from student.instances import load_instances

LAYERS = ("encoder_stage1.3", "down1", "encoder_stage3.0", "down4", "up1.1.0", "up3.1.3", "Add_2", "Add_3")
ACTIVATION_FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 4, 8, 16, 32)
WEIGHT_FACTORS = (1 / 4, 1 / 2, 8, 32)


def broken(model: ir.Model, layer: str, kind: str, factor: float) -> ir.Model:
    """A copy in which the layer's quantizers of a kind have thresholds `factor` times theirs."""
    copy = from_proto(to_proto(model))
    (found,) = [one for one in quantized_layers(copy) if one.name == layer]
    if kind == "activations":
        assert found.activation is not None
        threshold = found.activation.attributes["threshold"].as_float() * factor
        found.activation.attributes["threshold"] = ir.AttrFloat32("threshold", threshold)
    for quantizer in found.weights if kind == "weights" else ():
        thresholds = const_array(quantizer.inputs[1])
        assert thresholds is not None
        name = f"{quantizer.name}/broken"
        set_constant(copy.graph, quantizer, 1, name, (thresholds * factor).astype(np.float32))
    return copy


def masks(model: ir.Model, inputs: np.ndarray) -> np.ndarray:
    """Of the whole int8 network in onnxruntime: bool [N, H, W]."""
    running = session(to_standard(model))
    name = running.get_inputs()[0].name
    return np.stack([running.run(None, {name: one[None]})[0][0, 0] > 0 for one in inputs])


def miou(found: np.ndarray, crops: CropSet) -> float:
    return float(np.mean([mask_iou(a, b) for a, b in zip(found, crops.masks, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--instances", type=int, default=300, help="evenly chosen")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    package = open_package(options.package)
    contract = package.loaded.contract
    crops = load_crops(load_instances(options.data, options.split), POINT_NATIVE_96)
    chosen = np.zeros(len(crops), np.bool_)
    chosen[np.linspace(0, len(crops) - 1, options.instances).astype(int)] = True
    crops = crops.select(chosen)
    inputs = network_input(crops.pictures.transpose(0, 3, 1, 2), contract)
    pictures = delivered(load_representative("builtin", contract).held_out, contract)
    healthy = miou(masks(package.model, inputs), crops)
    points = []
    for layer in LAYERS:
        for kind, factors in (("activations", ACTIVATION_FACTORS), ("weights", WEIGHT_FACTORS)):
            if kind == "weights" and layer.startswith("Add"):
                continue
            for factor in factors:
                model = broken(package.model, layer, kind, factor)
                ratio = layers_alone(model, package.float_model, [pictures], (layer,))[layer]
                lost = healthy - miou(masks(model, inputs), crops)
                points.append(
                    {"layer": layer, "kind": kind, "factor": factor, "alone_db": ratio, "lost_miou": lost}
                )
                print(f"{layer:18} {kind:11} x {factor:<7g} {ratio:6.1f} dB  {lost:+.4f}", flush=True)
                record = {"instances": len(crops), "int8_miou": healthy, "points": points}
                options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
