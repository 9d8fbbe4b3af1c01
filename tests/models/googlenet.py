"""GoogLeNet (Szegedy et al. 2015, table 1): nine inception modules of four branches that are concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.convolution import conv

# channels in; 1 x 1; reduction and 3 x 3; reduction and 5 x 5; projection after the pooling
MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches; their outputs are concatenated over channels."""

    def __init__(self, channels: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int) -> None:
        super().__init__()
        self.one = conv(channels, one, 1)
        self.three = nn.Sequential(conv(channels, reduce3, 1), conv(reduce3, three, 3))
        self.five = nn.Sequential(conv(channels, reduce5, 1), conv(reduce5, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(channels, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, one + three + five + pooled, H, W]``."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


class GoogLeNet(nn.Module):
    """A spectrogram ``[N, 1, 64, 96]`` to ``[N, classes]``; ``narrow``: every width divided by it."""

    def __init__(self, classes: int = 128, narrow: int = 1) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = {name: tuple(width // narrow for width in module) for name, module in MODULES.items()}
        first, second = 64 // narrow, 192 // narrow
        self.stem = nn.Sequential(
            conv(1, first, 7, stride=2), pool, conv(first, first, 1), conv(first, second, 3), pool
        )
        self.inceptions = nn.ModuleDict({name: Inception(*module) for name, module in widths.items()})
        self.pool = pool
        self.classify = nn.Linear(1024 // narrow, classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.stem(x)
        for name, inception in self.inceptions.items():
            if name in {"4a", "5a"}:
                x = self.pool(x)
            x = inception(x)
        out: Tensor = self.classify(x.mean(dim=(2, 3)))
        return out
