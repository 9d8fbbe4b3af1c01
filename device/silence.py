"""A trainer that is said to be ready and answers nothing, and how long it is left alone.

A broker that comes back after a power cut restores the trainer's last word, and no last will, since nobody is connected
that could be lost. A device that believed it would send for ever and learn nothing.
"""

from __future__ import annotations

import logging
import math

LOG = logging.getLogger(__name__)
STEPS_LOST = 2  # in a row, before the trainer counts as away
FIRST_S = 60.0
LONGEST_S = 600.0


class Silence:
    """After two unanswered steps the trainer is away for a minute, and twice as long each further time, up to ten.

    ``heard`` counts what the trainer said by itself: anything more, and it is there at once.
    """

    def __init__(self) -> None:
        self._heard = 0
        self._lost = 0
        self._until_s = -math.inf

    def step_lost(self, now_s: float, heard: int) -> None:
        """A step was not answered although the link held."""
        if heard != self._heard:
            self._heard, self._lost, self._until_s = heard, 0, -math.inf
        self._lost += 1
        if self._lost >= STEPS_LOST:
            for_s = min(LONGEST_S, FIRST_S * 2.0 ** (self._lost - STEPS_LOST))
            self._until_s = now_s + for_s
            LOG.warning("the trainer is said to be ready and answers nothing: nothing is sent for %.0f s", for_s)

    def holds(self, now_s: float, heard: int) -> bool:
        """Whether the trainer counts as away."""
        return now_s < self._until_s and heard == self._heard
