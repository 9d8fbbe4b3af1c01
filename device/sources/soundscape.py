"""An endless synthetic soundscape: one event after the other, of one class for some seconds, over noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from common.captions import class_captions
from common.errors import ConfigError
from common.soundscape import CLASSES, clip
from device.sources import Order
from device.windows import CONTEXT_S, Clip, Replay, SourceState, Speed, Window, shuffled_clip, stream_clip

SHORTEST_S, LONGEST_S = 4.0, 6.0


class SoundscapeSource:
    """Events of 4 to 6 s of random classes, each a segment, like the clips of a folder.

    The same seed gives the same windows. `classes` chooses among `common.soundscape.CLASSES` (default: all); with
    `captions` each event's class is named in words.
    Raises ConfigError for any other.
    """

    def __init__(
        self,
        *,
        classes: tuple[str, ...] | None = None,
        order: Order = "stream",
        seed: int = 0,
        speed: Speed = "fast",
        context_s: float = CONTEXT_S,
        captions: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._classes = CLASSES if not classes else tuple(classes)
        unknown = sorted(set(self._classes) - set(CLASSES))
        if unknown:
            raise ConfigError(f"no sound class {', '.join(unknown)}: allowed are {', '.join(CLASSES)}")
        self._begin = stream_clip if order == "stream" else shuffled_clip
        self._rng = np.random.default_rng(seed)
        self._captions = captions
        self._replay = Replay(self._events(), speed=speed, context_s=context_s, clock=clock, wait=wait)

    @property
    def state(self) -> SourceState:
        """Always `ok`."""
        return self._replay.state

    @property
    def dropped(self) -> int:
        """Windows lost because a soundscape in real time was not followed."""
        return self._replay.dropped

    @property
    def waiting(self) -> int:
        """Windows whose time has come and that were not taken yet."""
        return self._replay.waiting

    def next_window(self, timeout_s: float) -> Window | None:
        """The next window; None when its time is beyond `timeout_s`."""
        return self._replay.next_window(timeout_s)

    def close(self) -> None:
        """Holds nothing."""

    def _events(self) -> Iterator[Clip]:
        while True:
            label = self._classes[self._rng.integers(len(self._classes))]
            event = self._begin(clip(label, self._rng.uniform(SHORTEST_S, LONGEST_S), self._rng), self._rng)
            yield replace(event, captions=class_captions(label)) if self._captions else event
