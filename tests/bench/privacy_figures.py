"""How much of a picture is in its reconstruction: errors that are 1 where nothing but an average is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DRAWS = 2_000
TAILS_PERCENT = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the reconstructions of windows that no decoder was fitted on.

    Attributes:
        error: squared error over that of the fitted windows' mean spectrum: 1.0 is as good as knowing the average.
        low, high: its 95 % interval, clips resampled.
        linear_error: the same of the linear map alone.
        course_error: the same after every band's mean over the window is taken out of both: how the sound goes on
            within the window. 1.0 is as good as knowing every window's own mean spectrum.
        band_correlation: Pearson's, of each band over all windows and frames, mean of the bands.
        found: share of the windows to which their own reconstruction is nearer than to every other held-out window.
    """

    error: float
    low: float
    high: float
    linear_error: float
    course_error: float
    band_correlation: float
    found: float


def measure(made: Tensor, linear: Tensor, pictures: Tensor, *, clip_of: Tensor, spectrum: Tensor) -> Figures:
    """Figures of reconstructions ``made`` and ``linear`` [N, 1, 64, 96]; ``clip_of`` [N], ``spectrum`` [64, 1]."""
    missed, known = _by_window(made - pictures), _by_window(pictures - spectrum)
    low, high = _interval(missed, known, clip_of.numpy())
    course = pictures - pictures.mean(dim=3, keepdim=True)
    course_missed = (made - made.mean(dim=3, keepdim=True)) - course
    return Figures(
        error=float(missed.sum() / known.sum()),
        low=low,
        high=high,
        linear_error=float(_by_window(linear - pictures).sum() / known.sum()),
        course_error=float(_by_window(course_missed).sum() / _by_window(course).sum()),
        band_correlation=_band_correlation(made, pictures),
        found=float((torch.cdist(pictures.flatten(1), made.flatten(1)).argmin(0) == torch.arange(len(made))).sum())
        / len(made),
    )


def own_spectrum_error(pictures: Tensor, spectrum: Tensor) -> float:
    """A yardstick for `Figures.error`: of knowing each window's own mean spectrum exactly, and not its course."""
    own = pictures.mean(dim=3, keepdim=True)
    return float(_by_window(own - pictures).sum() / _by_window(pictures - spectrum).sum())


def _by_window(difference: Tensor) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = difference.double().square().sum(dim=(1, 2, 3)).numpy()
    return squares


def _interval(
    missed: NDArray[np.float64], known: NDArray[np.float64], clip_of: NDArray[np.int64]
) -> tuple[float, float]:
    _, place = np.unique(clip_of, return_inverse=True)
    clips = int(place.max()) + 1
    above, below = np.bincount(place, missed), np.bincount(place, known)
    drawn = np.random.default_rng(0).integers(0, clips, (DRAWS, clips))
    low, high = np.percentile(above[drawn].sum(axis=1) / below[drawn].sum(axis=1), TAILS_PERCENT)
    return float(low), float(high)


def _band_correlation(made: Tensor, pictures: Tensor) -> float:
    a, b = (one.double().squeeze(1).transpose(0, 1).flatten(1) for one in (made, pictures))
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return float(torch.cosine_similarity(a, b, dim=1).mean())
