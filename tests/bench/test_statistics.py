from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.bench.statistics import auroc_interval, mean_sd, paired_bootstrap

Runs = dict[tuple[int, int], tuple[bool, ...]]


def _runs(accuracy: float, *, folds: int = 5, seeds: int = 3, clips: int = 80, of: int = 0) -> Runs:
    """Made-up hits: clips differ in difficulty, which both methods and all seeds share."""
    difficulty = np.random.default_rng(0).normal(size=(folds, clips))
    noise = np.random.default_rng(1 + of).normal(size=(folds, seeds, clips))
    level = 2.0**0.5 * float(np.quantile(np.random.default_rng(9).normal(size=100_000), accuracy))
    hit = difficulty[:, None] + noise < level
    return {(fold + 1, seed): tuple(bool(x) for x in hit[fold, seed]) for fold in range(folds) for seed in range(seeds)}


def _slow_difference(a: Runs, b: Runs, draws: int, rng: np.random.Generator) -> list[float]:
    """The same bootstrap, clip by clip."""
    folds, seeds = sorted({fold for fold, _ in a}), sorted({seed for _, seed in a})
    means = []
    for _ in range(draws):
        chosen_seeds = rng.choice(seeds, size=len(seeds))
        of_runs = []
        for fold in folds:
            clips = rng.integers(len(a[fold, seeds[0]]), size=len(a[fold, seeds[0]]))
            of_runs += [
                np.mean([100.0 * (a[fold, seed][clip] - b[fold, seed][clip]) for clip in clips])
                for seed in chosen_seeds
            ]
        means.append(float(np.mean(of_runs)))
    return means


def test_a_known_difference_lies_in_the_interval_and_zero_does_not() -> None:
    estimate = paired_bootstrap(_runs(0.85), _runs(0.75, of=1))
    assert estimate.low < 10.0 < estimate.high
    assert estimate.low > 0.0
    assert estimate.low < estimate.mean < estimate.high


def test_the_mean_is_the_plain_difference_of_the_mean_accuracies() -> None:
    a, b = _runs(0.8), _runs(0.7, of=1)
    plain = 100.0 * (np.mean([np.mean(hits) for hits in a.values()]) - np.mean([np.mean(hits) for hits in b.values()]))
    assert paired_bootstrap(a, b).mean == pytest.approx(plain)


def test_the_interval_is_that_of_a_slow_bootstrap_clip_by_clip() -> None:
    a, b = _runs(0.8, folds=2, clips=30), _runs(0.7, folds=2, clips=30, of=1)
    slow = np.percentile(_slow_difference(a, b, 2_000, np.random.default_rng(5)), [2.5, 97.5])
    fast = paired_bootstrap(a, b)
    assert (fast.low, fast.high) == pytest.approx(slow, abs=0.08 * (fast.high - fast.low))


def test_a_method_against_itself_differs_by_nothing_at_all() -> None:
    estimate = paired_bootstrap(_runs(0.8), _runs(0.8))
    assert (estimate.mean, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_pairs_narrow_the_interval() -> None:
    a, b = _runs(0.8, seeds=1), _runs(0.75, seeds=1, of=1)
    unpaired = {run: tuple(np.random.default_rng(run[0]).permutation(hits).tolist()) for run, hits in b.items()}
    paired, loose = paired_bootstrap(a, b), paired_bootstrap(a, unpaired)
    assert paired.mean == pytest.approx(loose.mean)
    assert paired.high - paired.low < 0.9 * (loose.high - loose.low)


def test_seeds_that_disagree_widen_the_interval() -> None:
    clips = 400
    steady = {(1, seed): tuple(i % 10 < 8 for i in range(clips)) for seed in range(3)}
    moody = {(1, seed): tuple(i % 10 < 6 + 2 * seed for i in range(clips)) for seed in range(3)}
    nothing = {(1, seed): (False,) * clips for seed in range(3)}
    alone, spread = paired_bootstrap(steady, nothing), paired_bootstrap(moody, nothing)
    assert alone.mean == pytest.approx(spread.mean)
    assert spread.high - spread.low > 2 * (alone.high - alone.low)


def test_folds_of_different_sizes_count_the_same() -> None:
    a: Runs = {(1, 0): (True,) * 10, (2, 0): (False,) * 30}
    b: Runs = {(1, 0): (False,) * 10, (2, 0): (False,) * 30}
    assert paired_bootstrap(a, b).mean == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({(1, 0): (True, False)}, {(2, 0): (True, False)}),
        ({(1, 0): (True, False)}, {(1, 0): (True,)}),
        ({(1, 0): (True,), (1, 1): (True,), (2, 0): (True,)}, {(1, 0): (True,), (1, 1): (True,), (2, 0): (True,)}),
        ({(1, 0): (True,), (1, 1): (True, True)}, {(1, 0): (True,), (1, 1): (True, True)}),
        ({}, {}),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(a: Runs, b: Runs) -> None:
    with pytest.raises(ValueError, match=r"paired|missing|number of clips"):
        paired_bootstrap(a, b)


def _uncertain(runs: Runs, sharpness: float, decimals: int = 6) -> dict[tuple[int, int], tuple[float, ...]]:
    rng = np.random.default_rng(3)
    return {
        run: tuple(round(float(rng.normal() - sharpness * hit), decimals) for hit in hits) for run, hits in runs.items()
    }


def _pool(runs: Mapping[tuple[int, int], Sequence[float]]) -> list[float]:
    return [value for run in sorted(runs) for value in runs[run]]


@pytest.mark.parametrize("decimals", [6, 0])
def test_pooled_auroc_is_that_of_scikit_learn_also_with_ties(decimals: int) -> None:
    hits = _runs(0.8, seeds=2)
    uncertainty = _uncertain(hits, 1.0, decimals)
    expected = roc_auc_score([not hit for hit in _pool(hits)], _pool(uncertainty))
    estimate = auroc_interval(uncertainty, hits, draws=500)
    assert estimate.mean == pytest.approx(expected)
    assert estimate.low < expected < estimate.high


def test_the_interval_of_the_auroc_is_that_of_a_slow_bootstrap() -> None:
    hits = _runs(0.7, folds=2, seeds=2, clips=40)
    uncertainty = _uncertain(hits, 1.0)
    rng, drawn = np.random.default_rng(4), []
    for _ in range(600):
        seeds = rng.choice([0, 1], size=2)
        chosen = [(fold, s, c) for fold in (1, 2) for c in rng.integers(40, size=40) for s in seeds]
        wrong = [not hits[fold, s][c] for fold, s, c in chosen]
        drawn.append(roc_auc_score(wrong, [uncertainty[fold, s][c] for fold, s, c in chosen]))
    slow = np.percentile(drawn, [2.5, 97.5])
    fast = auroc_interval(uncertainty, hits)
    assert (fast.low, fast.high) == pytest.approx(slow, abs=0.12 * (fast.high - fast.low))


def test_uncertainty_that_knows_nothing_has_an_interval_around_one_half() -> None:
    hits = _runs(0.8)
    estimate = auroc_interval(_uncertain(hits, 0.0), hits)
    assert estimate.low < 0.5 < estimate.high


def test_auroc_needs_both_errors_and_hits_of_the_same_runs() -> None:
    runs = {(1, 0): (True, True)}
    with pytest.raises(ValueError, match="without errors"):
        auroc_interval({(1, 0): (0.1, 0.2)}, runs)
    with pytest.raises(ValueError, match="not of the same"):
        auroc_interval({(1, 0): (0.1,)}, runs)


def test_mean_and_standard_deviation_and_none_of_a_single_value() -> None:
    mean, deviation = mean_sd([1.0, 3.0])
    assert mean == 2.0
    assert deviation == pytest.approx(2.0**0.5)
    assert mean_sd([4.0]) == (4.0, None)
