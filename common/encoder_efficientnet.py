"""EfficientNet-B0 (Tan & Le 2019), the encoder of COLA (Saeed et al. 2021), in blocks that can be cut between.

A block is one of the paper's seven stages, and the eighth its top: 1 x 1 convolution and pooling. Inside a stage all
activations have the same size, so that a cut there would cost the bytes of the one at its end. The strides are the
paper's, which COLA uses on the same pictures of 64 x 96: they leave 2 x 3 places at the end. Other than in the paper:
GroupNorm instead of BatchNorm, which breaks with one window a device; no dropout and no stochastic depth, because a
part has to give the same on both ends; the mean over the places at the end, where COLA takes the maximum.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

STEM_CHANNELS = 32
# expansion, channels, layers, stride of the first, kernel: table 1 of the paper
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
EMBEDDING = 1280
SQUEEZE = 4  # of the block's input channels one in four passes the excitation
GROUPS = 8


class MobileBlock(nn.Module):
    """MBConv: expand, filter each channel, weigh the channels by what they hold, project; added where shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, *, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = _convolution(channels_in, hidden, activate=True) if expansion > 1 else nn.Identity()
        self.filter = _convolution(hidden, hidden, kernel=kernel, stride=stride, groups=hidden, activate=True)
        self.excite = Excitation(hidden, channels_in // SQUEEZE)
        self.project = _convolution(hidden, channels_out)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        h: Tensor = self.project(self.excite(self.filter(self.expand(x))))
        return x + h if self.residual else h


class Excitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): each channel weighed by a look at the means of all."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.widen = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        weights = self.widen(functional.silu(self.squeeze(x.mean(dim=(2, 3))))).sigmoid()
        weighed: Tensor = x * weights[:, :, None, None]
        return weighed


class Top(nn.Module):
    """The last convolution, 1 x 1, and the mean over both spatial axes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.widen = _convolution(channels_in, channels_out, activate=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out]``."""
        h: Tensor = self.widen(x)
        return h.mean(dim=(2, 3))


def efficientnet_b0() -> tuple[nn.Module, list[nn.Module], int]:
    """Stem, blocks and values of an embedding; weights drawn from torch's global generator."""
    stem = _convolution(1, STEM_CHANNELS, kernel=3, stride=2, activate=True)
    blocks: list[nn.Module] = []
    channels = STEM_CHANNELS
    for expansion, channels_out, layers, stride, kernel in STAGES:
        first = MobileBlock(channels, channels_out, expansion=expansion, stride=stride, kernel=kernel)
        rest = [
            MobileBlock(channels_out, channels_out, expansion=expansion, stride=1, kernel=kernel)
            for _ in range(layers - 1)
        ]
        blocks.append(nn.Sequential(first, *rest))
        channels = channels_out
    return stem, [*blocks, Top(channels, EMBEDDING)], EMBEDDING


def _convolution(
    channels_in: int, channels_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, activate: bool = False
) -> nn.Sequential:
    """Convolution, GroupNorm and, with ``activate``, SiLU."""
    padding = kernel // 2
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        nn.GroupNorm(GROUPS, channels_out),
    ]
    return nn.Sequential(*layers, nn.SiLU()) if activate else nn.Sequential(*layers)
