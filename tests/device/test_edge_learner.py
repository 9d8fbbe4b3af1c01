from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.encoder import build_encoder
from common.mixture_memory import MixtureMemory
from common.split import block_parameters, names
from device.edge_learner import NEIGHBOUR_S, EdgeLearner
from device.mixture_replica import MixtureReplica


def pairs(count: int, seed: int = 0) -> list[Tensor]:
    """Windows of different textures, view B a noisy copy."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        texture = torch.randn(1, 64, 1, generator=generator) + torch.randn(1, 1, 96, generator=generator)
        made.append(torch.stack([texture, texture]) + 0.3 * torch.randn(2, 1, 64, 96, generator=generator))
    return made


def learner(seed: int = 0) -> tuple[EdgeLearner, list[Tensor]]:
    encoder = build_encoder("mobile", seed=seed)
    optimizers = BlockOptimizers(encoder, kind="adamw", weight_decay=1e-4, warmup_steps=0)
    parameters = [p for name in names(encoder) for p in block_parameters(encoder, name)]
    mixture = MixtureReplica(MixtureMemory(seed=seed), boot="b" * 16, fingerprint="f" * 64, path=Path("never-written"))
    return EdgeLearner(encoder, optimizers, mixture, temperature=0.1, learning_rate=1e-3), [p.data for p in parameters]


def far_apart(count: int) -> list[float]:
    return [10.0 * index for index in range(count)]


def test_the_loss_falls_on_windows_it_keeps_hearing() -> None:
    edge, _ = learner()
    heard = pairs(8)
    losses = [edge.step(heard, segments=range(8), times_s=far_apart(8)) for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def test_every_block_and_the_head_move() -> None:
    edge, parameters = learner()
    before = [p.clone() for p in parameters]
    edge.step(pairs(4), segments=range(4), times_s=far_apart(4))
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_the_same_windows_and_weights_give_the_same_step() -> None:
    results = []
    for _ in range(2):
        edge, parameters = learner()
        loss = edge.step(pairs(4), segments=range(4), times_s=far_apart(4))
        results.append((loss, torch.cat([p.flatten() for p in parameters])))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_neighbours_of_one_stretch_are_not_pushed_apart() -> None:
    close = [0.0, 0.5 * NEIGHBOUR_S]
    same, _ = learner()
    assert same.step(pairs(2), segments=[3, 3], times_s=close) == 0.0, "each has only its own other view"
    other, _ = learner()
    assert other.step(pairs(2), segments=[3, 4], times_s=close) > 0.0
