"""Means of the devices' changes that no single device can drag where it likes.

Coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning"), weighted: of every value the
largest and the smallest of the contributors are left out, and the weights of the rest make up for theirs. With equal
changes it is the weighted mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.change_blob import State

FEWEST = 3  # of fewer contributors none can be told from the others


def trimmed_count(contributors: int, trim: float) -> int:
    """How many of the contributors are left out on either side: ``trim`` of them, at least one, never all."""
    if trim <= 0 or contributors < FEWEST:
        return 0
    return min(max(1, int(trim * contributors)), (contributors - 1) // 2)


def weighted_sum(changes: Sequence[tuple[float, State]], *, trim: float) -> State:
    """``sum_p w_p · change_p`` over (weight, change) pairs of one block; trimmed, the same total weight on the rest."""
    aside = trimmed_count(len(changes), trim)
    keys = changes[0][1].keys()
    if aside:
        return {key: _trimmed([(weight, change[key]) for weight, change in changes], aside) for key in keys}
    total = {key: torch.zeros_like(value) for key, value in changes[0][1].items()}
    for weight, change in changes:
        for key, value in total.items():
            value.add_(change[key], alpha=weight)
    return total


def _trimmed(values: Sequence[tuple[float, torch.Tensor]], aside: int) -> torch.Tensor:
    stacked = torch.stack([value for _, value in values])
    weights = torch.tensor([weight for weight, _ in values], dtype=stacked.dtype, device=stacked.device)
    ordered, who = stacked.sort(dim=0, stable=True)
    kept, counts = ordered[aside:-aside], weights[who[aside:-aside]]
    # Where only contributors without any weight are left, nothing is said: 0/0 would spoil everybody's change.
    total = counts.sum(dim=0).clamp_min(torch.finfo(stacked.dtype).tiny)
    return (kept * counts).sum(dim=0) / total * weights.sum()
