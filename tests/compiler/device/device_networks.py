"""Small quantized networks for the tests of device-check/."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.device.device_check import Compiled
from compiler.driver import _outputs
from passes.contract import raw
from tests.compiler.simulator.simulator_graphs import Dialect

HEIGHT, WIDTH = 30, 33
"""Neither a multiple of 32 nor of anything else: planes have to be padded."""

SHAPE = (3, HEIGHT, WIDTH)


def two_outputs(colours: int = 3) -> ir.Model:
    """A mask and the features before it, with an addition that the chip fuses."""
    generator = np.random.default_rng(3)
    graph = Dialect()
    pixels = graph.quantize(graph.input([1, colours, HEIGHT, WIDTH]), 128.0)

    def convolution(value: str, inputs: int, outputs: int, gain: float, side: int) -> str:
        weight = generator.normal(size=(outputs, inputs, side, side)) * gain / side / np.sqrt(inputs)
        # Powers of two: accumulators meet ties, by which nearest_even and half_up are told apart.
        kept = graph.quantized_weights(weight, 2.0 ** np.ceil(np.log2(np.abs(weight).max(axis=(1, 2, 3)))))
        bias = graph.constant(generator.normal(size=outputs) * gain)
        return graph.node("Conv", value, kept, bias, pads=[side // 2] * 4)

    stem = graph.quantize(graph.node("Relu", convolution(pixels, colours, 8, 1 / 64, 3)), 4.0, signed=False)
    body = graph.quantize(convolution(stem, 8, 8, 2.0, 3), 2.0)
    both = graph.quantize(graph.node("Add", body, stem), 4.0)
    mask = graph.quantize(convolution(both, 8, 1, 1.0, 1), 4.0)
    model = graph.model(mask, both)
    for value, channels in zip(model.graph.outputs, (1, 8), strict=True):
        value.shape, value.dtype = ir.Shape([1, channels, HEIGHT, WIDTH]), ir.DataType.FLOAT
    return model


def compiled(
    model: ir.Model, *, protocol: str | None = None, dnn_params: bytes | None = None, colours: int = 3
) -> Compiled:
    """The network as the last step of a compile has it; the pictures come from `builtin`."""
    contract = raw(colours, HEIGHT, WIDTH, signed=True)
    return Compiled(
        model=model,
        network="small net",
        contract=contract,
        outputs=_outputs(model),
        representative=(),
        seed=0,
        protocol=protocol,
        dnn_params=dnn_params,
        packed=dnn_params is not None,
    )


def dnn_params(*outputs: tuple[int, tuple[int, ...], float]) -> bytes:
    """dnnParams.xml with outputs (ordinal, shape, scale) in this order, in the converter's form."""
    listed = "".join(
        f'<outputTensor ordinal="{ordinal}" name="n" bitsPerElement="8" shift="0" scale="{scale}" '
        'format="signed"><dimensions>'
        + "".join(f'<dimension size="{size}" ordinal="{n}" padding="0"/>' for n, size in enumerate(shape))
        + "</dimensions></outputTensor>"
        for ordinal, shape, scale in outputs
    )
    text = f"<dnnParams><networks><network><outputTensors>{listed}</outputTensors></network></networks>"
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}</dnnParams>'.encode()
