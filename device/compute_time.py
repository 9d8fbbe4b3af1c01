"""The device's compute: counted, and where another board is played made as long as it is there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from device.emulation import ComputeStretch
from device.journal import Totals


class ComputeTime:
    """Adds what the calling thread computes to ``totals.busy_s``: seconds of the board that is played, if one is."""

    def __init__(self, totals: Totals, stretch: ComputeStretch | None) -> None:
        self._totals = totals
        self._stretch = stretch

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """Everything inside is compute. After an exception nothing is counted."""
        with self._stretch.block() if self._stretch else contextlib.nullcontext(1.0) as slowdown:
            started_s = time.thread_time()
            yield
            busy_s = time.thread_time() - started_s
        self._totals.busy_s += busy_s * slowdown
