"""Windows: 0.96 s of audio each, without overlap, with the neighbourhood that view B is cropped from.

A segment is a stretch without a gap. A recording that is replayed is known in full, so its windows have context on both
sides; a live window is handed on when its last sample is there, so its context is past and what happens to be there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.audio_file import tile_to
from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES

WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE_HZ
CONTEXT_S = 0.5  # on either side, unless a source is told otherwise

# no-audio: nothing, or digital silence, for some seconds, but it may come back. exhausted: there will be no more.
SourceState = Literal["ok", "no-audio", "exhausted"]
Speed = Literal["fast", "realtime"]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One window and where it comes from.

    `samples` [15360] float32 in [-1, 1] at 16 kHz. `context` [15360..] float32 is the neighbourhood inside the same
    segment with the window at `offset`: `context[offset:offset + 15360]` equals `samples`. `index` counts the
    windows of this device's stream, `segment` its stretches without a gap. `closed_s` is when the last sample was
    there: on the monotonic clock for live and real-time sources; in a `fast` replay the audio time since the start of
    the stream, so that a run repeats and neighbouring windows of a clip are 0.96 s apart at any speed.
    `captions` are all that are known of the stretch.
    """

    samples: NDArray[np.float32]
    context: NDArray[np.float32]
    offset: int
    segment: int
    index: int
    closed_s: float
    label: str | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A stretch of audio [samples] float32, where windows start in it (ascending, each one inside), its captions."""

    samples: NDArray[np.float32]
    starts: tuple[int, ...]
    captions: tuple[str, ...] = ()


def stream_clip(samples: NDArray[np.float32], rng: np.random.Generator) -> Clip:
    """As many contiguous windows as fit, from a random start within the spare time; a shorter clip is tiled to one."""
    samples = tile_to(samples, WINDOW_SAMPLES)
    count, spare = divmod(samples.shape[0], WINDOW_SAMPLES)
    phase = int(rng.integers(0, spare + 1))
    return Clip(samples=samples, starts=tuple(phase + number * WINDOW_SAMPLES for number in range(count)))


def shuffled_clip(samples: NDArray[np.float32], rng: np.random.Generator) -> Clip:
    """One window anywhere in the clip; a shorter clip is tiled to one."""
    samples = tile_to(samples, WINDOW_SAMPLES)
    return Clip(samples=samples, starts=(int(rng.integers(0, samples.shape[0] - WINDOW_SAMPLES + 1)),))


def neighbourhood(
    samples: NDArray[np.float32], start: int, *, context_s: float = CONTEXT_S
) -> tuple[NDArray[np.float32], int]:
    """A copy of up to `context_s` on either side of the window that starts there, and the window's offset in it."""
    reach = round(context_s * SAMPLE_RATE_HZ)
    first = max(0, start - reach)
    last = min(samples.shape[0], start + WINDOW_SAMPLES + reach)
    return samples[first:last].copy(), start - first


class Replay:
    """Plays clips as windows, at once (`fast`) or in their own time (`realtime`); every clip is a segment.

    In real time it is like a card: what is not taken within `backlog` windows is lost, counted in `dropped`, and the
    gap ends the segment. Errors of the clips' iterator pass through.
    """

    def __init__(
        self,
        clips: Iterator[Clip],
        *,
        speed: Speed,
        backlog: int = 16,
        context_s: float = CONTEXT_S,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.state: SourceState = "ok"
        self.dropped = 0
        self._clips = clips
        self._realtime = speed == "realtime"
        self._backlog = backlog
        self._context_s = context_s
        self._clock = clock
        self._wait = wait
        self._started_s: float | None = None if self._realtime else 0.0  # when the first window is asked for
        self._clip: Clip | None = None
        self._place = 0
        self._position = 0
        self._index = 0
        self._segment = -1

    def next_window(self, timeout_s: float) -> Window | None:
        """The next window once its time has come; None when that is beyond `timeout_s`, or after the last one."""
        if self.state == "exhausted":
            return None
        if self._started_s is None:
            self._started_s = self._clock()
        if self._realtime:
            self._drop_what_is_too_old()
            early_s = self._closes_s() - self._clock()
            if early_s > 0.0:
                self._wait(min(early_s, max(timeout_s, 0.0)))
                if early_s > timeout_s:
                    return None
        if not self._advance():
            return None
        window = self._cut()
        self._advance()  # now, so that the state says with the last window that it is the last
        return window

    @property
    def waiting(self) -> int:
        """Windows whose time has come and that were not taken yet; 0 in a `fast` replay, which has no time."""
        begun = self._realtime and self._started_s is not None
        late_s = self._clock() - self._closes_s() if begun else -1.0
        return 0 if late_s < 0.0 else int(late_s / WINDOW_S) + 1

    def _closes_s(self) -> float:
        return (self._started_s or 0.0) + (self._position + 1) * WINDOW_S

    def _drop_what_is_too_old(self) -> None:
        late = int((self._clock() - self._closes_s()) / WINDOW_S) - self._backlog
        if late <= 0:
            return
        self.dropped += late
        self._position += late
        self._place += late
        self._segment += 1

    def _advance(self) -> bool:
        """Makes sure that a window is there to be cut; False (and exhausted) after the last clip."""
        while self._clip is None or self._place >= len(self._clip.starts):
            self._clip = next(self._clips, None)
            if self._clip is None:
                self.state = "exhausted"
                return False
            self._place = 0
            self._segment += 1
        return True

    def _cut(self) -> Window:
        assert self._clip is not None
        start = self._clip.starts[self._place]
        context, offset = neighbourhood(self._clip.samples, start, context_s=self._context_s)
        window = Window(
            samples=context[offset : offset + WINDOW_SAMPLES],
            context=context,
            offset=offset,
            segment=self._segment,
            index=self._index,
            closed_s=self._closes_s(),
            captions=self._clip.captions,
        )
        self._place += 1
        self._position += 1
        self._index += 1
        return window


class LiveWindows:
    """Cuts a live stream: samples go in as they arrive, windows come out as they close."""

    def __init__(self, *, context_s: float = CONTEXT_S) -> None:
        self._context_s = context_s
        self._buffer = np.zeros(0, dtype=np.float32)
        self._start = 0
        self._segment = 0
        self._index = 0
        self._ready: deque[Window] = deque()

    def push(self, samples: NDArray[np.float32], arrived_s: float) -> None:
        """Adds samples [any] at 16 kHz, the last of which arrived at `arrived_s` on the monotonic clock."""
        if samples.ndim != 1:
            raise ValueError(f"a live stream is mono samples [n], not {list(samples.shape)}")
        self._buffer = np.concatenate([self._buffer, samples.astype(np.float32, copy=False)])
        while self._start + WINDOW_SAMPLES <= self._buffer.shape[0]:
            context, offset = neighbourhood(self._buffer, self._start, context_s=self._context_s)
            self._start += WINDOW_SAMPLES
            window = Window(
                samples=context[offset : offset + WINDOW_SAMPLES],
                context=context,
                offset=offset,
                segment=self._segment,
                index=self._index,
                closed_s=arrived_s - (self._buffer.shape[0] - self._start) / SAMPLE_RATE_HZ,
            )
            self._ready.append(window)
            self._index += 1
        passed = max(0, self._start - round(self._context_s * SAMPLE_RATE_HZ))
        self._buffer, self._start = self._buffer[passed:], self._start - passed

    def gap(self) -> None:
        """Something is missing here: the begun window is forgotten and a new segment starts; once is enough."""
        if self._buffer.shape[0]:
            self._segment += 1
        self._buffer, self._start = np.zeros(0, dtype=np.float32), 0

    @property
    def waiting(self) -> int:
        """Closed windows that nobody has taken yet."""
        return len(self._ready)

    def pop(self) -> Window | None:
        """The oldest closed window that nobody has taken yet."""
        return self._ready.popleft() if self._ready else None
