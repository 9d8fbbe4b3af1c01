"""Learning without the network: a contrastive step at cut L on the device's own windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.contrastive import info_nce, not_negatives
from common.encoder import Encoder
from common.split import names
from device.mixture_replica import MixtureReplica

NEIGHBOUR_S = 1.5  # windows of one stretch closer than this hear the same event and are not negatives


class EdgeLearner:
    """Local steps: InfoNCE over the windows that were not sent, every block and the head trained.

    InfoNCE on projections of unit length whatever the fleet's objective: COLA's bilinear form stays on the trainer.
    """

    def __init__(
        self,
        encoder: Encoder,
        optimizers: BlockOptimizers,
        mixture: MixtureReplica,
        *,
        temperature: float,
        learning_rate: float,
    ) -> None:
        self._encoder = encoder
        self._mixture = mixture
        self._optimizers = optimizers
        self._temperature = temperature
        self._learning_rate = learning_rate

    def step(self, views: Sequence[Tensor], *, segments: Sequence[int], times_s: Sequence[float]) -> float:
        """One optimizer step on ``len(views)`` windows, each [2, 1, 64, 96]; returns the loss (nats)."""
        batch = torch.cat([pair.unsqueeze(1) for pair in views], dim=1)  # [2, N, 1, 64, 96]
        count = len(views)
        embeddings = self._encoder.forward_to(batch.flatten(0, 1), self._encoder.depth)
        projections = self._encoder.project(embeddings)
        excluded = not_negatives(["self"] * count, segments, times_s, [""] * count, within_s=NEIGHBOUR_S)
        loss = info_nce(projections[:count], projections[count:], temperature=self._temperature, excluded=excluded)
        blocks = names(self._encoder)
        self._optimizers.zero(blocks)
        loss.mean.backward()
        self._optimizers.step(blocks, self._learning_rate)
        self._mixture.hear(projections[:count].detach())
        return float(loss.mean.detach())
