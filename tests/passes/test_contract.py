"""The input contract: formula, round trip, refusals."""

from __future__ import annotations

import pytest

from passes import contract as contracts
from passes.contract import InputContract
from passes.errors import InputError


def test_imagenet_is_torchvisions_formula():
    contract = contracts.imagenet(96, 96)
    for channel, (mean, std) in enumerate(zip(contracts.IMAGENET_MEAN, contracts.IMAGENET_STD, strict=True)):
        for pixel in (0, 17, 255):
            expected = (pixel / 255 - mean) / std
            assert contract.scale[channel] * pixel + contract.offset[channel] == pytest.approx(
                expected, abs=1e-12
            )


def test_a_signed_input_delivers_pixels_minus_128():
    contract = contracts.centred(3, 96, 96)
    assert (contract.lowest, contract.highest) == (-128, 127)
    assert contract.scale[0] * (200 - 128) + contract.offset[0] == (200 - 128) / 64


@pytest.mark.parametrize(
    "contract", [contracts.imagenet(96, 80), contracts.centred(1, 8, 8), contracts.raw(5, 1, 1)]
)
def test_json_reads_back_exactly(contract):
    assert InputContract.loads(contract.dumps()) == contract
    assert contract.as_raw().is_raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"channels": "x"}',
        contracts.raw(1, 2, 2).dumps().replace('"ANY"', '"CMYK"').replace('"GREY"', '"CMYK"'),
    ],
)
def test_unreadable_contracts_are_the_users_error(text):
    with pytest.raises(InputError, match="input contract"):
        InputContract.loads(text)


def test_one_scale_a_channel():
    with pytest.raises(InputError, match="2 scales"):
        InputContract(3, 8, 8, "RGB", (1.0, 1.0), (0.0, 0.0))
