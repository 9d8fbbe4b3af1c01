"""Everything that learns, as it is before the first step or a checkpoint."""

from __future__ import annotations

from functools import partial

import torch

from common.block_optimizer import BlockOptimizers
from common.config_trainer import TrainerConfig
from common.encoder import build_encoder
from common.mixture_memory import MixtureMemory
from trainer.averaging import AveragedEncoder
from trainer.clap import Clap
from trainer.cola import Cola
from trainer.hybrid_loss import HybridLoss
from trainer.merge_optimizer import MergeOptimizer
from trainer.objective import Hybrid, Objective, own_parameters
from trainer.resume import State
from trainer.temporal_buffer import TemporalBuffer


def build_state(settings: TrainerConfig, compute: torch.device) -> State:
    """Encoder, optimizers, mixture, objective and every generator, from the settings and their seeds."""
    fleet = settings.fleet
    optimizer = fleet.optimizer
    encoder = build_encoder(fleet.encoder, fleet.first_seed, head=fleet.head).to(compute)
    directions = torch.Generator().manual_seed(settings.seed)
    mixture = MixtureMemory(dim=encoder.projection_dim, seed=settings.seed).to(compute)
    negatives = torch.Generator().manual_seed(settings.seed + 2)
    objective = _objective(settings, mixture, encoder.projection_dim, directions, negatives)
    objective.module.to(compute)
    merging = None
    if fleet.accumulates:
        merging = MergeOptimizer(
            encoder,
            kind=optimizer.kind,
            weight_decay=optimizer.weight_decay,
            warmup_steps=optimizer.warmup_steps,
        )
    return State(
        encoder,
        BlockOptimizers(
            encoder,
            kind=optimizer.kind,
            weight_decay=optimizer.weight_decay,
            warmup_steps=optimizer.warmup_steps,
            own=own_parameters(objective),
        ),
        mixture,
        objective,
        directions=directions,
        averaged=AveragedEncoder() if settings.schedule == "constant" else None,
        merging=merging,
        rounding=torch.Generator().manual_seed(settings.seed + 1),
        negatives=negatives,
    )


def _objective(
    settings: TrainerConfig,
    mixture: MixtureMemory,
    projection_dim: int,
    directions: torch.Generator,
    negatives: torch.Generator,
) -> Objective:
    if settings.fleet.objective == "cola":
        return Cola(projection_dim, false_negative_s=settings.false_negative_s)
    if settings.fleet.objective == "clap":
        return Clap(
            projection_dim,
            text_encoder=settings.text_encoder,
            false_negative_s=settings.false_negative_s,
            seed=settings.seed,
        )
    loss = HybridLoss(
        temperature=settings.temperature,
        sw_weight=settings.sw_weight,
        sw_projections=settings.sw_projections,
        laplacian_weight=settings.laplacian_weight,
    )
    return Hybrid(
        loss,
        TemporalBuffer(window=settings.laplacian_window, neighbours=settings.laplacian_neighbours),
        false_negative_s=settings.false_negative_s,
        directions=directions,
        negatives=partial(mixture.virtual_negatives, count=settings.virtual_negatives, generator=negatives),
    )
