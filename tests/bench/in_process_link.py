"""A broker and its links inside one process: the same queues, retained topics and byte counts, without a socket.

`MemoryLink` has the public face of `common.link.Link`. What it counts are the bytes that MQTT 5 would put on the wire
for the same messages (acknowledgements included; handshake and keep-alive left out).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from common.config_fleet import FleetConfig
from common.link import Link, LinkCounters
from common.link_address import BrokerAddress
from common.link_queues import InboundQueues, Incoming
from common.topics import is_data
from common.traffic import kind_of, packet_bytes, with_rest

ACKNOWLEDGEMENT_BYTES = 4  # a PUBACK without properties


class MemoryBroker:
    """Delivers at once, in the publisher's thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._links: dict[str, MemoryLink] = {}
        self._retained: dict[str, bytes] = {}
        self._changed = threading.Condition(self._lock)

    def open_link(
        self,
        fleet: FleetConfig,
        *,
        client_id: str,
        will: tuple[str, bytes] | None,
        data_capacity: int,
        outbound_capacity: int,
        url: str = "",
    ) -> Link:
        """See `common.process.open_link`."""
        address = BrokerAddress.parse(url or fleet.broker.url)
        link = MemoryLink(self, client_id, address, will=will, data_capacity=data_capacity)
        return cast("Link", link)

    def join(self, link: MemoryLink) -> None:
        """A link connects."""
        with self._changed:
            self._links[link.client_id] = link
            self._changed.notify_all()

    def leave(self, link: MemoryLink) -> None:
        """A link ends with a good-bye."""
        with self._lock:
            self._links.pop(link.client_id, None)

    def break_off(self, client_id: str) -> None:
        """A link ends without one: its will is published."""
        with self._lock:
            link = self._links.pop(client_id, None)
        if link is not None and link.will is not None:
            self.publish(*link.will, qos=1, retain=True, expires=False)

    def wait_for(self, client_id: str, timeout_s: float) -> bool:
        """True as soon as the link of that name is connected."""
        with self._changed:
            return self._changed.wait_for(lambda: client_id in self._links, timeout_s)

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, expires: bool) -> None:
        """Hand a message to every link that wants it."""
        with self._lock:
            if retain:
                self._retained[topic] = payload
            for link in self._links.values():
                link.deliver(topic, payload, qos=qos, expires=expires, retained=False)

    def send_retained(self, link: MemoryLink, topic_filter: str) -> None:
        """What a new subscription gets."""
        with self._lock:
            for topic, payload in self._retained.items():
                if matches(topic_filter, topic):
                    link.deliver(topic, payload, qos=1, expires=False, retained=True)


class MemoryLink:
    """One end of a connection to a `MemoryBroker`."""

    protocol = "5"
    max_packet_bytes = None
    retained_waiting = 0

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        address: BrokerAddress,
        *,
        will: tuple[str, bytes] | None,
        data_capacity: int,
    ) -> None:
        self._broker = broker
        self._filters: dict[str, int] = {}
        self._wanted: dict[str, int | None] = {}
        self._inbound = InboundQueues(data_capacity)
        self._counters = LinkCounters()
        self._kinds: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.client_id = client_id
        self.address = address
        self.will = will
        self.connected = False
        self.connects = 0

    def start(self) -> None:
        """Connect, at once."""
        self.connected, self.connects = True, 1
        self._broker.join(self)
        for topic_filter in list(self._filters):
            self._broker.send_retained(self, topic_filter)

    def stop(self, timeout_s: float = 1.0) -> None:
        """Disconnect."""
        self.connected = False
        self._broker.leave(self)
        self._inbound.close()

    def wait_connected(self, timeout_s: float) -> bool:
        """Connected since `start`."""
        return self.connected

    def depths(self) -> tuple[int, int]:
        """See `Link`."""
        return self._inbound.depths()

    def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        """See `Link`; a filter that is there already brings nothing retained again, as with the real one."""
        known = topic_filter in self._filters
        self._filters[topic_filter] = qos
        self._wanted.clear()
        if self.connected and not known:
            self._broker.send_retained(self, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """See `Link`."""
        self._filters.pop(topic_filter, None)
        self._wanted.clear()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expiry_s: float | None = None) -> bool:
        """See `Link`."""
        self._send(topic, payload, qos=qos, retain=False, expires=expiry_s is not None)
        return True

    def retain(self, topic: str, payload: bytes) -> None:
        """See `Link`."""
        self._send(topic, payload, qos=1, retain=True, expires=False)

    def retain_many(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """See `Link`."""
        for topic, payload in entries:
            self.retain(topic, payload)

    def receive(self, timeout_s: float) -> Incoming | None:
        """See `Link`."""
        return self._inbound.take(timeout_s)

    def receive_control(self, timeout_s: float) -> Incoming | None:
        """See `Link`."""
        return self._inbound.take_control(timeout_s)

    def wake(self) -> None:
        """See `Link`."""
        self._inbound.wake()

    def delivery_mbps(self) -> float | None:
        """Nothing is measured here."""
        return None

    def round_trip_ms(self) -> float | None:
        """Nothing is measured here."""
        return None

    def counters(self) -> LinkCounters:
        """See `Link`."""
        with self._counting:
            counters, kinds = self._counters, dict(self._kinds)
        total = counters.bytes_up + counters.bytes_down
        return replace(counters, dropped_in=self._inbound.dropped, kinds=with_rest(kinds, total))

    def deliver(self, topic: str, payload: bytes, *, qos: int, expires: bool, retained: bool) -> None:
        """Take a message that matches one of the filters; any other is passed over. Called by the broker."""
        wanted = self._wanted_qos(topic)
        if wanted is None:
            return
        qos = min(qos, wanted)
        size_bytes = packet_bytes(topic, payload, qos=qos, expires=expires)
        self._count(topic, size_bytes, down=size_bytes, up=ACKNOWLEDGEMENT_BYTES if qos else 0)
        message = Incoming(topic, payload, retained, time.monotonic())
        put: Callable[[Incoming], None] = self._inbound.put_data if is_data(topic) else self._inbound.put_control
        put(message)

    def _send(self, topic: str, payload: bytes, *, qos: int, retain: bool, expires: bool) -> None:
        size_bytes = packet_bytes(topic, payload, qos=qos, expires=expires)
        self._count(topic, size_bytes, up=size_bytes, down=ACKNOWLEDGEMENT_BYTES if qos else 0)
        self._broker.publish(topic, payload, qos=qos, retain=retain, expires=expires)

    def _wanted_qos(self, topic: str) -> int | None:
        if topic not in self._wanted:
            found = [qos for topic_filter, qos in list(self._filters.items()) if matches(topic_filter, topic)]
            self._wanted[topic] = max(found, default=None)
        return self._wanted[topic]

    def _count(self, topic: str, size_bytes: int, *, up: int, down: int) -> None:
        with self._counting:  # the owner's threads send while others deliver
            self._kinds[kind_of(topic)] += size_bytes
            counters = self._counters
            self._counters = replace(counters, bytes_up=counters.bytes_up + up, bytes_down=counters.bytes_down + down)


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic matches a filter with ``+`` and ``#`` (MQTT 5, section 4.7)."""
    levels, names = topic_filter.split("/"), topic.split("/")
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(names) or level not in ("+", names[place]):
            return False
    return len(levels) == len(names)
