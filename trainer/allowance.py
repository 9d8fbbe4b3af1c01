"""How many parts a device may send until the trainer has looked up: more are dropped before anything is decoded.

As many messages of telemetry may come beside them.

A device has one step in flight. It may give up one that is not answered and begin another, so a few steps' worth are
allowed; a flood is not, and costs the trainer a look at the topic for each message. It begins anew with every batch,
and whenever the trainer has nothing to do: somebody else may have used up what a device has, in its name.
"""

from __future__ import annotations

import logging
from collections import Counter

from common.topics import Kind

LOG = logging.getLogger(__name__)
STEPS = 4


class Allowance:
    """Counts messages by device and kind. `takes` is for the thread that receives, `renew` for any."""

    def __init__(self, *, parts_per_step: int) -> None:
        self._most = STEPS * parts_per_step
        self._taken: Counter[tuple[str, Kind]] = Counter()
        self.dropped: Counter[str] = Counter()

    def takes(self, device: str, kind: Kind = Kind.ACTIVATIONS) -> bool:
        """Whether another message of this kind, a part at first, is taken of this device now."""
        self._taken[device, kind] += 1
        taken = self._taken[device, kind]
        if taken <= self._most:
            return True
        if taken == self._most + 1:
            LOG.warning("%s sends more than %d on %s within one batch; the rest is dropped", device, self._most, kind)
        self.dropped[device] += 1
        return False

    def renew(self) -> None:
        """A batch was closed, or the trainer has nothing to do."""
        self._taken = Counter()
