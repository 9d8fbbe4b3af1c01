"""What the program needs of a broker: the same tests for Mosquitto and the embedded one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from broker import mosquitto
from broker.__main__ import main
from broker.start import Broker, open_broker
from common.config import EXIT_CONFIG
from common.errors import ConfigError
from common.link import Link
from device.shaped_link import ShapedLink
from tests.brokers import KINDS, SOON_S, Links, data_topic, eventually, expect, needs_mosquitto

if TYPE_CHECKING:
    from pathlib import Path


def port_of(broker: Broker) -> int:
    return int(broker.url.rpartition(":")[2])


def wait_gone(process: psutil.Process) -> None:
    def gone() -> bool:
        try:  # a container without an init leaves the dead child a zombie: dead all the same
            return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True

    eventually(gone, "the broker is gone")


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_arrive_in_order_and_whole(links: Links, qos: int) -> None:
    sender, receiver = links.make("sender"), links.make("receiver", "data/#", qos=qos)
    payloads = [bytes([number]) * (1 + 97 * number) for number in range(50)]
    for payload in payloads:
        assert sender.publish("data/x", payload, qos=qos)
    assert [expect(receiver, "data/x").payload for _ in payloads] == payloads


def test_a_retained_message_waits_for_a_late_subscriber_and_says_so(links: Links) -> None:
    sender, early = links.make("sender"), links.make("early", "status/#")
    sender.retain("status/a", b"1")
    assert not expect(early, "status/a", b"1").retained
    late = links.make("late", "status/a")
    assert expect(late, "status/a", b"1").retained


def test_the_latest_retained_message_counts_and_an_erased_one_is_gone(links: Links) -> None:
    sender, witness = links.make("sender"), links.make("witness", "status/#")
    sender.retain("status/a", b"1")
    sender.retain("status/a", b"2")
    sender.retain("status/b", b"1")
    expect(witness, "status/b")
    assert expect(links.make("late", "status/a"), "status/a").payload == b"2"
    sender.forget("status/a", erase=True)
    expect(witness, "status/a", b"")
    later = links.make("later", "status/#")
    expect(later, "status/b", b"1")
    assert later.receive(0.0) is None


def test_nobody_is_sent_retained_messages_it_did_not_ask_for(links: Links) -> None:
    sender, asking = links.make("sender"), links.make("asking", "weights/#")
    sender.retain("weights/0", bytes(1000))
    expect(asking, "weights/0")
    other = links.make("other", "data/end")
    sender.publish("data/end", b"", qos=1)
    expect(other, "data/end")
    assert other.counters().bytes_down < 100


def test_a_large_retained_set_arrives_whole_in_order_its_manifest_last(links: Links) -> None:
    chunks = [(f"weights/0/{index}", bytes([index % 251]) * 65_000) for index in range(200)]
    sender, late = links.make("sender"), None
    sender.retain_many([*chunks, ("weights/manifest", b"200")])
    eventually(lambda: sender.retained_waiting == 0, "the set is sent")
    assert sender.publish("data/end", b"", qos=1)
    late = links.make("late", "weights/#")
    received = [expect(late, topic).payload for topic, _ in [*chunks, ("weights/manifest", b"")]]
    assert received == [payload for _, payload in chunks] + [b"200"]
    assert late.counters().dropped_in == 0


def test_a_large_retained_set_does_not_hold_up_what_its_reader_publishes(links: Links) -> None:
    sender = links.make("sender")
    sender.retain_many([(f"weights/{index}", bytes(60_000)) for index in range(100)])
    eventually(lambda: sender.retained_waiting == 0, "the set is sent")
    witness = links.make("witness", "data/#")
    with ShapedLink("127.0.0.1", port_of(links.broker), None, 10.0, 0.0) as slow:
        reader = links.unconnected("reader", "weights/#", url=f"mqtt://127.0.0.1:{slow.port}")
        assert reader.wait_connected(SOON_S)
        assert reader.publish("data/x", b"", qos=0)
        expect(witness, "data/x")
        assert slow.bytes_down < 5_000_000


def test_a_wildcard_stands_for_one_level_and_a_hash_for_the_rest(links: Links) -> None:
    sender = links.make("sender")
    one_level, rest = links.make("one", "f/+/up/status"), links.make("rest", "f/b/#")
    for topic in ("f/a/up/status", "f/a/down/status", "f/b/up/status", "f/b/up/update/3", "g/b/up/status", "f/end"):
        sender.publish(topic, topic.encode(), qos=1)
    sender.publish("f/end/up/status", b"", qos=1)
    assert [expect(one_level, t).topic for t in ("f/a/up/status", "f/b/up/status", "f/end/up/status")]
    assert [expect(rest, t).topic for t in ("f/b/up/status", "f/b/up/update/3")]
    assert one_level.receive(0.0) is None
    assert rest.receive(0.0) is None


def test_a_message_of_nearly_the_limit_arrives_and_one_above_it_does_no_harm(links: Links) -> None:
    sender, receiver = links.make("sender"), links.make("receiver", "big/#")
    payload = os.urandom(4_194_304 - 64)
    assert sender.publish("big/x", payload, qos=1)
    assert expect(receiver, "big/x").payload == payload
    sender.publish("big/x", bytes(4_194_304 + 64), qos=0)
    assert sender.wait_connected(SOON_S)
    eventually(lambda: sender.connected and sender.publish("big/y", b"ok", qos=1), "the sender is back")
    expect(receiver, "big/y")


def test_the_will_of_a_client_whose_connection_breaks_is_published_and_retained(links: Links) -> None:
    witness = links.make("witness", "status/#")
    with ShapedLink("127.0.0.1", port_of(links.broker)) as line:
        dying = links.make("dying", url=f"mqtt://127.0.0.1:{line.port}", will=("status/dying", b"lost"))
        dying.retain("status/dying", b"ready")
        expect(witness, "status/dying", b"ready")
        line.cut()
        expect(witness, "status/dying", b"lost")
        assert expect(links.make("late", "status/#"), "status/dying").payload == b"lost"


def test_the_will_of_a_client_that_fell_silent_is_published(links: Links) -> None:
    witness = links.make("witness", "status/#")
    with ShapedLink("127.0.0.1", port_of(links.broker)) as line:
        links.make("silent", url=f"mqtt://127.0.0.1:{line.port}", will=("status/silent", b"lost"), keepalive_s=1)
        line.cut(silently=True)
        expect(witness, "status/silent", b"lost")
        line.restore()


def test_the_will_of_a_killed_process_is_published(links: Links) -> None:
    witness = links.make("witness", "status/#")
    code = (
        "import sys, time; from common.link import Link\n"
        f"link = Link(url={links.broker.url!r}, client_id='victim', is_data=bool, will=('status/v', b'lost'))\n"
        "link.start(); link.retain('status/v', b'ready'); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as victim:
        expect(witness, "status/v", b"ready")
        victim.kill()
        expect(witness, "status/v", b"lost")


def test_a_clean_stop_publishes_no_will(links: Links) -> None:
    witness = links.make("witness", "status/#")
    leaving = links.make("leaving", will=("status/leaving", b"lost"))
    leaving.retain("status/leaving", b"stopped")
    leaving.stop()
    expect(witness, "status/leaving", b"stopped")
    witness.publish("status/end", b"", qos=1)
    expect(witness, "status/end")
    assert witness.receive(0.0) is None


def test_a_second_client_of_the_same_id_takes_over_and_the_first_is_cut(links: Links) -> None:
    witness = links.make("witness", "status/#")
    first = links.make("twin", will=("status/twin", b"lost"))
    second = Link(url=links.broker.url, client_id="twin", is_data=data_topic)
    with second:
        expect(witness, "status/twin", b"lost")
        first.stop()
        assert second.wait_connected(SOON_S)
        eventually(lambda: second.connected and second.publish("status/second", b"", qos=1), "the second is heard")
        expect(witness, "status/second")


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_killed_broker_is_back_links_reconnect_subscribe_and_publish_again(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(open_broker(kind, directory=tmp_path / "first"))
        links = Links(broker)
        stack.callback(links.stop)
        owner = links.make("owner")
        witness = links.make("witness", "status/#", "weights/#", "data/#")
        owner.retain("status/owner", b"ready")
        expect(witness, "status/owner", b"ready")
        owner.retain_many([("weights/0", b"0"), ("weights/manifest", b"m")])
        expect(witness, "weights/manifest")
        assert broker.pid is not None
        killed = psutil.Process(broker.pid)
        killed.kill()
        assert witness.wait_disconnected(SOON_S)
        assert owner.wait_disconnected(SOON_S)
        wait_gone(killed)  # the kernel closes a killed process's connections before it frees its port
        with open_broker(kind, directory=tmp_path / "second", port=port_of(broker)) as again:
            assert again.url == broker.url
            assert owner.wait_connects(2, SOON_S)
            assert witness.wait_connects(2, SOON_S)
            expect(witness, "status/owner", b"ready")
            expect(witness, "weights/manifest", b"m")
            assert witness.wait_subscribed(SOON_S)
            assert owner.publish("data/x", b"again")
            expect(witness, "data/x", b"again")
            links.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_may_start_before_its_broker(kind: str, tmp_path: Path) -> None:
    with open_broker(kind, directory=tmp_path / "first") as broker:
        port = port_of(broker)
    with Link(url=broker.url, client_id="early", is_data=data_topic) as early:
        eventually(lambda: early.counters().last_error is not None, "the first attempt has failed")
        assert not early.connected
        with open_broker(kind, directory=tmp_path / "second", port=port):
            assert early.wait_connected(SOON_S)
            early.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_the_broker_dies_with_a_killed_parent(kind: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from broker.start import open_broker\n"
        f"with open_broker({kind!r}, directory=Path({str(tmp_path)!r})) as broker:\n"
        "    print(broker.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        wait_gone(child)


def test_hundreds_of_messages_a_second_get_through(links: Links) -> None:
    sender, receiver = (
        links.make("sender", outbound_capacity=2000),
        links.make("receiver", "data/#", data_capacity=2000),
    )
    start_s = time.monotonic()
    for number in range(1000):
        assert sender.publish("data/x", bytes(16_384 + number % 7), qos=0)
    for _ in range(1000):
        expect(receiver, "data/x")
    assert 1000 / (time.monotonic() - start_s) > 200
    assert sender.counters().dropped_out == receiver.counters().dropped_in == 0


def test_a_stalled_reader_costs_nobody_else_anything(links: Links) -> None:
    sender, receiver = links.make("sender", outbound_capacity=500), links.make("receiver", "data/#", data_capacity=500)
    with ShapedLink("127.0.0.1", port_of(links.broker)) as line:
        links.make("stalled", "data/#", url=f"mqtt://127.0.0.1:{line.port}")
        line.cut(silently=True)
        for _ in range(400):
            assert sender.publish("data/x", bytes(65_536), qos=0)
        for _ in range(400):
            expect(receiver, "data/x")
        line.restore()


def test_a_broker_given_by_url_is_left_alone(tmp_path: Path) -> None:
    with open_broker("mqtt://somewhere:1884", directory=tmp_path) as broker:
        assert broker == Broker("mqtt://somewhere:1884", "external", None)


def test_auto_takes_a_mosquitto_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_broker("auto", directory=tmp_path) as broker:
        assert broker.kind == ("embedded" if mosquitto.find() is None else "mosquitto")
    monkeypatch.setattr(mosquitto, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_broker("auto", directory=tmp_path) as broker:
        assert broker.kind == "embedded"


def test_what_cannot_be_opened_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(choice: str, **options: object) -> None:
        with open_broker(choice, directory=tmp_path, **options):  # type: ignore[arg-type]
            pass

    with pytest.raises(ConfigError, match=r'"rabbit": allowed are auto, embedded, mosquitto'):
        opened("rabbit")
    with pytest.raises(ConfigError, match=r"loopback only, not on 0\.0\.0\.0"):
        opened("embedded", host="0.0.0.0")
    with pytest.raises(ConfigError, match="expected mqtt://HOST"):
        opened("http://host")
    monkeypatch.setattr(mosquitto, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match='no "mosquitto" on PATH'):
        opened("mosquitto")


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_in_use_is_said_in_words(kind: str, tmp_path: Path) -> None:
    with open_broker("embedded", directory=tmp_path / "first") as first:
        second = open_broker(kind, directory=tmp_path / "second", port=port_of(first))
        with pytest.raises(ConfigError, match=f"port {port_of(first)}"):
            second.__enter__()


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_in_the_foreground_says_its_url_and_ends_on_a_signal(kind: str) -> None:
    command = [sys.executable, "-m", "broker", "--broker", kind, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("mqtt://"))
        with Link(url=url, client_id="visitor", is_data=data_topic) as link:
            assert link.wait_connected(SOON_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON_S) == 0


@pytest.mark.parametrize("choice", ["mqtt://pi:secret@host", "rabbit"])
def test_only_a_broker_of_ours_runs_in_the_foreground(choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--broker", choice]) == EXIT_CONFIG
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "--broker: allowed are auto, embedded, mosquitto\n"


def test_the_pipe_to_an_embedded_broker_closes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def recorded(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recorded)
    with open_broker("embedded", directory=tmp_path):
        pass
    assert [child.stdout is not None and child.stdout.closed for child in started] == [True]


@needs_mosquitto
def test_mosquitto_is_told_our_limits(tmp_path: Path) -> None:
    with open_broker("mosquitto", directory=tmp_path) as broker:
        links = Links(broker)
        link = links.make("asking")
        assert link.max_packet_bytes == 4_194_304
        assert link.protocol == "5"
        links.stop()
