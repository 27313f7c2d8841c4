"""The networks have the authors' parameter names, counts and shapes, and trace."""

from __future__ import annotations

import io
import re

import pytest
import torch
from torch import nn

from student.networks import NETWORKS, PicoSAM2, PicoSAM3

BLOCK = r"(0\.weight|3\.weight|[14]\.(weight|bias|running_mean|running_var|num_batches_tracked))"
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
COMMON = (
    rf"encoder_stage[1-4]\.{BLOCK}",
    r"down[1-4]\.weight",
    rf"up[1-4]\.1\.{BLOCK}",
    r"skip_conn[1-4]\.(weight|bias)",
)
PATTERNS = {
    "picosam2": (*COMMON, rf"bottleneck\.{BLOCK}", r"output_head\.(weight|bias)"),
    "picosam3": (
        *COMMON,
        rf"bottleneck\.0\.{BLOCK}",
        r"bottleneck\.[14]\.weight",
        rf"bottleneck\.[25]\.{NORM}",
        r"eca\.conv1x1\.weight",
        rf"refine\.(0\.weight|1\.{NORM}|3\.weight|3\.bias)",
    ),
}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module) -> int:
    """Multiply-accumulates of all convolutions for one 96 x 96 picture."""
    total = 0

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += module.weight[0].numel() * output[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    network.eval()(torch.zeros(1, 3, 96, 96))
    return total


def test_picosam2_has_the_published_size() -> None:
    network = PicoSAM2()
    assert count(network) == 1_262_818
    assert round(macs(network) / 1e6, 2) == 323.05


def test_picosam3_has_the_published_size() -> None:
    """5.26 MB (of 2^20 bytes) of float32, within the batch norms' running statistics."""
    network = PicoSAM3()
    stored = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    assert count(network) * 4 / 2**20 < 5.26 < stored / 2**20 + 0.01


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_key_is_one_of_the_authors(name: str) -> None:
    keys = list(NETWORKS[name]().state_dict())
    for key in keys:
        assert any(re.fullmatch(pattern, key) for pattern in PATTERNS[name]), key
    for pattern in PATTERNS[name]:
        assert any(re.fullmatch(pattern, key) for key in keys), pattern


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("size", [(96, 96), (32, 80)])
def test_one_logit_per_pixel(name: str, size: tuple[int, int]) -> None:
    logits = NETWORKS[name]().eval()(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *size)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_traces_and_exports(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    pictures = torch.randn(1, 3, 96, 96)
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(pictures), network(pictures))
    exported = io.BytesIO()
    torch.onnx.export(network, (pictures,), exported, dynamo=False)
    assert len(exported.getvalue()) > 4 * count(network) * 0.98  # folded batch norms leave
