"""ResNet-50 (He et al. 2016): bottlenecks with a skip, narrow in their middle."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from tests.models.convolution import conv, norm

LAYERS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up to four times the width; the input is added, projected where the shapes differ."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.narrow = conv(channels, width, 1)
        self.filter = conv(width, width, 3, stride=stride)
        self.widen = nn.Sequential(nn.Conv2d(width, 4 * width, 1, bias=False), norm(4 * width))
        self.project: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            self.project = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False), norm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, 4 width, H / stride, W / stride]``."""
        skip = x if self.project is None else self.project(x)
        return functional.relu(self.widen(self.filter(self.narrow(x))) + skip)


class ResNet(nn.Module):
    """A spectrogram ``[N, 1, 64, 96]`` to ``[N, classes]``."""

    def __init__(self, layers: tuple[int, ...] = LAYERS, width: int = 64, classes: int = 128) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(layers):
            for index in range(count):
                blocks.append(Bottleneck(channels, width << stage, stride=2 if stage and not index else 1))
                channels = 4 * (width << stage)
        self.stem = nn.Sequential(conv(1, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.classify(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return out
