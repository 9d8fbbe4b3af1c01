from __future__ import annotations

import copy
import math

import pytest
import torch

from common.encoder import ENCODERS, Encoder, build_encoder
from common.log_mel import FRAMES, MEL_BANDS
from common.state_blob import pack_state
from trainer.collapse_guard import MEMORY, CollapseGuard, probe_batch


def _collapsed(encoder: Encoder) -> Encoder:
    """The same encoder with an answer that no longer depends on the input."""
    collapsed = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in collapsed.blocks[-1].parameters():
            parameter.mul_(0.0)
        for parameter in collapsed.blocks[-2].parameters():
            parameter.fill_(1e-3)
    return collapsed


def test_the_probe_batch_is_fixed_varied_and_in_the_range_of_log_mels() -> None:
    batch = probe_batch()
    assert batch.shape == (64, 1, MEL_BANDS, FRAMES)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, probe_batch())
    assert float(batch.min()) > -3.2
    assert float(batch.max()) < 6.0
    assert 0.8 < float(batch.std()) < 2.0
    distances = torch.cdist(batch.flatten(1), batch.flatten(1))
    assert float(distances[~torch.eye(64, dtype=torch.bool)].min()) > 5.0


@pytest.mark.parametrize("name", ENCODERS)
def test_healthy_encoders_are_accepted_one_after_another(name: str) -> None:
    guard = CollapseGuard()
    first = guard.accepts(build_encoder(name, seed=0))
    assert first.ok
    assert first.median is None
    assert first.effective_rank > 8.0
    second = guard.accepts(build_encoder(name, seed=1))
    assert second.ok
    assert second.median == first.effective_rank
    assert second.reason == ""


def test_an_encoder_that_gives_everything_one_embedding_is_refused_even_as_the_first() -> None:
    verdict = CollapseGuard().accepts(_collapsed(build_encoder("mobile", seed=0)))
    assert not verdict.ok
    assert verdict.effective_rank < 1.5
    assert "same embedding" in verdict.reason


def test_halving_the_rank_against_the_median_is_refused_and_does_not_move_the_median() -> None:
    encoder = build_encoder("mobile", seed=0)
    rank = CollapseGuard().accepts(encoder).effective_rank
    guard = CollapseGuard([2.1 * rank] * 3)
    for _ in range(5):
        verdict = guard.accepts(encoder)
        assert not verdict.ok
        assert verdict.median == 2.1 * rank
        assert "running median" in verdict.reason
    assert guard.accepted_ranks() == [2.1 * rank] * 3
    assert CollapseGuard([1.9 * rank]).accepts(encoder).ok


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_accepted_and_are_named(value: float) -> None:
    encoder = build_encoder("mobile", seed=0)
    with torch.no_grad():
        next(encoder.head.parameters())[0, 0] = value
    verdict = CollapseGuard().accepts(encoder)
    assert not verdict.ok
    assert verdict.reason == "head.0.weight is not finite"
    assert math.isnan(verdict.effective_rank)


@pytest.mark.parametrize("value", [65_504.0, 65_519.0, 65_520.0, 1e6, -1e6])
def test_weights_that_do_not_fit_what_they_are_published_in_are_never_accepted(value: float) -> None:
    encoder = build_encoder("mobile", seed=0)
    with torch.no_grad():
        next(iter(encoder.head.parameters()))[0, 0] = value
    verdict = CollapseGuard(dtype="fp16").accepts(encoder)
    try:
        pack_state(encoder.state_dict(), "fp16")
    except ValueError:
        assert verdict.reason == "head.0.weight has a value beyond fp16"
        assert not verdict.ok
        assert abs(value) > 65_519.0
    else:
        assert "beyond" not in verdict.reason
    assert "beyond" not in CollapseGuard(dtype="fp32").accepts(encoder).reason


def test_finite_weights_whose_embeddings_overflow_are_refused() -> None:
    encoder = build_encoder("resnet18", seed=0)
    with torch.no_grad():
        encoder.blocks[-1][-1].weight.fill_(3e38)  # type: ignore[index]
    verdict = CollapseGuard().accepts(encoder)
    assert not verdict.ok
    assert "not finite" in verdict.reason


def test_judging_changes_neither_mode_nor_weights_nor_random_state() -> None:
    encoder = build_encoder("mobile", seed=0).train()
    before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    guard = CollapseGuard()
    guard.accepts(encoder)
    assert encoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_its_memory_is_bounded_and_survives_a_checkpoint() -> None:
    guard = CollapseGuard([float(i) for i in range(1, 200)])
    assert guard.accepted_ranks() == [float(i) for i in range(200 - MEMORY, 200)]
    assert CollapseGuard(guard.accepted_ranks()).accepted_ranks() == guard.accepted_ranks()


def test_a_slow_drift_is_learning_and_does_not_end_in_refusals() -> None:
    encoder = build_encoder("mobile", seed=0)
    rank = CollapseGuard().accepts(encoder).effective_rank
    drift = [2.2 * rank - 0.06 * rank * merge for merge in range(20)]  # from 2.2 times to 1.06 times the encoder's
    assert CollapseGuard([2.2 * rank] * 27 + drift).accepts(encoder).ok
    assert not CollapseGuard([2.2 * rank] * 27).accepts(encoder).ok
