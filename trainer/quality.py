"""Representations judged without labels: directions used, closeness of the views, spread over the sphere."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of ``[n, D]`` (Roy & Vetterli 2007): 1..min(n, D).

    Not centred: a constant embedding must read as 1, not as the rank of its rounding noise. All zeros read as 1.
    """
    if embeddings.dim() != 2 or 0 in embeddings.shape:
        raise ValueError(f"embeddings must be [n, D] and not empty, not {list(embeddings.shape)}")
    x = embeddings.double()
    gram = (
        x @ x.T if len(x) < x.shape[1] else x.T @ x
    )  # singular values are the roots of its eigenvalues, and it is small
    singular = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    total = float(singular.sum())
    if total == 0.0:
        return 1.0
    return float(torch.special.entr(singular / total).sum().exp())


@torch.no_grad()
def alignment(z_a: Tensor, z_b: Tensor) -> float:
    """Mean squared distance of the two views of a window, ``[N, d]`` each (Wang & Isola 2020): 0 is best, at most 4."""
    if z_a.dim() != 2 or z_a.shape != z_b.shape:
        raise ValueError(f"views must both be [N, d], not {list(z_a.shape)} and {list(z_b.shape)}")
    return float((z_a - z_b).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(z: Tensor) -> float:
    """Logarithm of the mean of ``exp(-2 |x - y|^2)`` over all pairs of ``[N, d]`` (Wang & Isola 2020).

    Lower is more spread; 0 when everything lies in one point; 0 too for fewer than two rows.
    """
    if z.dim() != 2:
        raise ValueError(f"projections must be [N, d], not {list(z.shape)}")
    if len(z) < 2:
        return 0.0
    return float(torch.pdist(z.double()).square().mul(-2.0).exp().mean().log())


@torch.no_grad()
def mixture_spread(means: Tensor, mass: Tensor) -> float:
    """Mean distance of two windows' components, by ``means`` [C, d] and ``mass`` [C]: 0 is a collapsed mixture.

    Two directions of the sphere that have nothing to do with each other lie 1.41 apart.
    """
    share = mass.double() / mass.double().sum().clamp_min(1e-12)
    return float(share @ torch.cdist(means.double(), means.double()) @ share)


@torch.no_grad()
def effective_components(mass: Tensor) -> float:
    """Exponential of the entropy of the shares of ``mass`` [C]: 1..C, how many components are in use."""
    share = mass.double() / mass.double().sum().clamp_min(1e-12)
    return float(torch.special.entr(share).sum().exp())
