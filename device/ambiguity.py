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
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def embedding(self, views: Tensor) -> Tensor:
        """The embedding [1, D] of view A of ``views`` [2, 1, 64, 96], by the weights that are here.

        Asked again about the same tensor it does not compute again: a window's embedding and its uncertainty are asked
        for one after the other, with no step between.

        Raises:
            ValueError: another shape.
        """
        if self._last is None or self._last[0] is not views:
            self._last = (views, self._encoder.forward_to(views[:1], self._encoder.depth))
        return self._last[1]

    @torch.no_grad()
    def of(self, views: Tensor) -> float:
        """Uncertainty of view A of ``views`` [2, 1, 64, 96], in 0..1; 0.5 before the mixture has started.

        Raises:
            ValueError: another shape.
        """
        return float(self._mixture.uncertainty(self._encoder.project(self.embedding(views))))
