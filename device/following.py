"""Which weights topics the device listens to: a subscription is a fetch, since everything there is retained."""

from __future__ import annotations

from collections.abc import Iterable

from common.link import Link
from common.topics import Topics


class Following:
    """The blocks this device wants to hear about."""

    def __init__(self, link: Link, topics: Topics) -> None:
        self._link = link
        self._topics = topics
        self._blocks: frozenset[str] = frozenset()

    def follow(self, blocks: Iterable[str]) -> None:
        """Listen to exactly these blocks from now on."""
        wanted = frozenset(blocks)
        for name in sorted(self._blocks - wanted):
            self._link.unsubscribe(self._topics.weights_filter(name))
        for name in sorted(wanted - self._blocks):
            self._link.subscribe(self._topics.weights_filter(name), qos=1)
        self._blocks = wanted
