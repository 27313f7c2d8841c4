"""The torch module computes the integers of the quantized graph, and its export holds Brevitas' integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from calib.ptq import mct_ptq
from calib.qat.export import export, held
from calib.qat.network import WEIGHTS, Network, to_network
from calib.representative import delivered, load_representative
from calib.thresholds import representable, with_representable_thresholds
from compiler.dialect import quantized_weight
from compiler.frontend import load_model
from compiler.simulator.engine import compile_program
from passes.errors import InputError
from passes.graph import const_array, from_proto, set_constant, to_bytes, to_proto
from passes.pipeline import apply_all
from tests.calib.qat.small_graphs import FIXTURES, everywhere, fixture, pictures

CHECKPOINT = Path(__file__).parents[3] / "student" / "checkpoints" / "picosam2.pt"


def differences(model: ir.Model, network: Network, inputs: np.ndarray) -> tuple[int, int, float]:
    """Integers compared, integers that differ from the exact ones, and their largest distance from a tie.

    Every quantizer gets what the layers make of the exact integers, so that a difference is not carried on.
    """
    program = compile_program(model, threads=1)
    nodes = {node.name: node for node in model.graph}
    values = {name: nodes[name].outputs[0].name or "" for name in network.quantizers}
    exact = program.run({program.inputs[0]: inputs.astype(np.int64)}, list(values.values()))
    count, different, distance = 0, 0, 0.0

    def compare(value: str):
        def hook(_module, arguments, output):
            nonlocal count, different, distance
            wanted = exact[value]
            real = arguments[0].double().numpy() / float(wanted.step)
            found = output.double().numpy() / float(wanted.step)
            wrong = found != wanted.values
            count, different = count + wrong.size, different + int(wrong.sum())
            if wrong.any():
                assert np.abs(found - wanted.values).max() == 1
                tie = np.minimum(found, wanted.values) + 0.5
                distance = max(distance, float(np.abs(real - tie)[wrong].max()))
            return torch.from_numpy(wanted.real()).float()

        return hook

    hooks = [
        network.module.get_submodule(target).register_forward_hook(compare(values[name]))
        for name, target in network.quantizers.items()
    ]
    with torch.no_grad():
        network.module(torch.from_numpy(inputs))
    for hook in hooks:
        hook.remove()
    return count, different, distance


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_integers_are_those_of_the_exact_simulator_up_to_ties(path):
    model = fixture(path.stem)
    network = to_network(model)
    count, _, distance = differences(model, network, pictures(1 if not network.batch_free else 4))
    assert count > 0
    assert distance < 1e-3  # of a step: float32 sums on the wrong side of a tie


def disturbed(model: ir.Model, seed: int) -> Network:
    """A network with other weights, thresholds and biases, some weights on ties and out of range."""
    network, random = to_network(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.layers:
            weight, value = layer.trained, layer.weights.quantizer.scaling_impl.value
            value.mul_(0.5 + torch.rand(value.shape, generator=random))
            weight.add_(torch.randn(weight.shape, generator=random) * 0.3)
            step = value.abs() / 2 ** (float(layer.weights.quantizer.msb_clamp_bit_width_impl()) - 1)
            ties = (torch.floor(weight / step) + 0.5) * step
            weight.copy_(torch.where(torch.rand(weight.shape, generator=random) < 0.3, ties, weight))
            if layer.bias is not None:
                layer.module.bias.add_(0.1)
    return network


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", ["convolutions", "transposed", "linear", "gate"])
def test_the_exported_graph_holds_the_integers_brevitas_computes_with(name, bits):
    model = everywhere(fixture(name), bits)
    network = disturbed(model, seed=bits)
    exported = export(network, model)
    nodes = {node.name: node for node in exported.graph}
    assert len(network.layers) == sum(node.op_type in WEIGHTS for node in nodes.values()) > 0
    for layer in network.layers:
        node = nodes[layer.quantizer]
        weight, limits = const_array(node.inputs[0]), const_array(node.inputs[1])
        integers, thresholds = held(layer)
        np.testing.assert_array_equal(limits.reshape(thresholds.shape), thresholds)
        quotient = weight.astype(np.float64) / (thresholds.astype(np.float64) / 2 ** (bits - 1))
        assert np.abs(quotient - integers).max() < 1e-5  # nowhere near a tie
        with torch.no_grad():
            used = layer.module.weight
        used = (used.T if layer.transposed else used).numpy()
        np.testing.assert_array_equal(quantized_weight(node), used)
    inputs = pictures(2)
    assert differences(exported, network, inputs)[2] < 1e-3


def test_export_changes_constants_only():
    model = fixture("convolutions")
    exported = export(disturbed(model, seed=0), model)
    ours, theirs = (
        [(node.op_type, node.name) for node in graph if node.op_type != "Constant"]
        for graph in (exported.graph, model.graph)
    )
    assert ours == theirs
    assert [value.name for value in exported.graph.outputs] == [value.name for value in model.graph.outputs]


def test_export_of_what_was_exported_is_the_same():
    model = fixture("residual")
    once = export(disturbed(model, seed=1), model)
    assert to_bytes(export(to_network(once), once)) == to_bytes(once)


@pytest.mark.parametrize("turned", [True, False])
def test_a_symmetric_matrix_is_oriented_by_its_node(turned):
    model = from_proto(to_proto(fixture("linear")))
    nodes = {node.name: node for node in model.graph}
    quantizer, turn = nodes["/tokens/WeightsSymmetricQuantizer"], nodes["/tokens/layer/Transpose"]
    set_constant(model.graph, quantizer, 0, "symmetric", np.eye(8, dtype=np.float32))
    limits = representable(np.linspace(0.6, 2, 8, dtype=np.float32))
    set_constant(model.graph, quantizer, 1, "limits", limits)
    if not turned:
        quantizer.attributes["channel_axis"] = ir.AttrInt64("channel_axis", 1)
        ir.convenience.replace_all_uses_with(turn.outputs[0], quantizer.outputs[0])
        model.graph.remove(turn, safe=True)
    network = to_network(model)
    layer = next(layer for layer in network.layers if layer.quantizer == quantizer.name)
    assert layer.transposed != turned
    assert layer.weights.units.shape == (8, 1)
    assert differences(model, network, pictures(2))[2] < 1e-3


def test_gradients_reach_every_parameter():
    network = to_network(fixture("residual"))
    network.module(torch.from_numpy(pictures(4))).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


@pytest.mark.parametrize("kind", ["WeightsUniformQuantizer", "WeightsPOTQuantizer"])
def test_a_foreign_quantizer_is_named(kind):
    model = from_proto(to_proto(fixture("residual")))
    node = next(node for node in model.graph if node.op_type in WEIGHTS)
    node.op_type = kind
    with pytest.raises(InputError, match=f": {kind}"):
        to_network(model)


@pytest.mark.slow
def test_the_student_computes_the_exact_simulators_integers():
    loaded = load_model(CHECKPOINT)
    model = apply_all(loaded.model)
    data = load_representative("builtin", loaded.contract, 16)
    made = mct_ptq(model, data, seed=0, progress=lambda phase, share: None)
    quantized = with_representable_thresholds(made)
    inputs = delivered(data.held_out[:2], loaded.contract)
    count, different, distance = differences(quantized, to_network(quantized), inputs)
    assert count > 10_000_000
    assert different < count * 1e-4
    assert distance < 1e-3
