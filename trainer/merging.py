"""When devices are asked for their change, and when the merge happens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MergePlan:
    """Counts batches; after ``merge_every`` it collects changes until all are in or ``deadline_s`` has passed.

    Up to batch ``each_until`` of the run, of which ``steps`` are behind it, every batch is merged by itself: early
    steps are those that must not wait (post-local SGD, Lin et al. 2020). Without ``collect`` devices hold no weights:
    none is asked for a change, and none is waited for.
    """

    def __init__(
        self, *, merge_every: int, deadline_s: float, each_until: int = 0, steps: int = 0, collect: bool = True
    ) -> None:
        self._collect = collect
        self._merge_every = merge_every
        self._each_until = each_until
        self._steps = steps
        self._deadline_s = deadline_s
        self._batches = 0
        self._trained: set[str] = set()
        self._asked: set[str] = set()
        self._until_s: float | None = None

    def closed(self, devices: Iterable[str], *, now_s: float) -> set[str]:
        """A batch was computed for ``devices``; returns those whose answer shall ask for their change."""
        devices = set(devices)
        self._batches += 1
        self._steps += 1
        every = 1 if self._steps <= self._each_until else self._merge_every
        if not self._collect:
            devices = set()
        self._trained |= devices
        if self._until_s is None and self._batches >= every:
            self._until_s = now_s + self._deadline_s
        if self._until_s is None:
            return set()
        asking = devices - self._asked
        self._asked |= asking
        return asking

    def due(self, *, live: Sequence[str], offered: Sequence[str], now_s: float) -> bool:
        """Whether to merge now. A device that has gone away is not waited for."""
        if self._until_s is None:
            return False
        awaited = (self._trained & set(live)) - set(offered)
        return not awaited or now_s >= self._until_s

    def merged(self) -> None:
        """A version was made; counting starts anew."""
        self._batches = 0
        self._trained = set()
        self._asked = set()
        self._until_s = None


class RoundPlan:
    """Mode federated: a merge when the changes of all live devices are in, or ``deadline_s`` after the first of them.

    ``expected`` devices must have been seen before the first round ends, so that a run repeats.
    """

    def __init__(self, *, deadline_s: float, expected: int) -> None:
        self._deadline_s = deadline_s
        self._expected = expected
        self._seen: set[str] = set()
        self._until_s: float | None = None

    def closed(self, devices: Iterable[str], *, now_s: float) -> set[str]:  # noqa: ARG002  as `MergePlan`
        """Devices give their changes without being asked."""
        return set()

    def due(self, *, live: Sequence[str], offered: Sequence[str], now_s: float) -> bool:
        """Whether to merge now. A device that has gone away is not waited for."""
        self._seen.update(live, offered)
        if not offered:
            return False
        if self._until_s is None:
            self._until_s = now_s + self._deadline_s
        complete = set(live) <= set(offered) and len(self._seen) >= self._expected
        return complete or now_s >= self._until_s

    def merged(self) -> None:
        """A version was made: the next round begins."""
        self._until_s = None
