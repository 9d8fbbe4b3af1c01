"""What experiments' figures are worth: differences of two methods, and AUROC, with bootstrap intervals.

Results of a method are ``{(fold, seed): one value per held-out clip}``, clips in the same order (`Scores.names`).
Both sources of chance are resampled: which clips a fold happens to hold, and which seeds were run. The clips of a fold
are drawn once for all seeds and both methods, so that pairs stay pairs. With a single seed nothing is known about
seeds, and the interval is of the clips alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
AUROC_DRAWS = 2_000  # each sorts nothing, but weighs every clip of every run
TAILS_PERCENT = (2.5, 97.5)

Runs = Mapping[tuple[int, int], Sequence[float]]
"""0 or 1 for a clip, or the share of several encoders that got it right."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval (percentiles of the bootstrap)."""

    mean: float
    low: float
    high: float


def paired_bootstrap(hits_a: Runs, hits_b: Runs, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean accuracy of method ``a`` minus that of ``b``, in points; every (fold, seed) counts the same.

    Raises:
        ValueError: the two have not the same folds, seeds and clips.
    """
    a, b = _by_fold(hits_a), _by_fold(hits_b)
    if sorted(hits_a) != sorted(hits_b) or any(a[fold].shape != b[fold].shape for fold in a):
        raise ValueError("the two methods have not the same folds, seeds and clips: they cannot be paired")
    rng = np.random.default_rng(seed)
    differences = [100.0 * (a[fold] - b[fold]) for fold in a]
    seeds = _counts(rng, len(differences[0]), draws)
    means = np.zeros(draws)
    for difference in differences:
        clips = _counts(rng, difference.shape[1], draws)
        means += ((seeds @ difference) * clips).sum(axis=1) / (difference.size * len(differences))
    return _estimate(float(np.mean([difference.mean() for difference in differences])), means)


def auroc_interval(
    uncertainty: Mapping[tuple[int, int], Sequence[float]], hits: Runs, *, draws: int = AUROC_DRAWS, seed: int = 0
) -> Estimate:
    """How well uncertainty tells errors from hits, the clips of all folds and seeds pooled: AUROC, 0.5 is not at all.

    A draw that happens to hold no error, or nothing else, has no AUROC and is left out of the interval.

    Raises:
        ValueError: not the same folds, seeds and clips, or no errors, or nothing but errors.
    """
    values, right = _by_fold(uncertainty), _by_fold(hits)
    if sorted(uncertainty) != sorted(hits) or any(values[fold].shape != right[fold].shape for fold in values):
        raise ValueError("uncertainty and hits are not of the same folds, seeds and clips")
    rng = np.random.default_rng(seed)
    seeds = _counts(rng, len(next(iter(values.values()))), draws)
    weights = [
        (seeds[:, :, None] * _counts(rng, of_fold.shape[1], draws)[:, None, :]).reshape(draws, -1)
        for of_fold in values.values()
    ]
    pooled = np.concatenate([of_fold.ravel() for of_fold in values.values()])
    wrong = np.concatenate([of_fold.ravel() for of_fold in right.values()]) == 0.0
    if wrong.all() or not wrong.any():
        raise ValueError("no AUROC without errors, nor with nothing else")
    drawn = _weighted_auroc(pooled, wrong, np.concatenate(weights, axis=1))
    return _estimate(float(_weighted_auroc(pooled, wrong, np.ones((1, len(pooled))))[0]), drawn[np.isfinite(drawn)])


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the latter where there is one value only."""
    return mean(values), stdev(values) if len(values) > 1 else None


def _by_fold(runs: Mapping[tuple[int, int], Sequence[float]]) -> dict[int, NDArray[np.float64]]:
    """Values by fold as [seeds, clips], seeds in the same order in every fold."""
    folds = sorted({fold for fold, _ in runs})
    seeds = sorted({seed for _, seed in runs})
    missing = [(fold, seed) for fold in folds for seed in seeds if (fold, seed) not in runs]
    if missing or not runs:
        raise ValueError(f"every seed must have been run on every fold; missing (fold, seed): {missing}")
    uneven = [fold for fold in folds if len({len(runs[fold, seed]) for seed in seeds}) > 1]
    if uneven:
        raise ValueError(f"folds {uneven}: not the same number of clips for every seed")
    return {fold: np.array([runs[fold, seed] for seed in seeds], dtype=np.float64) for fold in folds}


def _weighted_auroc(
    values: NDArray[np.float64], wrong: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC [B] of ``values`` [N] for ``wrong`` [N] under each row of ``weights`` [B, N]; ties count one half."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # the first of each group of equal values
    errors = np.add.reduceat(np.where(wrong, weights, 0.0)[:, order], starts, axis=1)
    others = np.add.reduceat(np.where(wrong, 0.0, weights)[:, order], starts, axis=1)
    below = np.cumsum(others, axis=1) - 0.5 * others
    pairs = errors.sum(axis=1) * others.sum(axis=1)
    with np.errstate(invalid="ignore"):
        won: NDArray[np.float64] = (errors * below).sum(axis=1) / pairs
    return won


def _counts(rng: np.random.Generator, of: int, draws: int) -> NDArray[np.float64]:
    """How often each of ``of`` things is drawn when as many are drawn with replacement: ``[draws, of]``."""
    return rng.multinomial(of, np.full(of, 1.0 / of), size=draws).astype(np.float64)


def _estimate(figure: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(drawn, TAILS_PERCENT)
    return Estimate(figure, float(low), float(high))
