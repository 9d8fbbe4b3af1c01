"""A live stream from a card's rate to ours, block by block."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.transforms import Resample


@cache
def _filter(from_hz: int, to_hz: int) -> Resample:
    """Made once: on a small board that takes longer than a block lasts, and every gap begins a new stream."""
    return Resample(from_hz, to_hz)


class StreamResampler:
    """Gives the samples that resampling all of the stream at once would give; holds back a few milliseconds for it."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._resample = _filter(from_hz, to_hz) if from_hz != to_hz else None
        shared = math.gcd(from_hz, to_hz)
        # The smallest number of samples at which both rates meet again, so that the filter's phase is the same there.
        self._unit_in, self._unit_out = from_hz // shared, to_hz // shared
        # torchaudio's filter reaches over six zero crossings of 0.99 of the lower rate, and one sample is for rounding.
        reach = math.ceil(6.0 * from_hz / (0.99 * min(from_hz, to_hz))) + 1
        self._margin = math.ceil(reach / self._unit_in)
        self._held = np.zeros(0, dtype=np.float32)
        # Units at the start of what is held that were given already and stay only for the filter.
        self._given = 0

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes samples [n] at the first rate and gives back those [m] that are ready at the second."""
        if self._resample is None:
            return samples
        self._held = np.concatenate([self._held, samples])
        last = self._held.shape[0] // self._unit_in - self._margin
        if last <= self._given:
            return np.zeros(0, dtype=np.float32)
        whole = self._resample(torch.from_numpy(self._held)).numpy()
        ready: NDArray[np.float32] = whole[self._given * self._unit_out : last * self._unit_out]
        forget = max(0, last - self._margin)
        self._held = self._held[forget * self._unit_in :].copy()
        self._given = last - forget
        return ready
