"""The networks, in the parameter names of the PicoSAM2 authors' checkpoints.

Both take a normalised picture, float [N, 3, H, W] with H and W divisible by 16 (96 x 96 on the sensor), and
return one map of logits, float [N, 1, H, W]; a logit above 0 is the object at the picture's centre.
Architecture: arXiv 2506.18807 (PicoSAM2) and arXiv 2603.11917 (PicoSAM3). The modules are plain
`nn.Sequential` blocks with static control flow, so torch.fx and torch.onnx trace them as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ENCODER = (48, 96, 160, 256)
"""Channels of the four encoder stages, at 1, 1/2, 1/4 and 1/8 of the input's size."""

BOTTLENECK = 320
DECODER = (192, 128, 80, 40)
"""Channels of the four decoder stages, at 1/8, 1/4, 1/2 and 1 of the input's size."""


def depthwise_separable(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 3x3, BN, ReLU, pointwise 1x1, BN, ReLU; parameters at indices 0, 1, 3 and 4."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _down(channels: int) -> nn.Conv2d:
    """A dense stride-2 convolution; the authors give it neither bias nor BN nor activation."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), depthwise_separable(inputs, outputs))


class _UNet(nn.Module):
    """The encoder, the decoder and the additive skips that both networks share."""

    def __init__(self, bottleneck: nn.Sequential) -> None:
        super().__init__()
        e1, e2, e3, e4 = ENCODER
        d1, d2, d3, d4 = DECODER
        self.encoder_stage1 = depthwise_separable(3, e1)
        self.down1 = _down(e1)
        self.encoder_stage2 = depthwise_separable(e1, e2)
        self.down2 = _down(e2)
        self.encoder_stage3 = depthwise_separable(e2, e3)
        self.down3 = _down(e3)
        self.encoder_stage4 = depthwise_separable(e3, e4)
        self.down4 = _down(e4)
        self.bottleneck = bottleneck
        self.up1 = _up(BOTTLENECK, d1)
        self.skip_conn4 = nn.Conv2d(e4, d1, 1)
        self.up2 = _up(d1, d2)
        self.skip_conn3 = nn.Conv2d(e3, d2, 1)
        self.up3 = _up(d2, d3)
        self.skip_conn2 = nn.Conv2d(e2, d3, 1)
        self.up4 = _up(d3, d4)
        self.skip_conn1 = nn.Conv2d(e1, d4, 1)

    def features(self, pictures: Tensor) -> Tensor:
        """The last decoder stage: float [N, 40, H, W]."""
        s1 = self.encoder_stage1(pictures)
        s2 = self.encoder_stage2(self.down1(s1))
        s3 = self.encoder_stage3(self.down2(s2))
        s4 = self.encoder_stage4(self.down3(s3))
        x = self.bottleneck(self.down4(s4))
        x = self.up1(x) + self.skip_conn4(s4)
        x = self.up2(x) + self.skip_conn3(s3)
        x = self.up3(x) + self.skip_conn2(s2)
        last: Tensor = self.up4(x) + self.skip_conn1(s1)
        return last


class PicoSAM2(_UNet):
    """1,262,818 parameters, 323.05 M multiply-accumulates at 96 x 96."""

    def __init__(self) -> None:
        super().__init__(depthwise_separable(ENCODER[-1], BOTTLENECK))
        self.output_head = nn.Conv2d(DECODER[-1], 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.output_head(self.features(pictures))
        return logits


class ChannelGate(nn.Module):
    """Multiplies each channel by sigmoid(W mean(x)), W a C x C matrix without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv1x1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = torch.sigmoid(self.conv1x1(self.pool(x)))
        return x * gate


class PicoSAM3(_UNet):
    """PicoSAM2 with a dilated context block in the bottleneck, a channel gate and a refining head."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                depthwise_separable(ENCODER[-1], BOTTLENECK),
                nn.Conv2d(BOTTLENECK, BOTTLENECK, 3, padding=2, dilation=2, groups=BOTTLENECK, bias=False),
                nn.BatchNorm2d(BOTTLENECK),
                nn.ReLU(),
                nn.Conv2d(BOTTLENECK, BOTTLENECK, 1, bias=False),
                nn.BatchNorm2d(BOTTLENECK),
                nn.ReLU(),
            )
        )
        last = DECODER[-1]
        self.eca = ChannelGate(last)
        self.refine = nn.Sequential(
            nn.Conv2d(last, last, 3, padding=1, groups=last, bias=False),
            nn.BatchNorm2d(last),
            nn.ReLU(),
            nn.Conv2d(last, 1, 1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.refine(self.eca(self.features(pictures)))
        return logits


NETWORKS: dict[str, type[nn.Module]] = {"picosam2": PicoSAM2, "picosam3": PicoSAM3}
"""Every network this project trains and recognises in a checkpoint, by name."""
