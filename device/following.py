"""Which weights topics the device listens to: blocks it follows from version to version, and blocks it fetches whole.

Whole blocks are retained, so a subscription to one is a fetch; it ends when the block is here.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.link import Link
from common.topics import Topics


class Following:
    """The subscriptions to weights of this device."""

    def __init__(self, link: Link, topics: Topics) -> None:
        self._link = link
        self._topics = topics
        self._filters: frozenset[str] = frozenset()

    def follow(self, blocks: Iterable[str], *, whole: Iterable[str]) -> None:
        """From now on hear of every step of exactly these ``blocks``, and fetch exactly these ``whole``.

        Deltas first: of a version that is published between the two subscriptions, one or the other arrives.
        """
        steps, fetched = map(self._topics.delta_filter, blocks), map(self._topics.weights_filter, whole)
        wanted = dict.fromkeys([*steps, *fetched])
        for topic_filter in sorted(self._filters - wanted.keys()):
            self._link.unsubscribe(topic_filter)
        for topic_filter in wanted:
            if topic_filter not in self._filters:
                self._link.subscribe(topic_filter, qos=1)
        self._filters = frozenset(wanted)
