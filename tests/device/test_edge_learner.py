from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.block_optimizer import BlockOptimizers
from common.codec import decode
from common.encoder import build_encoder
from common.mixture_memory import MixtureMemory
from common.sphere import random_directions, sliced_wasserstein
from common.split import block_parameters, names
from device.edge_learner import NEIGHBOUR_S, EdgeLearner
from device.mixture_replica import MixtureReplica

TEMPERATURE = 0.1


def pairs(count: int, seed: int = 0) -> list[Tensor]:
    """Windows of different textures, view B a noisy copy."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        texture = torch.randn(1, 64, 1, generator=generator) + torch.randn(1, 1, 96, generator=generator)
        made.append(torch.stack([texture, texture]) + 0.3 * torch.randn(2, 1, 64, 96, generator=generator))
    return made


class Learner:
    """An edge learner, its parameters and its mixture."""

    def __init__(self, seed: int = 0, *, replayed: int = 0, virtual_negatives: int = 0, sw_weight: float = 0.0) -> None:
        self.encoder = build_encoder("mobile", seed=seed)
        optimizers = BlockOptimizers(self.encoder, kind="adamw", weight_decay=1e-4, warmup_steps=0)
        self.mixture = MixtureReplica(
            MixtureMemory(seed=seed), boot="b" * 16, fingerprint="f" * 64, path=Path("never-written")
        )
        self._edge = EdgeLearner(
            self.encoder,
            optimizers,
            self.mixture,
            temperature=TEMPERATURE,
            learning_rate=1e-3,
            replayed=replayed,
            virtual_negatives=virtual_negatives,
            sw_weight=sw_weight,
        )

    def step(self, heard: list[Tensor], segments: Sequence[int], times_s: Sequence[float]) -> float:
        return self._edge.step(heard, segments=segments, times_s=times_s)

    @torch.no_grad()
    def project(self, heard: list[Tensor]) -> tuple[Tensor, Tensor]:
        both = torch.stack(heard, dim=1).flatten(0, 1)
        z_a, z_b = self.encoder.project(self.encoder(both)).chunk(2)
        return z_a, z_b

    @property
    def parameters(self) -> list[Tensor]:
        return [p.data for name in names(self.encoder) for p in block_parameters(self.encoder, name)]


def far_apart(count: int) -> list[float]:
    return [10.0 * index for index in range(count)]


def test_the_loss_falls_on_windows_it_keeps_hearing() -> None:
    edge, heard = Learner(), pairs(8)
    losses = [edge.step(heard, range(8), far_apart(8)) for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def test_every_block_and_the_head_move() -> None:
    edge = Learner()
    before = [p.clone() for p in edge.parameters]
    edge.step(pairs(4), range(4), far_apart(4))
    assert all(not torch.equal(p, old) for p, old in zip(edge.parameters, before, strict=True))


def test_the_same_windows_and_weights_give_the_same_steps() -> None:
    results = []
    for _ in range(2):
        edge = Learner(replayed=3, virtual_negatives=4, sw_weight=5.0)
        losses = [edge.step(pairs(4, seed), [4 * seed + i for i in range(4)], far_apart(4)) for seed in range(3)]
        results.append((losses, torch.cat([p.flatten() for p in edge.parameters])))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_neighbours_of_one_stretch_are_not_pushed_apart() -> None:
    close = [0.0, 0.5 * NEIGHBOUR_S]
    assert Learner().step(pairs(2), [3, 3], close) == 0.0, "each has only its own other view"
    assert Learner().step(pairs(2), [3, 4], close) > 0.0


def test_windows_of_the_past_are_replayed_beside_the_new_ones() -> None:
    edge, plain = Learner(replayed=4), Learner()
    for one in (edge, plain):
        one.step(pairs(2, 1), [1, 2], [0.0, 0.0])
    assert plain.step(pairs(1, 2), [3], [0.0]) == 0.0, "one window alone has nothing to be told from"
    z_a, z_b = edge.project([*pairs(1, 2), *pairs(2, 1)])
    expected = _info_nce(z_a, z_b)
    assert edge.step(pairs(1, 2), [3], [0.0]) == pytest.approx(expected, rel=0.02), "the replayed are in half precision"


def _info_nce(z_a: Tensor, z_b: Tensor, virtual: Tensor | None = None) -> float:
    """Each view against its other view and all views of other windows, one anchor at a time."""
    count, losses = len(z_a), []
    for i in range(count):
        for anchor, positive in ((z_a[i], z_b[i]), (z_b[i], z_a[i])):
            others = [z[j] for z in (z_a, z_b) for j in range(count) if j != i]
            others += [] if virtual is None else list(virtual)
            logits = torch.stack([anchor @ other / TEMPERATURE for other in [positive, *others]])
            losses.append(-float(logits.log_softmax(dim=0)[0]))
    return sum(losses) / len(losses)


def test_until_there_is_a_mixture_the_latest_projections_of_other_stretches_are_negatives() -> None:
    edge = Learner(virtual_negatives=3)
    before = pairs(5, 1)
    past, _ = edge.project(before)
    assert edge.step(before, [1, 1, 1, 1, 1], [0.1 * i for i in range(5)]) == 0.0, "one stretch, and nothing before it"
    z_a, z_b = edge.project(pairs(1, 2))
    expected = _info_nce(z_a, z_b, past[-3:])
    assert edge.step(pairs(1, 2), [2], [0.0]) == pytest.approx(expected, rel=1e-4)
    again = Learner(virtual_negatives=3)
    again.step(pairs(5, 1), [1] * 5, [0.1 * i for i in range(5)])
    assert again.step(pairs(1, 2), [1], [0.6]) == 0.0, "the same stretch"


def test_once_the_mixture_has_started_negatives_are_drawn_from_it() -> None:
    edge = Learner(virtual_negatives=8)
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = edge.project(pairs(1))
    near = z_a + 0.05 * torch.randn(200, 128, generator=generator)
    edge.mixture.hear(torch.nn.functional.normalize(near, dim=1))
    assert edge.mixture.mixture.started
    drawn = edge.mixture.mixture.virtual_negatives(z_a, 8, torch.Generator().manual_seed(0))
    expected = _info_nce(z_a, z_b, drawn[0])
    assert expected > 0.1
    assert edge.step(pairs(1), [0], [0.0]) == pytest.approx(expected, rel=1e-3)


def test_the_mixture_hears_every_window_once() -> None:
    edge = Learner(replayed=4)
    generator = torch.Generator().manual_seed(0)
    edge.mixture.hear(torch.nn.functional.normalize(torch.randn(200, 128, generator=generator), dim=1))
    edge.mixture.statistics()
    for seed in range(3):
        edge.step(pairs(2, seed), [2 * seed, 2 * seed + 1], [0.0, 0.0])
    report = edge.mixture.statistics()
    assert report is not None
    assert float(decode(report.mass).sum()) == pytest.approx(6.0, rel=0.01)


def test_the_sliced_wasserstein_term_spreads_projections_that_have_no_negatives() -> None:
    directions = random_directions(200, 128, torch.Generator().manual_seed(9))
    close = [0.0] * 8
    for weight in (0.0, 5.0):
        edge, heard = Learner(sw_weight=weight), pairs(8)
        before = float(sliced_wasserstein(torch.cat(edge.project(heard)), directions))
        assert sum(edge.step(heard, [0] * 8, close) for _ in range(28)) == 0.0, "one stretch"
        after = float(sliced_wasserstein(torch.cat(edge.project(heard)), directions))
        assert (after < 0.7 * before) == (weight > 0.0)
