"""Networks that nobody here wrote (torchvision's, random weights) and a plain U-Net, as ONNX files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torchvision.models as zoo
from torch import Tensor, nn


class UNet(nn.Module):
    """Two levels, concatenation skips, transposed convolutions; logits of 2 classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.encoder = nn.ModuleList()
        before = 3
        for channels in widths:
            self.encoder.append(_double(before, channels))
            before = channels
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in widths[-2::-1])
        self.decoder = nn.ModuleList(_double(2 * c, c) for c in widths[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, block in enumerate(self.encoder):
            x = block(x if index == 0 else self.pool(x))
            skips.append(x)
        for up, block, skip in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat([up(x), skip], dim=1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class MaskOnly(nn.Module):
    """torchvision's segmentation networks return a dict; ONNX wants the tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["out"]


FOREIGN: Mapping[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: zoo.mobilenet_v2(weights=None),
    "mobilenet_v3_small": lambda: zoo.mobilenet_v3_small(weights=None),
    "shufflenet_v2_x0_5": lambda: zoo.shufflenet_v2_x0_5(weights=None),
    "squeezenet1_1": lambda: zoo.squeezenet1_1(weights=None),
    "lraspp_mobilenet_v3_large": lambda: MaskOnly(
        zoo.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    ),
    "unet_concat": UNet,
}


def foreign(name: str, seed: int = 0) -> nn.Module:
    """The network in evaluation mode with random weights and batch norm statistics."""
    torch.manual_seed(seed)
    return randomised(FOREIGN[name]())


def randomised(network: nn.Module) -> nn.Module:
    """Evaluation mode, batch norms with statistics that matter."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def export(network: nn.Module, path: Path, size: int = 96, opset: int = 17) -> Path:
    """The network as users export it: torch.onnx.export with a symbolic batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, size, size),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
    return path
