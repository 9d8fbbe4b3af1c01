"""Which captured windows are worth sending: a share of them, those the device is least certain about, or any.

The share is met for every sequence of values, however they drift: what was sent too much or too little so far is taken
back over the next `HORIZON` windows. Nothing here reads a clock, and the same seed chooses the same windows.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np

from device.intake import SeenWindow

Chosen = Literal["uncertainty", "random"]

RECENT = 200  # values a new one is ranked among: a few minutes of sound, so that the rank follows the encoder
# Windows over which a deviation from the share is taken back. Shorter: steps fill more evenly, but a run of uncertain
# windows is cut off sooner.
HORIZON = 25


class ShareOfValues:
    """Chooses a share of a stream of values, the higher ones.

    After ``n`` values, ``share * n`` have been chosen give or take `HORIZON` + 1, for any values whatever.

    Args:
        share: above 0 to 1.
        seed: of the draws between equal values and of the random choice.
    """

    def __init__(self, share: float, *, seed: int) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"a share is above 0 to 1, not {share}")
        self._share = share
        self._rng = np.random.default_rng([seed, 0x5E4D])
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._ordered: list[float] = []
        self._owed = 0.0

    def choose(self, value: float | None) -> bool:
        """Whether the next one is chosen, by its rank among the recent values; None: at random.

        The rank of a value that is like the recent ones is uniform in 0..1, so that the share above ``1 - share`` is
        chosen; what is owed moves that bound.
        """
        draw = float(self._rng.random())
        rank = draw if value is None else self._rank(value, draw)
        chosen = rank >= 1.0 - self._share - (self._owed + self._share) / HORIZON
        self._owed += self._share - chosen
        return chosen

    def chosen_anyway(self) -> None:
        """One was sent without being asked about: it counts."""
        self._owed += self._share - 1.0

    def _rank(self, value: float, draw: float) -> float:
        """Where the value stands among the recent ones and itself, equal ones in random order."""
        below = bisect.bisect_left(self._ordered, value)
        equal = bisect.bisect_right(self._ordered, value) - below
        rank = (below + draw * (equal + 1)) / (len(self._ordered) + 1)
        if len(self._recent) == RECENT:
            self._ordered.pop(bisect.bisect_left(self._ordered, self._recent[0]))
        self._recent.append(value)
        bisect.insort(self._ordered, value)
        return rank


class Sending:
    """Says of each captured window whether it is sent. With a share of 1 nothing is computed.

    Args:
        share: of the captured windows, above 0 to 1.
        by: the more uncertain ones, or any (the control).
        uncertainty: of a window; None while nothing can be said: then any.
        seed: of everything random here.
    """

    def __init__(
        self, *, share: float, by: Chosen, uncertainty: Callable[[SeenWindow], float | None], seed: int
    ) -> None:
        self._share = share
        self._by = by
        self._uncertainty = uncertainty
        self._chooser = ShareOfValues(share, seed=seed)

    def wants(self, seen: SeenWindow, *, must: bool) -> bool:
        """Whether this window is sent. ``must``: it closes a step that others wait for, and is sent in any case."""
        if self._share >= 1.0:
            return True
        if must:
            self._chooser.chosen_anyway()
            return True
        return self._chooser.choose(self._uncertainty(seen) if self._by == "uncertainty" else None)
