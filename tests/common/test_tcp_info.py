"""The kernel's word on a connection's rate and round trip."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from common.link_connection import Connection
from common.tcp_info import acknowledged_bytes, delivery_mbps, round_trip_ms
from device.shaped_link import ShapedLink
from tests.device.test_shaped_link import connect, receive_all, served


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_connection_that_carried_something_has_a_rate_and_a_round_trip() -> None:
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link, connect(link.port) as connection:
        connection.sendall(bytes(200_000))
        receive_all(connection, 200_000)
        rate, round_trip = delivery_mbps(connection), round_trip_ms(connection)
        acknowledged = acknowledged_bytes(connection)
    assert acknowledged is not None
    assert acknowledged >= 200_000
    assert rate is not None
    assert rate > 1.0
    assert round_trip is not None
    assert 0.0 < round_trip < 1000.0  # of the loopback, on a machine that may be busy


def test_a_connection_that_is_gone_has_none() -> None:
    connection = socket.socket()
    connection.close()
    assert delivery_mbps(connection) is None
    assert acknowledged_bytes(connection) is None
    assert round_trip_ms(connection) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_link_tells_a_rate_again_only_after_something_else_was_acknowledged() -> None:
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link, connect(link.port) as connection:
        ours: Any = SimpleNamespace(_client=SimpleNamespace(socket=lambda: connection), _acknowledged=None)
        told = []
        for _ in range(2):
            connection.sendall(bytes(50_000))
            receive_all(connection, 50_000)
            told += [Connection.delivery_mbps(ours), Connection.delivery_mbps(ours)]
    assert [rate is None for rate in told] == [False, True, False, True]
