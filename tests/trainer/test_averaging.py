from __future__ import annotations

import pytest
import torch

from common.encoder import build_encoder
from common.split import block_parameters, block_state
from tests.published import FINGERPRINT, same
from trainer.averaging import AveragedEncoder
from trainer.checkpoint import Checkpoint
from trainer.evaluate import restore_encoder


def averaged_of(values: list[float], decay: float) -> float:
    encoder = build_encoder("mobile", seed=0)
    averaged = AveragedEncoder(decay=decay)
    for value in values:
        with torch.no_grad():
            block_parameters(encoder, "head")[1].fill_(value)
        averaged.update(encoder)
    weights = averaged.state_dict()["weights"]
    assert isinstance(weights, dict)
    return float(weights["head.0.bias"][0])


def test_the_first_weights_are_forgotten_quickly_and_later_ones_as_the_decay_says() -> None:
    values = [float(number % 7) for number in range(60)]
    expected = values[0]
    for merge, value in enumerate(values[1:], start=2):
        kept = min(0.9, merge / (merge + 9))
        expected = kept * expected + (1.0 - kept) * value
    assert averaged_of(values, 0.9) == pytest.approx(expected, rel=1e-5)
    assert averaged_of([100.0] + [1.0] * 30, 0.9) == pytest.approx(1.0, abs=0.2)


def test_the_noise_of_single_merges_is_averaged_away() -> None:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    assert abs(averaged_of([5.0 + value for value in noise], 0.9) - 5.0) < 0.6


@pytest.mark.parametrize("with_average", [True, False])
def test_an_evaluation_takes_the_averaged_weights_where_a_checkpoint_has_them(with_average: bool) -> None:
    latest, averaged = build_encoder("mobile", seed=1), build_encoder("mobile", seed=2)
    state: dict[str, object] = {"averaged": {"weights": averaged.state_dict(), "merges": 3}} if with_average else {}
    saved = Checkpoint("run", FINGERPRINT, "mobile", latest.state_dict(), state, 1, 1, 8)
    expected = averaged if with_average else latest
    assert same(block_state(restore_encoder(saved), "stem"), block_state(expected, "stem"))


def test_it_goes_on_from_a_checkpoint() -> None:
    encoder = build_encoder("mobile", seed=0)
    first, second = AveragedEncoder(), AveragedEncoder()
    first.update(encoder)
    second.load_state_dict(first.state_dict(), encoder)
    other = build_encoder("mobile", seed=1)
    first.update(other)
    second.update(other)
    once, again = first.state_dict()["weights"], second.state_dict()["weights"]
    assert isinstance(once, dict)
    assert isinstance(again, dict)
    assert all(torch.equal(once[name], again[name]) for name in once)
