"""The kernel's word on a connection's rate and round trip."""

from __future__ import annotations

import socket
import sys

import pytest

from common.tcp_info import delivery_mbps, round_trip_ms
from device.shaped_link import ShapedLink
from tests.device.test_shaped_link import connect, receive_all, served


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_connection_that_carried_something_has_a_rate_and_a_round_trip() -> None:
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link, connect(link.port) as connection:
        connection.sendall(bytes(200_000))
        receive_all(connection, 200_000)
        rate, round_trip = delivery_mbps(connection), round_trip_ms(connection)
    assert rate is not None
    assert rate > 1.0
    assert round_trip is not None
    assert 0.0 < round_trip < 1000.0  # of the loopback, on a machine that may be busy


def test_a_connection_that_is_gone_has_none() -> None:
    connection = socket.socket()
    connection.close()
    assert delivery_mbps(connection) is None
    assert round_trip_ms(connection) is None
