"""Windows heard before, kept in memory as log-mels for local steps: a step is more than the last few seconds.

What is kept never leaves the device and never reaches the disk; sound is not kept at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """A window's views [2, 1, 64, 96] and where in the stream it stood."""

    views: Tensor
    segment: int
    time_s: float


class Replay:
    """At most ``capacity`` windows, 25 KB each. A new one takes a random place, so that old ones fade, not vanish."""

    def __init__(self, capacity: int, *, seed: int) -> None:
        self._capacity = capacity
        self._generator = torch.Generator().manual_seed(seed)
        self._held: list[Past] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, past: Past) -> None:
        """Keep a window, in half precision: the rounding is far below one decibel."""
        kept = Past(past.views.half(), past.segment, past.time_s)
        if len(self._held) < self._capacity:
            self._held.append(kept)
        else:
            self._held[int(torch.randint(self._capacity, (1,), generator=self._generator))] = kept

    def draw(self, count: int) -> list[Past]:
        """Up to ``count`` different windows, any with the same chance."""
        chosen = torch.randperm(len(self._held), generator=self._generator)[:count].tolist()
        return [Past(self._held[i].views.float(), self._held[i].segment, self._held[i].time_s) for i in chosen]
