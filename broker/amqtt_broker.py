"""amqtt 0.12 made fit for hundreds of messages a second of 5 to 64 KiB.

Read in its source and tried, it would otherwise:

- answer an MQTT 5 CONNECT that carries a will with silence: here its first bytes are refused, and a client falls back;
- send every connecting client the retained messages of everybody's subscriptions: here only those of its own;
- let a client's own publishes wait while it is sent retained messages, all at once: here these go behind, in order;
- make every message to a slow client a task that waits, without bound: here bounded by bytes, the newest dropped;
- format every payload, for each delivery, into a debug line that nobody reads;
- leave the first of two clients of one id connected: here the first is cut, and its will published;
- take packets of any size, never drop a silent client, and wait for ever for a stalled one when closing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.errors import AMQTTError, MQTTError

if TYPE_CHECKING:
    from amqtt.adapters import ReaderAdapter, WriterAdapter
    from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
    from amqtt.session import Session

MAX_PACKET_BYTES = 4_194_304
MAX_WAITING_BYTES = 67_108_864  # per client: a whole encoder of 22 MB fits, twice
MAX_WAITING_MESSAGES = 4_000
MAX_UNREAD_MESSAGES = 64  # of one client, before its socket is read no further
IN_FLIGHT = 20
CLOSE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 10.0
MQTT_311 = 4
UNACCEPTABLE_PROTOCOL = b"\x20\x02\x00\x01"

log = logging.getLogger("streamsplit.broker")


class LoopbackBroker(Broker):  # type: ignore[misc]  # amqtt is not typed
    """An amqtt broker for one machine, without passwords. ``port`` 0 takes a free one; ``start`` binds it."""

    def __init__(self, *, host: str, port: int) -> None:
        anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        super().__init__({"listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}}, "plugins": anonymous})
        self._outboxes: dict[BrokerProtocolHandler, _Outbox] = {}

    @property
    def port(self) -> int:
        """The port bound by ``start``."""
        server: Any = self._servers["default"].instance
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Refuse what is not MQTT 3.1.1 before amqtt misreads it."""
        try:
            start, level = await asyncio.wait_for(_connect_start(reader), CONNECT_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError):
            writer.transport.abort()
            return
        if level != MQTT_311:
            writer.write(UNACCEPTABLE_PROTOCOL)
            writer.close()
            return
        await self._client_connected(listener_name, _Reader(reader, start), _Writer(writer))

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        handler, session = await super()._initialize_client_session(reader, writer, remote_address, remote_port)
        if isinstance(reader, _Reader):
            reader.session = session
        return handler, session

    async def _delete_session(self, client_id: str) -> None:
        session, handler = self._sessions.get(client_id, (None, None))
        await super()._delete_session(client_id)
        if handler is not None and session is not None and session.transitions.state == "connected":
            await handler.handle_connection_closed()
            await handler.stop()

    async def _client_message_loop(self, client_session: Session, handler: BrokerProtocolHandler) -> None:
        outbox = self._outboxes[handler] = _Outbox(handler, client_session.client_id or "")
        try:
            await super()._client_message_loop(client_session, handler)
        finally:
            del self._outboxes[handler]
            outbox.close()
            await self._stop_handler(handler)

    async def _broadcast_message(
        self,
        session: Session | None,  # noqa: ARG002 - amqtt's signature
        topic: str | None,
        data: bytes | bytearray | None,
        force_qos: int | None = None,
    ) -> None:
        """Straight into the outboxes of the subscribers: no queue in between that could grow."""
        if topic is None:
            return
        payload = bytes(data or b"")
        for topic_filter, subscriptions in self._subscriptions.items():
            if self._matches(topic, topic_filter):
                for subscriber, qos in subscriptions:
                    outbox = self._outbox_of(subscriber)
                    if outbox is not None:
                        outbox.put(topic, payload, qos if force_qos is None else min(qos, force_qos), retain=False)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        # amqtt also calls this for every subscription of everybody when a client connects: then there is no outbox yet.
        topic_filter, qos = subscription
        outbox = self._outbox_of(session)
        if outbox is None:
            return
        for topic, retained in self._retained_messages.items():
            if self._matches(topic, topic_filter):
                outbox.put(topic, bytes(retained.data), min(qos, retained.qos or 0), retain=True)

    def _outbox_of(self, session: Session) -> _Outbox | None:
        handler = self._get_handler(session)
        return None if handler is None else self._outboxes.get(handler)


class _Outbox:
    """What waits to be sent to one client, in order and bounded; one task writes it."""

    def __init__(self, handler: BrokerProtocolHandler, client_id: str) -> None:
        self._handler, self._client_id = handler, client_id
        self._waiting: deque[tuple[str, bytes, int, bool]] = deque()
        self._waiting_bytes = 0
        self._dropping = self._closed = False
        self._filled = asyncio.Event()
        self._window = asyncio.Semaphore(IN_FLIGHT)
        self._acknowledgements: set[asyncio.Task[None]] = set()
        self._writer = asyncio.create_task(self._write())

    def put(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Queue a message, or drop it where this client has too much waiting already."""
        full = len(self._waiting) >= MAX_WAITING_MESSAGES or self._waiting_bytes + len(payload) > MAX_WAITING_BYTES
        if full and not self._dropping:
            log.error("%s takes its messages too slowly: dropping the newest", self._client_id)
        self._dropping = full
        if not full:
            self._waiting.append((topic, payload, qos, retain))
            self._waiting_bytes += len(payload)
            self._filled.set()

    def close(self) -> None:
        """The client is gone."""
        self._closed = True
        for task in (self._writer, *self._acknowledgements):
            task.cancel()

    async def _write(self) -> None:
        # amqtt turns a cancellation inside a write into an error of its own, hence the flag.
        while not self._closed:
            if not self._waiting:
                self._filled.clear()
                await self._filled.wait()
                continue
            topic, payload, qos, retain = self._waiting.popleft()
            self._waiting_bytes -= len(payload)
            if qos == 0:
                await self._send(topic, payload, qos, retain=retain)
                continue
            await self._window.acquire()
            task = asyncio.create_task(self._send(topic, payload, qos, retain=retain))
            self._acknowledgements.add(task)
            task.add_done_callback(self._acknowledged)
            await asyncio.sleep(0)  # lets it take the write lock before the next message asks for it

    def _acknowledged(self, task: asyncio.Task[None]) -> None:
        self._acknowledgements.discard(task)
        self._window.release()

    async def _send(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        try:
            await self._handler.mqtt_publish(topic, payload, qos, retain=retain)
        except (AMQTTError, MQTTError, OSError, TimeoutError) as error:
            log.debug("%s: %s not delivered: %r", self._client_id, topic, error)


class _Reader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt is not typed
    """Gives back what was looked at first, bounds packets, notices silence, reads no faster than the broker follows."""

    def __init__(self, reader: asyncio.StreamReader, start: bytes) -> None:
        super().__init__(reader)
        self._start = start
        self._heard_s = asyncio.get_running_loop().time()
        self.session: Session | None = None

    async def read(self, n: int = -1) -> bytes:
        if self._start and n > 0:
            first, self._start = self._start[:n], self._start[n:]
            return first if len(first) == n else first + bytes(await super().read(n - len(first)))
        self._check(n)
        while self._behind():  # noqa: ASYNC110 - amqtt's queue tells nobody when it shrinks
            await asyncio.sleep(0.001)
        data: bytes = await super().read(n)
        self._heard_s = asyncio.get_running_loop().time()
        return data

    def _behind(self) -> bool:
        return self.session is not None and self.session.delivered_message_queue.qsize() > MAX_UNREAD_MESSAGES

    def _check(self, n: int) -> None:
        silence_s = asyncio.get_running_loop().time() - self._heard_s
        if self.session is not None and 0 < 1.5 * self.session.keep_alive < silence_s:
            msg = f"nothing heard for {silence_s:.0f} s"
            raise ConnectionAbortedError(msg)
        if n > MAX_PACKET_BYTES:
            msg = f"a packet of {n} bytes"
            raise ConnectionAbortedError(msg)


class _Writer(StreamWriterAdapter):  # type: ignore[misc]  # amqtt is not typed
    """Closes also when the client reads nothing any more."""

    async def close(self) -> None:
        try:
            await asyncio.wait_for(super().close(), CLOSE_TIMEOUT_S)
        except (OSError, TimeoutError):
            self._writer.transport.abort()


async def _connect_start(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    """(bytes read, protocol level) of a CONNECT: fixed header, protocol name, level."""
    start = await reader.readexactly(2)
    while start[-1] & 0x80 and len(start) < 5:
        start += await reader.readexactly(1)
    name_length = await reader.readexactly(2)
    rest = await reader.readexactly(min(int.from_bytes(name_length, "big"), 16) + 1)
    return start + name_length + rest, rest[-1]
