"""What the kernel knows of a TCP connection's path: its rate and round trip. Linux only; elsewhere nothing is known."""

from __future__ import annotations

import socket
import struct
import sys

# struct tcp_info of linux/tcp.h: the smoothed round trip, microseconds, 32 bits wide; the delivery rate, bytes a second
# of the best recent flight, and the bytes that were acknowledged, both 64 bits wide.
ROUND_TRIP_OFFSET = 68
ACKNOWLEDGED_OFFSET = 120
DELIVERY_RATE_OFFSET = 160
INFO_BYTES = 168


def delivery_mbps(connection: socket.socket) -> float | None:
    """Megabits per second that this end's data have lately been delivered at; None where the kernel does not tell.

    The kernel leaves pauses of the program out of it, so a device that sends little still learns what its link can do.
    """
    rate = _field(connection, "=Q", DELIVERY_RATE_OFFSET)
    return None if rate is None else rate * 8e-6


def acknowledged_bytes(connection: socket.socket) -> int | None:
    """What the other end has acknowledged of this end's data so far; None where the kernel does not tell."""
    return _field(connection, "=Q", ACKNOWLEDGED_OFFSET)


def round_trip_ms(connection: socket.socket) -> float | None:
    """Milliseconds there and back, smoothed by the kernel (RFC 6298); None where it does not tell.

    Every segment that is acknowledged measures it, whatever the program sends: it needs no answer from the other end.
    """
    microseconds = _field(connection, "=I", ROUND_TRIP_OFFSET)
    return None if microseconds is None else microseconds * 1e-3


def _field(connection: socket.socket, form: str, offset: int) -> int | None:
    """A number of ``tcp_info``; None where there is none, and for 0, which is the kernel's "not measured yet"."""
    if sys.platform != "linux":
        return None
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
    except OSError:  # the connection has just gone
        return None
    if len(raw) < INFO_BYTES:
        return None
    (value,) = struct.unpack_from(form, raw, offset)
    return int(value) or None
