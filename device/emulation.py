"""One machine plays a slower board: a block of compute is made to last as long as it would there, by sleeping.

A board faster than this machine cannot be played: compute is then left as it is and only the ratio is reported.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Protocol

import psutil

from common.split import VIEWS
from device.telemetry import Resources, share_but_for

MEASURED_EVERY_S = 1.0
MEASURED_AT_LEAST_EVERY_S = 5.0
REPEATS = 15
REMEMBERED = 9  # of the host's times: their median is what counts


class Host(Protocol):
    """How long a forward of `mobile` on a window's views takes on the machine, in milliseconds, timed now."""

    def once(self) -> float:
        """Of one call, after another that warms up."""

    def least(self) -> float:
        """Of the quickest of several."""


class ForwardTime:
    """Processor time of ``forward()`` in milliseconds, that of the calling thread, which computes alone.

    ``forward`` is called twice at once to warm up.
    """

    def __init__(self, forward: Callable[[], object], *, clock: Callable[[], float] = time.thread_time) -> None:
        self._forward = forward
        self._clock = clock
        for _ in range(2):
            forward()

    def once(self) -> float:
        """Of the second of two calls: after a second's sleep the first takes half as long again (measured)."""
        self._forward()
        start_s = self._clock()
        self._forward()
        return (self._clock() - start_s) * 1e3

    def least(self) -> float:
        """Of the quickest of `REPEATS` calls: what else the machine does only ever adds to it."""
        return min(self.once() for _ in range(REPEATS))


class ComputeStretch:
    """Stretches blocks of compute by `slowdown`, the board's forward time over this machine's.

    Both times: as a profile's `mobile_forward_ms`. What is stretched is the processor
    time of the calling thread, so that a host busy with other things does not make the board slower as well, as long
    as a block is over in the board's time. The processor idles meanwhile, but for `host`, a forward of `mobile` on a
    window's views, which is timed anew every second or so: by what else cores and caches are busy with it takes up to
    twice as long (measured), and two boards of one kind would be two different ones. At first its quickest of several
    counts: of the moment in which a whole fleet starts the others say nothing. It takes a block that sleeps long
    enough; a board hardly slower than the machine has few, so that after five seconds any block is made longer by it,
    and the next ones shorter.
    `shared` (1 or more, any thread may set it) is how many times as long compute takes because others use the board's
    processor.
    """

    def __init__(
        self,
        *,
        host: Host,
        board_forward_ms: float,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._host = host
        self._board_forward_ms = board_forward_ms
        self._host_ms = deque([host.least() / VIEWS], maxlen=REMEMBERED)
        if not (self._host_ms[0] > 0.0 and board_forward_ms > 0.0):
            raise ValueError(f"forward times are {self._host_ms[0]} and {board_forward_ms} ms, allowed is above 0")
        self.shared = 1.0
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._sleep = sleep
        self._late_s = 0.0
        self._measured_s = clock()

    @property
    def ratio(self) -> float:
        """The board's forward time over this machine's."""
        return self._board_forward_ms / median(self._host_ms)

    @property
    def slowdown(self) -> float:
        """How many times as long compute lasts; 1 where the board is faster."""
        return max(1.0, self.ratio)

    @property
    def faster_than_host(self) -> bool:
        """True where the board is faster than this machine: nothing is emulated, `ratio` (below 1) says how far off."""
        return self.ratio < 1.0

    @contextmanager
    def block(self) -> Iterator[float]:
        """Everything inside lasts `slowdown` times as long, which is given. After an exception nothing is slept."""
        start_s, cpu_s, slowdown = self._clock(), self._cpu_clock(), self.slowdown
        yield slowdown
        over_s = start_s + (self._cpu_clock() - cpu_s) * slowdown * self.shared
        self._measure_before(over_s)
        self._sleep_for(over_s - self._clock())

    def _measure_before(self, over_s: float) -> None:
        """Until then the board computes and the host does not: time to measure it."""
        now_s = self._clock()
        waited_s = now_s - self._measured_s
        enough_s = 3e-3 * VIEWS * median(self._host_ms)  # for two calls, of which the first takes longer
        if waited_s < MEASURED_EVERY_S or (over_s - now_s <= enough_s and waited_s < MEASURED_AT_LEAST_EVERY_S):
            return
        self._measured_s = now_s
        self._host_ms.append(self._host.once() / VIEWS)
        if not self.faster_than_host:  # else no block sleeps, and none could make it good
            self._late_s = max(self._late_s, self._clock() - max(now_s, over_s))

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

    def sample(self, but_for_s: float = 0.0) -> Resources:
        """`cpu` is the mean since the sample before, what others take is as it is now."""
        now = (self._clock(), self._busy_s())
        passed_s, busy_s = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        own = share_but_for(busy_s, passed_s * self._cores, but_for_s)
        return Resources(
            cpu=min(1.0, own + self._others_cpu()),
            memory=min(1.0, self._process.memory_info().rss / self._memory_bytes),
            temperature_c=None,
            throttled=None,
            battery=None,
        )
