"""Two views of a window: A is the window as it is, B an augmented crop from its neighbourhood.

What B is put through must leave the sound recognisable and make everything else unreliable: place in time, loudness,
background, hiss, and any single stretch of time or band of frequency.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.log_mel import FRAMES, MEL_BANDS, SAMPLE_RATE_HZ, WINDOW_SAMPLES

NEIGHBOURHOOD_S = 0.5
RECORDING_REACH_S = 5.0  # to either side of a window, for COLA's crops: the whole of a clip of five seconds
_Sound = NDArray[np.float32]
# The axes of a picture [1, 64, 96]. Masking the wrong one wipes a whole view: a test watches these.
_BANDS_AXIS, _FRAMES_AXIS = 1, 2
_SILENCE = 1e-6


class Excerpt(Protocol):
    """One window and what lies around it.

    `samples` [15360] float32 in [-1, 1] at 16 kHz, `context` [15360..] float32 its neighbourhood with the window
    at `offset`, `segment` the stretch without a gap that it belongs to.
    """

    @property
    def samples(self) -> _Sound:
        """The window as it is."""

    @property
    def context(self) -> _Sound:
        """What view B may be cropped from."""

    @property
    def offset(self) -> int:
        """Where the window starts in it."""

    @property
    def segment(self) -> int:
        """Number of the stretch."""


class Views:
    """Makes both views of a window, together or A first; the same `rng` state and windows, the same bits.

    log_mel: `[N, 15360]` to `[N, 1, 64, 96]`. rng: all draws come from it. shift_s: how far B's crop may lie from the
    window. gain_db: loudest change of level either way. mix: largest share of an earlier window (of the last
    `remembered`, brought to the same level) in B. noise_snr_db: range of hiss below the window's own level.
    time_masks, frames: up to so many masks of at most so many frames; frequency_masks, bands likewise. A strength of
    0 switches its part off.
    """

    def __init__(
        self,
        log_mel: Callable[[Tensor], Tensor],
        rng: np.random.Generator,
        *,
        shift_s: float = NEIGHBOURHOOD_S,
        gain_db: float = 6.0,
        mix: float = 0.4,
        noise_snr_db: tuple[float, float] | None = (15.0, 45.0),
        time_masks: int = 2,
        time_mask_frames: int = 24,
        frequency_masks: int = 2,
        frequency_mask_bands: int = 12,
        remembered: int = 32,
    ) -> None:
        self._log_mel = log_mel
        self._rng = rng
        self._shift_samples = round(shift_s * SAMPLE_RATE_HZ)
        self._gain_db = gain_db
        self._mix = mix
        self._noise_snr_db = noise_snr_db
        self._time_masks = (time_masks, time_mask_frames)
        self._frequency_masks = (frequency_masks, frequency_mask_bands)
        self._earlier: deque[tuple[int, _Sound]] = deque(maxlen=remembered)

    def first(self, window: Excerpt) -> Tensor:
        """View A alone, `[1, 1, 64, 96]`, for whom its embedding cannot wait for view B; nothing is drawn for it."""
        _check(window)
        return self._pictures([window.samples])

    def __call__(self, window: Excerpt, first: Tensor | None = None) -> Tensor:
        """Views `[2, 1, 64, 96]` float32, A then B, without a graph; ``first``: view A, where it was made already.

        Raises:
            ValueError: a window of wrong shape.
        """
        _check(window)
        other = self._noisy(self._mixed(self._louder(self._crop(window)), window.segment))
        self._earlier.append((window.segment, window.samples))
        if first is None:
            views = self._pictures([window.samples, other])
        else:
            views = torch.cat([first, self._pictures([other])])
        self._mask(views[1])
        return views

    @torch.no_grad()
    def _pictures(self, sounds: Sequence[_Sound]) -> Tensor:
        pictures: Tensor = self._log_mel(torch.from_numpy(np.stack(sounds)))
        expected = [len(sounds), 1, MEL_BANDS, FRAMES]
        if list(pictures.shape) != expected:
            raise ValueError(f"pictures are {expected}, not {list(pictures.shape)}")
        return pictures

    def _crop(self, window: Excerpt) -> _Sound:
        first = max(0, window.offset - self._shift_samples)
        last = min(window.context.shape[0] - WINDOW_SAMPLES, window.offset + self._shift_samples)
        start = int(self._rng.integers(first, last + 1))
        return window.context[start : start + WINDOW_SAMPLES]

    def _louder(self, sound: _Sound) -> _Sound:
        gain_db = self._rng.uniform(-self._gain_db, self._gain_db)
        return sound * np.float32(10.0 ** (gain_db / 20.0))

    def _mixed(self, sound: _Sound, segment: int) -> _Sound:
        # Not with its own segment: that would be more of the same sound, not a background.
        others = [samples for number, samples in self._earlier if number != segment]
        share = self._rng.uniform(0.0, self._mix)
        if not others or share == 0.0:
            return sound
        background = others[self._rng.integers(len(others))]
        scale = share * _level(sound) / max(_level(background), _SILENCE)
        return sound * np.float32(1.0 - share) + background * np.float32(scale)

    def _noisy(self, sound: _Sound) -> _Sound:
        if self._noise_snr_db is None:
            return sound
        level = _level(sound) * 10.0 ** (-self._rng.uniform(*self._noise_snr_db) / 20.0)
        return sound + self._rng.standard_normal(sound.shape[0], dtype=np.float32) * np.float32(level)

    def _mask(self, picture: Tensor) -> None:
        """Overwrites stretches of a picture [1, 64, 96], in place, with its mean (neither loud nor silent)."""
        fill = float(picture.mean())
        for axis, (most, widest) in ((_FRAMES_AXIS, self._time_masks), (_BANDS_AXIS, self._frequency_masks)):
            for _ in range(self._rng.integers(0, most + 1)):
                width = int(self._rng.integers(0, widest + 1))
                start = int(self._rng.integers(0, picture.shape[axis] - width + 1))
                picture.narrow(axis, start, width).fill_(fill)


def reach_s(objective: str) -> float:
    """How much sound on either side of a window its view B may come from."""
    return RECORDING_REACH_S if objective == "cola" else NEIGHBOURHOOD_S


def views_of(objective: str, log_mel: Callable[[Tensor], Tensor], rng: np.random.Generator) -> Views:
    """The views that the fleet's objective wants."""
    reach = reach_s(objective)
    return crops(log_mel, rng, reach_s=reach) if objective == "cola" else Views(log_mel, rng, shift_s=reach)


def crops(log_mel: Callable[[Tensor], Tensor], rng: np.random.Generator, *, reach_s: float) -> Views:
    """Views for COLA: B is a crop from anywhere within `reach_s` of the window, and nothing is done to it."""
    return Views(
        log_mel,
        rng,
        shift_s=reach_s,
        gain_db=0.0,
        mix=0.0,
        noise_snr_db=None,
        time_masks=0,
        frequency_masks=0,
    )


def _level(sound: _Sound) -> float:
    return float(np.sqrt(np.dot(sound, sound) / sound.shape[0]))


def _check(window: Excerpt) -> None:
    if window.samples.shape != (WINDOW_SAMPLES,) or window.samples.dtype != np.float32:
        raise ValueError(
            f"a window is [{WINDOW_SAMPLES}] float32, not {list(window.samples.shape)} {window.samples.dtype}"
        )
    if window.context.ndim != 1 or window.context.dtype != np.float32:
        raise ValueError(f"a context is [n] float32, not {list(window.context.shape)} {window.context.dtype}")
    if not 0 <= window.offset <= window.context.shape[0] - WINDOW_SAMPLES:
        raise ValueError(f"offset {window.offset} leaves no window in a context of {window.context.shape[0]} samples")
