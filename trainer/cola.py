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


class Cola:
    """The loss and its matrix ``W``, which starts from ``seed``.

    Windows that may well sound the same (of one recording, of one room) are no negatives of each other; a window left
    without negatives has loss 0.
    """

    def __init__(self, dim: int, *, false_negative_s: float, seed: int) -> None:
        self.module = Bilinear(dim, seed=seed)
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
    """``a^T W b`` for every pair.

    ``W`` starts normal with a deviation of ``1 / dim``: outputs of a tanh after a LayerNorm have a mean square of about
    0.4, so that the first scores spread by 0.4 and no pair is decided by chance (with the 0.05 of the authors' code
    they spread by 10, which a batch of 1,024 and a million steps correct, and a batch of 64 does not).
    """

    def __init__(self, dim: int, *, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(drawn / dim)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[N, d]`` and ``[M, d]`` to scores ``[N, M]``."""
        return a @ self.weight @ b.T


def row_cross_entropy(scores: Tensor, excluded: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of each row of ``[N, N]`` against its diagonal: ``[N]``, and the mean number of candidates.

    ``excluded``: bool ``[N, N]``, pairs that are no candidates; the diagonal always is one.
    """
    count = len(scores)
    other = excluded & ~torch.eye(count, dtype=torch.bool, device=scores.device)
    candidates = scores.masked_fill(other, -math.inf)
    rows = torch.arange(count, device=scores.device)
    return functional.cross_entropy(candidates, rows, reduction="none"), count - float(other.sum()) / count
