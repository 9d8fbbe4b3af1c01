from __future__ import annotations

import time

import pytest
import torch

from common.encoder import build_encoder
from common.mixture_memory import MixtureMemory
from device.ambiguity import Ambiguity

SOUNDS = 8


def views(seed: int) -> torch.Tensor:
    return torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(seed))


def heard() -> MixtureMemory:
    """A mixture of what the encoder makes of a few sounds heard again and again."""
    encoder = build_encoder("mobile", seed=1)
    mixture = MixtureMemory(components=SOUNDS, seed=0)
    with torch.no_grad():
        pictures = torch.cat([views(seed)[:1] for seed in range(SOUNDS)])
        projections = encoder.project(encoder(pictures))
    generator = torch.Generator().manual_seed(2)
    for _ in range(40):
        noisy = projections + 0.01 * torch.randn(projections.shape, generator=generator)
        mixture.update(torch.nn.functional.normalize(noisy, dim=1))
    assert mixture.started
    return mixture


def test_it_is_the_uncertainty_of_view_a_under_the_replica_s_mixture_and_the_latest_is_kept() -> None:
    encoder, mixture = build_encoder("mobile", seed=1), heard()
    ambiguity, first = Ambiguity(encoder, mixture), views(3)[:1]
    assert (ambiguity.latest, ambiguity.latest_at_s) == (None, None)
    hidden = encoder.stem(first)
    for block in encoder.blocks:
        hidden = block(hidden)
    z = torch.nn.functional.normalize(encoder.head(hidden), dim=1)
    embedding = ambiguity.embedding(first)
    assert embedding.shape == (1, encoder.embedding_dim)
    said = ambiguity.of(embedding)
    assert said == pytest.approx(float(mixture.uncertainty(z)), abs=1e-5)
    assert ambiguity.latest == said
    assert ambiguity.latest_at_s is not None
    assert ambiguity.latest_at_s <= time.monotonic()
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_it_follows_the_weights_as_they_change_in_place() -> None:
    encoder, mixture = build_encoder("mobile", seed=1), heard()
    ambiguity, first = Ambiguity(encoder, mixture), views(3)[:1]
    before = ambiguity.of(ambiguity.embedding(first))
    with torch.no_grad():
        for parameter in encoder.head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert ambiguity.of(ambiguity.embedding(first)) != before


def test_without_a_mixture_nothing_is_said() -> None:
    ambiguity = Ambiguity(build_encoder("mobile", seed=1), MixtureMemory())
    assert ambiguity.of(ambiguity.embedding(views(0)[:1])) is None
    assert (ambiguity.latest, ambiguity.latest_at_s) == (None, None)
