"""The device's side of a step: forward per window, then one backward and one optimizer step on what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.encoder import Encoder
from common.split import block_parameters, client_names


@dataclass(frozen=True, slots=True)
class _Held:
    cut: int
    activations: Tensor  # with its graph, [2, *activation_shape(cut)]


class ClientStep:
    """One step in flight. No optimizer step happens while graphs are held, so they stay valid."""

    def __init__(self, encoder: Encoder, optimizers: BlockOptimizers) -> None:
        self._encoder = encoder
        self._optimizers = optimizers
        self._held: dict[int, _Held] = {}

    @property
    def parts(self) -> int:
        """How many windows of the step in flight have been forwarded."""
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

    def apply(self, gradients: Mapping[int, Tensor], *, learning_rate: float) -> list[str]:
        """Backpropagate the answered parts, take one optimizer step, forget the step.

        Args:
            gradients: part -> gradient of the *sum* of the windows' losses at the cut, [2, *activation_shape(cut)].
            learning_rate: what the trainer's schedule says for this step.

        Returns:
            The names of the blocks that moved; empty if no part of this step was answered.
        """
        answered = {part: self._held[part] for part in gradients if part in self._held}
        self._held = {}
        if not answered:
            return []
        deepest = max(held.cut for held in answered.values())
        moved = client_names(deepest)
        self._optimizers.zero(moved)
        torch.autograd.backward(
            [held.activations for held in answered.values()], [gradients[part] for part in answered]
        )
        self._mean_over_own_windows([held.cut for held in answered.values()], deepest)
        self._optimizers.step(moved, learning_rate)
        return list(moved)

    def _mean_over_own_windows(self, cuts: list[int], deepest: int) -> None:
        """A participant's gradient of a block is the mean over the windows that it ran through that block."""
        for index, name in enumerate(client_names(deepest)):
            windows = sum(
                cut >= index for cut in cuts
            )  # name 0 is the stem, name i is block i-1: run by every cut >= i
            for parameter in block_parameters(self._encoder, name):
                if parameter.grad is not None:
                    parameter.grad.div_(windows)

    def forget(self) -> None:
        """Drop the step in flight: late, lost, or the link is gone."""
        self._held = {}
