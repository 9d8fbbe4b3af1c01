from __future__ import annotations

import pytest

from common.topics import Kind, Topics
from common.traffic import KINDS, REST, TRAFFIC, kind_of, packet_bytes, with_rest

TOPICS = Topics("home")


@pytest.mark.parametrize(
    ("topic", "kind"),
    [
        (TOPICS.activations("pi"), "activations"),
        (TOPICS.audio("pi"), "audio"),
        (TOPICS.gradient("pi"), "gradients"),
        (TOPICS.embedding("pi"), "embeddings"),
        (TOPICS.weights("stem", 0), "weights"),
        (TOPICS.delta("stem", 0), "weights"),
        (TOPICS.manifest(), "weights"),
        (TOPICS.update("pi", 3), "changes"),
        (TOPICS.telemetry("pi"), "telemetry"),
        (TOPICS.status("pi"), REST),
        ("somebody/elses/topic", REST),
    ],
)
def test_a_topic_is_counted_as_what_it_carries(topic: str, kind: str) -> None:
    assert kind_of(topic) == kind
    assert kind in KINDS


def test_what_travels_per_window_or_with_the_weights_is_never_the_rest() -> None:
    settings = {Kind.STATUS, Kind.SPLITTER, Kind.POLICY, Kind.CONFIG, Kind.TRAINER_STATUS}
    assert {Kind.ACTIVATIONS, Kind.UPDATE, Kind.WEIGHTS, Kind.DELTA} <= TRAFFIC.keys()
    assert not settings & TRAFFIC.keys()


def test_the_rest_is_what_the_socket_saw_besides() -> None:
    found = with_rest({"activations": 70, "rest": 5}, 100)
    assert (found["activations"], found[REST]) == (70, 30)
    assert tuple(found) == KINDS


def test_a_packet_weighs_its_header_its_topic_and_its_payload() -> None:
    assert packet_bytes("a/b", b"12345", qos=0, version_5=False) == 1 + 1 + 2 + 3 + 5
    assert packet_bytes("a/b", b"12345", qos=1, expires=True) == 1 + 1 + 2 + 3 + 2 + 1 + 5 + 5
    assert packet_bytes("a/b", bytes(127), qos=0, version_5=False) == 1 + 2 + 2 + 3 + 127
