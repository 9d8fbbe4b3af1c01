"""What a device heard by itself, in the terms of its mixture: gathered there, merged into the fleet's by the trainer.

What travels says how many projections lay near which point and how far around it, never a projection. The trainer takes
each point for what it is, so the components of the two ends need not be numbered alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.codec import Codec, decode_tensor, encode
from common.errors import MessageError
from common.limits import Limits
from common.messages import MixtureStatistics

MEANS_CODEC = Codec.parse("int8")
FLAT_CODEC = Codec.parse("fp16")
MEMORY = 2048  # projections after which one has faded to 1/e, as in the mixture: weeks alone are no weeks' worth
LEAST_MASS = 0.5  # of a component that is worth its bytes
LONGEST_MEAN = 1.05  # of unit vectors it is at most 1; the rest is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """``mass`` [K] projections around ``means`` [K, d]; ``variances`` [K] around them, mean over the values."""

    mass: Tensor
    means: Tensor
    variances: Tensor


class Tally:
    """Gathers projections by the component they lie nearest to."""

    def __init__(self, components: int, dim: int) -> None:
        self._mass = torch.zeros(components)
        self._sums = torch.zeros(components, dim)
        self._squares = torch.zeros(components)

    def add(self, z: Tensor, nearest: Tensor) -> None:
        """Projections ``[N, d]`` and the component of each ``[N]``."""
        for total in (self._mass, self._sums, self._squares):
            total.mul_(math.exp(-len(z) / MEMORY))
        self._mass.index_add_(0, nearest, torch.ones(len(z)))
        self._sums.index_add_(0, nearest, z)
        self._squares.index_add_(0, nearest, z.square().sum(dim=1))

    def take(self) -> Heard | None:
        """What was gathered since the last call; None if that is nothing."""
        worth = self._mass >= LEAST_MASS
        if not worth.any():
            return None
        mass = self._mass[worth]
        means = self._sums[worth] / mass[:, None]
        variances = (self._squares[worth] / mass - means.square().sum(dim=1)).clamp_min(0.0) / means.shape[1]
        for total in (self._mass, self._sums, self._squares):
            total.zero_()
        return Heard(mass, means, variances)


def to_message(heard: Heard, *, boot: str, seq: int) -> MixtureStatistics:
    """Pack for the wire: at most 9 KB for 64 components of 128 values."""
    return MixtureStatistics(
        boot=boot,
        seq=seq,
        mass=encode(heard.mass, FLAT_CODEC),
        means=encode(heard.means, MEANS_CODEC),
        variances=encode(heard.variances, FLAT_CODEC),
    )


def from_message(message: MixtureStatistics, *, components: int, dim: int, limits: Limits) -> Heard:
    """What a device says it heard.

    Raises:
        MessageError: more components or other values than this mixture has, NaN or infinity, and what projections of
            unit length cannot give: a negative mass or variance, a mean beyond the sphere, a variance beyond its size.
    """
    count = message.mass.shape[0]
    if count > components:
        raise MessageError(f"mixture: {count} components, the fleet's mixture has {components}")
    heard = Heard(
        mass=decode_tensor(message.mass, (count,), limits),
        means=decode_tensor(message.means, (count, dim), limits),
        variances=decode_tensor(message.variances, (count,), limits),
    )
    if float(heard.mass.min()) < 0.0:
        raise MessageError("mixture: a negative mass")
    if float(heard.means.double().norm(dim=1).max()) > LONGEST_MEAN:
        raise MessageError("mixture: a mean that lies beyond the sphere")
    if float(heard.variances.min()) < 0.0 or float(heard.variances.max()) * dim > LONGEST_MEAN:
        raise MessageError("mixture: a variance that projections cannot have")
    return heard
