"""Folded and original agree on every output pixel, borders included."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import contract as contracts
from passes import graph as graphs
from passes.contract import InputContract
from passes.fold_input import FoldInput
from passes.pipeline import FLOAT_TRANSFORMS, apply, apply_all
from tests.graphs import model, node, op_types, relative_error, run

LIMIT = 1e-5  # of the output range: what the issue allows float error to be
FOLD = next(t for t in FLOAT_TRANSFORMS if t.name == "fold-input")


def pixels(contract: InputContract, seed: int = 0) -> np.ndarray:
    """Random integers the sensor can deliver, float32 [1, C, H, W]."""
    shape = (1, contract.channels, contract.height, contract.width)
    return (
        np.random.default_rng(seed).integers(contract.lowest, contract.highest + 1, shape).astype(np.float32)
    )


def normalised(contract: InputContract, q: np.ndarray) -> np.ndarray:
    column = (1, -1, 1, 1)
    return (q * np.reshape(contract.scale, column) + np.reshape(contract.offset, column)).astype(np.float32)


def assert_folds(built, contract: InputContract) -> list[str]:
    """Run before on normalised pixels and after on raw ones; returns the operators after."""
    q = pixels(contract)
    before = run(built, normalised(contract, q))
    names = [value.name for value in built.graph.outputs]
    after, _ = apply(built, FOLD)
    assert graphs.read_contract(after).is_raw
    onnx.checker.check_model(graphs.to_proto(after), full_check=True)
    assert [value.name for value in after.graph.outputs] == names
    for reference, output in zip(before, run(after, q), strict=True):
        assert relative_error(reference, output) <= LIMIT
    return op_types(after)


def conv(weight: np.ndarray, bias: np.ndarray | None, contract: InputContract, **attributes):
    constants = {"w": weight.astype(np.float32)}
    if bias is not None:
        constants["b"] = bias.astype(np.float32)
    return model(
        [node("Conv", ["x", *constants], ["y"], **attributes)],
        {"x": [1, contract.channels, contract.height, contract.width]},
        ["y"],
        constants,
        contract,
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    groups=st.sampled_from([1, 3]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    signed=st.booleans(),
    same_zero=st.booleans(),
)
def test_any_convolution_at_the_input(seed, groups, kernel, pads, stride, dilation, bias, signed, same_zero):
    rng = np.random.default_rng(seed)
    scale = tuple(rng.uniform(0.005, 0.05, 3))
    zero = np.full(3, -100.0) if same_zero else rng.uniform(-140, 20, 3)
    contract = InputContract(3, 11, 9, "RGB", scale, tuple(zero * scale), signed)
    weight = rng.normal(size=(6, 3 // groups, *kernel))
    built = conv(
        weight,
        rng.normal(size=6) if bias else None,
        contract,
        group=groups,
        pads=list(pads),
        strides=[stride, stride],
        dilations=[dilation, dilation],
    )
    ops = assert_folds(built, contract)
    assert set(ops) <= {"Concat", "Pad", "Conv"}


def test_without_an_offset_padding_stays_in_the_convolution():
    contract = contracts.centred(3, 8, 8)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    assert assert_folds(conv(weight, None, contract, pads=[1, 1, 1, 1]), contract) == ["Conv"]


def test_equal_zeros_become_one_pad_and_unequal_ones_a_frame():
    grey = InputContract(3, 8, 8, "RGB", (0.01,) * 3, (-1.0,) * 3)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    assert assert_folds(conv(weight, None, grey, pads=[1, 1, 1, 1]), grey) == ["Pad", "Conv"]
    colour = contracts.imagenet(8, 8)
    built = conv(weight, None, colour, pads=[1, 1, 1, 1])
    assert assert_folds(built, colour) == ["Concat", "Concat", "Conv"]


def test_two_readers_share_weights_and_keep_their_own():
    contract = contracts.imagenet(8, 8)
    weight = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
    built = model(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            node("Conv", ["x", "w"], ["b"]),
            node("Conv", ["a", "w"], ["c"], pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 8, 8]},
        ["a", "b", "c"],
        {"w": weight},
        contract,
    )
    assert_folds(built, contract)


def test_a_reader_that_is_no_convolution_gets_an_explicit_normalisation():
    contract = contracts.imagenet(8, 8)
    weight = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
    built = model(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            node("AveragePool", ["x"], ["p"], kernel_shape=[2, 2], pads=[1, 1, 0, 0], strides=[1, 1]),
            node("Add", ["a", "p"], ["y"]),
        ],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": weight},
        contract,
    )
    assert assert_folds(built, contract).count("Conv") == 2


def test_normalisation_nodes_at_the_head_are_taken_in():
    contract = contracts.unit(3, 8, 8)
    rng = np.random.default_rng(1)
    built = model(
        [
            node("Sub", ["x", "mean"], ["s"]),
            node("Div", ["s", "std"], ["d"]),
            node("BatchNormalization", ["d", "g", "b", "m", "v"], ["n"]),
            node("Conv", ["n", "w"], ["y"], pads=[1, 0, 1, 2]),
        ],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {
            "mean": np.float32([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1),
            "std": np.float32([0.229, 0.224, 0.225]).reshape(3, 1, 1),
            "g": np.float32([1.1, -0.8, 1.3]),
            "b": np.float32([0.1, 0.2, -0.3]),
            "m": np.float32([0.0, 0.5, 0.1]),
            "v": np.float32([1.0, 0.5, 2.0]),
            "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        },
        contract,
    )
    assert assert_folds(built, contract) == ["Concat", "Concat", "Conv"]


def test_subtraction_from_a_constant():
    contract = contracts.unit(3, 6, 6)
    weight = np.random.default_rng(2).normal(size=(2, 3, 3, 3)).astype(np.float32)
    built = model(
        [node("Sub", ["one", "x"], ["n"]), node("Conv", ["n", "w"], ["y"], pads=[1, 1, 1, 1])],
        {"x": [1, 3, 6, 6]},
        ["y"],
        {"one": np.float32(1.0), "w": weight},
        contract,
    )
    assert assert_folds(built, contract) == ["Pad", "Conv"]


def test_a_head_that_varies_over_the_picture_is_left_alone():
    contract = contracts.raw(1, 4, 4)
    constants = {
        "k": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4),
        "w": np.ones((1, 1, 3, 3), np.float32),
    }
    built = model(
        [node("Mul", ["x", "k"], ["m"]), node("Conv", ["m", "w"], ["y"])],
        {"x": [1, 1, 4, 4]},
        ["y"],
        constants,
        contract,
    )
    assert assert_folds(built, contract) == ["Mul", "Conv"]


def test_the_normalised_input_as_an_output():
    contract = contracts.imagenet(4, 4)
    built = model(
        [node("Sub", ["x", "one"], ["y"])], {"x": [1, 3, 4, 4]}, ["y"], {"one": np.float32(1.0)}, contract
    )
    assert assert_folds(built, contract) == ["Conv"]


def test_vectors_are_normalised_by_mul_and_add():
    contract = InputContract(5, 1, 1, "ANY", (0.1, 0.2, 0.3, 0.4, 0.5), (1.0,) * 5)
    weight = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    built = model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 5]}, ["y"], {"w": weight}, contract)
    q = np.float32([[0, 50, 100, 200, 255]])
    before = run(built, (q * np.float32(contract.scale) + np.float32(contract.offset)).astype(np.float32))
    after, _ = apply(built, FOLD)
    assert relative_error(before[0], run(after, q)[0]) <= LIMIT
    assert op_types(after) == ["Mul", "Add", "MatMul"]


def test_a_raw_input_is_left_as_it_is():
    contract = contracts.raw(3, 8, 8)
    built = conv(np.ones((2, 3, 3, 3)), None, contract, pads=[1, 1, 1, 1])
    before = graphs.to_bytes(built)
    assert not FoldInput().call(built).modified
    assert graphs.to_bytes(built) == before


def test_a_model_without_a_contract_is_refused():
    built = model([node("Relu", ["x"], ["y"])], {"x": [1, 3, 4, 4]}, ["y"])
    with pytest.raises(Exception, match="no input contract"):
        apply(built, FOLD)


def test_two_pictures_of_one_shape_are_both_folded_and_another_shape_is_not():
    """The contract is about inputs of its own shape; a larger second picture takes what it took before."""
    contract = contracts.imagenet(8, 8)
    weight = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    built = model(
        [
            node("Concat", ["a", "b"], ["ab"], axis=1),
            node("Conv", ["large", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {"a": [1, 3, 8, 8], "b": [1, 3, 8, 8], "large": [1, 3, 12, 12]},
        ["ab", "y"],
        {"w": weight},
        contract,
    )
    a, b = pixels(contract, 1), pixels(contract, 2)
    large = np.random.default_rng(3).normal(size=(1, 3, 12, 12)).astype(np.float32)
    before = run(built, normalised(contract, a), normalised(contract, b), large)
    after, _ = apply(built, FOLD)
    onnx.checker.check_model(graphs.to_proto(after), full_check=True)
    for reference, output in zip(before, run(after, a, b, large), strict=True):
        assert relative_error(reference, output) <= LIMIT


def test_names_of_the_users_stay_theirs():
    contract = contracts.imagenet(8, 8)
    weight = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
    built = model(
        [
            node("Conv", ["x", "w"], ["a"], name="y", pads=[1, 1, 1, 1]),
            node("Relu", ["x"], ["b"], name="x.normalise"),
            node("Add", ["a", "b"], ["out"], name="y.frame_h"),
        ],
        {"x": [1, 3, 8, 8]},
        ["out"],
        {"w": weight},
        contract,
    )
    assert_folds(built, contract)
    names = [n.name for n in built.graph]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("shape", "weight_shape"),
    [([2, 3, 8, 8], (4, 3, 3, 3)), ([1, 3, "h", 8], (4, 3, 3, 3)), ([1, 3, 8], (4, 3, 3))],
)
def test_what_is_no_picture_is_left_to_the_rules(shape, weight_shape):
    """Another batch, a symbolic size, rank 3: the check refuses them; the fold must not touch them."""
    contract = contracts.imagenet(8, 8)
    weight = np.random.default_rng(0).normal(size=weight_shape).astype(np.float32)
    pads = [1] * (2 * (len(weight_shape) - 2))
    built = model([node("Conv", ["x", "w"], ["y"], pads=pads)], {"x": shape}, ["y"], {"w": weight}, contract)
    after, modified = apply(built, FOLD)
    assert op_types(after) == ["Conv"]
    assert modified  # the contract in the metadata


@pytest.mark.parametrize("opset", [9, 11])
def test_old_operator_sets_are_raised_first(opset):
    grey = InputContract(3, 8, 8, "RGB", (0.01,) * 3, (-1.0,) * 3)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    proto = oh.make_model(
        oh.make_graph(
            [
                node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
                node("Clip", ["c"], ["y"], min=0.0, max=6.0)
                if opset < 11
                else node("Clip", ["c", "low", "high"], ["y"]),
            ],
            "old",
            [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
            [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 8, 8])],
            [onh.from_array(weight, "w")]
            + (
                []
                if opset < 11
                else [onh.from_array(np.float32(0), "low"), onh.from_array(np.float32(6), "high")]
            ),
        ),
        opset_imports=[oh.make_opsetid("", opset)],
        ir_version=6,
    )
    built = graphs.from_proto(proto)
    graphs.write_contract(built, grey)
    q = pixels(grey)
    before = run(built, normalised(grey, q))[0]
    after = apply_all(built)
    assert after.opset_imports[""] == 17
    assert relative_error(before, run(after, q)[0]) <= LIMIT
