"""How uncertain the device is about a window, told from its own replica of encoder and mixture, without asking."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from common.encoder import Encoder
from common.mixture_memory import MixtureMemory


class Ambiguity:
    """The uncertainty of `MixtureMemory`, computed on the device: a forward of the whole encoder and the head.

    The trainer's answer to a sent part holds the same figure for its own weights; this one is for windows whose
    sending is still to be decided, and where the trainer has nothing to answer, after the last block. Blocks beyond the
    cut are as old as the device's last refresh of them.

    Attributes:
        latest: what was said last, at ``latest_at_s`` on the monotonic clock; None: nothing yet.
    """

    def __init__(self, encoder: Encoder, mixture: MixtureMemory) -> None:
        self._encoder = encoder
        self._mixture = mixture
        self.latest: float | None = None
        self.latest_at_s: float | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a mixture to tell it by."""
        return self._mixture.started

    @torch.no_grad()
    def embedding(self, first: Tensor) -> Tensor:
        """The embedding [1, D] of view A, [1, 1, 64, 96], by the weights that are here.

        Raises:
            ValueError: another shape.
        """
        return self._encoder.forward_to(first, self._encoder.depth)

    @torch.no_grad()
    def of(self, embedding: Tensor) -> float | None:
        """Uncertainty, in 0..1, of a window by the embedding [1, D] of its view A; None before the mixture has started.

        Raises:
            ValueError: another shape.
        """
        if not self.ready:
            return None
        self.latest = float(self._mixture.uncertainty(self._encoder.project(embedding)))
        self.latest_at_s = time.monotonic()
        return self.latest
