"""COLA's objective (Saeed et al. 2021): two crops of one recording score high in a learned bilinear form.

``s(a, b) = g(a)^T W g(b)`` with ``g`` the head (Linear, LayerNorm, tanh) before any normalisation, softmax
cross-entropy over the batch, the positives on the diagonal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.hybrid_loss import HybridLossResult
from trainer.objective import Joined, excluded

START_TEMPERATURE = 0.2  # COLA's, where its similarity is the cosine
MEAN_SQUARE = 0.394  # of the tanh of a normal value: outputs of the head, which has a LayerNorm before it


class Cola:
    """The loss and its matrix ``W``.

    Windows that may well sound the same (of one recording, of one room) are no negatives of each other; a window left
    without negatives has loss 0.
    """

    def __init__(self, dim: int, *, false_negative_s: float) -> None:
        self.module = Bilinear(dim)
        self._false_negative_s = false_negative_s

    def __call__(self, joined: Joined) -> HybridLossResult:
        """The loss of a batch; the terms of the Hybrid Loss that COLA lacks are 0."""
        scores = self.module(joined.outputs[:, 0], joined.outputs[:, 1])
        per_window, candidates = row_cross_entropy(
            scores, excluded(joined.parts, within_s=self._false_negative_s).to(scores.device)
        )
        mean, absent = per_window.mean(), scores.new_zeros(())
        return HybridLossResult(
            total=mean,
            task=mean,
            sliced_wasserstein=absent,
            laplacian=absent,
            per_window=per_window.detach(),
            candidates=candidates,
        )


class Bilinear(nn.Module):
    """``a^T W b`` for every pair, with ``W = weight / dim``.

    ``weight`` starts as a multiple of the identity that makes the scores cosines over `START_TEMPERATURE`, COLA's other
    similarity. Divided by ``dim``, because Adam moves every element alike: entries of ``W`` itself, moved by 2e-3
    in one direction, change a score by 170, and the encoder escapes by giving all windows one embedding (measured,
    ESC-10, from any start; the authors' 1e-4 and 100,000 steps bear it). As it stands a step changes a score by 0.3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim) / (START_TEMPERATURE * MEAN_SQUARE))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, d]`` and ``[M, d]`` to scores ``[N, M]``."""
        return a @ self.weight @ b.T / len(self.weight)


def row_cross_entropy(scores: Tensor, excluded: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of each row of ``[N, N]`` against its diagonal: ``[N]``, and the mean number of candidates.

    ``excluded``: bool ``[N, N]``, pairs that are no candidates; the diagonal always is one.
    """
    count = len(scores)
    other = excluded & ~torch.eye(count, dtype=torch.bool, device=scores.device)
    candidates = scores.masked_fill(other, -math.inf)
    rows = torch.arange(count, device=scores.device)
    return functional.cross_entropy(candidates, rows, reduction="none"), count - float(other.sum()) / count
