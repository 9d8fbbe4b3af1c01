"""The kernel's word on a connection's rate."""

from __future__ import annotations

import socket
import sys

import pytest

from common.tcp_info import delivery_mbps
from device.shaped_link import ShapedLink
from tests.device.test_shaped_link import connect, receive_all, served


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_connection_that_carried_something_has_a_rate() -> None:
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link, connect(link.port) as connection:
        connection.sendall(bytes(200_000))
        receive_all(connection, 200_000)
        rate = delivery_mbps(connection)
    assert rate is not None
    assert rate > 1.0


def test_a_connection_that_is_gone_has_none() -> None:
    connection = socket.socket()
    connection.close()
    assert delivery_mbps(connection) is None
