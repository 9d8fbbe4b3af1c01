"""One end of an MQTT connection, as the program sees it: queues, retained topics, counters, no waiting for the network.

The network side is ``common/link_connection.py``; it and ``common/link_client.py`` alone know paho.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from common.link_address import BrokerAddress, Tls
from common.link_client import CONNECT_TIMEOUT_S
from common.link_connection import Connection
from common.link_queues import Incoming, Outgoing
from common.link_state import LinkBroken, LinkCounters, LinkState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Incoming", "Link", "LinkBroken", "LinkCounters", "Tls"]


class Link:
    """A connection to the broker that comes back by itself.

    ``is_data(topic)`` decides between the bounded data queue and the control queue. ``will`` is published, retained,
    when this end dies without ``stop``. An MQTT 5 broker is asked to keep payloads of more than ``max_message_bytes``
    to itself: what nobody would read must not fill this end's memory. What ``is_data`` raises breaks the link: it comes
    out of the next ``receive`` or ``publish`` as LinkBroken. Raises ConfigError for a URL or TLS files that cannot be
    used.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        is_data: Callable[[str], bool],
        will: tuple[str, bytes] | None = None,
        tls: Tls | None = None,
        username: str | None = None,
        password: str | None = None,
        keepalive_s: int = 30,
        data_capacity: int = 512,
        outbound_capacity: int = 64,
        max_message_bytes: int | None = None,
    ) -> None:
        self._state = LinkState(client_id=client_id, data_capacity=data_capacity, outbound_capacity=outbound_capacity)
        self._address = BrokerAddress.parse(url)
        self._connection = Connection(
            state=self._state,
            address=self._address,
            is_data=is_data,
            will=will,
            tls=tls,
            username=username,
            password=password,
            keepalive_s=keepalive_s,
            max_message_bytes=max_message_bytes,
        )

    def start(self) -> None:
        """Connect in the background; the broker may be away."""
        self._connection.thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Give waiting messages (not large sets) up to ``timeout_s``, disconnect without a will, end the thread."""
        if self._state.stopping.is_set():
            return
        self._state.flush_until_s = time.monotonic() + timeout_s
        self._state.stopping.set()
        self._state.bell.ring()
        if self._connection.thread.is_alive():
            self._connection.thread.join(timeout_s + CONNECT_TIMEOUT_S + 1.0)
        self._state.inbound.close()
        if not self._connection.thread.is_alive():  # else it hangs in a name lookup, and ends as a daemon
            self._state.bell.close()

    def __enter__(self) -> Link:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def client_id(self) -> str:
        """What the broker knows this end by."""
        return self._state.client_id

    @property
    def address(self) -> BrokerAddress:
        """Where the broker is, for messages in words."""
        return self._address

    @property
    def connected(self) -> bool:
        """True between a CONNACK and the loss of its connection."""
        return self._state.connected

    @property
    def connects(self) -> int:
        """CONNACKs so far."""
        return self._state.connects

    @property
    def max_packet_bytes(self) -> int | None:
        """The largest packet the broker takes, where it says so (MQTT 5)."""
        return self._state.max_packet_bytes

    @property
    def protocol(self) -> str:
        """The MQTT version spoken, or tried next: "5" or "3.1.1"."""
        return self._connection.protocol

    @property
    def retained_waiting(self) -> int:
        """Entries of ``retain_many`` that the socket has not taken yet."""
        return self._state.outbound.sets_waiting

    def depths(self) -> tuple[int, int]:
        """(data, control) messages received and not taken yet."""
        return self._state.inbound.depths()

    def wait_connected(self, timeout_s: float) -> bool:
        """True as soon as the link is connected."""
        return self._state.wait(lambda: self._state.connected, timeout_s)

    def wait_connects(self, count: int, timeout_s: float) -> bool:
        """True as soon as the link is connected after at least ``count`` CONNACKs."""
        return self._state.wait(lambda: self._state.connected and self._state.connects >= count, timeout_s)

    def wait_disconnected(self, timeout_s: float) -> bool:
        """True as soon as the link is not connected."""
        return self._state.wait(lambda: not self._state.connected, timeout_s)

    def wait_subscribed(self, timeout_s: float) -> bool:
        """True as soon as the broker has confirmed (or refused) every subscription of this connection."""
        return self._state.wait(self._state.subscribed, timeout_s)

    def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        """Subscribe now and at every connect."""
        self._state.want(topic_filter, qos)

    def unsubscribe(self, topic_filter: str) -> None:
        """The opposite of ``subscribe``."""
        self._state.want(topic_filter, None)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expiry_s: float | None = None) -> bool:
        """Queue a message. False, and counted: no connection (QoS 0), no room (QoS 1), or larger than the broker takes.

        QoS 1 waits for a connection, bounded. ``expiry_s`` counts here and, on MQTT 5, in the broker.
        Raises LinkBroken, and ValueError for what is no topic.
        """
        state = self._state
        self._check(topic)
        if state.too_large(topic, payload):
            return False
        if state.stopping.is_set() or (qos == 0 and not state.connected):
            state.outbound.refuse()
            return False
        message = Outgoing(topic, payload, qos, expires_s=None if expiry_s is None else time.monotonic() + expiry_s)
        if qos == 0:
            state.outbound.offer_data(message)
        elif not state.outbound.offer_acknowledged(message):
            return False
        state.bell.ring()
        return True

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish retained (QoS 1) now and at every connect; the latest payload of a topic wins."""
        self._check(topic)
        self._state.outbound.retain(topic, payload)
        self._state.bell.ring()

    def retain_many(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Like ``retain`` for a large set: sent in this order, paced, behind data and QoS 1; again at every connect.

        A newer set replaces what an older one has not sent yet of the same topics; but one that has done so goes out
        whole, before anything newer.
        """
        for topic, _ in entries:
            self._check(topic)
        self._state.outbound.retain_many(entries)
        self._state.bell.ring()

    def forget(self, topic: str, *, erase: bool = False) -> None:
        """No longer re-publish a retained topic; ``erase`` also deletes it at the broker."""
        self._state.outbound.forget(topic, erase=erase)
        self._state.bell.ring()

    def receive(self, timeout_s: float) -> Incoming | None:
        """The next message, control first; None after ``timeout_s``, a ``wake`` or ``stop``. Raises LinkBroken."""
        return self._received(self._state.inbound.take(timeout_s))

    def receive_control(self, timeout_s: float) -> Incoming | None:
        """The next control message; data stays where it is."""
        return self._received(self._state.inbound.take_control(timeout_s))

    def wake(self) -> None:
        """Make waiting receivers return None; where nobody waits, the next receive returns at once."""
        self._state.inbound.wake()

    def delivery_mbps(self) -> float | None:
        """Megabits per second at which the kernel lately delivered what was sent; None where it cannot tell."""
        return self._connection.delivery_mbps()

    def round_trip_ms(self) -> float | None:
        """Milliseconds to the broker and back, as the kernel measures them; None where it cannot tell."""
        return self._connection.round_trip_ms()

    def counters(self) -> LinkCounters:
        """A snapshot of everything counted."""
        return self._state.counters()

    def _received(self, message: Incoming | None) -> Incoming | None:
        if message is None:
            self._state.raise_if_broken()
        return message

    def _check(self, topic: str) -> None:
        self._state.raise_if_broken()
        if not topic or "+" in topic or "#" in topic:
            msg = f"not a topic to publish to: {topic!r}"
            raise ValueError(msg)
