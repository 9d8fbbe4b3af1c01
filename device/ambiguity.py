"""How uncertain the device is about a window, told from its own replica of encoder and mixture, without asking."""

from __future__ import annotations

import torch
from torch import Tensor

from common.encoder import Encoder
from common.mixture_memory import MixtureMemory


class Ambiguity:
    """The uncertainty of `MixtureMemory`, computed on the device: a forward of the whole encoder and the head.

    The trainer's answer to a sent part holds the same figure for its own weights; this one is for windows whose
    sending is still to be decided. Blocks beyond the cut are as old as the device's last refresh of them.
    """

    def __init__(self, encoder: Encoder, mixture: MixtureMemory) -> None:
        self._encoder = encoder
        self._mixture = mixture

    @torch.no_grad()
    def embedding(self, first: Tensor) -> Tensor:
        """The embedding [1, D] of view A, [1, 1, 64, 96], by the weights that are here.

        Raises:
            ValueError: another shape.
        """
        return self._encoder.forward_to(first, self._encoder.depth)

    @torch.no_grad()
    def of(self, views: Tensor, embedding: Tensor | None = None) -> float:
        """Uncertainty of view A of ``views`` [2, 1, 64, 96], in 0..1; 0.5 before the mixture has started.

        ``embedding``: of view A, where it was computed already, by the weights of then: a window that waited for a step
        or two to be over is ranked as it was when it closed.

        Raises:
            ValueError: another shape.
        """
        if embedding is None:
            embedding = self.embedding(views[:1])
        return float(self._mixture.uncertainty(self._encoder.project(embedding)))
