"""The queues on both sides of the link: pure, thread-safe, bounded, and tested without a broker.

Inbound there are two: *data* (so many messages; drops its oldest) and *control* (the latest message of each topic, in
the order in which those latest messages arrived, so a manifest follows its chunks). Beyond ``MOST_BYTES`` unread either
drops its oldest: that much means that somebody floods us with topics or with giants. Drops are counted.
Outbound there are four classes: single retained topics, data (QoS 0), acknowledged (QoS 1), and large retained sets.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# After this many messages of one class the next lower class gets a turn: a saturated link must not starve the weights.
TURNS = 8
MOST_BYTES = 128 * 2**20
ENTRY_BYTES = 512  # what an empty message costs in memory, roughly: a flood may consist of nothing else


@dataclass(frozen=True, slots=True)
class Incoming:
    """One received message; ``received_s`` is this process's monotonic clock."""

    topic: str
    payload: bytes
    retained: bool
    received_s: float


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message on its way out; ``expires_s`` is a monotonic time after which nobody wants it any more."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    expires_s: float | None = None

    def expired(self, now_s: float) -> bool:
        """True when nobody wants it any more."""
        return self.expires_s is not None and now_s >= self.expires_s


class InboundQueues:
    """Data and control messages waiting for the program. Any thread may put, take or wake."""

    def __init__(self, data_capacity: int, most_bytes: int = MOST_BYTES) -> None:
        if data_capacity < 1:
            msg = f"data_capacity must be at least 1, not {data_capacity}"
            raise ValueError(msg)
        self._capacity, self._most_bytes = data_capacity, most_bytes
        self._data: deque[Incoming] = deque()
        self._control: dict[str, Incoming] = {}
        self._data_bytes = self._control_bytes = 0
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Messages dropped because the program did not take them in time, or could not have read them."""
        return self._dropped

    def put_data(self, message: Incoming) -> None:
        """Append; a full queue drops its oldest."""
        with self._changed:
            self._data.append(message)
            self._data_bytes += _held_bytes(message)
            while len(self._data) > self._capacity or (self._data_bytes > self._most_bytes and len(self._data) > 1):
                self._pop_data()
                self._dropped += 1
            self._changed.notify_all()

    def put_control(self, message: Incoming) -> None:
        """Append, in place of an unread message of the same topic; beyond the bound the oldest are dropped."""
        with self._changed:
            if message.topic in self._control:
                self._pop_control(message.topic)
            self._control[message.topic] = message
            self._control_bytes += _held_bytes(message)
            while self._control_bytes > self._most_bytes and len(self._control) > 1:
                self._pop_control(next(iter(self._control)))
                self._dropped += 1
            self._changed.notify_all()

    def refuse(self) -> None:
        """Count a message that could not be read."""
        with self._changed:
            self._dropped += 1

    def depths(self) -> tuple[int, int]:
        """(data, control) messages waiting."""
        return len(self._data), len(self._control)

    def wake(self) -> None:
        """Make a waiting receiver return; where nobody waits, the next receive returns at once."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """From now on nothing waits: receivers get what is left, then None at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Incoming | None:
        """The next message, control before data, or None after ``timeout_s`` or a wake."""
        return self._take(timeout_s, data=True)

    def take_control(self, timeout_s: float) -> Incoming | None:
        """Like ``take``, control only."""
        return self._take(timeout_s, data=False)

    def _take(self, timeout_s: float, *, data: bool) -> Incoming | None:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._control:
                    return self._pop_control(next(iter(self._control)))
                if data and self._data:
                    return self._pop_data()
                remaining_s = deadline_s - time.monotonic()
                if self._woken or self._closed or remaining_s <= 0:
                    self._woken = False
                    return None
                self._changed.wait(remaining_s)

    def _pop_data(self) -> Incoming:
        message = self._data.popleft()
        self._data_bytes -= _held_bytes(message)
        return message

    def _pop_control(self, topic: str) -> Incoming:
        message = self._control.pop(topic)
        self._control_bytes -= _held_bytes(message)
        return message


class OutboundQueues:
    """Messages waiting for the socket, by class. Any thread may offer; the network thread takes.

    Order of service: single retained topics (status, settings: small and rare), data, acknowledged, large retained
    sets; data and acknowledged messages leave one turn in ``TURNS`` + 1 to what is below them.
    """

    def __init__(self, *, data_capacity: int, acknowledged_capacity: int, clock: Callable[[], float]) -> None:
        self._capacities = (data_capacity, acknowledged_capacity)
        self._clock = clock
        self._lock = threading.Lock()
        self._data: deque[Outgoing] = deque()
        self._acknowledged: deque[Outgoing] = deque()
        self._singles: dict[str, Outgoing] = {}
        self._sets: dict[str, Outgoing] = {}
        self._next_sets: dict[str, Outgoing] = {}
        self._replaced = False  # the set on its way took the place of another one
        self._retained_singles: dict[str, bytes] = {}
        self._retained_sets: dict[str, bytes] = {}
        self._data_run = self._acknowledged_run = 0
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Messages given up here: pushed out, expired, refused for want of room, or lost with the connection."""
        return self._dropped

    @property
    def sets_waiting(self) -> int:
        """Entries of large retained sets that have not been handed to the socket yet."""
        return len(self._sets) + len(self._next_sets)

    def empty(self) -> bool:
        """True when nothing waits; large sets do not count, for nobody waits for those."""
        return not (self._data or self._acknowledged or self._singles)

    def offer_data(self, message: Outgoing) -> None:
        """Queue a QoS 0 message; a full queue drops its oldest."""
        with self._lock:
            if len(self._data) >= self._capacities[0]:
                self._data.popleft()
                self._dropped += 1
            self._data.append(message)

    def offer_acknowledged(self, message: Outgoing) -> bool:
        """Queue a QoS 1 message; False (and counted) when there is no room."""
        with self._lock:
            if len(self._acknowledged) >= self._capacities[1]:
                self._dropped += 1
                return False
            self._acknowledged.append(message)
            return True

    def put_back(self, messages: Sequence[Outgoing]) -> None:
        """Return acknowledged messages whose connection died before they were sent, in front of the others."""
        with self._lock:
            self._acknowledged.extendleft(reversed(messages))

    def refuse(self) -> None:
        """Count a message that could not even be queued."""
        with self._lock:
            self._dropped += 1

    def retain(self, topic: str, payload: bytes) -> None:
        """A single retained topic, due now and at every ``republish``."""
        with self._lock:
            self._forget(topic)
            self._retained_singles[topic] = payload
            self._singles[topic] = _retained(topic, payload)

    def retain_many(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """A large set, sent in this order after everything older.

        An entry takes the place of an unsent one of the set on its way. But a set that has done so goes out to its end:
        where sets are made faster than the socket takes them, each would else begin anew and none be whole. Of those
        that wait behind it the newest counts.
        """
        with self._lock:
            pending = self._next_sets if self._replaced else self._sets
            self._replaced = bool(self._sets)
            for topic, payload in entries:
                self._retained_singles.pop(topic, None)
                self._singles.pop(topic, None)
                self._retained_sets.pop(topic, None)
                self._retained_sets[topic] = payload
                pending.pop(topic, None)
                pending[topic] = _retained(topic, payload)

    def forget(self, topic: str, *, erase: bool) -> None:
        """No longer re-publish this topic; ``erase`` also removes it from the broker."""
        with self._lock:
            self._forget(topic)
            if erase:
                self._singles[topic] = _retained(topic, b"")

    def republish(self) -> None:
        """A new connection: everything retained is due again, sets in their order."""
        with self._lock:
            self._singles |= {topic: _retained(topic, payload) for topic, payload in self._retained_singles.items()}
            self._sets = {topic: _retained(topic, payload) for topic, payload in self._retained_sets.items()}
            self._next_sets, self._replaced = {}, False

    def lose_data(self) -> None:
        """The connection is gone: waiting QoS 0 messages are lost, and counted."""
        with self._lock:
            self._dropped += len(self._data)
            self._data.clear()

    def waiting(self, *, room: bool) -> bool:
        """True when ``take`` would find something."""
        return bool(self._data or (room and (self._singles or self._acknowledged or self._sets)))

    def take(self, *, room: bool) -> Outgoing | None:
        """The next message to send; ``room`` says whether another QoS 1 message may be in flight."""
        with self._lock:
            while (message := self._next(room=room)) is not None:
                if not message.expired(self._clock()):
                    return message
                self._dropped += 1
            return None

    def _next(self, *, room: bool) -> Outgoing | None:
        if room and self._singles:
            return _first(self._singles)
        lower_waits = room and bool(self._acknowledged or self._sets)
        if self._data and not (lower_waits and self._data_run >= TURNS):
            self._data_run += 1
            return self._data.popleft()
        if not lower_waits:
            return None
        self._data_run = 0
        if self._acknowledged and not (self._sets and self._acknowledged_run >= TURNS):
            self._acknowledged_run += 1
            return self._acknowledged.popleft()
        self._acknowledged_run = 0
        message = _first(self._sets)
        self._go_on_to_next_sets()
        return message

    def _forget(self, topic: str) -> None:
        for table in (self._retained_singles, self._retained_sets):
            table.pop(topic, None)
        for pending in (self._singles, self._sets, self._next_sets):
            pending.pop(topic, None)
        self._go_on_to_next_sets()

    def _go_on_to_next_sets(self) -> None:
        if not self._sets:
            self._sets, self._next_sets, self._replaced = self._next_sets, {}, False


def _held_bytes(message: Incoming) -> int:
    return ENTRY_BYTES + len(message.topic) + len(message.payload)


def _retained(topic: str, payload: bytes) -> Outgoing:
    return Outgoing(topic, payload, qos=1, retain=True)


def _first(pending: dict[str, Outgoing]) -> Outgoing:
    return pending.pop(next(iter(pending)))
