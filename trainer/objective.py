"""What the trainer minimises: the seam between a step's tensors and a loss, and the Hybrid Loss behind it.

The fleet file names the objective, because its head is part of the encoder at both ends. An objective may have
parameters of its own (COLA's bilinear form): they live on the trainer alone, are stepped with the schedule of the
blocks, and are kept in the checkpoint; on the wire nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from common.contrastive import not_negatives
from trainer.batcher import Part
from trainer.hybrid_loss import HybridLoss, HybridLossResult
from trainer.temporal_buffer import TemporalBuffer

OBJECTIVE = "objective"
"""Name of an objective's own parameters in `common.block_optimizer.BlockOptimizers`, beside those of the blocks."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A batch of N parts after the server segment, graph attached, on the device that computes.

    Attributes:
        parts: whose windows these are, in the order of the tensors.
        embeddings: ``[N, 2, D]``, view A and view B.
        outputs: what the head made of them, ``[N, 2, d]``.
        projections: the same with unit length, the view first: ``[2, N, d]``.
    """

    parts: Sequence[Part]
    embeddings: Tensor
    outputs: Tensor
    projections: Tensor


class Objective(Protocol):
    """A loss over a joined batch.

    Every part must get a gradient from ``total``; terms that an objective does not have are 0.
    """

    @property
    def module(self) -> nn.Module:
        """Its own parameters and buffers."""
        ...

    def __call__(self, joined: Joined) -> HybridLossResult:
        """The loss of a batch; called once for each, in order."""
        ...


class Hybrid:
    """The Hybrid Loss over projections, with the temporal graph of each device's segments."""

    def __init__(
        self,
        loss: HybridLoss,
        buffer: TemporalBuffer,
        *,
        false_negative_s: float,
        directions: torch.Generator,
        negatives: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """``negatives`` draws virtual negatives ``[N, M, d]`` for the projections ``[N, d]`` of view A; None: none."""
        self.module = nn.Module()
        self._loss = loss
        self._buffer = buffer
        self._false_negative_s = false_negative_s
        self._directions = directions
        self._negatives = negatives

    def __call__(self, joined: Joined) -> HybridLossResult:
        """The loss of a batch, which then lies in the temporal buffer."""
        parts, projections = joined.parts, joined.projections
        devices = [f"{part.device} {part.boot}" for part in parts]  # a new boot counts segments and time anew
        segments = [part.segment for part in parts]
        times_s = [part.time_s for part in parts]
        edges = self._buffer.edges(devices, segments, times_s, projections[0])
        self._buffer.add(devices, segments, times_s, projections[0])
        return self._loss(
            projections[0],
            projections[1],
            excluded=excluded(parts, within_s=self._false_negative_s).to(projections.device),
            edges=edges,
            generator=self._directions,
            virtual_negatives=None if self._negatives is None else self._negatives(projections[0].detach()),
        )


def excluded(parts: Sequence[Part], *, within_s: float) -> Tensor:
    """`common.contrastive.not_negatives` of a batch's parts: bool ``[N, N]``."""
    return not_negatives(
        [part.device for part in parts],
        [part.segment for part in parts],
        [part.time_s for part in parts],
        [part.room for part in parts],
        within_s=within_s,
    )


def own_parameters(objective: Objective) -> dict[str, nn.Module]:
    """What `BlockOptimizers` steps beside the blocks: empty for an objective without parameters."""
    return {OBJECTIVE: objective.module} if any(True for _ in objective.module.parameters()) else {}
