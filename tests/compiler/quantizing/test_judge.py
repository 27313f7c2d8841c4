"""The verdict on crops kept aside."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import compiler.quantizing.judge as module
from calib.representative import RepresentativeSet, delivered
from calib.thresholds import with_representable_thresholds
from compiler.agreement import agreement_by_picture
from compiler.quantizing.judge import IN_REFERENCE, Accuracy, Judge, accuracy
from compiler.quantizing.yardstick import Yardstick
from passes.contract import raw
from passes.errors import EnvironmentFault
from passes.graph import from_proto, to_proto
from tests.calib.qat.small_graphs import everywhere, fixture, without_quantizers
from tests.compiler.quantizing.small import crops
from tests.compiler.small_packages import SIZE, segmenter


def network(bits: int = 8) -> ir.Model:
    return everywhere(with_representable_thresholds(segmenter()), bits)


def segments(count: int, masks: np.ndarray | None = None) -> RepresentativeSet:
    """Random pixels; every deciding crop is of a picture of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), np.uint8)
    contract = raw(3, SIZE, SIZE, signed=True)
    return RepresentativeSet(
        pixels[:1], pixels[:1], contract, (), 0, "random", pixels, masks, np.arange(count)
    )


def test_with_masks_the_drop_is_measured_and_without_it_is_a_bound():
    quantized, coarse = network(), network(2)
    real, plain = float_of(quantized), segments(24)
    (logits,) = Yardstick(real, [delivered(plain.deciding, plain.contract)]).real.values()
    # The float network's own masks are the truth, so whatever differs from them is lost.
    labelled = segments(24, logits[:, 0] > 0)
    for graph in (quantized, coarse):
        bound, measured = (Judge(real, [one], graph).verdict(graph) for one in (plain, labelled))
        assert (bound.drop.kind, measured.drop.kind) == ("bound", "measured")
        assert bound.agreement == measured.agreement < 1
        assert measured.drop.points == pytest.approx(100 * (1 - measured.agreement))
        assert bound.drop.points == pytest.approx(measured.drop.points)
        assert measured.drop.low <= measured.drop.points <= measured.drop.high
        assert bound.miou is None
        assert measured.miou is not None
        assert measured.miou.mean == pytest.approx(measured.agreement)  # the float network's own is 1
    judge = Judge(real, [labelled], quantized)
    assert judge.verdict(coarse).drop.points > judge.verdict(quantized).drop.points
    assert (judge.crops, judge.pictures) == (24, 24)


def test_the_accuracy_of_what_is_shipped_is_the_judges_verdict_on_it():
    quantized, masks = network(), np.random.default_rng(1).random((24, SIZE, SIZE)) > 0.5
    real, labelled = float_of(quantized), segments(24, masks)
    found = accuracy(real, [labelled], quantized)
    verdict = Judge(real, [labelled], quantized).verdict(quantized)
    assert found == Accuracy(verdict.miou, verdict.drop, 24, 24)


def test_an_accuracy_that_is_not_known_says_why(monkeypatch):
    quantized = network()
    real, masks = float_of(quantized), np.zeros((24, SIZE, SIZE), bool)
    labelled = segments(24, masks)
    assert "one mask" in accuracy(real, [segments(24)], quantized)
    assert "no crops" in accuracy(
        real, [dataclasses.replace(labelled, deciding=labelled.deciding[:0])], quantized
    )
    few = dataclasses.replace(labelled, deciding_pictures=np.arange(24) // 3)
    assert "8 pictures" in accuracy(real, [few], quantized)

    def refuses(*_):
        raise EnvironmentFault("the simulator", "no C compiler", "one", "install it")

    monkeypatch.setattr(module, "Judge", refuses)
    assert "no C compiler" in accuracy(real, [labelled], quantized)


def float_of(quantized: ir.Model) -> ir.Model:
    real = without_quantizers(quantized)
    real.graph.outputs[0].shape = quantized.graph.outputs[0].shape
    real.graph.outputs[0].dtype = ir.DataType.FLOAT
    return real


def with_sigmoid(model: ir.Model) -> ir.Model:
    """The mask network's logits as probabilities, quantized with step 1/256."""
    copy = from_proto(to_proto(model))
    logits = copy.graph.outputs[0]
    node = ir.Node("", "Sigmoid", [logits], name="probability")
    quantizer = ir.Node(
        "mct_quantizers",
        "ActivationPOTQuantizer",
        node.outputs,
        [
            ir.AttrInt64("num_bits", 8),
            ir.AttrInt64("signed", 0),
            ir.AttrFloat32("threshold", 1.0),
        ],
        name="probability/quantizer",
    )
    copy.graph.extend([node, quantizer])
    output = quantizer.outputs[0]
    output.name, output.shape, output.dtype = "probability", logits.shape, ir.DataType.FLOAT
    copy.graph.outputs[0] = output
    return from_proto(to_proto(copy))


def test_masks_of_another_size_are_no_truth():
    quantized = network()
    judge = Judge(without_quantizers(quantized), [segments(4, np.zeros((4, 3, 3), bool))], quantized)
    assert judge.verdict(quantized).drop.kind == "bound"


def test_a_pixel_of_a_probability_is_mask_above_one_half():
    """The same masks as of the logits, so the same verdicts; at 0 every pixel would be mask."""
    graphs = [with_sigmoid(network(bits)) for bits in (8, 2)]
    real = float_of(graphs[0])
    plain = segments(24)
    (maps,) = Yardstick(real, [delivered(plain.deciding, plain.contract)]).real.values()
    assert maps.min() > 0
    judge = Judge(real, [segments(24, maps[:, 0] > 0.5)], graphs[0])
    fine, coarse = (judge.verdict(graph) for graph in graphs)
    assert 1 > fine.agreement > coarse.agreement
    assert coarse.drop.points > fine.drop.points > 0


def test_of_an_output_that_is_neither_mask_nor_classes_nothing_is_known():
    quantized = fixture("attention")
    verdict = Judge(without_quantizers(quantized), [crops(1, 8)], quantized).verdict(quantized)
    classes = agreement_by_picture(*np.zeros((2, 4, 3)))[1]
    assert verdict.drop.kind == "bound"
    assert classes is not None
    assert agreement_by_picture(*np.zeros((2, 4)))[1] is None
    assert agreement_by_picture(*np.zeros((2, 4, 1)))[1] is None


def test_where_the_reference_is_needed_fewer_crops_decide(monkeypatch):
    quantized = network()
    program = type("Program", (), {"in_reference": (("a", "b"),)})()
    with monkeypatch.context() as patch:
        patch.setattr("compiler.simulator.engine.compile_program", lambda _: program)
        judge = Judge(without_quantizers(quantized), [segments(IN_REFERENCE + 10)], quantized)
    assert judge.crops == IN_REFERENCE


def test_what_the_simulator_cannot_execute_is_said_first(monkeypatch):
    def refuse(*_):
        raise EnvironmentFault("simulator", "no C compiler", "cc", "install one")

    monkeypatch.setattr("compiler.simulator.engine.compile_program", refuse)
    with pytest.raises(EnvironmentFault, match="no C compiler"):
        Judge(network(), [], network())
