from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from trainer.quality import alignment, effective_components, effective_rank, mixture_spread, uniformity


def _random(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 192), (192, 192), (512, 192), (3, 5)])
def test_effective_rank_equals_its_definition_on_singular_values(shape: tuple[int, int]) -> None:
    x = _random(*shape) * torch.logspace(0, -2, shape[1])
    singular = torch.linalg.svdvals(x.double())
    share = singular / singular.sum()
    expected = math.exp(-float((share * share.log()).sum()))
    assert effective_rank(x) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(10)) == pytest.approx(10.0)
    assert effective_rank(torch.eye(10)[:4].repeat(8, 1)) == pytest.approx(4.0, rel=1e-6)
    assert effective_rank(torch.ones(64, 192)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.zeros(4, 8)) == 1.0


def test_effective_rank_ignores_the_scale_and_the_order() -> None:
    x = _random(64, 32)
    assert effective_rank(5.0 * x) == pytest.approx(effective_rank(x), rel=1e-6)
    assert effective_rank(x.flip(0)) == pytest.approx(effective_rank(x), rel=1e-6)


def test_effective_rank_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"must be \[n, D\]"):
        effective_rank(torch.zeros(0, 8))


def test_alignment_equals_its_definition_written_as_loops() -> None:
    a, b = normalize(_random(5, 8), dim=1), normalize(_random(5, 8, 1), dim=1)
    total = sum((x - y) ** 2 for row, other in zip(a.tolist(), b.tolist(), strict=True) for x, y in zip(row, other))
    assert alignment(a, b) == pytest.approx(total / 5, rel=1e-5)
    assert alignment(a, a) == 0.0
    assert alignment(a, -a) == pytest.approx(4.0, rel=1e-5)


def test_uniformity_equals_its_definition_written_as_loops() -> None:
    z = normalize(_random(6, 8), dim=1)
    terms = [math.exp(-2.0 * float((z[i] - z[j]).square().sum())) for i in range(6) for j in range(i)]
    assert uniformity(z) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-5)


def test_uniformity_is_zero_in_one_point_and_falls_with_spread() -> None:
    point = normalize(torch.ones(8, 16), dim=1)
    narrow = normalize(torch.ones(64, 16) + _random(64, 16), dim=1)
    wide = normalize(_random(64, 16), dim=1)
    assert uniformity(point) == pytest.approx(0.0, abs=1e-6)
    assert uniformity(wide) < uniformity(narrow) < -0.5
    assert uniformity(point[:1]) == 0.0


def test_the_spread_of_a_mixture_equals_its_definition_written_as_loops() -> None:
    means, mass = _random(4, 8), torch.tensor([3.0, 1.0, 0.0, 2.0])
    share = [value / 6.0 for value in mass.tolist()]
    total = sum(
        share[i] * share[j] * math.dist(means[i].tolist(), means[j].tolist()) for i in range(4) for j in range(4)
    )
    assert mixture_spread(means, mass) == pytest.approx(total, rel=1e-5)
    assert mixture_spread(means[:1].repeat(4, 1), mass) == pytest.approx(0.0, abs=1e-6)


def test_components_in_use_are_counted_by_their_mass() -> None:
    assert effective_components(torch.ones(64)) == pytest.approx(64.0)
    assert effective_components(torch.tensor([5.0, 5.0, 0.0, 0.0])) == pytest.approx(2.0)
    assert effective_components(torch.tensor([5.0, 0.0])) == pytest.approx(1.0)
