from __future__ import annotations

import pytest
import torch
from torch import nn

from common.encoder import ENCODERS, Encoder, build_encoder


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return build_encoder(request.param, seed=3)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))


def test_mobile_has_the_parameters_of_the_design() -> None:
    mobile = build_encoder("mobile", seed=0)
    assert _count(mobile.stem) + sum(_count(block) for block in mobile.blocks[:5]) == 52_016
    assert _count(mobile.stem) + _count(mobile.blocks) == 427_376
    assert _count(mobile.head) == 82_304


def test_mobile_sends_the_values_of_the_design() -> None:
    mobile = build_encoder("mobile", seed=0)
    values = [torch.Size(mobile.activation_shape(cut)).numel() for cut in (1, 3, 5, 8)]
    assert values == [9_216, 4_608, 2_304, 192]
    assert (mobile.depth, mobile.embedding_dim, mobile.projection_dim) == (8, 192, 128)


def test_resnet18_is_the_papers() -> None:
    resnet = build_encoder("resnet18", seed=0)
    shapes = [resnet.activation_shape(cut) for cut in range(9)]
    assert [shape[0] for shape in shapes] == [64, 64, 64, 128, 128, 256, 256, 512, 128]
    assert shapes[0] == (64, 16, 24)
    assert shapes[8] == (128,)
    assert resnet.embedding_dim == 128
    assert 11.1e6 < _count(resnet.stem) + _count(resnet.blocks) < 11.4e6


def test_efficientnet_b0_is_the_papers_but_for_the_classifier() -> None:
    b0 = build_encoder("efficientnet-b0", seed=0)
    shapes = [b0.activation_shape(cut) for cut in range(9)]
    assert [shape[0] for shape in shapes] == [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    assert (shapes[0], shapes[5], shapes[8]) == ((32, 32, 48), (112, 4, 6), (1280,))
    # 5,288,548 with 1,281,000 of the classifier for 1,000 classes, and a stem for three channels instead of one
    assert _count(b0.stem) + _count(b0.blocks) == 5_288_548 - 1_281_000 - 2 * 9 * 32
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in b0.modules())


def test_every_cut_computes_what_the_uncut_encoder_computes(encoder: Encoder, x: torch.Tensor) -> None:
    with torch.no_grad():
        whole = encoder(x)
        for cut in range(encoder.depth + 1):
            activations = encoder.forward_to(x, cut)
            assert activations.shape[1:] == encoder.activation_shape(cut)
            assert torch.equal(encoder.forward_from(activations, cut), whole)


def test_any_stretch_of_blocks_can_run_by_itself(encoder: Encoder, x: torch.Tensor) -> None:
    with torch.no_grad():
        middle = encoder.forward_between(encoder.forward_to(x, 2), 2, 6)
        assert torch.equal(middle, encoder.forward_to(x, 6))
        assert torch.equal(encoder.forward_between(middle, 6, 6), middle)


def test_windows_do_not_see_each_other(encoder: Encoder, x: torch.Tensor) -> None:
    with torch.no_grad():
        together = encoder(x)
        alone = torch.cat([encoder(x[:1]), encoder(x[1:])])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_projections_have_unit_length(encoder: Encoder, x: torch.Tensor) -> None:
    with torch.no_grad():
        z = encoder.project(encoder(x))
    assert z.shape == (2, 128)
    assert torch.allclose(z.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", ENCODERS)
def test_another_head_leaves_the_blocks_as_they_are(name: str, x: torch.Tensor) -> None:
    usual, tanh = build_encoder(name, 1), build_encoder(name, 1, head="tanh")
    assert (usual.projection_dim, tanh.projection_dim) == (128, 512)
    with torch.no_grad():
        assert torch.equal(usual(x), tanh(x))
        raw, z = tanh.head(tanh(x)), tanh.project(tanh(x))
    assert z.shape == (2, 512)
    assert torch.allclose(z.norm(dim=1), torch.ones(2))
    assert 0.3 < float(raw.square().mean()) < 0.5, "tanh of values with mean 0 and deviation 1"


@pytest.mark.parametrize("name", ENCODERS)
def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = build_encoder(name, 1), build_encoder(name, 1), build_encoder(name, 2)
    assert torch.equal(before, torch.get_rng_state())
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("shape", [(2, 64, 96), (2, 1, 96, 64), (2, 2, 64, 96), (1, 64, 96, 1)])
def test_a_wrong_input_is_refused_in_a_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"log-mel input must be \[N, 1, 64, 96\], not "):
        build_encoder("mobile", 0).forward_to(torch.zeros(shape), 3)


def test_activations_of_another_cut_are_refused_in_a_sentence(x: torch.Tensor) -> None:
    mobile = build_encoder("mobile", 0)
    with pytest.raises(ValueError, match="activations at cut 5 must be"):
        mobile.forward_from(mobile.forward_to(x, 3), 5)
    with pytest.raises(ValueError, match="embeddings must be"):
        mobile.project(torch.zeros(2, 128))
    with pytest.raises(ValueError, match=r"cut 9 does not exist: mobile has the cuts 0\.\.8"):
        mobile.forward_to(x, 9)
    with pytest.raises(ValueError, match="cut -1 does not exist"):
        mobile.forward_to(x, -1)
    with pytest.raises(ValueError, match="forwards only"):
        mobile.forward_between(mobile.forward_to(x, 5), 5, 3)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="allowed: mobile, mobile-half, resnet18, efficientnet-b0"):
        build_encoder("vgg", 0)
    with pytest.raises(ValueError, match="allowed: mlp, tanh"):
        build_encoder("mobile", 0, head="linear")
