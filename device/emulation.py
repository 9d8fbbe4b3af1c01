"""One machine plays a slower board: a block of compute is made to last as long as it would there, by sleeping.

A board faster than this machine cannot be played: compute is then left as it is and only the ratio is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from device.telemetry import Resources


class ComputeStretch:
    """Stretches blocks of compute by `slowdown`, the board's forward time over this machine's.

    Both times: as a profile's `mobile_forward_ms`. What is stretched is the processor
    time of the calling thread, so that a host busy with other things does not make the board slower as well, as long
    as a block is over in the board's time. The processor idles meanwhile. `shared` (1 or more, any thread may set it)
    is how many times as long compute takes because others use the board's processor.
    """

    def __init__(
        self,
        *,
        host_forward_ms: float,
        board_forward_ms: float,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not (host_forward_ms > 0.0 and board_forward_ms > 0.0):
            raise ValueError(f"forward times are {host_forward_ms} and {board_forward_ms} ms, allowed is above 0")
        self.ratio = board_forward_ms / host_forward_ms
        self.slowdown = max(1.0, self.ratio)
        self.shared = 1.0
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._sleep = sleep
        self._late_s = 0.0

    @property
    def faster_than_host(self) -> bool:
        """True where the board is faster than this machine: nothing is emulated, `ratio` (below 1) says how far off."""
        return self.ratio < 1.0

    @contextmanager
    def block(self) -> Iterator[None]:
        """Everything inside lasts `slowdown` times as long. After an exception nothing is slept."""
        start_s, cpu_s = self._clock(), self._cpu_clock()
        yield
        board_s = (self._cpu_clock() - cpu_s) * self.slowdown * self.shared
        self._sleep_for(board_s - (self._clock() - start_s))

    def _sleep_for(self, wanted_s: float) -> None:
        # An operating system sleeps too long, by up to a tick: the next block is stretched by that much less.
        owed_s = max(0.0, wanted_s) - self._late_s
        if owed_s <= 0.0:
            self._late_s = -owed_s
            return
        start_s = self._clock()
        self._sleep(owed_s)
        self._late_s = self._clock() - start_s - owed_s

    def describe(self) -> str:
        """One line for the log."""
        if self.faster_than_host:
            return f"the board is {1.0 / self.ratio:.1f} times as fast as this machine: compute is not emulated"
        return f"compute lasts {self.slowdown:.1f} times as long as on this machine"


def measure_forward_ms(
    forward: Callable[[], object], *, repeats: int = 15, clock: Callable[[], float] = time.thread_time
) -> float:
    """The least processor time of `forward()` in milliseconds, after three calls to warm up.

    Of the calling thread, which computes alone: what else the machine does only ever adds to it.
    """
    for _ in range(3):
        forward()
    durations_s = []
    for _ in range(repeats):
        start_s = clock()
        forward()
        durations_s.append(clock() - start_s)
    return min(durations_s) * 1e3


class BoardSampler:
    """Samples the board that is played, since this machine's sensors say nothing of it.

    `cpu` is the share of all cores kept busy, by this device (`busy_s`: the board's seconds of compute so far) and by
    others; `memory` what this process holds of the board's. The board has no other sensors.
    """

    def __init__(
        self,
        *,
        cores: int,
        memory_mb: int,
        busy_s: Callable[[], float],
        others_cpu: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cores = cores
        self._memory_bytes = memory_mb * 2**20
        self._busy_s = busy_s
        self._others_cpu = others_cpu
        self._clock = clock
        self._process = psutil.Process()
        self._last = (clock(), busy_s())

    def sample(self) -> Resources:
        """`cpu` is the mean since the sample before, what others take is as it is now."""
        now = (self._clock(), self._busy_s())
        passed_s, busy_s = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        own = busy_s / passed_s / self._cores if passed_s > 0.0 else 0.0
        return Resources(
            cpu=min(1.0, own + self._others_cpu()),
            memory=min(1.0, self._process.memory_info().rss / self._memory_bytes),
            temperature_c=None,
            throttled=None,
            battery=None,
        )
