"""Keeps a collapsed encoder from being published.

A merge that halves the effective rank of the embeddings against its running median is not published: the last good
version stays, with an alarm. Measured on a fixed batch of made-up spectrograms, so that it needs no data, nobody's
audio, and gives the same figure for the same weights.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.encoder import Encoder
from common.log_mel import FLOOR, FRAMES, LOG_DEVIATION, LOG_MEAN, MEL_BANDS
from common.state_blob import DTYPES, WeightsDtype
from trainer.quality import effective_rank

PROBES = 64
PROBE_SEED = 20_240_229
LOWEST_SHARE = 0.5
"""A merge below this share of the running median is refused."""

COLLAPSED_RANK = 1.5
"""Below this a merge is refused even as the first. Measured once each, plain InfoNCE on ESC-10, 120 steps, `mobile`:
untrained 17.7; rate 2e-3 with 100 steps of warm-up 17.7 to 25.7; 2e-3 without warm-up falls to 3.1 and still learns;
2e-2 without warm-up collapses: 1.2 after 5 steps, then 1.0 for good."""

MEMORY = 10
"""Accepted merges the running median covers: slow drift is learning, a sudden halving is not. With 50 a fleet of two
devices came from 20 to 9 in 20 merges, one after each batch, and then every merge was refused, also after a restart
(measured)."""

QUIETEST = (math.log(FLOOR) - LOG_MEAN) / LOG_DEVIATION
"""What `common.log_mel` makes of silence."""

Picture = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a merge may be published, and the ``reason`` if not; ``median`` is None before the first accepted one."""

    ok: bool
    effective_rank: float
    median: float | None
    reason: str


class CollapseGuard:
    """Judges merged encoders one after another and remembers the effective ranks of those it accepted.

    ``dtype``: in which they are published; weights beyond its range could not be.
    """

    def __init__(self, accepted_ranks: Iterable[float] = (), *, dtype: WeightsDtype = "fp32") -> None:
        self._ranks = deque(accepted_ranks, maxlen=MEMORY)
        self._dtype: WeightsDtype = dtype
        self._probes = probe_batch()

    def accepts(self, encoder: Encoder) -> Verdict:
        """Judge ``encoder`` as merged; its training mode and every random state stay as they are."""
        median = statistics.median(self._ranks) if self._ranks else None
        broken = _first_broken(encoder, self._dtype)
        if broken is not None:
            return Verdict(ok=False, effective_rank=math.nan, median=median, reason=broken)
        embeddings = _embed(encoder, self._probes)
        if not bool(torch.isfinite(embeddings).all()):
            return Verdict(ok=False, effective_rank=math.nan, median=median, reason="its embeddings are not finite")
        rank = effective_rank(embeddings)
        reason = _objection(rank, median)
        if reason:
            return Verdict(ok=False, effective_rank=rank, median=median, reason=reason)
        self._ranks.append(rank)
        return Verdict(ok=True, effective_rank=rank, median=median, reason="")

    def accepted_ranks(self) -> list[float]:
        """What a checkpoint keeps, and what the constructor takes on resume."""
        return list(self._ranks)


def probe_batch() -> Tensor:
    """The fixed batch [64, 1, bands, frames]: tonal, noisy, modulated and impulsive textures in the log-mel's range."""
    rng = np.random.default_rng(PROBE_SEED)
    textures: tuple[Callable[[np.random.Generator], Picture], ...] = (_tonal, _noisy, _modulated, _impulsive)
    pictures = [_on_background(textures[i % len(textures)](rng), rng) for i in range(PROBES)]
    return torch.from_numpy(np.stack(pictures)[:, None])


def _objection(rank: float, median: float | None) -> str:
    if rank < COLLAPSED_RANK:
        return f"effective rank {rank:.2f}: nearly every input has the same embedding"
    if median is not None and rank < LOWEST_SHARE * median:
        return f"effective rank {rank:.1f}, less than {LOWEST_SHARE:.0%} of the running median {median:.1f}"
    return ""


def _embed(encoder: Encoder, pictures: Tensor) -> Tensor:
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            embeddings: Tensor = encoder(pictures.to(next(encoder.parameters()).device))
    finally:
        encoder.train(was_training)
    return embeddings


def _first_broken(encoder: Encoder, dtype: WeightsDtype) -> str | None:
    for name, tensor in encoder.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite"
        if not bool(torch.isfinite(tensor.to(DTYPES[dtype])).all()):
            return f"{name} has a value beyond {dtype}"
    return None


# The textures: loudness above the background, 0 to about 4 deviations of the log-mel.


def _tonal(rng: np.random.Generator) -> Picture:
    """A gliding harmonic series with vibrato."""
    time = np.linspace(0.0, 1.0, FRAMES)
    pitch = rng.uniform(4, 20) + rng.uniform(-10, 10) * time + np.sin(time * rng.uniform(5, 40)) * rng.uniform(0, 2)
    lines = [_ridge(pitch * harmonic**0.6, rng.uniform(0.6, 1.5)) / harmonic**0.3 for harmonic in range(1, 6)]
    return _level(np.max(lines, axis=0), rng)


def _noisy(rng: np.random.Generator) -> Picture:
    """Steady noise in one band."""
    envelope = _ridge(np.full(FRAMES, rng.uniform(5, MEL_BANDS - 5)), rng.uniform(4, 20))
    return _level(envelope * (0.8 + 0.2 * rng.standard_normal((MEL_BANDS, FRAMES))), rng)


def _modulated(rng: np.random.Generator) -> Picture:
    """Noise whose loudness beats."""
    time = np.linspace(0.0, 1.0, FRAMES)
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(2, 20) * time + rng.uniform()))
    return (_noisy(rng) * beat ** rng.uniform(0.5, 3)).astype(np.float32)


def _impulsive(rng: np.random.Generator) -> Picture:
    """Clicks that die away, duller or sharper."""
    time = np.arange(FRAMES)
    clicks = np.zeros(FRAMES)
    for onset in rng.integers(0, FRAMES, size=rng.integers(1, 8)):
        clicks += np.where(time >= onset, np.exp(-(time - onset) / rng.uniform(1, 15)), 0.0)
    tilt = np.linspace(1.0, rng.uniform(0.0, 1.0), MEL_BANDS)
    return _level((tilt if rng.random() < 0.5 else tilt[::-1])[:, None] * np.minimum(clicks, 1.0), rng)


def _ridge(bands: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """A bell of ``width`` bands around ``bands`` [frames], of height one."""
    return np.exp(-0.5 * ((np.arange(MEL_BANDS)[:, None] - bands) / width) ** 2)


def _level(shape: NDArray[np.float64], rng: np.random.Generator) -> Picture:
    return (shape * rng.uniform(1.5, 4.0)).astype(np.float32)


def _on_background(picture: Picture, rng: np.random.Generator) -> Picture:
    """Add a tilted noise floor and put the whole into the range of `common.log_mel`."""
    tilt = np.linspace(0.0, rng.uniform(-1.0, 0.5), MEL_BANDS)[:, None]
    noise = rng.uniform(0.05, 0.3) * rng.standard_normal((MEL_BANDS, FRAMES))
    return np.clip(picture + rng.uniform(-3.0, 0.5) + tilt + noise, QUIETEST, None).astype(np.float32)
