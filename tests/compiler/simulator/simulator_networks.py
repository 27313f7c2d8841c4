"""Small networks in the vendor dialect: MCT quantizes and exports them, seeded.

`python -m tests.compiler.simulator.simulator_networks` writes the fixtures the fast tests read; the slow
test exports the same networks live.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIXTURES = Path(__file__).parent / "fixtures"
SHAPE = (3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 1, *, gain: float = 1.0, **options: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, **options)
    layer.weight.data *= gain
    return layer


class Convolutions(nn.Module):
    """Dense, depthwise, strided, dilated, grouped, asymmetric padding, folded batch norm, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = conv(8, 8, 3, groups=8, padding=1)
        self.dilated = conv(8, 8, 3, dilation=2, padding=2)
        self.grouped = conv(8, 12, 1, groups=4)
        self.strided = conv(12, 12, 3, stride=2)
        self.twice = conv(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.relu(self.norm(self.stem(x))))
        x = self.grouped(F.relu(self.dilated(F.relu(x))))
        x = self.strided(F.pad(x, (0, 1, 0, 1)))
        return self.twice(F.relu(self.twice(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(3, 4, 3, padding=1), conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.b(x)) + self.c(x)


class Resizing(nn.Module):
    """Concatenation of pooled and resized branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (conv(3, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        nearest = F.interpolate(F.max_pool2d(self.b(x), 3, 2, 1), scale_factor=2.0, mode="nearest")
        linear = F.interpolate(
            F.avg_pool2d(self.c(x), 3, 2, 1, count_include_pad=False), size=(8, 8), mode="bilinear"
        )
        odd = F.interpolate(self.d(x), size=(3, 5), mode="bilinear")
        back = F.interpolate(odd, size=(8, 8), mode="nearest")
        return torch.cat([self.a(x), nearest, linear, back], 1)


class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(3, 2, gain=0.05) for _ in range(10))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g, h, i, j = (layer(x) for layer in self.layers)
        return torch.cat(
            [
                torch.sigmoid(a),
                torch.tanh(b),
                F.hardswish(c),
                F.hardsigmoid(d),
                F.gelu(e),
                F.silu(f),
                F.leaky_relu(g, 0.1),
                F.relu6(h),
                torch.clamp(i, -1.5, 2.5),
                torch.softmax(j, 1),
                F.gelu(j, approximate="tanh"),
            ],
            1,
        )


class Gate(nn.Module):
    """Squeeze and excitation, with both spellings of the global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8, 3, padding=1), conv(8, 8, bias=False), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.a(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.b(x.mean((2, 3), keepdim=True)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 3, padding=1)
        self.upward = nn.ConvTranspose2d(8, 4, 2, 2)
        self.overlapping = nn.ConvTranspose2d(4, 4, 3, 2, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.overlapping(F.relu(self.upward(self.stem(x))))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens = conv(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.hidden, self.head = nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.stem(x))
        return self.head(F.relu(self.hidden(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (conv(3, 4, gain=0.05) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).reshape(-1, 4, 64) for layer in (self.q, self.k, self.v))
        scores = torch.softmax(torch.matmul(q.transpose(1, 2), k) * 0.5, -1)
        return torch.matmul(scores, v.transpose(1, 2))


class Shapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shuffled = x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
        first, second = shuffled.chunk(2, 1)
        small = F.pad(first[:, :, 1:7:2, :], (0, 0, 2, 3), value=1.5)
        picked = second[:, [3, 0, 2]]
        wide = F.adaptive_avg_pool2d(x, 1).expand(1, 8, 8, 8)
        blocks = x.view(-1, 8, 4, 2, 4, 2).permute(0, 3, 5, 1, 2, 4).reshape(-1, 32, 4, 4)
        deep = F.interpolate(blocks, scale_factor=2.0, mode="nearest")
        return torch.cat([small, picked, wide, deep, torch.split(x, [3, 5], 1)[1]], 1)


class Elementwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(3, 4)
        self.gain = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return torch.cat(
            [
                *(a - b, a * b, torch.maximum(a, b), torch.minimum(a, b), -a, torch.abs(b)),
                *(a * 0.5 + 1.5, a / 3.0, a * self.gain + self.gain, 2.0 - a),
                *(a / (torch.abs(b) + 4), torch.exp(a * 0.01), torch.sqrt(torch.abs(b)), a**2, torch.sin(a)),
            ],
            1,
        )


class Normalisation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.batch, self.layer = nn.BatchNorm2d(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rms = x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 1.0)
        batch = self.batch(F.max_pool2d(x, 3, 1, 1))
        return torch.cat([batch, self.layer(x), F.normalize(x, dim=1), rms], 1)


class Reductions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        joined = torch.cat([x.mean((2, 3)), x.sum((2, 3)), x.amax((2, 3))], 1)
        values, indices = torch.topk(x.mean((2, 3)), 3)
        return joined, values, indices, x.argmax(1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": Convolutions,
    "residual": Residual,
    "resizing": Resizing,
    "activations": Activations,
    "gate": Gate,
    "transposed": Transposed,
    "linear": Linear,
    "attention": Attention,
    "shapes": Shapes,
    "elementwise": Elementwise,
    "normalisation": Normalisation,
    "reductions": Reductions,
}


def export(network: nn.Module, shape: tuple[int, ...], path: Path, *, lowest: int = 0, seed: int = 0) -> None:
    """Post-training quantization of MCT for its imx500 target on random integers, written as ONNX."""
    import model_compression_toolkit as mct

    def representative() -> Iterator[list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(4):
            yield [torch.randint(lowest, lowest + 256, (1, *shape), generator=generator).float()]

    torch.manual_seed(seed)
    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        network.eval(),
        representative,
        target_platform_capabilities=mct.get_target_platform_capabilities("pytorch", "imx500"),
    )
    mct.exporter.pytorch_export_model(
        quantized,
        save_model_path=str(path),
        repr_dataset=representative,
        serialization_format=mct.exporter.PytorchExportSerializationFormat.ONNX,
        quantization_format=mct.exporter.QuantizationFormat.MCTQ,
    )


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


if __name__ == "__main__":
    for name in sys.argv[1:] or NETWORKS:
        export(build(name), SHAPE, FIXTURES / f"{name}.onnx")
