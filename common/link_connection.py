"""The network side of a link.

One thread owns the socket: it connects, subscribes and re-publishes what is retained at every connect, hands paho the
next message only when the socket has taken the one before (paho's own QoS 0 queue has no bound), and is the one loop
that reconnects. paho is driven without its threads, so none of its locks is ever taken from outside.
MQTT 5 first; 3.1.1 where the broker refuses it or does not answer, and what worked is remembered; where a broker only
hung up, MQTT 5 is asked for again the next time.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTErrorCode

from common.link_address import Backoff, BrokerAddress, Tls
from common.link_client import MQTT_5, MQTT_311, LinkClient
from common.link_queues import Incoming, Outgoing
from common.tcp_info import acknowledged_bytes, delivery_mbps, round_trip_ms
from common.traffic import packet_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    import paho.mqtt.client as paho
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from common.link_state import LinkState

CONNACK_TIMEOUT_S = 10.0
# amqtt answers an MQTT 5 CONNECT that carries a will by silence, so an unproven protocol gets less patience.
UNPROVEN_CONNACK_TIMEOUT_S = 3.0
LEAVE_TIMEOUT_S = 1.0  # for the good-bye, after the time to flush
LAST_ATTEMPTS = 4  # to connect once more and say what is left to say, after the stop
LAST_PAUSE_S = 0.25  # between them
STABLE_S = 10.0  # a connection that lived this long starts the back-off anew
IN_FLIGHT = 8  # QoS 1 messages the broker has not acknowledged: 8 x 64 KiB per round trip
SEND_BURST_BYTES = 65_536
UNSUPPORTED_PROTOCOL = 132
TAKEN_OVER = 142  # not every Mosquitto says so
SUSPICIOUS = 3  # connections in a row that did not live long

log = logging.getLogger("streamsplit.link")


class Connection:
    """The network thread of one link. It starts with ``thread.start()`` and ends when the state says ``stopping``."""

    def __init__(
        self,
        *,
        state: LinkState,
        address: BrokerAddress,
        is_data: Callable[[str], bool],
        will: tuple[str, bytes] | None,
        tls: Tls | None,
        username: str | None,
        password: str | None,
        keepalive_s: int,
        max_message_bytes: int | None,
    ) -> None:
        self._state = state
        self._address = address
        self._is_data, self._will = is_data, will
        self._username = username if username is not None else address.username
        self._password = password if password is not None else address.password
        self._tls = (tls or Tls()).context() if address.secure else None
        self._keepalive_s = keepalive_s
        self._max_message_bytes = max_message_bytes
        self._in_flight: dict[int, Outgoing] = {}
        self._in_flight_limit = IN_FLIGHT
        self._protocol = MQTT_5
        self._proven = self._refuses_5 = False
        self._answered = False
        self._told: str | None = None
        self._short_lived = 0
        self._last_attempts = 0
        self._acknowledged: int | None = None
        self._client = self._make_client()
        self.thread = threading.Thread(target=self._run, name=f"link-{state.client_id}", daemon=True)

    @property
    def protocol(self) -> str:
        """The MQTT version: "5" or "3.1.1"."""
        return "5" if self._protocol == MQTT_5 else "3.1.1"

    def _run(self) -> None:
        state = self._state
        try:
            self._keep_connected()
        except BaseException as error:  # handed to the owner's threads, which raise it
            log.exception("%s: the network thread died", state.client_id)
            state.broken = error
        self._client.abort()
        state.now_disconnected()
        state.inbound.close()

    def _keep_connected(self) -> None:
        """The one loop that reconnects."""
        backoff = Backoff()
        while self._goes_on():
            started_s, self._answered = time.monotonic(), False
            if self._open():
                self._serve()
                self._state.now_disconnected()
                stable = time.monotonic() - started_s >= STABLE_S
                self._short_lived = self._short_lived + 1 if self._answered and not stable else 0
                if self._answered and stable:
                    backoff.reset()
                if not self._state.stopping.is_set() and self._wrong_protocol():
                    self._change_protocol()
                    if self._protocol == MQTT_311:
                        continue
            self._tell_trouble()
            self._pause(backoff)

    def _goes_on(self) -> bool:
        """Until it shall stop; then as long as something is left to say, and time, and few attempts were in vain."""
        if not self._state.stopping.is_set():
            return True
        self._last_attempts += 1
        return self._left_to_say() and self._last_attempts <= LAST_ATTEMPTS

    def _left_to_say(self) -> bool:
        untold = not self._state.outbound.empty() or bool(self._in_flight)
        return untold and time.monotonic() < self._state.flush_until_s

    def _pause(self, backoff: Backoff) -> None:
        if not self._state.stopping.is_set():
            self._state.stopping.wait(backoff.next_s())
        elif self._left_to_say():
            time.sleep(LAST_PAUSE_S)

    def _wrong_protocol(self) -> bool:
        """Whether to try the other one: nobody answered, or what did not answer to MQTT 5 may have been going down."""
        if self._answered and self._protocol == MQTT_311 and not self._refuses_5:
            self._proven = False
            return True
        return not self._answered and not self._proven

    def _tell_trouble(self) -> None:
        """Say what is wrong, once as long as it stays the same."""
        trouble = self._state.last_error
        if trouble is not None and self._short_lived >= SUSPICIOUS:
            trouble = f"{trouble}; again and again soon after it was made: is another client called so, too?"
        if trouble is not None and trouble != self._told and not self._state.stopping.is_set():
            log.warning("%s: no connection: %s", self._state.client_id, trouble)
            self._told = trouble

    def _change_protocol(self) -> None:
        # The new client cannot know what the old one had in flight; retained topics are all sent again anyway.
        self._state.outbound.put_back([message for message in self._in_flight.values() if not message.retain])
        self._in_flight.clear()
        self._protocol = MQTT_311 if self._protocol == MQTT_5 else MQTT_5
        self._client = self._make_client()

    def delivery_mbps(self) -> float | None:
        """See `common.tcp_info.delivery_mbps`; None without a connection, and where it would be the reading before.

        The kernel repeats a rate until something else has been acknowledged.
        """
        connection = self._client.socket()
        if not isinstance(connection, socket.socket):
            return None
        before, self._acknowledged = self._acknowledged, acknowledged_bytes(connection)
        told_before = self._acknowledged is not None and self._acknowledged == before
        return None if told_before else delivery_mbps(connection)

    def round_trip_ms(self) -> float | None:
        """See `common.tcp_info.round_trip_ms`; None without a connection."""
        connection = self._client.socket()
        return round_trip_ms(connection) if isinstance(connection, socket.socket) else None

    def _make_client(self) -> LinkClient:
        client = LinkClient(self._state, self._protocol)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        if self._will is not None:
            client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        if self._username is not None:
            client.username_pw_set(self._username, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.aim(self._address, keepalive_s=self._keepalive_s, max_message_bytes=self._max_message_bytes)
        return client

    def _open(self) -> bool:
        try:
            self._client.reconnect()
        except OSError as error:
            self._state.last_error = f"{self._where()}: {error}"
            return False
        self._client.starved = True
        return True

    def _where(self) -> str:
        return f"{self._address.host}:{self._address.port}"

    def _serve(self) -> None:
        """Move bytes until the connection is gone."""
        client, state = self._client, self._state
        answer_until_s = time.monotonic() + (CONNACK_TIMEOUT_S if self._proven else UNPROVEN_CONNACK_TIMEOUT_S)
        leaving = False
        with selectors.DefaultSelector() as selector:
            selector.register(state.bell, selectors.EVENT_READ)
            while (sock := client.socket()) is not None:
                if state.stopping.is_set() and not leaving and self._may_leave():
                    leaving = True
                    self._leave()
                    continue
                self._move(selector, sock)
                if not self._answered and time.monotonic() > answer_until_s:
                    state.last_error = f"{self._where()}: no answer to CONNECT"
                    self._refuses_5 = self._protocol == MQTT_5
                    client.abort()
                if leaving and time.monotonic() > state.flush_until_s + LEAVE_TIMEOUT_S:
                    client.abort()  # the socket does not even take a good-bye

    def _move(self, selector: selectors.BaseSelector, sock: Any) -> None:
        """Wait for the socket or the bell, then read and write what can be read and written."""
        client = self._client
        _watch(selector, sock, write=self._wants_to_send())
        readable, writable = not client.starved, False
        for key, mask in selector.select(self._patience_s()):
            if key.fileobj is self._state.bell:
                self._state.bell.answer()
                self._subscribe_due()
            else:
                readable = readable or bool(mask & selectors.EVENT_READ)
                writable = bool(mask & selectors.EVENT_WRITE)
        if readable:
            client.read_burst()
        if writable:
            client.loop_write()
            self._send_some()
        client.loop_misc()

    def _patience_s(self) -> float:
        if not self._client.starved:
            return 0.0
        return 0.05 if self._state.stopping.is_set() else 1.0

    def _wants_to_send(self) -> bool:
        if self._client.want_write():
            return True
        return self._state.connected and self._state.outbound.waiting(room=self._room())

    def _room(self) -> bool:
        return len(self._in_flight) < self._in_flight_limit

    def _send_some(self) -> None:
        client, budget = self._client, SEND_BURST_BYTES
        # The state says "connected" until the thread is back in its loop; the socket may have died in this very burst.
        while self._state.connected and client.socket() is not None and budget > 0 and not client.want_write():
            message = self._state.outbound.take(room=self._room())
            if message is None:
                return
            # Checked again: a message may have been queued before this broker told its limit.
            if not self._state.too_large(message.topic, message.payload):
                budget -= len(message.payload)
                self._hand_over(message)

    def _hand_over(self, message: Outgoing) -> None:
        expires = message.expires_s is not None and self._client.version_5
        self._count(message.topic, message.payload, qos=message.qos, expires=expires)
        info = self._client.send(message)
        if message.qos:  # paho keeps it for the next connection where this one is gone
            self._in_flight[info.mid] = message
        elif info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._state.outbound.refuse()

    def _count(self, topic: str, payload: bytes, *, qos: int, expires: bool) -> None:
        version_5 = self._client.version_5
        self._state.count(topic, packet_bytes(topic, payload, qos=qos, expires=expires, version_5=version_5))

    def _subscribe_due(self) -> None:
        for topic_filter, qos in self._state.take_due():
            if qos is None:
                self._client.unsubscribe(topic_filter)
            else:
                self._state.asked(self._client.subscribe(topic_filter, qos)[1], (topic_filter,))
        self._state.announce()

    def _may_leave(self) -> bool:
        if time.monotonic() >= self._state.flush_until_s:
            return True
        if not self._state.connected:  # of who says CONNECT and hangs up the broker publishes the will
            return self._will is None and self._state.outbound.empty()
        return self._state.outbound.empty() and not self._in_flight and not self._client.want_write()

    def _leave(self) -> None:
        if self._state.connected and not self._client.want_write():
            self._client.leave(self._state.flush_until_s)
        else:  # a packet is half written, and the time is over: the broker publishes the will
            self._client.abort()

    # paho calls these from ``loop_read`` and ``loop_write``, so what they raise ends the thread loudly.

    def _on_connect(self, _c: Any, _u: Any, _f: Any, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            self._state.last_error = f"{self._where()} refuses {self._state.client_id}: {reason}"
            if reason.value == UNSUPPORTED_PROTOCOL:
                self._proven, self._refuses_5 = False, self._protocol == MQTT_5
            else:
                self._answered = True
            return
        self._answered = self._proven = True
        self._told = None
        log.info("%s: connected to %s, MQTT %s", self._state.client_id, self._where(), self.protocol)
        self._in_flight_limit = min(IN_FLIGHT, getattr(properties, "ReceiveMaximum", IN_FLIGHT))
        subscriptions, dropped = self._state.now_connected(getattr(properties, "MaximumPacketSize", None))
        if dropped:
            self._client.unsubscribe(dropped)
        if subscriptions:
            self._state.asked(self._client.subscribe(subscriptions)[1], tuple(name for name, _ in subscriptions))
        self._state.outbound.republish()
        self._state.announce()

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, reason: ReasonCode, _p: Any) -> None:
        if reason.value == TAKEN_OVER:
            self._state.last_error = f"{self._where()}: another client is called {self._state.client_id}, too"
        elif reason.is_failure and self._state.connected:
            self._state.last_error = f"{self._where()}: {reason}"
        elif not self._answered:
            self._state.last_error = f"{self._where()}: closed the connection before CONNACK"

    def _on_message(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # a broker may hand on what it should have refused
            self._state.inbound.refuse()
            return
        incoming = Incoming(topic, bytes(message.payload), message.retain, time.monotonic())
        expires = hasattr(message.properties, "MessageExpiryInterval")
        self._count(topic, incoming.payload, qos=message.qos, expires=expires)
        if self._is_data(incoming.topic):
            self._state.inbound.put_data(incoming)
        else:
            self._state.inbound.put_control(incoming)

    def _on_publish(self, _c: Any, _u: Any, mid: int, reason: ReasonCode, _p: Any) -> None:
        message = self._in_flight.pop(mid, None)
        if message is not None and reason.is_failure:
            self._state.refuse(str(reason), message.topic)

    def _on_subscribe(self, _c: Any, _u: Any, mid: int, reasons: list[ReasonCode], _p: Any) -> None:
        for topic_filter, reason in zip(self._state.confirmed(mid), reasons, strict=False):
            if reason.is_failure:
                self._state.refuse(f"subscription: {reason}", topic_filter)


def _watch(selector: selectors.BaseSelector, sock: Any, *, write: bool) -> None:
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
    known = selector.get_map().get(sock)
    if known is None:
        selector.register(sock, events)
    elif known.events != events:
        selector.modify(sock, events)
