from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from common.contrastive import info_nce
from common.sphere import random_directions, sliced_wasserstein, sphere_quantiles
from trainer.hybrid_loss import HybridLoss, laplacian
from trainer.temporal_buffer import Edges


def _sphere(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def _directions(count: int, dim: int, seed: int = 1000) -> torch.Tensor:
    return random_directions(count, dim, torch.Generator().manual_seed(seed))


def _edges() -> Edges:
    return Edges(
        sources=torch.tensor([0, 1, 2, 2]),
        targets=torch.tensor([1, 4, 0, 3]),
        weights=torch.tensor([0.5, 1.0, 0.25, 0.1]),
        constants=_sphere(2, 8, seed=9),
    )


# -- sliced Wasserstein -----------------------------------------


@pytest.mark.parametrize("dim", [3, 8, 128])
def test_quantiles_are_those_of_the_beta_distribution(dim: int) -> None:
    expected = [2.0 * stats.beta.ppf((k + 0.5) / 7, (dim - 1) / 2, (dim - 1) / 2) - 1.0 for k in range(7)]
    assert sphere_quantiles(7, dim).tolist() == pytest.approx(expected, abs=1e-9)


def test_in_three_dimensions_the_marginal_is_even() -> None:
    assert sphere_quantiles(4, 3).tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75], abs=1e-9)


def test_quantiles_agree_with_a_large_uniform_sample() -> None:
    sample = _sphere(200_000, 16)[:, 0].sort().values.view(10, -1).mean(dim=1)
    exact = sphere_quantiles(200_000, 16).view(10, -1).mean(dim=1)
    assert torch.allclose(sample.double(), exact, atol=3e-3)


def test_sliced_wasserstein_equals_the_definition_written_as_loops() -> None:
    z, directions = _sphere(6, 8), _directions(4, 8)
    quantiles = sphere_quantiles(6, 8).tolist()
    total = 0.0
    for direction in directions.double():
        ordered = sorted(float(row @ direction) for row in z.double())
        total += sum((value - quantile) ** 2 for value, quantile in zip(ordered, quantiles, strict=True))
    assert sliced_wasserstein(z, directions).item() == pytest.approx(total / (4 * 6), rel=1e-5)


def test_it_is_near_nothing_for_uniform_samples_and_large_for_a_collapse() -> None:
    dim, directions = 128, _directions(50, 128)
    uniform = sliced_wasserstein(_sphere(128, dim), directions).item()
    collapsed = sliced_wasserstein(_sphere(1, dim).repeat(128, 1), directions).item()
    half = sliced_wasserstein(torch.cat([_sphere(64, dim), _sphere(1, dim).repeat(64, 1)]), directions).item()
    assert collapsed == pytest.approx(2.0 / dim, rel=0.3)
    assert uniform < 0.03 * collapsed
    assert uniform < half < collapsed


def test_more_uniform_samples_come_nearer_to_zero() -> None:
    directions = _directions(50, 32)
    errors = [sliced_wasserstein(_sphere(count, 32), directions).item() for count in (16, 128, 1024)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_a_gradient_step_spreads_a_collapse() -> None:
    z = normalize(torch.ones(64, 16) + 0.05 * _sphere(64, 16), dim=1).requires_grad_()
    before = sliced_wasserstein(z, _directions(50, 16))
    (gradient,) = torch.autograd.grad(before, z)
    moved = normalize(z.detach() - 200.0 * gradient, dim=1)
    assert sliced_wasserstein(moved, _directions(50, 16)) < 0.9 * before


def _against_a_sample(z: torch.Tensor, directions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    prior = normalize(torch.randn(z.shape, generator=generator), dim=1)
    return ((z @ directions.T).sort(dim=0).values - (prior @ directions.T).sort(dim=0).values).square().mean()


def test_the_exact_marginal_varies_less_than_a_sampled_prior_with_as_many_directions() -> None:
    z = normalize(_sphere(64, 32) + 0.3 * _sphere(1, 32, seed=5), dim=1)
    generator = torch.Generator().manual_seed(2)
    exact, sampled = [], []
    for seed in range(200):
        directions = _directions(50, 32, seed)
        exact.append(sliced_wasserstein(z, directions))
        sampled.append(_against_a_sample(z, directions, generator))
    assert torch.stack(exact).var() < 0.7 * torch.stack(sampled).var()
    assert torch.stack(exact).mean() < torch.stack(sampled).mean(), "a sampled prior has a floor of its own noise"


# -- Laplacian --------------------------------------------------


def test_laplacian_equals_the_definition_written_as_loops() -> None:
    z, edges = _sphere(3, 8), _edges()
    nodes = [*z, *edges.constants]
    total = 0.0
    for source, target, weight in zip(
        edges.sources.tolist(), edges.targets.tolist(), edges.weights.tolist(), strict=True
    ):
        total += weight * sum((a - b) ** 2 for a, b in zip(z[source].tolist(), nodes[target].tolist(), strict=True))
    assert laplacian(z, edges).item() == pytest.approx(total / 4, rel=1e-5)


def test_laplacian_gradient_reaches_the_batch_only() -> None:
    z = _sphere(3, 8).requires_grad_()
    edges = _edges()
    laplacian(z, edges).backward()
    assert z.grad is not None
    assert edges.constants.grad is None
    expected = 2 * 1.0 * (z.detach()[1] - edges.constants[1]) / 4 + 2 * 0.5 * (z.detach()[1] - z.detach()[0]) / 4
    assert torch.allclose(z.grad[1], expected, atol=1e-6)


def test_without_edges_the_laplacian_is_zero() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    edges = Edges(sources=nothing, targets=nothing, weights=torch.zeros(0), constants=torch.zeros(0, 8))
    assert laplacian(_sphere(3, 8), edges).item() == 0.0


# -- the whole --------------------------------------------------


def _hybrid(sw_weight: float = 5.0, laplacian_weight: float = 0.01) -> HybridLoss:
    return HybridLoss(temperature=0.1, sw_weight=sw_weight, sw_projections=50, laplacian_weight=laplacian_weight)


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    z_a, z_b, excluded = _sphere(3, 8), _sphere(3, 8, seed=1), torch.eye(3, dtype=torch.bool)
    generator = torch.Generator().manual_seed(4)
    result = _hybrid()(z_a, z_b, excluded=excluded, edges=_edges(), generator=generator)
    task = info_nce(z_a, z_b, temperature=0.1, excluded=excluded)
    assert torch.equal(result.task, task.mean)
    assert torch.equal(result.per_window, task.per_window)
    assert result.candidates == task.candidates
    assert torch.equal(result.sliced_wasserstein, sliced_wasserstein(torch.cat([z_a, z_b]), _directions(50, 8, 4)))
    assert torch.equal(result.laplacian, laplacian(z_a, _edges()))
    total = result.task + 5.0 * result.sliced_wasserstein + 0.01 * result.laplacian
    assert torch.allclose(result.total, total)


def test_a_term_of_weight_zero_costs_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    result = _hybrid(0.0, 0.0)(
        _sphere(3, 8), _sphere(3, 8, 1), excluded=torch.eye(3, dtype=torch.bool), edges=_edges(), generator=generator
    )
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(result.total, result.task)
    assert (result.sliced_wasserstein.item(), result.laplacian.item()) == (0.0, 0.0)


def test_virtual_negatives_enter_the_task() -> None:
    z = _sphere(4, 8)
    result = _hybrid()(
        z,
        z,
        excluded=torch.ones(4, 4, dtype=torch.bool),
        edges=None,
        generator=torch.Generator(),
        virtual_negatives=z[:1].repeat(3, 1),
    )
    assert result.per_window[0].item() == pytest.approx(math.log(4.0), rel=1e-5)
    assert result.candidates == 4.0


def test_both_views_receive_a_gradient() -> None:
    z_a, z_b = _sphere(4, 8).requires_grad_(), _sphere(4, 8, 1).requires_grad_()
    excluded = torch.ones(4, 4, dtype=torch.bool)  # no task gradient: what arrives comes from the sliced Wasserstein
    result = _hybrid()(z_a, z_b, excluded=excluded, edges=None, generator=torch.Generator().manual_seed(0))
    result.total.backward()
    for z in (z_a, z_b):
        assert z.grad is not None
        assert z.grad.abs().sum() > 1e-3


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="views must both be"):
        _hybrid()(_sphere(3, 8), _sphere(4, 8), excluded=torch.eye(3).bool(), edges=None, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"need \[n, d\] and \[M, d\]"):
        sliced_wasserstein(_sphere(3, 8), _directions(4, 9))
