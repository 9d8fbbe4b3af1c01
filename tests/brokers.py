"""Brokers and links for tests: each kind on a free loopback port, links that are stopped at the end."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker import mosquitto
from broker.start import Broker, open_broker
from common.link import Incoming, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_mosquitto = pytest.mark.skipif(mosquitto.find() is None, reason="no mosquitto on this machine")
KINDS = [pytest.param("mosquitto", marks=needs_mosquitto), "embedded"]
SOON_S = 20.0  # generous: the machines that run this may be busy; nothing waits that long when all is well


def data_topic(topic: str) -> bool:
    return topic.startswith("data/")


class Links:
    """Makes links to one broker and stops them."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._stack = contextlib.ExitStack()

    def make(self, client_id: str, *filters: str, qos: int = 1, **options: Any) -> Link:
        """A connected link, subscribed to ``filters`` and confirmed."""
        link = self.unconnected(client_id, *filters, qos=qos, **options)
        assert link.wait_connected(SOON_S), link.counters().last_error
        assert link.wait_subscribed(SOON_S)
        return link

    def unconnected(self, client_id: str, *filters: str, qos: int = 1, **options: Any) -> Link:
        settings: dict[str, Any] = {"url": self.broker.url, "is_data": data_topic} | options
        link = Link(client_id=client_id, **settings)
        for topic_filter in filters:
            link.subscribe(topic_filter, qos)
        return self._stack.enter_context(link)

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    with open_broker(request.param, directory=tmp_path / "broker") as running:
        yield running


@pytest.fixture
def links(broker: Broker) -> Iterator[Links]:
    made = Links(broker)
    yield made
    made.stop()


def expect(link: Link, topic: str, payload: bytes | None = None) -> Incoming:
    """The next message of this topic (and payload); others are passed over."""
    until_s = time.monotonic() + SOON_S
    while (message := link.receive(until_s - time.monotonic())) is not None:
        if message.topic == topic and payload in {None, message.payload}:
            return message
    pytest.fail(f"no {topic} {payload!r:.60} within {SOON_S} s")


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that tells nobody when it happens."""
    until_s, nobody = time.monotonic() + SOON_S, threading.Event()
    while not condition():
        assert time.monotonic() < until_s, f"not within {SOON_S} s: {what}"
        nobody.wait(0.01)
