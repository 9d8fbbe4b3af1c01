"""Windows that were not sent, and the local steps that are taken on them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from torch import Tensor

from common.encoder import Encoder
from common.link import Link
from common.split import names
from device.compute_time import ComputeTime
from device.edge_learner import EdgeLearner
from device.intake import SeenWindow
from device.journal import Journal
from device.replica import Replica
from device.senses import Senses
from device.windows import WINDOW_S


@dataclass(frozen=True, slots=True)
class LocalWindow:
    """A window that was not sent: its views [2, 1, 64, 96] and where it comes from."""

    views: Tensor
    segment: int
    time_s: float


class LocalSteps:
    """``windows`` in a step; of those that wait for one at most ``waiting``, older ones are given up."""

    def __init__(
        self,
        encoder: Encoder,
        edge_learner: EdgeLearner,
        compute: ComputeTime,
        replica: Replica,
        senses: Senses,
        journal: Journal,
        link: Link,
        *,
        windows: int,
        waiting: int,
    ) -> None:
        self._blocks = names(encoder)
        self._edge_learner = edge_learner
        self._compute = compute
        self._replica = replica
        self._senses = senses
        self._journal = journal
        self._link = link
        self._windows = windows
        self._waiting: deque[LocalWindow] = deque(maxlen=waiting)

    def offer(self, seen: SeenWindow) -> None:
        """A window that is not sent waits to be learned from."""
        window = seen.window
        self._waiting.append(LocalWindow(seen.views, window.segment, window.index * WINDOW_S))

    @property
    def due(self) -> bool:
        """Whether enough windows wait for a step."""
        return len(self._waiting) >= self._windows

    def take(self, *, decided: bool) -> int:
        """Take one step on the oldest windows, says on how many; ``decided``: not just filled in, so it is reported."""
        batch = [self._waiting.popleft() for _ in range(self._windows)]
        started_s = time.monotonic()
        with self._compute.block():
            loss = self._edge_learner.step(
                [one.views for one in batch],
                segments=[one.segment for one in batch],
                times_s=[one.time_s for one in batch],
            )
        self._replica.trained(self._blocks, local_windows=len(batch))
        self._journal.local_step(windows=len(batch), loss=loss, counters=self._link.counters())
        if decided:
            self._senses.local_step_over(loss, window_s=(time.monotonic() - started_s) / len(batch))
        return len(batch)
