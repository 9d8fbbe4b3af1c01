"""How many windows a device could have captured by now: more than that it cannot have learned from.

In real time the trainer's clock tells. In fast mode no clock may decide what is learned: there the devices' own streams
do, as the median of how far they have come, which no single device can move. A device that has finished has come no
farther: it counts until it has been silent for a while.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from trainer.batcher import Part

WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE_HZ
SILENT = 64  # batches without a part of a device: in fast mode devices wait for each other, so it is not there


class Captured:
    """Counts windows of the fleet's time. ``clock`` (seconds, monotonic) None: by the streams."""

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._clock = clock
        self._newest: dict[str, tuple[str, int]] = {}  # device -> boot, window index
        self._come: dict[str, int] = {}  # device -> windows of its stream since it was first heard
        self._heard: dict[str, int] = {}  # device -> batch
        self._batch = 0
        self._farthest = 0.0

    def count(self, parts: Sequence[Part]) -> None:
        """Take a batch."""
        self._batch += 1
        for part in parts:
            if self._batch - self._heard.get(part.device, 0) > SILENT:  # as one that has never been heard
                self._come.pop(part.device, None)
            self._heard[part.device] = self._batch
            boot, index = self._newest.get(part.device, (part.boot, part.window_index))
            onwards = part.window_index - index if boot == part.boot else 0
            self._newest[part.device] = (part.boot, max(part.window_index, index if boot == part.boot else 0))
            self._come[part.device] = self._come.get(part.device, int(self._farthest)) + max(0, onwards)
        here = [come for device, come in self._come.items() if self._batch - self._heard[device] <= SILENT]
        self._farthest = max(self._farthest, statistics.median(here) if here else 0.0)

    def windows(self) -> float:
        """Windows that have passed since some fixed moment."""
        return self._farthest if self._clock is None else self._clock() / WINDOW_S
