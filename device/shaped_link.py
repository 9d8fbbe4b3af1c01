"""A device's link made as slow, far and unreliable as a profile says: a TCP proxy with rate, delay and a switch.

In user space because the usual test machine's kernel has no ``netem``. All connections through one ``ShapedLink`` share
its rate, as they would share a radio. It also counts the bytes it carries: the reference for a link's own counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK_BYTES = 8_192
# How far ahead of the wire a sender is read: enough to keep the rate, little enough to be pushed back in time.
AHEAD_S = 0.05
BUFFER_BYTES = 65_536


@dataclass(slots=True)
class _Direction:
    """One way through the link; ``free_s`` is when the wire has sent all it was given."""

    bytes_per_s: float | None
    delay_s: float
    jitter_s: float = 0.0
    free_s: float = 0.0
    carried_bytes: int = 0

    def departs_s(self, size: int, now_s: float) -> float:
        """When the last of ``size`` bytes, given now, has left the sender."""
        if self.bytes_per_s is None:
            return now_s
        self.free_s = max(self.free_s, now_s) + size / self.bytes_per_s
        return self.free_s


@dataclass(slots=True, eq=False)
class _Pair:
    """One client's connection and its counterpart to the target."""

    client: asyncio.StreamWriter
    target: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def abort(self) -> None:
        for writer in (self.client, self.target):
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class ShapedLink:
    """A proxy on a loopback port, in a thread of its own, in front of ``target_host:target_port``.

    ``uplink_mbps`` and ``downlink_mbps`` are 10**6 bits per second of TCP payload, None for unlimited; half of
    ``round_trip_ms`` is added each way, and of ``jitter_ms`` a random share of its half (uniform, by ``seed``); nothing
    overtakes what was sent before. Use it as a context manager, or ``start`` and ``stop``.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        uplink_mbps: float | None = None,
        downlink_mbps: float | None = None,
        round_trip_ms: float = 0.0,
        jitter_ms: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        self._target = (target_host, target_port)
        self._random = random.Random(seed)
        self._up, self._down = _Direction(None, 0.0), _Direction(None, 0.0)
        self._shape(uplink_mbps, downlink_mbps, round_trip_ms, jitter_ms)
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._flows: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shaped-link", daemon=True)
        self.port = 0

    def start(self) -> None:
        """Listen; ``port`` is known when this returns."""
        self._thread.start()
        self._call(self._listen)

    def drain(self, timeout_s: float) -> None:
        """Let what is on its way arrive: wait until both ends of every connection have closed it, or ``timeout_s``."""
        if self._thread.is_alive():
            self._call(lambda: self._ended(timeout_s), timeout_s + 10.0)

    async def _ended(self, timeout_s: float) -> None:
        tasks = [task for pair in self._pairs for task in pair.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    def stop(self) -> None:
        """Close everything. The object cannot be started again."""
        if not self._thread.is_alive():
            return
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> ShapedLink:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bytes_up(self) -> int:
        """Bytes taken from the device's side."""
        return self._up.carried_bytes

    @property
    def bytes_down(self) -> int:
        """Bytes taken from the target's side."""
        return self._down.carried_bytes

    @property
    def uplink_mbps(self) -> float | None:
        """The rate upwards now; None: unlimited."""
        return None if self._up.bytes_per_s is None else self._up.bytes_per_s * 8e-6

    @property
    def round_trip_ms(self) -> float:
        """What is added to a round trip now, without jitter."""
        return self._up.delay_s * 2000.0

    def shape(
        self,
        uplink_mbps: float | None,
        downlink_mbps: float | None,
        round_trip_ms: float,
        jitter_ms: float = 0.0,
    ) -> None:
        """Another link from now on; what is on its way already arrives as it would have."""

        async def change() -> None:
            self._shape(uplink_mbps, downlink_mbps, round_trip_ms, jitter_ms)

        self._call(change)

    def _shape(
        self, uplink_mbps: float | None, downlink_mbps: float | None, round_trip_ms: float, jitter_ms: float
    ) -> None:
        for direction, mbps in ((self._up, uplink_mbps), (self._down, downlink_mbps)):
            direction.bytes_per_s = _bytes_per_s(mbps)
            direction.delay_s = round_trip_ms / 2000.0
            direction.jitter_s = jitter_ms / 2000.0

    def cut(self, *, silently: bool = False) -> None:
        """An outage: connections close, new ones are refused; ``silently``: they stay, nothing gets through."""
        self._call(self._stall if silently else self._close)

    def restore(self) -> None:
        """The end of an outage, on the same port; what was held back silently goes on."""
        self._call(self._listen)

    def _call(self, step: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Run a coroutine function in the proxy's thread, and wait for it."""
        done: Future[None] = asyncio.run_coroutine_threadsafe(step(), self._loop)
        done.result(timeout_s)

    async def _listen(self) -> None:
        if self._flows is None:
            self._flows = asyncio.Event()
        self._flows.set()
        if self._server is None:
            # Small buffers, inherited by each connection: what the kernel swallows is neither delayed nor pushed back.
            listener = socket.create_server(("127.0.0.1", self.port))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=BUFFER_BYTES)
            self.port = listener.getsockname()[1]

    async def _stall(self) -> None:
        if self._flows is not None:
            self._flows.clear()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            pair.abort()
        await asyncio.gather(*(task for pair in self._pairs for task in pair.tasks), return_exceptions=True)
        self._pairs.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection(*self._target, limit=BUFFER_BYTES)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, target_writer)
        self._pairs.add(pair)
        pair.tasks = [
            asyncio.create_task(self._carry(reader, target_writer, self._up)),
            asyncio.create_task(self._carry(target_reader, writer, self._down)),
        ]
        await asyncio.gather(*pair.tasks, return_exceptions=True)
        pair.abort()
        self._pairs.discard(pair)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: _Direction) -> None:
        """One direction of one connection: read, wait for the wire, deliver after the delay."""
        on_the_way: deque[tuple[float, bytes]] = deque()
        filled = asyncio.Event()
        delivering = asyncio.create_task(self._deliver(on_the_way, filled, writer))
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing()
                direction.carried_bytes += len(data)
                departs_s = direction.departs_s(len(data), self._loop.time())
                delay_s = direction.delay_s + direction.jitter_s * self._random.random()
                on_the_way.append((departs_s + delay_s, data))
                filled.set()
                await asyncio.sleep(departs_s - AHEAD_S - self._loop.time())
            on_the_way.append((self._loop.time() + direction.delay_s, b""))
            filled.set()
            await delivering
        except OSError:
            writer.transport.abort()
        finally:
            delivering.cancel()

    async def _deliver(
        self, on_the_way: deque[tuple[float, bytes]], filled: asyncio.Event, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                if not on_the_way:
                    filled.clear()
                    await filled.wait()
                arrives_s, data = on_the_way.popleft()
                await asyncio.sleep(arrives_s - self._loop.time())
                await self._flowing()
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

    async def _flowing(self) -> None:
        if self._flows is not None:
            await self._flows.wait()


def _bytes_per_s(mbps: float | None) -> float | None:
    return None if mbps is None else mbps * 1e6 / 8
