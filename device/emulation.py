"""One machine plays a slower board: a block of compute is made to last as long as it would there, by sleeping.

A board faster than this machine cannot be played: compute is then left as it is and only the ratio is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ComputeStretch:
    """Stretches blocks of compute by `slowdown`, the board's forward time over this machine's.

    Both times: milliseconds for one window through the whole encoder on one thread. The processor idles while a block
    is stretched, so CPU load as telemetry measures it stays the host's.
    """

    def __init__(
        self,
        *,
        host_forward_ms: float,
        board_forward_ms: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not (host_forward_ms > 0.0 and board_forward_ms > 0.0):
            raise ValueError(f"forward times are {host_forward_ms} and {board_forward_ms} ms, allowed is above 0")
        self.ratio = board_forward_ms / host_forward_ms
        self.slowdown = max(1.0, self.ratio)
        self._clock = clock
        self._sleep = sleep
        self._owed_s = 0.0

    @property
    def faster_than_host(self) -> bool:
        """True where the board is faster than this machine: nothing is emulated, `ratio` (below 1) says how far off."""
        return self.ratio < 1.0

    @contextmanager
    def block(self) -> Iterator[None]:
        """Everything inside lasts `slowdown` times as long. After an exception nothing is slept."""
        start_s = self._clock()
        yield
        self._owed_s += (self._clock() - start_s) * (self.slowdown - 1.0)
        self._pay()

    def _pay(self) -> None:
        if self._owed_s <= 0.0:
            return
        start_s = self._clock()
        self._sleep(self._owed_s)
        # An operating system sleeps too long, by up to a tick: the next block is stretched by that much less.
        self._owed_s -= self._clock() - start_s

    def describe(self) -> str:
        """One line for the log."""
        if self.faster_than_host:
            return f"the board is {1.0 / self.ratio:.1f} times as fast as this machine: compute is not emulated"
        return f"compute lasts {self.slowdown:.1f} times as long as on this machine"


def measure_forward_ms(
    forward: Callable[[], object], *, repeats: int = 15, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median duration of `forward()` in milliseconds, after three calls to warm up."""
    for _ in range(3):
        forward()
    durations_s = []
    for _ in range(repeats):
        start_s = clock()
        forward()
        durations_s.append(clock() - start_s)
    return statistics.median(durations_s) * 1e3
