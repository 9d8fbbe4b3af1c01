"""How long a device's change of a block may be: judged by the others', else by earlier ones, in any case bounded."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Mapping

from common.change_blob import State

# Of the median of three or more: honest devices of a fleet differ by less, windows allowed for (measured: see the log).
TIMES_THE_OTHERS = 3.0
# Of what earlier merges saw, where fewer contribute: the learning rate may have risen several times since.
TIMES_EARLIER = 10.0
# Of the block's own length. AdamW at 2e-3 moves `resnet18`'s smallest weights by six times their own size in 25 steps;
# beyond ten it is no learning, and would soon be beyond fp16.
TIMES_THE_BLOCK = 10.0
# No bound is below: whoever sent nothing, or next to nothing, for a few merges must not silence the others for good.
LEAST_OF_THE_BLOCK = 1e-6
FEWEST = 3
MERGES_REMEMBERED = 5


class Clipping:
    """The bounds of every block, and how often they were needed at the latest merge."""

    def __init__(self) -> None:
        self._earlier: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MERGES_REMEMBERED))
        self.clipped = 0
        self.judged = 0

    @property
    def share(self) -> float | None:
        """What part of the changes of blocks was clipped at the latest merge; None before one with devices in it."""
        return self.clipped / self.judged if self.judged else None

    def scales(
        self, name: str, changes: Mapping[str, State], windows: Mapping[str, int], *, block_length: float
    ) -> dict[str, float]:
        """By what to multiply each contributor's change of a block: 1, or less where it is too long.

        A device that learned from more windows than the median one may have moved as much farther.
        """
        lengths = {who: length(change) for who, change in changes.items()}
        reference, usual = self._reference(name, list(lengths.values())), statistics.median(windows.values())
        return {
            who: min(1.0, self._longest(reference, windows[who] / usual, block_length) / max(found, 1e-30))
            for who, found in lengths.items()
        }

    def remember(self, judged: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
        """A merge took place: block -> contributor -> (length, what it was multiplied by)."""
        self.judged = sum(len(each) for each in judged.values())
        self.clipped = sum(scale < 1.0 for each in judged.values() for _, scale in each.values())
        for name, each in judged.items():
            moved = [found * scale for found, scale in each.values() if found > 0.0]
            if moved:
                self._earlier[name].append(statistics.median(moved))

    def _reference(self, name: str, lengths: list[float]) -> float:
        if len(lengths) >= FEWEST:
            return TIMES_THE_OTHERS * statistics.median(lengths)
        earlier = self._earlier.get(name)
        return TIMES_EARLIER * statistics.median(earlier) if earlier else math.inf

    @staticmethod
    def _longest(reference: float, share: float, block_length: float) -> float:
        bound = max(reference * max(1.0, share), LEAST_OF_THE_BLOCK * block_length)
        return min(bound, TIMES_THE_BLOCK * block_length)


def length(state: State) -> float:
    """Over all tensors together, in double precision: what a device sends may square beyond single."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in state.values()))
