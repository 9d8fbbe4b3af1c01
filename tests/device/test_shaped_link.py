from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from device.shaped_link import ShapedLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def served(answer: str) -> Iterator[int]:
    """A server that sends back what it gets ("echo"), or one byte when it has got everything ("count")."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65_536):
                if answer == "echo":
                    connection.sendall(data)
            connection.sendall(b"!")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def round_trip_s(connection: socket.socket) -> float:
    start_s = time.perf_counter()
    connection.sendall(b"?")
    assert connection.recv(1) == b"?"
    return time.perf_counter() - start_s


def receive_all(connection: socket.socket, size: int) -> None:
    while size:
        size -= len(connection.recv(min(size, 65_536)))


def takes(expected_s: float, transfer: Callable[[], float]) -> None:
    """Never faster than it should be; a busy machine may be slower, but not every time."""
    times_s: list[float] = []
    while len(times_s) < 12 and (not times_s or min(times_s) > expected_s * 1.05):
        times_s.append(transfer())
        assert times_s[-1] >= expected_s * 0.95
    assert min(times_s) <= expected_s * 1.05, times_s


def upload_s(port: int, size: int) -> float:
    with connect(port) as connection:
        start_s = time.perf_counter()
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"!"
        return time.perf_counter() - start_s


@pytest.mark.parametrize("mbps", [4.0, 40.0])
def test_the_uplink_carries_its_rate(mbps: float) -> None:
    size = int(mbps * 1e6 / 8 * 0.4)
    with served("count") as target, ShapedLink("127.0.0.1", target, mbps, None, 0.0) as link:
        takes(0.4, lambda: upload_s(link.port, size))
        assert link.bytes_up % size == 0
        assert link.bytes_up > 0


def test_the_downlink_has_a_rate_of_its_own() -> None:
    def echo_s() -> float:
        with connect(link.port) as connection:
            start_s = time.perf_counter()
            threading.Thread(target=connection.sendall, args=(bytes(400_000),), daemon=True).start()
            receive_all(connection, 400_000)
            return time.perf_counter() - start_s

    with served("echo") as target, ShapedLink("127.0.0.1", target, None, 8.0, 0.0) as link:
        takes(0.4, echo_s)
        assert 0 <= link.bytes_down % 400_000 <= 12  # each connection ends with a byte more
        assert link.bytes_down >= 400_000


def test_two_connections_share_the_rate() -> None:
    def both_s() -> float:
        start_s = time.perf_counter()
        threads = [threading.Thread(target=upload_s, args=(link.port, 200_000), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start_s

    with served("count") as target, ShapedLink("127.0.0.1", target, 8.0, None, 0.0) as link:
        takes(0.4, both_s)


@pytest.mark.parametrize("round_trip_ms", [20.0, 100.0])
def test_a_message_and_its_answer_take_the_round_trip(round_trip_ms: float) -> None:
    with (
        served("echo") as target,
        ShapedLink("127.0.0.1", target, None, None, round_trip_ms) as link,
        connect(link.port) as connection,
    ):
        times_s = [round_trip_s(connection) for _ in range(25)]
    # The shortest: a busy machine adds to a round trip and never takes away. 2 ms: the clock of the event loop.
    assert min(times_s) * 1000 == pytest.approx(round_trip_ms, rel=0.05, abs=2.0)
    assert min(times_s) * 1000 >= round_trip_ms * 0.99


def test_jitter_adds_a_random_share_and_what_was_sent_later_never_overtakes() -> None:
    with (
        served("echo") as target,
        ShapedLink("127.0.0.1", target, None, None, 20.0, 60.0, seed=3) as link,
        connect(link.port) as connection,
    ):
        times_ms = sorted(1e3 * round_trip_s(connection) for _ in range(40))
        sent = bytes(range(256)) * 64
        threading.Thread(target=connection.sendall, args=(sent,), daemon=True).start()
        received = b""
        while len(received) < len(sent):
            received += connection.recv(65_536)
    # Two uniform shares of 30 ms each: 20 to 80 ms, in the middle 50. Above, a busy machine may add what it likes.
    assert times_ms[0] >= 20.0 * 0.99
    assert times_ms[0] < 45.0
    assert times_ms[len(times_ms) // 2] > 35.0
    assert received == sent


def test_a_link_changes_its_shape_while_it_carries() -> None:
    with served("count") as target, ShapedLink("127.0.0.1", target, 16.0, 16.0, 0.0) as link:
        takes(0.4, lambda: upload_s(link.port, 800_000))
        link.shape(4.0, 4.0, 0.0)
        assert link.uplink_mbps == pytest.approx(4.0)
        takes(0.4, lambda: upload_s(link.port, 200_000))
        link.shape(None, None, 400.0)
        assert link.uplink_mbps is None
        takes(0.4, lambda: upload_s(link.port, 1))


def test_what_is_on_its_way_when_the_sender_closes_arrives_after_draining() -> None:
    with (
        served("echo") as target,
        ShapedLink("127.0.0.1", target, None, None, 200.0) as link,
        connect(link.port) as connection,
    ):
        round_trip_s(connection)
        connection.sendall(b"good-bye")
        connection.shutdown(socket.SHUT_WR)
        link.drain(5.0)
        receive_all(connection, len(b"good-bye!"))


def test_delay_does_not_cost_rate() -> None:
    with served("count") as target, ShapedLink("127.0.0.1", target, 16.0, None, 100.0) as link:
        takes(0.4 + 0.1, lambda: upload_s(link.port, 800_000))


def test_a_slow_link_pushes_back_instead_of_swallowing() -> None:
    with (
        served("count") as target,
        ShapedLink("127.0.0.1", target, 1.0, None, 0.0) as link,
        connect(link.port) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.sendall(bytes(4_000_000))
        assert link.bytes_up < 200_000


def test_an_outage_closes_connections_and_refuses_new_ones_until_it_ends() -> None:
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link:
        with connect(link.port) as before:
            round_trip_s(before)
            link.cut()
            with contextlib.suppress(ConnectionResetError):
                assert before.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(link.port)
        link.restore()
        with connect(link.port) as after:
            round_trip_s(after)


def test_a_silent_outage_holds_everything_back_until_it_ends() -> None:
    with served("echo") as target, ShapedLink("127.0.0.1", target) as link, connect(link.port) as connection:
        round_trip_s(connection)
        link.cut(silently=True)
        connection.sendall(b"?")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        link.restore()
        connection.settimeout(10.0)
        assert connection.recv(1) == b"?"


def test_a_target_that_is_away_looks_like_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    with (
        ShapedLink("127.0.0.1", closed) as link,
        connect(link.port) as connection,
        contextlib.suppress(ConnectionResetError),
    ):
        assert connection.recv(1) == b""


def test_stopping_twice_is_harmless() -> None:
    link = ShapedLink("127.0.0.1", 1)
    link.start()
    link.stop()
    link.stop()
