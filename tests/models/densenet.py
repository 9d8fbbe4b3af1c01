"""DenseNet-121 (Huang et al. 2017): every layer of a block sees the outputs of all layers of the block before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.convolution import norm

LAYERS = (6, 12, 24, 16)
GROWTH = 32


class DenseLayer(nn.Module):
    """Concatenates everything so far, and adds ``growth`` channels through a bottleneck of four times as many."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            norm(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features ``[N, c_i, H, W]`` to ``[N, growth, H, W]``."""
        out: Tensor = self.layers(torch.cat(features, dim=1))
        return out


class DenseNet(nn.Module):
    """A spectrogram ``[N, 1, 64, 96]`` to ``[N, classes]``."""

    def __init__(self, layers: tuple[int, ...] = LAYERS, growth: int = GROWTH, classes: int = 128) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 7, stride=2, padding=3, bias=False),
            norm(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for count in layers:
            self.blocks.append(nn.ModuleList(DenseLayer(channels + i * growth, growth) for i in range(count)))
            channels += count * growth
            self.transitions.append(_transition(channels, last=len(self.blocks) == len(layers)))
            channels = channels if len(self.blocks) == len(layers) else channels // 2
        self.classify = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions):
            features = [x]
            for layer in block:  # type: ignore[attr-defined]  # a ModuleList in a ModuleList
                features.append(layer(features))
            x = transition(torch.cat(features, dim=1))
        out: Tensor = self.classify(x.mean(dim=(2, 3)))
        return out


def _transition(channels: int, *, last: bool) -> nn.Sequential:
    if last:
        return nn.Sequential(norm(channels), nn.ReLU())
    halved = nn.Conv2d(channels, channels // 2, 1, bias=False)
    return nn.Sequential(norm(channels), nn.ReLU(), halved, nn.AvgPool2d(2, stride=2))
