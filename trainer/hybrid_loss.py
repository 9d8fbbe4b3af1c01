"""The Hybrid Loss: one pure function per term, and one thin object that weighs them.

``total = task + sw_weight * sliced Wasserstein + laplacian_weight * Laplacian`` (paper eq. 13).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.contrastive import info_nce
from common.sphere import random_directions, sliced_wasserstein
from trainer.temporal_buffer import Edges


@dataclass(frozen=True, slots=True)
class HybridLossResult:
    """The terms of one batch of N windows; ``total`` carries the gradient.

    Attributes:
        total: scalar, the weighted sum.
        task: scalar, InfoNCE.
        sliced_wasserstein: scalar, unweighted.
        laplacian: scalar, unweighted.
        per_window: ``[N]``, the task loss of each window, detached.
        candidates: mean number of candidates of an anchor in the task loss.
    """

    total: Tensor
    task: Tensor
    sliced_wasserstein: Tensor
    laplacian: Tensor
    per_window: Tensor
    candidates: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridLoss:
    """Weighs the three terms. A term of weight 0 is not computed and reported as 0."""

    temperature: float
    sw_weight: float
    sw_projections: int
    laplacian_weight: float

    def __call__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        *,
        excluded: Tensor,
        edges: Edges | None,
        generator: torch.Generator,
        virtual_negatives: Tensor | None = None,
    ) -> HybridLossResult:
        """The loss of projections of unit length, view A ``[N, d]`` and view B ``[N, d]``.

        Args:
            z_a: projections of the windows as they are; only these enter the Laplacian.
            z_b: projections of the augmented views.
            excluded: bool ``[N, N]``, pairs that are not negatives of each other.
            edges: the temporal graph; None = no edge.
            generator: CPU generator of the random directions.
            virtual_negatives: ``[M, d]`` or ``[N, M, d]``.
        """
        task = info_nce(z_a, z_b, temperature=self.temperature, excluded=excluded, virtual_negatives=virtual_negatives)
        uniform = smooth = z_a.new_zeros(())
        if self.sw_weight:
            directions = random_directions(self.sw_projections, z_a.shape[1], generator).to(z_a)
            uniform = sliced_wasserstein(torch.cat([z_a, z_b]), directions)
        if self.laplacian_weight and edges is not None:
            smooth = laplacian(z_a, edges)
        total = task.mean + self.sw_weight * uniform + self.laplacian_weight * smooth
        return HybridLossResult(
            total=total,
            task=task.mean,
            sliced_wasserstein=uniform,
            laplacian=smooth,
            per_window=task.per_window.detach(),
            candidates=task.candidates,
        )


def laplacian(z: Tensor, edges: Edges) -> Tensor:
    """``1/|E| * sum of W_ij * |z_i - z_j|^2`` (paper eq. 14) for ``z`` ``[N, d]``; 0 without edges.

    The ends that lie in the buffer are constants; where both ends lie in the batch the gradient reaches both.
    """
    if len(edges.weights) == 0:
        return z.new_zeros(())
    nodes = torch.cat([z, edges.constants.to(z)])
    squared = (z[edges.sources] - nodes[edges.targets]).square().sum(dim=1)
    return (edges.weights.to(z) * squared).mean()
