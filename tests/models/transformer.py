"""An audio spectrogram transformer's shape (Gong et al. 2021, small): patches, then blocks of attention and MLP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

HEADS = 4


class Attention(nn.Module):
    """Query, key and value are three tensors of the graph, so that a cut between them has several."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, width]`` to the same."""
        split = [part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        mixed = functional.scaled_dot_product_attention(*split)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm: attention and MLP, each with a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, width]`` to the same."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Transformer(nn.Module):
    """A spectrogram ``[N, 1, 64, 96]`` to ``[N, classes]``."""

    def __init__(self, depth: int = 12, width: int = 192, classes: int = 128) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 16, stride=16)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        out: Tensor = self.classify(self.norm(self.blocks(x)).mean(dim=1))
        return out
