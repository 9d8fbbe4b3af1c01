"""The device's side of a step: forward per window, then backward on what was answered, and learning from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.encoder import Encoder
from common.split import block_parameters, client_names


@dataclass(frozen=True, slots=True)
class _Held:
    cut: int
    activations: Tensor  # with its graph, [2, *activation_shape(cut)]


def in_order(parts: Iterable[int]) -> list[int]:
    """The order in which parts are backpropagated: that in which autograd takes them all at once, bit for bit."""
    return sorted(parts, reverse=True)


class ClientStep:
    """One step in flight. No optimizer step happens while graphs are held, so they stay valid."""

    def __init__(self, encoder: Encoder, learn: Callable[[Sequence[str], float], None]) -> None:
        """``learn``: takes the gradients of the named blocks at a rate: an optimizer step, or summing them up."""
        self._encoder = encoder
        self._learn = learn
        self._held: dict[int, _Held] = {}
        self._cuts: list[int] = []  # of the parts that were backpropagated

    @property
    def parts(self) -> int:
        """How many windows of the step in flight hold their graph."""
        return len(self._held)

    def forward(self, views: Tensor, *, part: int, cut: int) -> Tensor:
        """Run the client segment on one window's two views.

        Args:
            views: [2, 1, 64, 96], view A and view B.
            part: the window's number in the step.
            cut: blocks to run, 0..L.

        Returns:
            Activations [2, *activation_shape(cut)], detached: what travels.
        """
        assert views.shape[:2] == (2, 1), f"a part is two views [2, 1, bands, frames], not {tuple(views.shape)}"
        activations = self._encoder.forward_to(views, cut)
        self._held[part] = _Held(cut, activations)
        return activations.detach()

    def backward(self, part: int, gradient: Tensor) -> None:
        """Backpropagate an answered part and let go of its graph; one that is not of this step is passed over.

        Args:
            part: the window's number in the step.
            gradient: of the *sum* of the windows' losses at the part's cut, [2, *activation_shape(cut)].
        """
        held = self._held.pop(part, None)
        if held is None:
            return
        if not self._cuts:
            self._encoder.zero_grad(set_to_none=True)
        torch.autograd.backward(held.activations, gradient)
        self._cuts.append(held.cut)

    def learn(self, *, learning_rate: float) -> list[str]:
        """Learn from the parts that were backpropagated, and forget the step.

        Args:
            learning_rate: what the trainer's schedule says for this step.

        Returns:
            The names of the blocks that learned; empty if no part of this step was answered.
        """
        cuts = self._cuts
        self.forget()
        if not cuts:
            return []
        moved = client_names(max(cuts))
        self._mean_over_own_windows(cuts, moved)
        self._learn(moved, learning_rate)
        return list(moved)

    def _mean_over_own_windows(self, cuts: Sequence[int], moved: Sequence[str]) -> None:
        """A participant's gradient of a block is the mean over the windows that it ran through that block."""
        for index, name in enumerate(moved):
            # name 0 is the stem, name i is block i-1: run by every cut >= i
            windows = sum(cut >= index for cut in cuts)
            for parameter in block_parameters(self._encoder, name):
                if parameter.grad is not None:
                    parameter.grad.div_(windows)

    def forget(self) -> None:
        """Drop the step in flight: late, lost, or the link is gone."""
        self._held, self._cuts = {}, []
