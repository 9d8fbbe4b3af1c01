"""InfoNCE over all devices' windows and virtual negatives, with pairs left out that may well sound the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """The loss of a batch.

    Attributes:
        per_window: ``[N]``, mean over both views of a window as anchors.
        mean: scalar, mean over the windows: what to differentiate.
        candidates: mean number of candidates of an anchor, its positive included; ``ln(candidates)`` is the loss of
            projections that carry nothing.
    """

    per_window: Tensor
    mean: Tensor
    candidates: float


def info_nce(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float,
    excluded: Tensor,
    virtual_negatives: Tensor | None = None,
) -> ContrastiveLoss:
    """Symmetric NT-Xent (Chen et al. 2020) over the 2N views of N windows.

    The candidates of an anchor are its positive (the window's other view), both views of every window that is not
    excluded, and the virtual negatives. A window left without negatives has loss 0 and no gradient.

    Args:
        z_a: projections of unit length of the first views ``[N, d]``.
        z_b: of the second views ``[N, d]``.
        temperature: above 0; the paper uses 0.1.
        excluded: bool ``[N, N]``, true where two windows are not negatives of each other; the diagonal is ignored.
        virtual_negatives: ``[M, d]`` for all windows alike or ``[N, M, d]`` for each its own; no gradient reaches them.

    Raises:
        ValueError: shapes that do not fit.
    """
    count = _check_shapes(z_a, z_b, excluded)
    z = torch.cat([z_a, z_b])
    diagonal = torch.eye(count, dtype=torch.bool, device=z.device)
    negative = ~(excluded.to(z.device) | diagonal).repeat(2, 2)
    logits = (z @ z.T / temperature).masked_fill(~negative, -torch.inf)
    positive = (z_a * z_b).sum(dim=1).repeat(2) / temperature
    columns = [positive[:, None], logits]
    candidates = 1.0 + float(negative.sum()) / len(z)
    if virtual_negatives is not None and virtual_negatives.shape[-2] > 0:
        columns.append(_against(z, virtual_negatives.detach()) / temperature)
        candidates += virtual_negatives.shape[-2]
    per_view = torch.logsumexp(torch.cat(columns, dim=1), dim=1) - positive
    per_window = per_view.view(2, count).mean(dim=0)
    return ContrastiveLoss(per_window=per_window, mean=per_window.mean(), candidates=candidates)


def _against(z: Tensor, virtual: Tensor) -> Tensor:
    if virtual.dim() == 2:
        return z @ virtual.T
    pairs = z.view(2, len(virtual), -1).transpose(0, 1)  # [N, 2, d]: both views meet their window's own negatives
    return (pairs @ virtual.transpose(1, 2)).transpose(0, 1).reshape(len(z), -1)


def _check_shapes(z_a: Tensor, z_b: Tensor, excluded: Tensor) -> int:
    if z_a.dim() != 2 or z_a.shape != z_b.shape or len(z_a) == 0:
        raise ValueError(f"views must both be [N, d] with N > 0, not {list(z_a.shape)} and {list(z_b.shape)}")
    if excluded.dtype != torch.bool or excluded.shape != (len(z_a), len(z_a)):
        raise ValueError(f"excluded must be bool [N, N] with N = {len(z_a)}, not {list(excluded.shape)}")
    return len(z_a)


def not_negatives(
    devices: Sequence[str],
    segments: Sequence[int],
    times_s: Sequence[float],
    rooms: Sequence[str],
    *,
    within_s: float,
) -> Tensor:
    """Which of N windows are not negatives of each other: bool ``[N, N]``, symmetric, the diagonal true.

    Those are windows of one segment of one device, and windows of two devices in one room (a room that has a name),
    if they lie at most ``within_s`` apart. ``times_s`` must be comparable where segment or room are shared: the
    trainer's clock, never a device's.
    """
    device = _codes(devices)
    segment = _codes(list(zip(devices, segments, strict=True)))
    room = _codes(rooms)
    named = torch.tensor([bool(name) for name in rooms], dtype=torch.bool)
    time = torch.tensor(times_s, dtype=torch.float64)
    near = (time[:, None] - time[None, :]).abs() <= within_s
    same_segment = _same(segment)
    same_room = _same(room) & named[:, None] & ~_same(device)
    return (near & (same_segment | same_room)) | torch.eye(len(device), dtype=torch.bool)


def _codes(values: Sequence[Hashable]) -> Tensor:
    known: dict[Hashable, int] = {}
    return torch.tensor([known.setdefault(value, len(known)) for value in values], dtype=torch.long)


def _same(codes: Tensor) -> Tensor:
    return codes[:, None] == codes[None, :]
