from __future__ import annotations

import pytest
import torch

from common.encoder import build_encoder
from common.int8_weights import rounded


def test_every_weight_lies_on_a_grid_of_255_values_of_its_output_channel() -> None:
    encoder = build_encoder("mobile-half", seed=1)
    deployed = rounded(encoder)
    compared = 0
    for name, weight in encoder.named_parameters():
        eight = deployed.get_parameter(name)
        if weight.dim() < 2:
            assert torch.equal(eight, weight), "norms and biases stay"
            continue
        for before, after in zip(weight.detach(), eight.detach(), strict=True):
            step = float(before.abs().max()) / 127
            steps = after.double() / step
            assert float((steps - steps.round()).abs().max()) < 1e-3
            assert float((after - before).abs().max()) <= 0.5001 * step
            compared += 1
    assert compared > 500


def test_the_encoder_itself_is_not_changed_and_a_second_rounding_changes_nothing() -> None:
    encoder = build_encoder("mobile-half", seed=1)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    once = rounded(encoder)
    twice = rounded(once)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key])
        torch.testing.assert_close(twice.state_dict()[key], once.state_dict()[key], rtol=1e-6, atol=0)


def test_embeddings_change_by_about_a_percent() -> None:
    encoder = build_encoder("mobile-half", seed=1).eval()
    pictures = torch.randn(4, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = encoder(pictures), rounded(encoder)(pictures)
    assert float((after - before).norm() / before.norm()) == pytest.approx(0.01, abs=0.01)


def test_a_channel_of_zeros_stays_zero() -> None:
    encoder = build_encoder("mobile-half", seed=1)
    with torch.no_grad():
        encoder.get_parameter("stem.0.weight")[0].zero_()
    weight = rounded(encoder).get_parameter("stem.0.weight")
    assert not weight[0].any()
    assert weight[1].any()
