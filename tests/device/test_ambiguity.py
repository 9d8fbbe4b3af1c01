from __future__ import annotations

import pytest
import torch

from common.encoder import build_encoder
from common.mixture_memory import NEUTRAL_UNCERTAINTY, MixtureMemory
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


def test_it_is_the_uncertainty_of_view_a_under_the_replica_s_mixture() -> None:
    encoder, mixture = build_encoder("mobile", seed=1), heard()
    pair = views(3)
    hidden = encoder.stem(pair[:1])
    for block in encoder.blocks:
        hidden = block(hidden)
    z = torch.nn.functional.normalize(encoder.head(hidden), dim=1)
    assert Ambiguity(encoder, mixture).of(pair) == pytest.approx(float(mixture.uncertainty(z)), abs=1e-5)


def test_view_b_makes_no_difference_and_no_graph_is_left_behind() -> None:
    encoder, mixture = build_encoder("mobile", seed=1), heard()
    ambiguity = Ambiguity(encoder, mixture)
    assert ambiguity.of(torch.stack([views(3)[0], views(4)[0]])) == ambiguity.of(views(3))
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_an_embedding_that_was_computed_already_is_the_one_its_uncertainty_is_told_from() -> None:
    encoder, mixture, pair = build_encoder("mobile", seed=1), heard(), views(3)
    ambiguity = Ambiguity(encoder, mixture)
    embedding = ambiguity.embedding(pair[:1])
    assert torch.equal(embedding, encoder(pair[:1]))
    assert embedding.shape == (1, encoder.embedding_dim)
    with torch.no_grad():
        expected = float(mixture.uncertainty(encoder.project(embedding)))
    assert ambiguity.of(pair) == pytest.approx(expected, abs=1e-6)
    assert ambiguity.of(torch.zeros_like(pair), embedding) == pytest.approx(expected, abs=1e-6)


def test_it_follows_the_weights_as_they_change_in_place() -> None:
    encoder, mixture = build_encoder("mobile", seed=1), heard()
    ambiguity = Ambiguity(encoder, mixture)
    before = ambiguity.of(views(3))
    with torch.no_grad():
        for parameter in encoder.head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert ambiguity.of(views(3)) != before


def test_without_a_mixture_every_window_is_as_uncertain_as_the_next() -> None:
    assert Ambiguity(build_encoder("mobile", seed=1), MixtureMemory()).of(views(0)) == NEUTRAL_UNCERTAINTY
