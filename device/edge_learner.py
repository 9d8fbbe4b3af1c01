"""Learning without the network: contrastive steps at cut L on the device's own windows.

A device's own batch is eight windows of one or two sounds. What makes it enough to learn from are other sounds: windows
heard before, replayed, and negatives drawn from the mixture memory, before that has started the device's own latest
projections. And what keeps projections from crowding is the sliced-Wasserstein term, as on the trainer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.contrastive import info_nce, not_negatives
from common.encoder import Encoder
from common.sphere import random_directions, sliced_wasserstein
from common.split import names
from device.mixture_replica import MixtureReplica
from device.replay import Past, Replay

NEIGHBOUR_S = 1.5  # windows of one stretch closer than this hear the same event and are not negatives
REPLAY_CAPACITY = 256  # windows of the past, 6 MB of log-mels
# Latest projections that are negatives until there is a mixture. A fast encoder makes old projections wrong negatives
# (measured: DESIGN section 4), so there are few of them, and they come from the last four steps or so.
QUEUE = 32
SW_DIRECTIONS = 50


class EdgeLearner:
    """Local steps: InfoNCE over the windows that were not sent, every block and the head trained.

    InfoNCE on projections of unit length whatever the fleet's objective: COLA's bilinear form stays on the trainer.

    Args:
        encoder: trained in place.
        optimizers: of its blocks.
        mixture: hears the projections, and gives virtual negatives once it has started.
        temperature: of the contrastive loss.
        learning_rate: of every local step.
        replayed: windows of the past that join each step.
        virtual_negatives: for each window of a step.
        sw_weight: of the sliced-Wasserstein term.
        seed: of everything drawn here.
    """

    def __init__(
        self,
        encoder: Encoder,
        optimizers: BlockOptimizers,
        mixture: MixtureReplica,
        *,
        temperature: float,
        learning_rate: float,
        replayed: int = 0,
        virtual_negatives: int = 0,
        sw_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._encoder = encoder
        self._mixture = mixture
        self._optimizers = optimizers
        self._temperature = temperature
        self._learning_rate = learning_rate
        self._replayed = replayed
        self._virtual_negatives = virtual_negatives
        self._sw_weight = sw_weight
        self._replay = Replay(REPLAY_CAPACITY if replayed else 0, seed=seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._latest: deque[tuple[int, Tensor]] = deque(maxlen=QUEUE)

    def step(self, views: Sequence[Tensor], *, segments: Sequence[int], times_s: Sequence[float]) -> float:
        """One optimizer step on ``len(views)`` windows, each [2, 1, 64, 96]; returns the contrastive loss (nats)."""
        fresh = [Past(*one) for one in zip(views, segments, times_s, strict=True)]
        heard = [*fresh, *self._replay.draw(self._replayed)]
        batch = torch.stack([one.views for one in heard], dim=1)  # [2, N, 1, 64, 96]
        embeddings = self._encoder.forward_to(batch.flatten(0, 1), self._encoder.depth)
        z_a, z_b = self._encoder.project(embeddings).chunk(2)
        loss = self._contrast(heard, z_a, z_b)
        blocks = names(self._encoder)
        self._optimizers.zero(blocks)
        (loss + self._crowding(z_a, z_b)).backward()
        self._optimizers.step(blocks, self._learning_rate)
        self._remember(fresh, z_a[: len(fresh)].detach())
        return float(loss.detach())

    def _contrast(self, heard: Sequence[Past], z_a: Tensor, z_b: Tensor) -> Tensor:
        segments, times_s = [one.segment for one in heard], [one.time_s for one in heard]
        excluded = not_negatives(["self"] * len(heard), segments, times_s, [""] * len(heard), within_s=NEIGHBOUR_S)
        virtual = self._negatives(segments, z_a.detach())
        return info_nce(z_a, z_b, temperature=self._temperature, excluded=excluded, virtual_negatives=virtual).mean

    def _negatives(self, segments: Sequence[int], z: Tensor) -> Tensor:
        """``[N, M, d]``: from the mixture, or until it has started of the latest projections of other segments."""
        count = self._virtual_negatives
        if self._mixture.mixture.started:
            return self._mixture.mixture.virtual_negatives(z, count, self._generator)
        others = [[past for number, past in self._latest if number != own] for own in segments]
        count = min(count, *map(len, others)) if others else 0
        if count == 0:
            return z.new_zeros(len(z), 0, z.shape[1])
        return torch.stack([torch.stack(past[-count:]) for past in others])

    def _crowding(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        if not self._sw_weight:
            return z_a.new_zeros(())
        directions = random_directions(SW_DIRECTIONS, z_a.shape[1], self._generator)
        return self._sw_weight * sliced_wasserstein(torch.cat([z_a, z_b]), directions)

    def _remember(self, fresh: Sequence[Past], z: Tensor) -> None:
        self._mixture.hear(z)
        for past, projection in zip(fresh, z, strict=True):
            self._latest.append((past.segment, projection))
            if self._replayed:
                self._replay.add(past)
