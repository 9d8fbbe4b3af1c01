"""What an encoder's weights are worth in eight bits: for the static-compression baseline, which deploys them that way.

Rounded after training, to nearest, symmetric, with one scale for each output channel; norms, biases and activations
stay as they are. Training with the rounding in the forward pass may lose a little less: this is
the simple form.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from common.encoder import Encoder

LARGEST = 127


def rounded(encoder: Encoder) -> Encoder:
    """A copy whose weights of convolutions and linear layers are what int8 can hold."""
    deployed = copy.deepcopy(encoder)
    with torch.no_grad():
        for module in deployed.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(_rounded(module.weight))
    return deployed


def _rounded(weight: Tensor) -> Tensor:
    """``[C_out, ...]`` with each output channel on its own grid of 255 values."""
    flat = weight.flatten(1)
    scale = (flat.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(torch.finfo(weight.dtype).tiny)
    return (torch.round(flat / scale) * scale).view_as(weight)
