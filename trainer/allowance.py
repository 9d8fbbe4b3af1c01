"""How many parts a device may send until the trainer has looked up: more are dropped before anything is decoded.

A device has one step in flight. It may give up one that is not answered and begin another, so a few steps' worth are
allowed; a flood is not, and costs the trainer a look at the topic for each message. It begins anew with every batch,
and whenever the trainer has nothing to do: somebody else may have used up what a device has, in its name.
"""

from __future__ import annotations

import logging
from collections import Counter

LOG = logging.getLogger(__name__)
STEPS = 4


class Allowance:
    """Counts parts by device. `takes` is for the thread that receives, `renew` for any."""

    def __init__(self, *, parts_per_step: int) -> None:
        self._most = STEPS * parts_per_step
        self._taken: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def takes(self, device: str) -> bool:
        """Whether another part of this device is taken now."""
        self._taken[device] += 1
        if self._taken[device] <= self._most:
            return True
        if self._taken[device] == self._most + 1:
            LOG.warning("%s sends more than %d parts within one batch; the rest is dropped", device, self._most)
        self.dropped[device] += 1
        return False

    def renew(self) -> None:
        """A batch was closed, or the trainer has nothing to do."""
        self._taken = Counter()
