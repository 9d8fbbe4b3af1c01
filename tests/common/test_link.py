from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from broker import mosquitto
from broker.child import accepts, ended_at_exit, free_port
from broker.start import Broker, open_broker
from common import link_connection
from common.errors import ConfigError
from common.link import Link, LinkBroken, Tls
from common.topics import Topics
from common.traffic import packet_bytes
from device.shaped_link import ShapedLink
from tests.brokers import SOON_S, Links, data_topic, eventually, expect, needs_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def port_of(broker: Broker) -> int:
    return int(broker.url.rpartition(":")[2])


@contextlib.contextmanager
def configured_mosquitto(directory: Path, *lines: str) -> Iterator[int]:
    """A Mosquitto with a configuration of the test's own; yields its port."""
    program, port = mosquitto.find(), free_port("127.0.0.1")
    assert program is not None
    path = directory / "own.conf"
    path.write_text("\n".join([f"listener {port} 127.0.0.1", *lines]) + "\n")
    with ended_at_exit(subprocess.Popen([program, "-c", str(path)], stderr=subprocess.DEVNULL)):
        eventually(lambda: accepts("127.0.0.1", port), "mosquitto listens")
        yield port


def test_counted_bytes_are_those_a_proxy_sees(links: Links) -> None:
    with ShapedLink("127.0.0.1", port_of(links.broker)) as line:
        link = links.make("counted", "data/#", qos=0, url=f"mqtt://127.0.0.1:{line.port}")
        for number in range(50):
            link.publish("data/x", bytes(1000 * number))
            expect(link, "data/x")
        link.retain_many([(f"weights/{number}", bytes(60_000)) for number in range(20)])
        link.subscribe("weights/#", 1)
        for number in range(20):
            expect(link, f"weights/{number}")
        link.stop()
        eventually(lambda: line.bytes_up == link.counters().bytes_up, "the proxy has everything")
        assert link.counters().bytes_up > 1_225_000 + 1_200_000
        assert link.counters().bytes_down == pytest.approx(line.bytes_down, rel=0.01)


def test_every_byte_is_counted_as_what_it_carried(links: Links) -> None:
    topics = Topics("home")
    device, trainer = links.make("device", topics.gradient("pi"), qos=0), links.make("trainer", topics.update("pi", 0))
    device.publish(topics.activations("pi"), bytes(2_000), expiry_s=60.0)
    device.publish(topics.update("pi", 0), bytes(30_000), qos=1)
    expect(trainer, topics.update("pi", 0))
    trainer.publish(topics.gradient("pi"), bytes(3_000))
    expect(device, topics.gradient("pi"))
    counters = device.counters()
    version_5 = device.protocol == "5"
    assert counters.kinds["activations"] == packet_bytes(
        topics.activations("pi"), bytes(2_000), qos=0, expires=True, version_5=version_5
    )
    assert counters.kinds["changes"] == packet_bytes(topics.update("pi", 0), bytes(30_000), qos=1, version_5=version_5)
    assert counters.kinds["gradients"] == packet_bytes(topics.gradient("pi"), bytes(3_000), qos=0, version_5=version_5)
    assert sum(counters.kinds.values()) == counters.bytes_up + counters.bytes_down
    assert 0 < counters.kinds["rest"] < 500, "handshake, subscription and acknowledgement"


def test_mqtt_5_where_the_broker_speaks_it_else_3_1_1_at_once(links: Links) -> None:
    start_s = time.monotonic()
    link = links.make("modern", will=("status/modern", b"lost"))
    assert link.protocol == ("5" if links.broker.kind == "mosquitto" else "3.1.1")
    assert time.monotonic() - start_s < 2.0
    assert link.counters().last_error is None


def test_a_broker_that_meets_mqtt_5_with_silence_is_tried_with_3_1_1() -> None:
    def serve() -> None:
        with listener:
            first, _ = listener.accept()
            second, _ = listener.accept()
            with first, second:
                connect = second.recv(100)
                levels.append(connect[8])
                second.sendall(b"\x20\x02\x00\x00")
                second.recv(100)

    levels: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    url = f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
    with Link(url=url, client_id="patient", is_data=data_topic) as link:
        assert link.wait_connected(SOON_S)
        assert link.protocol == "3.1.1"
    server.join(SOON_S)
    assert levels == [4]


def test_a_broker_that_closes_every_connection_is_not_stormed() -> None:
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                arrivals_s.append(time.monotonic())

    arrivals_s: list[float] = []
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, daemon=True).start()
    start_s = time.monotonic()
    with Link(url=f"mqtt://127.0.0.1:{listener.getsockname()[1]}", client_id="calm", is_data=data_topic):
        eventually(lambda: len(arrivals_s) >= 5, "five attempts")
    listener.close()
    # Two attempts in each round (MQTT 5, then 3.1.1 at once): waits of at least 0.25 and 0.5 s lie between five.
    assert arrivals_s[4] - start_s >= 0.7
    assert arrivals_s[2] - start_s <= 2.0


def test_while_disconnected_data_is_dropped_and_acknowledged_messages_kept_up_to_a_bound(links: Links) -> None:
    witness = links.make("witness", "#")
    with ShapedLink("127.0.0.1", port_of(links.broker)) as line:
        url = f"mqtt://127.0.0.1:{line.port}"
        link = links.make("keeping", url=url, outbound_capacity=3)
        line.cut()
        assert link.wait_disconnected(SOON_S)
        assert not link.publish("data/x", b"")
        assert [link.publish(f"update/{number}", b"", qos=1) for number in range(4)] == [True, True, True, False]
        assert link.counters().dropped_out == 2
        line.restore()
        for number in range(3):
            expect(witness, f"update/{number}")
        assert link.counters().reconnects == 1


def test_a_link_slower_than_its_data_drops_the_oldest_and_stays_small(links: Links) -> None:
    receiver = links.make("receiver", "data/#", qos=0)
    with ShapedLink("127.0.0.1", port_of(links.broker), 8.0, None, 0.0) as slow:
        sender = links.make("sender", url=f"mqtt://127.0.0.1:{slow.port}", outbound_capacity=4)
        for number in range(400):
            assert sender.publish("data/x", b"%03d" % number + bytes(30_000))
        numbers: list[int] = []
        while not numbers or numbers[-1] != 399:
            numbers.append(int(expect(receiver, "data/x").payload[:3]))
    assert numbers == sorted(numbers)
    assert len(numbers) + sender.counters().dropped_out == 400
    assert sender.counters().dropped_out > 100


def test_data_overtakes_a_large_retained_set_on_a_slow_link(links: Links) -> None:
    receiver = links.make("receiver", "data/#", "weights/manifest")
    with ShapedLink("127.0.0.1", port_of(links.broker), 20.0, None, 0.0) as slow:
        sender = links.make("sender", url=f"mqtt://127.0.0.1:{slow.port}")
        sender.retain_many([*((f"weights/{n}", bytes(60_000)) for n in range(60)), ("weights/manifest", b"")])
        eventually(lambda: sender.retained_waiting < 55, "the set is on its way")
        assert sender.publish("data/x", b"")
        received = receiver.receive(SOON_S)
        assert received is not None
        assert received.topic == "data/x"
        assert sender.retained_waiting > 20
        expect(receiver, "weights/manifest")


def test_many_threads_may_publish(links: Links) -> None:
    sender, receiver = links.make("sender", outbound_capacity=1000), links.make("receiver", "data/#")
    threads = [
        threading.Thread(target=lambda n=n: [sender.publish(f"data/{n}", b"%d" % i, qos=n % 2) for i in range(50)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    received: dict[str, list[int]] = {f"data/{n}": [] for n in range(8)}
    for _ in range(400):
        message = receiver.receive(SOON_S)
        assert message is not None
        received[message.topic].append(int(message.payload))
    assert all(numbers == list(range(50)) for numbers in received.values())


def test_after_a_reconnect_the_retained_status_takes_the_place_of_the_will(links: Links) -> None:
    witness = links.make("witness", "status/#")
    with ShapedLink("127.0.0.1", port_of(links.broker)) as line:
        link = links.make("back", url=f"mqtt://127.0.0.1:{line.port}", will=("status/back", b"lost"))
        link.retain("status/back", b"ready")
        expect(witness, "status/back", b"ready")
        line.cut()
        expect(witness, "status/back", b"lost")
        line.restore()
        expect(witness, "status/back", b"ready")


def test_a_burst_ends_with_its_socket_and_what_is_left_is_counted() -> None:
    link = Link(url="mqtt://127.0.0.1", client_id="cut", is_data=data_topic)
    link._state.now_connected(None)  # as the state still says where reading has just found the socket dead
    assert all([link.publish("data/x", b""), link.publish("data/x", b""), link.publish("update/x", b"", qos=1)])
    link._connection._send_some()
    assert not link._connection._in_flight
    link._state.now_disconnected()
    assert link.counters().dropped_out == 2
    assert link._state.outbound.waiting(room=True)
    link.stop()


def test_what_the_socket_does_not_take_is_counted(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(_: bytes) -> int:
        raise ConnectionResetError

    link = links.make("cut")
    monkeypatch.setattr(link._connection._client, "_sock_send", reset)
    for _ in range(5):
        link.publish("data/x", b"")
    eventually(lambda: link.counters().dropped_out == 5, "all five are counted")
    monkeypatch.undo()


def test_a_topic_that_is_no_text_is_dropped_and_counted() -> None:
    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(100)
            connection.sendall(b"\x20\x03\x00\x00\x00" + b"\x30\x04\x00\x01\xff\x00" + b"\x30\x05\x00\x01a\x00!")
            connection.recv(100)

    listener = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with Link(url=f"mqtt://127.0.0.1:{listener.getsockname()[1]}", client_id="reader", is_data=data_topic) as link:
        assert expect(link, "a").payload == b"!"
        assert link.counters().dropped_in == 1
    server.join(SOON_S)


def test_a_socket_that_does_not_even_take_a_goodbye_does_not_hold_up_the_stop(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: bytes) -> int:
        raise BlockingIOError

    link = links.make("stuck")
    monkeypatch.setattr(link._connection._client, "_sock_send", full)
    start_s = time.monotonic()
    link.stop(0.1)
    assert time.monotonic() - start_s < 4.0
    assert not link._connection.thread.is_alive()
    assert link._connection._client.socket() is None


def test_an_unsubscribed_topic_is_silent(links: Links) -> None:
    link = links.make("changing", "a/#", "b/#")
    link.unsubscribe("a/#")
    link.subscribe("c/#")
    assert link.wait_subscribed(SOON_S)
    for topic in ("a/x", "b/x", "c/x"):
        link.publish(topic, b"", qos=1)
    expect(link, "c/x")
    link.publish("b/end", b"", qos=1)
    assert expect(link, "b/end")
    assert link.depths() == (0, 0)


def test_a_mistake_in_a_callback_is_raised_where_the_program_receives_and_publishes(links: Links) -> None:
    def mistaken(topic: str) -> bool:
        raise KeyError(topic)

    link = links.make("mistaken", "a/#", is_data=mistaken)
    link.publish("a/x", b"", qos=1)
    with pytest.raises(LinkBroken, match="KeyError") as raised:
        link.receive(SOON_S)
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(LinkBroken):
        link.publish("a/x", b"")
    assert not link.connected


def test_a_broken_link_publishes_its_will(links: Links) -> None:
    witness = links.make("witness", "status/#")

    def mistaken(topic: str) -> bool:
        raise KeyError(topic)

    link = links.make("mistaken", "a/#", is_data=mistaken, will=("status/mistaken", b"lost"))
    link.publish("a/x", b"", qos=1)
    expect(witness, "status/mistaken", b"lost")


def test_what_waits_is_sent_before_a_clean_stop(links: Links) -> None:
    witness = links.make("witness", "update/#")
    link = links.make("leaving")
    for number in range(30):
        link.publish(f"update/{number}", bytes(10_000), qos=1)
    link.stop(SOON_S)
    for number in range(30):
        expect(witness, f"update/{number}")
    assert not link.publish("update/late", b"", qos=1)


def test_who_leaves_while_messages_stream_to_it_is_not_called_lost(links: Links) -> None:
    def stream() -> None:
        while not over.is_set():
            for number in range(20):
                sender.publish("data/x", bytes(20_000), qos=number % 2)
            over.wait(0.002)

    over = threading.Event()
    sender, witness = links.make("sender"), links.make("witness", "status/#")
    streaming = threading.Thread(target=stream)
    streaming.start()
    try:
        for number in range(8):
            leaving = links.make(f"leaving-{number}", "data/#", will=(f"status/{number}", b"lost"))
            for _ in range(20):
                expect(leaving, "data/x")
            leaving.publish(f"status/{number}", b"stopped", qos=1)
            leaving.stop(SOON_S)
            witness.publish(f"status/after-{number}", b"", qos=1)
    finally:
        over.set()
        streaming.join(SOON_S)
    said: dict[str, bytes] = {}
    while "status/after-7" not in said:
        message = witness.receive(SOON_S)
        assert message is not None
        said[message.topic] = message.payload  # a will comes after the word before it
    assert [said[f"status/{number}"] for number in range(8)] == [b"stopped"] * 8


@contextlib.contextmanager
def scripted_broker(*connections: Callable[[socket.socket], None]) -> Iterator[str]:
    """A broker that meets its connections, one after another, as these functions do; yields its URL."""

    def serve() -> None:
        with listener:
            for meet in connections:
                with listener.accept()[0] as connection:
                    meet(connection)

    listener = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
    server.join(SOON_S)
    assert not server.is_alive()


CONNACK_5, CONNACK_311 = b"\x20\x03\x00\x00\x00", b"\x20\x02\x00\x00"


@pytest.mark.parametrize(("flush_s", "at_least_s"), [(0.2, 0.9), (2.0, 1.9)])
def test_a_link_that_leaves_lets_the_broker_hang_up_but_does_not_wait_for_ever(
    flush_s: float, at_least_s: float
) -> None:
    def meet(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(CONNACK_5)
        heard.append(connection.recv(100)[0])
        for _ in range(5):  # after a reset the second would fail
            connection.sendall(b"\x30\x05\x00\x01a\x00!")
            assert not over.wait(0.02)
        over.wait(SOON_S)

    heard: list[int] = []
    over = threading.Event()
    with scripted_broker(meet) as url:
        link = Link(url=url, client_id="polite", is_data=data_topic)
        link.start()
        assert link.wait_connected(SOON_S)
        before, start_s = link.counters().bytes_down, time.monotonic()
        link.stop(flush_s)
        took_s = time.monotonic() - start_s
        over.set()
    assert heard == [0xE0], "the good-bye"
    assert link.counters().bytes_down - before == 5 * 7, "what comes after it is read and counted"
    assert at_least_s < took_s < at_least_s + 2.0


def hear_the_last_word(connection: socket.socket) -> bytes:
    """Read until the link's good-bye, acknowledging packets 1 and 2: a status may be sent anew and again."""
    heard = b""
    while b"\xe0" not in heard:
        heard += (chunk := connection.recv(1000))
        assert chunk, "it hangs up without a good-bye"
        if b"stopped" in heard:
            connection.sendall(b"\x40\x02\x00\x01\x40\x02\x00\x02")
    return heard


def test_a_link_that_is_stopped_before_it_is_connected_still_says_its_last_word_and_good_bye() -> None:
    def meet(connection: socket.socket) -> None:
        connection.recv(1000)
        asked.set()
        link._state.stopping.wait(SOON_S)
        threading.Event().wait(0.2)  # it takes its time
        connection.sendall(CONNACK_5)
        heard.append(hear_the_last_word(connection))

    asked = threading.Event()
    heard: list[bytes] = []
    with scripted_broker(meet) as url:
        link = Link(url=url, client_id="hasty", is_data=data_topic, will=("status/hasty", b"lost"))
        link.start()
        assert asked.wait(SOON_S)
        link.retain("status/hasty", b"stopped")
        link.stop(SOON_S)
    assert [b"stopped" in each for each in heard] == [True]


@pytest.mark.parametrize("answers", [[CONNACK_5, CONNACK_5], [b"", CONNACK_311, CONNACK_311]], ids=["5", "3.1.1"])
def test_a_connection_that_breaks_while_a_link_stops_is_made_once_more_for_what_is_left_to_say(
    answers: list[bytes],
) -> None:
    def unanswered(connection: socket.socket) -> None:
        while connection.recv(1000):
            pass

    def breaks(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(answers[-1])
        said = b""
        while b"stopped" not in said:
            said += (chunk := connection.recv(1000))
            assert chunk
        link._state.stopping.wait(SOON_S)

    def hears(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(answers[-1])
        heard.append(hear_the_last_word(connection))

    heard: list[bytes] = []
    with scripted_broker(*[unanswered] * (len(answers) - 2), breaks, hears) as url:
        link = Link(url=url, client_id="persistent", is_data=data_topic, will=("status/persistent", b"lost"))
        link.start()
        assert link.wait_connected(SOON_S)
        link.retain("status/persistent", b"stopped")
        link.stop(SOON_S)
    assert [b"stopped" in each for each in heard] == [True]


def test_a_link_with_nothing_to_say_stops_at_once(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_connection, "LAST_PAUSE_S", 15.0)
    link = links.make("quiet", "data/#")
    start_s = time.monotonic()
    link.stop(SOON_S)
    assert time.monotonic() - start_s < 10.0


def test_a_broker_that_was_only_going_down_is_asked_for_mqtt_5_again() -> None:
    def unanswered(connection: socket.socket) -> None:
        levels.append(connection.recv(1000)[8])

    def answers(connection: socket.socket) -> None:
        levels.append(connection.recv(1000)[8])
        connection.sendall(CONNACK_311 if levels[-1] == 4 else CONNACK_5)

    levels: list[int] = []
    with scripted_broker(unanswered, answers, answers) as url, Link(url=url, client_id="modern", is_data=data_topic):
        eventually(lambda: len(levels) == 3, "a third connection")
    assert levels == [5, 4, 5]


def test_stopping_ends_a_receiver_and_is_quick_without_a_broker() -> None:
    link = Link(url=f"mqtt://127.0.0.1:{free_port('127.0.0.1')}", client_id="alone", is_data=data_topic)
    link.start()
    receiver = threading.Thread(target=link.receive, args=(60.0,))
    receiver.start()
    eventually(lambda: link.counters().last_error is not None, "the first attempt has failed")
    start_s = time.monotonic()
    link.stop()
    receiver.join(SOON_S)
    assert not receiver.is_alive()
    assert time.monotonic() - start_s < 3.0


@pytest.mark.parametrize("topic", ["", "a/+", "#"])
def test_a_filter_is_no_topic(topic: str) -> None:
    link = Link(url="mqtt://127.0.0.1", client_id="wrong", is_data=data_topic)
    with pytest.raises(ValueError, match="not a topic"):
        link.publish(topic, b"")
    link.stop()


@needs_mosquitto
def test_a_publish_above_the_brokers_limit_is_refused_and_counted_not_sent(tmp_path: Path) -> None:
    with configured_mosquitto(tmp_path, "allow_anonymous true", "max_packet_size 5000") as port:
        links = Links(Broker(f"mqtt://127.0.0.1:{port}", "external"))
        link = links.make("large", "a/#")
        assert link.max_packet_bytes == 5000
        assert not link.publish("a/x", bytes(5000), qos=1)
        link.retain("a/y", bytes(5000))
        assert link.publish("a/x", bytes(4900), qos=1, expiry_s=5.0)
        assert len(expect(link, "a/x").payload) == 4900
        assert link.counters().refusals == {"packet too large": 2}
        assert link.counters().reconnects == 0
        links.stop()


@needs_mosquitto
def test_a_message_that_expired_in_the_broker_is_not_delivered(tmp_path: Path) -> None:
    with open_broker("mosquitto", directory=tmp_path) as broker:
        links = Links(broker)
        with ShapedLink("127.0.0.1", port_of(broker)) as line:
            away = links.make("away", "a/#", url=f"mqtt://127.0.0.1:{line.port}")
            sender = links.make("sender", "done")
            line.cut()
            assert away.wait_disconnected(SOON_S)
            sender.publish("a/old", b"", qos=1, expiry_s=1.0)
            sender.publish("a/kept", b"", qos=1, expiry_s=600.0)
            assert sender.receive(2.5) is None  # the time it takes to expire
            line.restore()
            assert away.receive(SOON_S).topic == "a/kept"  # type: ignore[union-attr]
            links.stop()


@needs_mosquitto
def test_refusals_are_counted_by_reason_and_a_wrong_password_is_said(tmp_path: Path) -> None:
    passwords = tmp_path / "passwd"
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("no mosquitto_passwd on this machine")
    subprocess.run([program, "-b", "-c", str(passwords), "pi", "secret"], check=True, capture_output=True)
    acl = tmp_path / "acl"
    acl.write_text("user pi\ntopic readwrite mine/#\n")
    for path in (tmp_path, passwords, acl):
        path.chmod(0o755)
    lines = (f"password_file {passwords}", f"acl_file {acl}", "allow_anonymous false", "user root")
    with configured_mosquitto(tmp_path, *lines) as port:
        links = Links(Broker(f"mqtt://127.0.0.1:{port}", "external"))
        link = links.make("pi", "mine/#", username="pi", password="secret")
        link.publish("theirs/x", b"", qos=1)
        link.publish("mine/x", b"", qos=1)
        expect(link, "mine/x")
        eventually(lambda: link.counters().refused == 1, "the refusal is counted")
        assert link.counters().refusals == {"Not authorized": 1}
        stranger = links.unconnected("stranger", username="pi", password="wrong")
        eventually(lambda: "ot authorized" in str(stranger.counters().last_error), "the refusal is said")
        assert not stranger.connected
        links.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, a server certificate for 127.0.0.1 and a client certificate, made by openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    place = tmp_path_factory.mktemp("pki")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=place, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-ca", "-days", "2")
    (place / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "pi-kitchen"):
        run("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san", "-days", "2")
        run("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.crt")
    for path in place.iterdir():
        path.chmod(0o644)
    return place


@needs_mosquitto
def test_over_tls_both_ends_prove_who_they_are(certificates: Path, tmp_path: Path) -> None:
    files = (
        f"cafile {certificates}/ca.crt",
        f"certfile {certificates}/server.crt",
        f"keyfile {certificates}/server.key",
    )
    lines = (*files, "require_certificate true", "use_identity_as_username true", "user root")
    with configured_mosquitto(tmp_path, *lines) as port:
        links = Links(Broker(f"mqtts://127.0.0.1:{port}", "external"))
        own = Tls(certificates / "ca.crt", certificates / "pi-kitchen.crt", certificates / "pi-kitchen.key")
        link = links.make("pi-kitchen", "a/#", tls=own)
        payload = bytes(range(256)) * 8000
        link.publish("a/x", payload, qos=1)
        assert expect(link, "a/x").payload == payload
        nameless = links.unconnected("nameless", tls=Tls(ca=certificates / "ca.crt"))
        distrustful = links.unconnected("distrustful", tls=Tls(certificate=own.certificate, key=own.key))
        eventually(lambda: nameless.counters().last_error is not None, "a client without a certificate is refused")
        eventually(lambda: "CERTIFICATE_VERIFY" in str(distrustful.counters().last_error), "an unknown CA is refused")
        assert not nameless.connected
        assert not distrustful.connected
        links.stop()


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "ca.crt"
    empty.write_text("")
    for path in (tmp_path / "missing.crt", empty):
        with pytest.raises(ConfigError, match=path.name):
            Link(url="mqtts://127.0.0.1", client_id="x", is_data=data_topic, tls=Tls(ca=path))
    assert Tls().context().verify_mode == ssl.CERT_REQUIRED


def test_a_message_larger_than_asked_for_stays_at_an_mqtt_5_broker(links: Links) -> None:
    small = links.make("small", "data/#", max_message_bytes=10_000)
    sender = links.make("sender")
    sender.publish("data/large", bytes(20_000), qos=1)
    sender.publish("data/fits", bytes(10_000), qos=1)
    first = small.receive(SOON_S)
    assert first is not None
    assert first.topic == ("data/fits" if small.protocol == "5" else "data/large")
    assert small.counters().last_error is None


@needs_mosquitto
def test_two_links_of_one_name_and_a_lost_broker_are_said_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamsplit.link")
    with open_broker("mosquitto", directory=tmp_path) as broker:
        links = Links(broker)
        links.make("twin")
        links.make("twin")
        eventually(lambda: "is another client called so, too?" in caplog.text, "the first is told")
        links.stop()
        caplog.clear()
        left = Links(broker)
        link = left.make("alone")
        assert f"alone: connected to 127.0.0.1:{port_of(broker)}, MQTT 5" in caplog.text
    assert link.wait_disconnected(SOON_S)
    eventually(lambda: "alone: no connection: 127.0.0.1:" in caplog.text, "the loss is told")
    left.stop()
