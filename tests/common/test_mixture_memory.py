from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from common.mixture_memory import NEUTRAL_UNCERTAINTY, RECENT, RECENT_STRIDE, START_PROJECTIONS, MixtureMemory

DIM = 128


class Stream:
    """Projections around unit centres, with noise that leaves them well apart."""

    def __init__(self, clusters: int = 10, noise: float = 0.05, seed: int = 1) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.noise = noise
        self.centres = normalize(torch.randn(clusters, DIM, generator=self.generator), dim=1)

    def around(self, points: torch.Tensor) -> torch.Tensor:
        return normalize(points + self.noise * torch.randn(points.shape, generator=self.generator), dim=1)

    def draw(self, count: int) -> torch.Tensor:
        return self.around(self.centres[self.labels(count)])

    def labels(self, count: int) -> torch.Tensor:
        return torch.randint(len(self.centres), (count,), generator=self.generator)

    def feed(self, memory: MixtureMemory, windows: int, batch: int = 8) -> None:
        for _ in range(windows // batch):
            memory.update(self.draw(batch))


def _share_by_cluster(memory: MixtureMemory, centres: torch.Tensor) -> torch.Tensor:
    owner = (normalize(memory.means, dim=1) @ centres.T).argmax(dim=1)
    return torch.zeros(len(centres)).index_add(0, owner, memory.mass) / memory.mass.sum()


@pytest.mark.parametrize(("noise", "batch"), [(0.05, 1), (0.02, 8), (0.1, 8), (0.05, 64)])
def test_a_stream_of_ten_clusters_is_recovered(noise: float, batch: int) -> None:
    stream, memory = Stream(noise=noise), MixtureMemory()
    stream.feed(memory, 2000, batch)
    nearest = (stream.centres @ normalize(memory.means, dim=1).T).amax(dim=1)
    assert nearest.min() > 0.97
    share = _share_by_cluster(memory, stream.centres)
    assert share.min() > 0.07
    assert share.max() < 0.14
    assert torch.pdist(memory.means).mean() > 1.0, "the means must not merge"


def test_the_variance_is_that_of_the_clusters() -> None:
    stream, memory = Stream(clusters=64, noise=0.05), MixtureMemory()
    stream.feed(memory, 6000)
    assert float(memory.mass @ memory.variances.mean(dim=1) / memory.mass.sum()) == pytest.approx(0.05**2, rel=0.5)


def test_one_update_equals_the_sufficient_statistics_written_as_loops() -> None:
    memory = MixtureMemory(components=3, dim=4, memory=50, seed=0)
    generator = torch.Generator().manual_seed(0)
    memory.update(torch.randn(START_PROJECTIONS, 4, generator=generator))
    z = torch.randn(6, 4, generator=generator)
    old = {key: value.clone().double() for key, value in memory.state_dict().items()}
    round_ = old["variances"].mean(dim=1, keepdim=True)
    spread = (old["mass"][:, None] * old["variances"] + 8.0 * round_) / (old["mass"][:, None] + 8.0)
    memory.update(z)
    r = torch.zeros(6, 3, dtype=torch.float64)
    for n in range(6):
        for c in range(3):
            density = torch.distributions.Normal(old["means"][c], spread[c].sqrt()).log_prob(z[n].double()).sum()
            r[n, c] = (old["mass"][c] / old["mass"].sum()).log() + density
    r = r.softmax(dim=1)
    decayed = old["mass"] * math.exp(-6.0 / 50.0)
    for c in range(3):
        mass = decayed[c] + r[:, c].sum()
        first = decayed[c] * old["means"][c]
        second = decayed[c] * (old["variances"][c] + old["means"][c] ** 2)
        for n in range(6):
            first = first + r[n, c] * z[n]
            second = second + r[n, c] * z[n] ** 2
        mean = first / mass
        assert memory.mass[c].item() == pytest.approx(float(mass), rel=1e-4)
        assert torch.allclose(memory.means[c].double(), mean, atol=1e-4)
        assert torch.allclose(memory.variances[c].double(), second / mass - mean**2, rtol=1e-3, atol=1e-4)


def test_it_follows_clusters_that_drift() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 2000)
    start = stream.centres.clone()
    goal = normalize(torch.randn(10, DIM, generator=stream.generator), dim=1)
    for step in range(40):
        stream.centres = normalize(start + (goal - start) * (step + 1) / 40, dim=1)
        stream.feed(memory, 200)
    stream.feed(memory, 2000)
    assert (goal @ normalize(memory.means, dim=1).T).amax(dim=1).min() > 0.97
    assert _share_by_cluster(memory, goal).min() > 0.05
    stale = (start @ normalize(memory.means, dim=1).T).amax(dim=1)
    assert stale.mean() < 0.7


def test_it_takes_up_clusters_that_appear_suddenly() -> None:
    stream, memory = Stream(seed=1), MixtureMemory()
    stream.feed(memory, 2000)
    new = Stream(seed=7)
    new.feed(memory, 8000)
    assert (new.centres @ normalize(memory.means, dim=1).T).amax(dim=1).min() > 0.97


def test_uncertainty_is_higher_between_clusters_than_on_them() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 3000)
    first = torch.arange(10).repeat(30)
    on = memory.uncertainty(stream.around(stream.centres[first]))
    middle = normalize(stream.centres[first] + stream.centres[(first + 1) % 10], dim=1)
    between = memory.uncertainty(stream.around(middle))
    assert (between[:, None] > on[None, :]).float().mean() > 0.7


def test_the_median_uncertainty_stays_near_one_half_while_the_data_change() -> None:
    memory = MixtureMemory()
    for noise in (0.05, 0.1, 0.03):
        stream = Stream(noise=noise)
        stream.feed(memory, 4000)
        median = float(memory.uncertainty(stream.draw(500)).median())
        assert 0.35 < median < 0.65, (noise, median)


def surprisals(memory: MixtureMemory, point: torch.Tensor) -> tuple[float, float]:
    """How far the nearest mean is, and the surprisal under wide kernels, one component at a time."""
    cosines = [float(torch.cosine_similarity(point, mean, dim=0)) for mean in memory.means]
    shares = (memory.mass / memory.mass.sum()).tolist()
    wide = sum(share * math.exp(2.0 * (cosine - 1.0)) for share, cosine in zip(shares, cosines, strict=True))
    return 1.0 - max(cosines), -math.log(wide)


def test_uncertainty_is_the_mean_rank_of_two_surprisals_among_those_of_the_stream() -> None:
    stream, memory = Stream(noise=0.1), MixtureMemory()
    stream.feed(memory, 1000)
    heard: tuple[list[float], list[float]] = ([], [])
    passed = 1000 - START_PROJECTIONS
    while len(heard[0]) < RECENT:
        z = stream.draw(6)
        for kept in (point for number, point in enumerate(z, start=passed) if number % RECENT_STRIDE == 0):
            for values, value in zip(heard, surprisals(memory, kept), strict=True):
                values.append(value)
        memory.update(z)
        passed += len(z)
    z = stream.draw(64)
    for point, uncertainty in zip(z, memory.uncertainty(z), strict=True):
        ranks = [
            sum(one < own for one in values) / len(values)
            for values, own in zip(heard, surprisals(memory, point), strict=True)
        ]
        assert float(uncertainty) == pytest.approx(sum(ranks) / 2, abs=0.02)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_its_median_is_near_one_half_from_the_first_windows_on(noise: float) -> None:
    stream, memory = Stream(noise=noise), MixtureMemory()
    stream.feed(memory, START_PROJECTIONS, batch=64)
    for _ in range(6):
        stream.feed(memory, 256, batch=64)
        assert 0.3 < float(memory.uncertainty(stream.draw(400)).median()) < 0.65


def test_every_place_in_a_batch_is_remembered_in_its_turn() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 1000)
    for _ in range(500):  # the second of each five is like nothing else
        new = normalize(torch.randn(1, DIM, generator=stream.generator), dim=1)
        memory.update(torch.cat([stream.draw(1), new, stream.draw(3)]))
    assert float((memory.recent[0] > 0.5).float().mean()) == pytest.approx(0.2, abs=0.02)


def test_a_sound_that_repeats_exactly_is_as_uncertain_at_a_replica_in_half_precision() -> None:
    stream, memory, replica = Stream(), MixtureMemory(), MixtureMemory()
    silence = stream.centres[:1].repeat(32, 1)
    for _ in range(100):
        memory.update(torch.cat([silence, stream.draw(32)]))
    replica.load_state_dict({key: value.half().float() for key, value in memory.state_dict().items()})
    assert float(replica.uncertainty(silence[:1])) == pytest.approx(float(memory.uncertainty(silence[:1])), abs=0.02)


def test_uncertainty_means_the_same_whatever_the_encoder_makes_of_the_sounds() -> None:
    for noise in (0.02, 0.1):
        stream, memory = Stream(noise=noise), MixtureMemory()
        stream.feed(memory, 6000)
        quarters = memory.uncertainty(stream.draw(800)).quantile(torch.tensor([0.25, 0.5, 0.75]))
        assert torch.allclose(quarters, torch.tensor([0.33, 0.5, 0.67]), atol=0.12), noise


def test_what_was_never_heard_is_more_uncertain_than_nearly_all_that_was() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 3000)
    unheard = memory.uncertainty(Stream(seed=9).draw(100))
    assert unheard.min() >= memory.uncertainty(stream.draw(200)).quantile(0.95)
    assert unheard.min() > 0.95


def test_the_more_often_a_sound_is_heard_the_less_uncertain_it_is() -> None:
    stream, memory = Stream(), MixtureMemory()
    often, seldom = stream.centres[:1].repeat(7, 1), stream.centres[1:2]
    for _ in range(400):
        memory.update(stream.around(torch.cat([often, seldom])))
    uncertainty = memory.uncertainty(stream.around(stream.centres[:2].repeat_interleave(50, dim=0)))
    assert (uncertainty[50:, None] > uncertainty[None, :50]).float().mean() > 0.75


def test_before_it_has_started_it_is_neutral_and_has_no_negatives() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, START_PROJECTIONS - 8)
    assert not memory.started
    assert memory.uncertainty(stream.draw(3)).tolist() == [NEUTRAL_UNCERTAINTY] * 3
    assert memory.virtual_negatives(stream.draw(3), 16, torch.Generator()).shape == (3, 0, DIM)
    memory.update(stream.draw(8))
    assert memory.started


def test_virtual_negatives_come_from_the_other_clusters_and_have_unit_length() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 3000)
    labels = stream.labels(100)
    z = stream.around(stream.centres[labels])
    negatives = memory.virtual_negatives(z, 64, torch.Generator().manual_seed(0))
    assert negatives.shape == (100, 64, DIM)
    assert torch.allclose(negatives.norm(dim=2), torch.ones(100, 64), atol=1e-5)
    clusters = (negatives @ stream.centres.T).argmax(dim=2)
    assert (clusters != labels[:, None]).float().mean() > 0.7
    assert len(clusters.unique()) == 10, "more than the nearest component"


def test_virtual_negatives_prefer_near_components() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 3000)
    z = stream.draw(50)
    narrow = memory.virtual_negatives(z, 64, torch.Generator().manual_seed(0), tau_ratio=0.3)
    wide = memory.virtual_negatives(z, 64, torch.Generator().manual_seed(0), tau_ratio=10.0)
    assert (narrow @ z[:, :, None]).mean() > (wide @ z[:, :, None]).mean()


def test_the_same_generator_draws_the_same_negatives() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 500)
    z = stream.draw(4)
    one, two = (memory.virtual_negatives(z, 8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_the_same_stream_gives_the_same_mixture_and_touches_no_global_randomness() -> None:
    memories = []
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in range(2):
        memory = MixtureMemory(seed=4)
        Stream().feed(memory, 600)
        memories.append(memory.state_dict())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(memories[0][key], memories[1][key]) for key in memories[0])


def test_a_replica_sees_what_the_original_sees_even_in_half_precision() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 2000)
    z = stream.draw(50)
    replica, rough = MixtureMemory(), MixtureMemory()
    replica.load_state_dict(memory.state_dict())
    assert replica.started
    assert torch.equal(replica.uncertainty(z), memory.uncertainty(z))
    halves = {key: value.half() for key, value in memory.state_dict().items()}
    assert sum(value.numel() * 2 for value in halves.values()) < 36_000
    assert all(torch.isfinite(value).all() for value in halves.values())
    rough.load_state_dict({key: value.float() for key, value in halves.items()})
    assert torch.allclose(rough.uncertainty(z), memory.uncertainty(z), atol=0.03)


def test_the_nearest_component_is_one_of_the_cluster_that_was_heard() -> None:
    stream, memory = Stream(), MixtureMemory()
    stream.feed(memory, 3000)
    labels = stream.labels(200)
    nearest = memory.nearest(stream.around(stream.centres[labels]))
    owner = (normalize(memory.means, dim=1) @ stream.centres.T).argmax(dim=1)
    assert (owner[nearest] == labels).float().mean() > 0.99


class MovingAverage:
    """What the paper's formulas say when taken literally: means and variances as exponential moving averages.

    Every component moves towards every projection at one rate times its responsibility, from a random start, with
    responsibilities by `torch.distributions`.
    """

    def __init__(self, rate: float = 0.05) -> None:
        generator = torch.Generator().manual_seed(0)
        self.means = normalize(torch.randn(64, DIM, generator=generator), dim=1)
        self.variances = torch.ones(64, DIM)
        self.rate = rate

    def responsibilities(self, z: torch.Tensor) -> torch.Tensor:
        each = torch.distributions.Normal(self.means[None], self.variances.sqrt()[None])
        log_likelihood: torch.Tensor = each.log_prob(z[:, None])
        return log_likelihood.sum(dim=2).softmax(dim=1)

    def update(self, z: torch.Tensor) -> None:
        for one in z:
            r = self.responsibilities(one[None])[0][:, None]
            self.variances += self.rate * r * ((one - self.means).square() - self.variances)
            self.means += self.rate * r * (one - self.means)


def _recovered(means: torch.Tensor, centres: torch.Tensor) -> int:
    """Clusters with a mean of their own."""
    return int(((normalize(means, dim=1) @ centres.T).amax(dim=0) > 0.9).sum())


def test_a_naive_moving_average_collapses_on_the_stream_that_the_memory_recovers() -> None:
    stream, naive = Stream(), MovingAverage()
    for _ in range(2000):
        naive.update(stream.draw(1))
    other, memory = Stream(), MixtureMemory()
    other.feed(memory, 2000, batch=1)
    assert _recovered(memory.means, other.centres) == 10
    assert _recovered(naive.means, stream.centres) <= 2
    assert torch.pdist(memory.means).mean() > 1.0


def test_a_batch_is_one_step_of_its_projections_together_in_any_order() -> None:
    stream, memory, shuffled = Stream(), MixtureMemory(), MixtureMemory()
    stream.feed(memory, 1000)
    shuffled.load_state_dict(memory.state_dict())
    z = stream.draw(32)
    memory.update(z)
    shuffled.update(z[torch.randperm(32, generator=stream.generator)])
    assert torch.allclose(memory.means, shuffled.means, atol=1e-5)
    assert torch.allclose(memory.mass, shuffled.mass, rtol=1e-4)
    alone = torch.cat([memory.uncertainty(one[None]) for one in z])
    assert torch.allclose(memory.uncertainty(z), alone, atol=1e-5)


def test_what_another_mixture_heard_is_merged_as_the_projections_it_stands_for() -> None:
    stream, memory, told = Stream(), MixtureMemory(), MixtureMemory()
    stream.feed(memory, 2000)
    told.load_state_dict(memory.state_dict())
    z = stream.around(stream.centres[:1].repeat(40, 1))
    mean = z.mean(dim=0)
    told.merge(torch.tensor([40.0]), mean[None], (z - mean).square().mean()[None])
    memory.update(z)
    owner = (normalize(memory.means, dim=1) @ stream.centres.T).argmax(dim=1)
    mine = memory.mass[owner == 0].sum()
    assert float(told.mass[owner == 0].sum()) == pytest.approx(float(mine), rel=0.05)
    centre = told.mass[owner == 0] @ told.means[owner == 0] / told.mass[owner == 0].sum()
    wanted = memory.mass[owner == 0] @ memory.means[owner == 0] / mine
    assert torch.allclose(centre, wanted, atol=0.02)
    assert float(told.mass.sum()) == pytest.approx(float(memory.mass.sum()), rel=0.02)


def test_identical_projections_do_no_harm() -> None:
    memory = MixtureMemory()
    z = normalize(torch.ones(8, DIM), dim=1)
    for _ in range(100):
        memory.update(z)
    assert all(torch.isfinite(value).all() for value in memory.state_dict().values())
    assert torch.isfinite(memory.uncertainty(z)).all()
    assert torch.isfinite(memory.virtual_negatives(z, 8, torch.Generator().manual_seed(0))).all()


def test_no_component_stays_dead() -> None:
    stream, memory = Stream(clusters=3), MixtureMemory()
    stream.feed(memory, 20_000, batch=64)
    assert (memory.mass < 0.02 * memory.mass.mean()).sum() == 0


def test_wrong_projections_are_refused() -> None:
    memory = MixtureMemory()
    with pytest.raises(ValueError, match=r"must be \[N, 128\]"):
        memory.update(torch.zeros(3, 192))
    with pytest.raises(ValueError, match="finite"):
        memory.update(torch.full((1, DIM), torch.nan))
    memory.update(torch.zeros(0, DIM))
