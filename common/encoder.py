"""The audio encoder as ordered blocks, so that it can be cut after any of them.

A stem, ``L`` blocks and a projection head. The stem always runs on the device; the last block includes the pooling, so
that at cut ``L`` only the embedding travels. GroupNorm throughout: batch statistics break with one window a device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.encoder_efficientnet import efficientnet_b0

ENCODERS: tuple[str, ...] = ("mobile", "mobile-half", "resnet18", "efficientnet-b0")
INPUT_SHAPE = (1, 64, 96)  # one channel, mel bands, frames
HEADS: tuple[str, ...] = ("mlp", "tanh")
PROJECTION_DIM = 128
HEAD_HIDDEN = 256
TANH_DIM = 512
NORM_GROUPS = 8

MOBILE_STEM = 16
MOBILE_CHANNELS = (24, 24, 48, 48, 96, 96, 192, 192)
HALF_STEM = 8
HALF_CHANNELS = (16, 16, 24, 24, 48, 48, 96, 96)  # half of `mobile`'s, up to what the groups of the norms divide
MOBILE_STRIDES = (2, 1, 2, 1, 2, 1, 1, 1)
MOBILE_EXPANSION = 3
RESNET_CHANNELS = (64, 64, 128, 128, 256, 256, 512, 512)
RESNET_STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)
RESNET_EMBEDDING = 128


class Encoder(nn.Module):
    """Stem, ordered blocks and projection head; every method names what it runs.

    Attributes:
        name: one of `ENCODERS`.
        head_name: one of `HEADS`.
        embedding_dim: values of an embedding, which users see.
        projection_dim: values of a projection, which the loss sees.
    """

    def __init__(
        self, *, name: str, stem: nn.Module, blocks: list[nn.Module], embedding_dim: int, head: str = "mlp"
    ) -> None:
        super().__init__()
        self.name = name
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head, self.projection_dim = _head(head, embedding_dim)
        self.head_name = head
        self.embedding_dim = embedding_dim
        self._shapes = self._measure_shapes()

    @property
    def depth(self) -> int:
        """``L``: how many blocks there are; a cut is one of 0..L."""
        return len(self.blocks)

    def activation_shape(self, cut: int) -> tuple[int, ...]:
        """Shape of one view's activations at a cut: ``(C, H, W)``, or ``(D,)`` at cut ``L``.

        Raises:
            ValueError: a cut outside 0..L.
        """
        if not 0 <= cut <= self.depth:
            raise ValueError(f"cut {cut} does not exist: {self.name} has the cuts 0..{self.depth}")
        return self._shapes[cut]

    def forward_to(self, x: Tensor, cut: int) -> Tensor:
        """The client segment: log-mel ``[N, 1, 64, 96]`` to activations ``[N, *activation_shape(cut)]``."""
        _check_shape(x, INPUT_SHAPE, "log-mel input")
        return self.forward_between(self.stem(x), 0, cut)

    def forward_between(self, h: Tensor, start: int, stop: int) -> Tensor:
        """Run the blocks ``start..stop-1``: activations at cut ``start`` to activations at cut ``stop``."""
        _check_shape(h, self.activation_shape(start), f"activations at cut {start}")
        self.activation_shape(stop)
        if stop < start:
            raise ValueError(f"blocks run forwards only, not from cut {start} to cut {stop}")
        for block in self.blocks[start:stop]:
            h = block(h)
        return h

    def forward_from(self, h: Tensor, cut: int) -> Tensor:
        """The server segment without the head: activations at ``cut`` to embeddings ``[N, embedding_dim]``."""
        return self.forward_between(h, cut, self.depth)

    def forward(self, x: Tensor) -> Tensor:
        """The whole encoder: log-mel ``[N, 1, 64, 96]`` to embeddings ``[N, embedding_dim]``."""
        return self.forward_to(x, self.depth)

    def project(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``[N, embedding_dim]`` to projections of unit length ``[N, projection_dim]``."""
        _check_shape(embeddings, (self.embedding_dim,), "embeddings")
        return functional.normalize(self.head(embeddings), dim=1)

    def _measure_shapes(self) -> tuple[tuple[int, ...], ...]:
        shapes: list[tuple[int, ...]] = []
        with torch.no_grad():
            h = self.stem(torch.zeros(1, *INPUT_SHAPE))
            shapes.append(tuple(h.shape[1:]))
            for block in self.blocks:
                h = block(h)
                shapes.append(tuple(h.shape[1:]))
        return tuple(shapes)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation; the input is added where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        hidden = channels_in * MOBILE_EXPANSION
        self.expand = nn.Conv2d(channels_in, hidden, 1, bias=False)
        self.expand_norm = nn.GroupNorm(NORM_GROUPS, hidden)
        self.filter = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.filter_norm = nn.GroupNorm(NORM_GROUPS, hidden)
        self.project = nn.Conv2d(hidden, channels_out, 1, bias=False)
        self.project_norm = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        h: Tensor = functional.relu(self.expand_norm(self.expand(x)))
        h = functional.relu(self.filter_norm(self.filter(h)))
        h = self.project_norm(self.project(h))
        return x + h if self.residual else h


class BasicBlock(nn.Module):
    """ResNet's two 3 x 3 convolutions with a shortcut (He et al. 2016), GroupNorm instead of BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.GroupNorm(NORM_GROUPS, channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        h = functional.relu(self.first_norm(self.first(x)))
        h = self.second_norm(self.second(h))
        return functional.relu(h + self.shortcut(x))


class MeanPool(nn.Module):
    """Mean over both spatial axes."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, C]``."""
        return x.mean(dim=(2, 3))


def build_encoder(name: str, seed: int, *, head: str = "mlp") -> Encoder:
    """Build one of `ENCODERS` with one of `HEADS`: `common.config_fleet.FleetConfig.head` says which a fleet has.

    The same seed gives the same weights, those of stem and blocks with any head, and no global random state changes.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}, allowed: {', '.join(ENCODERS)}")
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}, allowed: {', '.join(HEADS)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators too
        if name == "efficientnet-b0":
            stem, blocks, embedding_dim = efficientnet_b0()
            return Encoder(name=name, stem=stem, blocks=blocks, embedding_dim=embedding_dim, head=head)
        if name == "mobile-half":
            return _mobile(name, head, stem_channels=HALF_STEM, channels=HALF_CHANNELS)
        return _mobile(name, head) if name == "mobile" else _resnet18(head)


def _head(name: str, embedding_dim: int) -> tuple[nn.Module, int]:
    """The head and the values of a projection: ``mlp``, or ``tanh`` as COLA has it (Saeed et al. 2021)."""
    if name == "tanh":
        return nn.Sequential(nn.Linear(embedding_dim, TANH_DIM), nn.LayerNorm(TANH_DIM), nn.Tanh()), TANH_DIM
    layers = nn.Linear(embedding_dim, HEAD_HIDDEN), nn.ReLU(), nn.Linear(HEAD_HIDDEN, PROJECTION_DIM)
    return nn.Sequential(*layers), PROJECTION_DIM


def _mobile(
    name: str, head: str, *, stem_channels: int = MOBILE_STEM, channels: tuple[int, ...] = MOBILE_CHANNELS
) -> Encoder:
    stem = nn.Sequential(
        nn.Conv2d(1, stem_channels, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(NORM_GROUPS, stem_channels),
        nn.ReLU(),
    )
    inputs = (stem_channels, *channels[:-1])
    blocks: list[nn.Module] = [
        InvertedResidual(channels_in, channels_out, stride=stride)
        for channels_in, channels_out, stride in zip(inputs, channels, MOBILE_STRIDES, strict=True)
    ]
    blocks[-1] = nn.Sequential(blocks[-1], MeanPool())
    return Encoder(name=name, stem=stem, blocks=blocks, embedding_dim=channels[-1], head=head)


def _resnet18(head: str) -> Encoder:
    width = RESNET_CHANNELS[0]
    stem = nn.Sequential(
        nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False),
        nn.GroupNorm(NORM_GROUPS, width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    inputs = (width, *RESNET_CHANNELS[:-1])
    blocks: list[nn.Module] = [
        BasicBlock(channels_in, channels_out, stride=stride)
        for channels_in, channels_out, stride in zip(inputs, RESNET_CHANNELS, RESNET_STRIDES, strict=True)
    ]
    blocks[-1] = nn.Sequential(blocks[-1], MeanPool(), nn.Linear(RESNET_CHANNELS[-1], RESNET_EMBEDDING))
    return Encoder(name="resnet18", stem=stem, blocks=blocks, embedding_dim=RESNET_EMBEDDING, head=head)


def _check_shape(x: Tensor, expected: tuple[int, ...], what: str) -> None:
    if tuple(x.shape[1:]) != expected:
        raise ValueError(f"{what} must be [N, {', '.join(map(str, expected))}], not {list(x.shape)}")
