"""Windows as they close: what is done with each before anything is decided, also while a step is waited for."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from torch import Tensor

from common.views import Views
from device.ambiguity import Ambiguity
from device.compute_time import ComputeTime
from device.journal import Totals
from device.pace import Pace
from device.sources import Source
from device.windows import Window

# Windows looked at before a step is over, 48 KiB each: as many as close within `step_timeout_s`, and then some. A fleet
# that sends a share of its windows waits for half a minute (measured: with 16 the others were seven seconds late).
MOST_AHEAD = 64


@dataclass(frozen=True, slots=True)
class SeenWindow:
    """A window, its views [2, 1, 64, 96] and when it was closed.

    Where the device computes every embedding, after how many seconds that of view A was there, and the uncertainty in
    0..1 by the weights and the mixture of then; None before there is a mixture.
    """

    window: Window
    views: Tensor
    closed_s: float
    own_s: float | None = None
    uncertainty: float | None = None


class Intake:
    """Sees the windows of ``source``; ``looks_ahead``: also those that close while a step is waited for."""

    def __init__(
        self, source: Source, views: Views, ambiguity: Ambiguity, compute: ComputeTime, totals: Totals, pace: Pace
    ) -> None:
        self._source = source
        self._views = views
        self._ambiguity = ambiguity
        self._compute = compute
        self._totals = totals
        self._pace = pace
        self._ahead: deque[SeenWindow] = deque()
        self.looks_ahead = not pace.lockstep and pace.learns

    @property
    def waiting(self) -> int:
        """Windows that have closed and were not dealt with yet."""
        return self._source.waiting + len(self._ahead)

    def finished(self) -> bool:
        """Whether there is no further window: as many as wanted were dealt with, or the source has no more."""
        if self._ahead:
            return False
        limit = self._pace.windows
        return (limit is not None and self._totals.windows >= limit) or self._source.state == "exhausted"

    def closed_s(self, window: Window) -> float:
        """When it was closed, on the monotonic clock; where no clock decides, when it is taken."""
        return time.monotonic() if self._pace.lockstep else window.closed_s

    def see(self, window: Window) -> SeenWindow:
        """What needs no decision and no step to be over; an embedding first, which is waited for."""
        closed_s = self.closed_s(window)
        if not self._pace.own_embedding:
            with self._compute.block():
                return SeenWindow(window, self._views(window), closed_s)
        with self._compute.block():
            first = self._views.first(window)
            embedding = self._ambiguity.embedding(first)
        own_s = time.monotonic() - closed_s
        with self._compute.block():
            return SeenWindow(window, self._views(window, first), closed_s, own_s, self._ambiguity.of(embedding))

    def look_ahead(self) -> bool:
        """While a step is waited for windows close: their embeddings need not wait, only their sending does.

        Whether there was one.
        """
        limit, taken = self._pace.windows, self._totals.windows + len(self._ahead)
        if (limit is None or taken < limit) and len(self._ahead) < MOST_AHEAD:
            window = self._source.next_window(0.0)
            if window is not None:
                self._ahead.append(self.see(window))
                return True
        return False

    def pass_over(self) -> None:
        """During a pause what the microphone hears is neither kept for later nor counted as lost."""
        if self._pace.lockstep:
            return
        self._ahead.clear()
        while self._source.next_window(0.0) is not None:
            pass

    def next_ahead(self) -> SeenWindow | None:
        """The oldest window that was looked at already and not taken."""
        return self._ahead.popleft() if self._ahead else None
