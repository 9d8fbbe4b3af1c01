"""The server's side of a step: each part joins at its own cut, one pass, one loss, one backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.block_optimizer import BlockOptimizers
from common.encoder import Encoder
from common.split import BEFORE_STEM, block_parameters
from trainer.batcher import Part
from trainer.hybrid_loss import HybridLossResult
from trainer.objective import Joined, Objective, own_parameters


@dataclass(frozen=True, slots=True)
class ServerResult:
    """What one batch of N parts gave, in the order of the parts."""

    gradients: list[Tensor]  # of the sum of the windows' losses, of each part's activations, on the CPU
    terms: HybridLossResult
    embeddings: Tensor  # view A, [N, D], detached
    projections: Tensor  # view A then view B, [2, N, d], unit length, detached


class NotFiniteError(Exception):
    """A batch gives no gradient that could be learned from."""


class ServerStep:
    """Server segment, loss and optimizer of the trainer."""

    def __init__(
        self,
        encoder: Encoder,
        optimizers: BlockOptimizers,
        objective: Objective,
        *,
        compute: torch.device,
    ) -> None:
        self._encoder = encoder
        self._optimizers = optimizers
        self._objective = objective
        self._compute = compute

    def run(self, parts: Sequence[Part], *, learning_rate: float) -> ServerResult:
        """Train the server segment on a batch and return what goes back to each part.


        The gradients are of the *sum* over windows, so that every participant can take the mean over its own; the
        blocks here take the mean over the windows that passed through them (DESIGN section 4, weights).

        Raises:
            NotFiniteError: nothing was learned; weights and moments are what they were.
        """
        count = len(parts)
        leaves = [part.activations.to(self._compute).requires_grad_() for part in parts]
        embeddings = self._join(parts, leaves)
        outputs = self._encoder.head(embeddings)
        projections = functional.normalize(outputs, dim=1).view(count, 2, -1).transpose(0, 1)
        terms = self._objective(Joined(parts, embeddings.view(count, 2, -1), outputs.view(count, 2, -1), projections))
        moved = self._moved(parts)
        self._optimizers.zero(list(moved))
        terms.total.backward()
        if not math.isfinite(self._optimizers.gradient_length(moved)):
            raise NotFiniteError(f"the gradient of {count} windows is not finite")
        self._scale(moved, count)
        self._optimizers.step(list(moved), learning_rate)
        gradients = [leaf.grad.mul(count).cpu() for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == count, "a part got no gradient: the loss does not depend on it"
        view_a = embeddings.view(count, 2, -1)[:, 0]
        return ServerResult(gradients, terms, view_a.detach().cpu(), projections.detach())

    def _join(self, parts: Sequence[Part], leaves: Sequence[Tensor]) -> Tensor:
        """Run blocks from the shallowest cut up, parts joining where they were cut; embeddings [2N, D] in order."""
        order = sorted(range(len(parts)), key=lambda i: parts[i].cut)
        cuts = sorted({part.cut for part in parts})
        hidden: Tensor | None = None
        for start, stop in zip(cuts, [*cuts[1:], self._encoder.depth], strict=True):
            joining = [leaves[i] for i in order if parts[i].cut == start]
            hidden = torch.cat(joining if hidden is None else [hidden, *joining])
            hidden = self._between(hidden, start, stop)
        assert hidden is not None
        back = torch.empty(len(parts), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(parts))
        return hidden.view(len(parts), 2, -1)[back.to(hidden.device)].flatten(0, 1)

    def _between(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        if start == BEFORE_STEM:
            return self._encoder.forward_to(hidden, stop)
        return self._encoder.forward_between(hidden, start, stop)

    def _moved(self, parts: Sequence[Part]) -> dict[str, int]:
        """Block name, or the objective's -> number of windows that passed through it here."""
        own = dict.fromkeys(own_parameters(self._objective), len(parts))
        through = {"stem": sum(part.cut == BEFORE_STEM for part in parts)}
        through |= {str(i): sum(part.cut <= i for part in parts) for i in range(self._encoder.depth)}
        return {name: windows for name, windows in through.items() if windows} | {"head": len(parts)} | own

    def _scale(self, moved: dict[str, int], count: int) -> None:
        for name, windows in moved.items():
            if windows == count:
                continue
            for parameter in block_parameters(self._encoder, name):
                if parameter.grad is not None:
                    parameter.grad.mul_(count / windows)
