"""Stand-ins for the network: a link that remembers what it was told and hands out what a test put in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from common.link import Incoming, Link
from common.split import VIEWS


@dataclass(frozen=True, slots=True)
class Published:
    """One message handed to the link."""

    topic: str
    payload: bytes
    qos: int = 0


class FakeLink:
    """What the program sees of `common.link.Link`, without a broker, a thread or a clock."""

    def __init__(self) -> None:
        self.published: list[Published] = []
        self.retained: list[tuple[str, bytes]] = []
        self.filters: dict[str, int] = {}
        self.incoming: deque[Incoming] = deque()
        self.connected = True

    @property
    def as_link(self) -> Link:
        """Itself, for parts that are typed for the real one."""
        return cast("Link", self)

    def put(self, topic: str, payload: bytes, *, received_s: float = 0.0, retained: bool = False) -> None:
        """Let a message arrive."""
        self.incoming.append(Incoming(topic, payload, retained, received_s))

    def take_published(self) -> list[Published]:
        """What was published since the last call."""
        taken, self.published = self.published, []
        return taken

    def take_retained(self) -> list[tuple[str, bytes]]:
        """What was retained since the last call, in order."""
        taken, self.retained = self.retained, []
        return taken

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expiry_s: float | None = None) -> bool:
        self.published.append(Published(topic, payload, qos))
        return True

    def retain(self, topic: str, payload: bytes) -> None:
        self.retained.append((topic, payload))

    def retain_many(self, entries: Sequence[tuple[str, bytes]]) -> None:
        self.retained += entries

    def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.filters[topic_filter] = qos

    def unsubscribe(self, topic_filter: str) -> None:
        del self.filters[topic_filter]

    def receive(self, timeout_s: float) -> Incoming | None:
        return self.incoming.popleft() if self.incoming else None

    def wake(self) -> None:
        """Nobody waits here."""


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A machine on which a view of two at once takes `forward_ms`, always."""

    forward_ms: float

    def once(self) -> float:
        """Of both views."""
        return VIEWS * self.forward_ms

    def least(self) -> float:
        """The same."""
        return VIEWS * self.forward_ms
