"""What the kernel knows of a TCP connection: the rate at which it delivers. Linux only; elsewhere nothing is known."""

from __future__ import annotations

import socket
import struct
import sys

# struct tcp_info of linux/tcp.h: the delivery rate, bytes per second of the best recent flight, 64 bits wide.
DELIVERY_RATE_OFFSET = 160
INFO_BYTES = 168


def delivery_mbps(connection: socket.socket) -> float | None:
    """Megabits per second that this end's data have lately been delivered at; None where the kernel does not tell.

    The kernel leaves pauses of the program out of it, so a device that sends little still learns what its link can do.
    """
    if sys.platform != "linux":
        return None
    try:
        raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES)
    except OSError:  # the connection has just gone
        return None
    if len(raw) < INFO_BYTES:
        return None
    (rate,) = struct.unpack_from("=Q", raw, DELIVERY_RATE_OFFSET)
    return None if rate == 0 else rate * 8e-6
