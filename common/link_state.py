"""What the two sides of a link share: queues, subscriptions, counters, and the bell that wakes the network thread."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.link_queues import InboundQueues, OutboundQueues
from common.traffic import KINDS, kind_of, with_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("streamsplit.link")


class LinkBroken(RuntimeError):
    """The network thread died of a bug of ours (its cause is chained): nothing will be sent or received any more."""


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """What went through the link since ``start``. Bytes are MQTT's, framing included, as the socket took and gave them.

    ``dropped_in``: pushed out unread, or with a topic that is no text. ``dropped_out``: pushed out, expired, offered
    without connection or room, or lost with the connection.
    ``refused``: PUBACKs with a failure code, refused subscriptions, publishes above the broker's limit; by reason in
    ``refusals``. ``last_error`` is what went wrong since the last connect. ``kinds``: all bytes, both directions, by
    what they carried (`common.traffic`).
    """

    bytes_up: int = 0
    bytes_down: int = 0
    dropped_in: int = 0
    dropped_out: int = 0
    refused: int = 0
    reconnects: int = 0
    last_error: str | None = None
    refusals: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)


class Bell:
    """Wakes a thread that waits in ``select``."""

    def __init__(self) -> None:
        self._answering, self._ringing = socket.socketpair()
        self._answering.setblocking(False)
        self._ringing.setblocking(False)
        self._rung = False

    def fileno(self) -> int:
        """What to select on."""
        return self._answering.fileno()

    def ring(self) -> None:
        """Any thread. One byte stands for any number of rings not answered yet."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody is there any more
                self._ringing.send(b"!")

    def answer(self) -> None:
        """The woken thread, before it looks at what there is to do."""
        self._answering.recv(4096)
        self._rung = False

    def close(self) -> None:
        """No more ringing."""
        self._answering.close()
        self._ringing.close()


class LinkState:
    """Everything the owner's threads and the network thread of one link both touch."""

    def __init__(self, *, client_id: str, data_capacity: int, outbound_capacity: int) -> None:
        self.client_id = client_id
        self.inbound = InboundQueues(data_capacity)
        self.outbound = OutboundQueues(
            data_capacity=outbound_capacity, acknowledged_capacity=outbound_capacity, clock=time.monotonic
        )
        self.bell = Bell()
        self.stopping = threading.Event()
        self.flush_until_s = 0.0
        self.connected = False
        self.connects = 0
        self.max_packet_bytes: int | None = None
        self.broken: BaseException | None = None
        self.last_error: str | None = None
        self.bytes_up = self.bytes_down = 0
        self.kinds = dict.fromkeys(KINDS, 0)  # touched by the network thread alone
        self._changed = threading.Condition()
        self._subscriptions: dict[str, int] = {}
        self._due: list[tuple[str, int | None]] = []
        self._dropped: set[str] = set()  # since the last CONNACK: the broker's session may still hold them
        self._unconfirmed: dict[int, tuple[str, ...]] = {}
        self._asking = False  # the network thread holds subscriptions that it has not sent yet
        self._refusals: Counter[str] = Counter()

    def want(self, topic_filter: str, qos: int | None) -> None:
        """Remember a subscription, or with None forget it; the network thread sees to it."""
        with self._changed:
            self._subscriptions.pop(topic_filter, None)
            if qos is None:
                self._dropped.add(topic_filter)
            else:
                self._subscriptions[topic_filter] = qos
                self._dropped.discard(topic_filter)
            if self.connected:
                self._due.append((topic_filter, qos))
        self.bell.ring()

    def take_due(self) -> list[tuple[str, int | None]]:
        """Changes of subscriptions made while connected: (filter, qos), or (filter, None) to drop it.

        Once they are asked for, ``announce`` is due.
        """
        with self._changed:
            self._asking = True
            due, self._due = self._due, []
            return due

    def asked(self, mid: int | None, filters: tuple[str, ...]) -> None:
        """The broker was asked for these filters and has not answered yet."""
        if mid is not None:
            with self._changed:
                self._unconfirmed[mid] = filters

    def confirmed(self, mid: int) -> tuple[str, ...]:
        """The broker has answered; returns what it was asked for."""
        with self._changed:
            filters = self._unconfirmed.pop(mid, ())
            self._changed.notify_all()
            return filters

    def now_connected(self, max_packet_bytes: int | None) -> tuple[list[tuple[str, int]], list[str]]:
        """A CONNACK; returns every subscription, all due again, and the filters to drop once more.

        A session outlives its connection, and with it subscriptions that were dropped while there was none. Once
        everything is asked for, ``announce`` is due.
        """
        with self._changed:
            self.connected = self._asking = True
            self.last_error = None
            self.connects += 1
            self.max_packet_bytes = max_packet_bytes
            self._due.clear()
            self._unconfirmed.clear()
            dropped, self._dropped = sorted(self._dropped), set()
            return list(self._subscriptions.items()), dropped

    def announce(self) -> None:
        """Everything taken has been asked for: let those who wait look again."""
        with self._changed:
            self._asking = False
            self._changed.notify_all()

    def now_disconnected(self) -> None:
        """The connection is gone; messages that only made sense on it are lost."""
        with self._changed:
            self.connected = False
            self._changed.notify_all()
        self.outbound.lose_data()

    def subscribed(self) -> bool:
        """No subscription is waiting for the broker."""
        return self.connected and not self._asking and not self._unconfirmed and not self._due

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """True as soon as ``condition`` holds. Raises LinkBroken."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition() or self.broken is not None, timeout_s)
        self.raise_if_broken()
        return met

    def raise_if_broken(self) -> None:
        """Raises LinkBroken where the network thread has died."""
        if self.broken is not None:
            msg = f"the network thread of {self.client_id} died: {self.broken!r}"
            raise LinkBroken(msg) from self.broken

    def count(self, topic: str, size_bytes: int) -> None:
        """The network thread: so many bytes went over the socket for a message."""
        self.kinds[kind_of(topic)] += size_bytes

    def too_large(self, topic: str, payload: bytes) -> bool:
        """True, and counted, for what the broker would cut the connection for."""
        limit = self.max_packet_bytes
        # Fixed header 5, topic length 2, message id 2, property length 1, expiry 5.
        if limit is None or len(topic.encode()) + len(payload) + 15 <= limit:
            return False
        self.refuse("packet too large", f"{topic}: {len(payload)} bytes, the broker takes packets of {limit}")
        return True

    def refuse(self, reason: str, detail: str) -> None:
        """Count what the broker refused, or would refuse."""
        with self._changed:
            self._refusals[reason] += 1
            self.last_error = f"{reason}: {detail}"
        log.warning("%s: %s: %s", self.client_id, reason, detail)

    def counters(self) -> LinkCounters:
        """A snapshot of everything counted."""
        with self._changed:
            return LinkCounters(
                bytes_up=self.bytes_up,
                bytes_down=self.bytes_down,
                dropped_in=self.inbound.dropped,
                dropped_out=self.outbound.dropped,
                refused=self._refusals.total(),
                reconnects=max(0, self.connects - 1),
                last_error=self.last_error,
                refusals=dict(self._refusals),
                kinds=with_rest(dict(self.kinds), self.bytes_up + self.bytes_down),
            )
