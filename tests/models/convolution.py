"""Convolution, norm and activation, as all of the convolutional shapes have them: three nodes of a graph."""

from __future__ import annotations

import math

from torch import nn


def conv(
    channels_in: int, channels_out: int, size: int, *, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
    padding = size // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=padding, bias=False),
        norm(channels_out),
        nn.ReLU(),
    )


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 8 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)
