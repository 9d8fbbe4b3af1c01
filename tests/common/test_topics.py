from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MessageError
from common.topics import DATA_KINDS, Address, Kind, Topics, check_device_id, is_data, parse

TOPICS = Topics("home")
PREFIX = "streamsplit/v1/home"
TABLE = [
    (TOPICS.status("pi-1"), f"{PREFIX}/pi-1/up/status", Address(Kind.STATUS, "pi-1")),
    (TOPICS.activations("pi-1"), f"{PREFIX}/pi-1/up/activations", Address(Kind.ACTIVATIONS, "pi-1")),
    (TOPICS.audio("pi-1"), f"{PREFIX}/pi-1/up/audio", Address(Kind.AUDIO, "pi-1")),
    (TOPICS.telemetry("pi-1"), f"{PREFIX}/pi-1/up/telemetry", Address(Kind.TELEMETRY, "pi-1")),
    (TOPICS.update("pi-1", 3), f"{PREFIX}/pi-1/up/update/3", Address(Kind.UPDATE, "pi-1", chunk=3)),
    (TOPICS.mixture("pi-1"), f"{PREFIX}/pi-1/up/mixture", Address(Kind.MIXTURE, "pi-1")),
    (TOPICS.embedding("pi-1"), f"{PREFIX}/pi-1/down/embedding", Address(Kind.EMBEDDING, "pi-1")),
    (TOPICS.gradient("pi-1"), f"{PREFIX}/pi-1/down/gradient", Address(Kind.GRADIENT, "pi-1")),
    (TOPICS.splitter("pi-1"), f"{PREFIX}/pi-1/down/splitter", Address(Kind.SPLITTER, "pi-1")),
    (TOPICS.policy("pi-1"), f"{PREFIX}/pi-1/down/policy", Address(Kind.POLICY, "pi-1")),
    (TOPICS.config("pi-1"), f"{PREFIX}/pi-1/down/config", Address(Kind.CONFIG, "pi-1")),
    (TOPICS.weights("stem", 12), f"{PREFIX}/_weights/stem/12", Address(Kind.WEIGHTS, name="stem", chunk=12)),
    (TOPICS.weights("0", 0), f"{PREFIX}/_weights/0/0", Address(Kind.WEIGHTS, name="0", chunk=0)),
    (TOPICS.delta("7", 1), f"{PREFIX}/_weights/7/delta/1", Address(Kind.DELTA, name="7", chunk=1)),
    (TOPICS.manifest(), f"{PREFIX}/_weights/manifest", Address(Kind.MANIFEST)),
    (TOPICS.trainer_status(), f"{PREFIX}/_trainer/status", Address(Kind.TRAINER_STATUS)),
]


@pytest.mark.parametrize(("built", "text", "address"), TABLE)
def test_a_topic_is_built_and_taken_apart_as_the_table_says(built: str, text: str, address: Address) -> None:
    assert built == text
    assert TOPICS.parse(text) == parse(text) == address


def test_the_table_names_every_kind() -> None:
    assert {address.kind for _, _, address in TABLE} == set(Kind)


@pytest.mark.parametrize(("built", "text", "address"), TABLE)
def test_only_traffic_that_is_worthless_when_old_is_data(built: str, text: str, address: Address) -> None:
    assert is_data(built) == is_data(text) == (address.kind in DATA_KINDS)


def test_a_weights_topic_cannot_pass_for_data() -> None:
    assert not is_data("streamsplit/v1/home/_weights/up/activations/0")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "streamsplit/v1/home",
        "streamsplit/v2/home/pi-1/up/status",
        "streamsplit/v1/home/pi-1/up/status/0",
        "streamsplit/v1/home/pi-1/up/update",
        "streamsplit/v1/home/pi-1/up/update/01",
        "streamsplit/v1/home/pi-1/up/update/65536",
        "streamsplit/v1/home/pi-1/up/update/٣",
        "streamsplit/v1/home/pi-1/up/sound",
        "streamsplit/v1/home/PI/up/status",
        "streamsplit/v1/home/_pi/up/status",
        "streamsplit/v1/home/_weights/manifest/0",
        "streamsplit/v1/home/_weights/stem",
        "streamsplit/v1/home/_weights/../0",
        "streamsplit/v1/home/pi-1\n/up/status",
        "streamsplit/v1/home/pi-1/up/status\n",
        "streamsplit/v1/" + "a" * 300 + "/pi-1/up/status",
    ],
)
def test_any_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(MessageError, match="no topic"):
        parse(topic)


@given(st.text(max_size=80).map(lambda tail: f"streamsplit/v1/home/{tail}") | st.text())
def test_an_arbitrary_topic_never_raises_anything_else(topic: str) -> None:
    try:
        address = parse(topic)
    except MessageError:
        return
    assert is_data(topic) == (address.kind in DATA_KINDS)


def test_a_topic_of_another_fleet_is_refused() -> None:
    with pytest.raises(MessageError, match="fleet 'home'"):
        TOPICS.parse(Topics("work").status("pi-1"))


@pytest.mark.parametrize("text", ["", "-a", "A", "a b", "a/b", "a+", "#", "ä", "a" * 64, "a\n"])
def test_an_id_that_cannot_stand_in_a_topic_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no id"):
        check_device_id(text)
    with pytest.raises(ValueError, match="is no id"):
        Topics(text)
    with pytest.raises(ValueError, match="is no id"):
        TOPICS.status(text)


@pytest.mark.parametrize(("name", "chunk"), [("manifest", 0), ("a/b", 0), ("", 0), ("stem", -1), ("stem", 65_536)])
def test_weights_that_cannot_stand_in_a_topic_are_refused(name: str, chunk: int) -> None:
    with pytest.raises(ValueError, match=r"name|chunk"):
        TOPICS.weights(name, chunk)


def test_the_filters_cover_the_topics_they_are_for() -> None:
    assert TOPICS.every_device("up/status") == f"{PREFIX}/+/up/status"
    assert TOPICS.every_device(Kind.UPDATE) == f"{PREFIX}/+/up/update/+"
    assert TOPICS.weights_filter("stem") == f"{PREFIX}/_weights/stem/+"
    assert TOPICS.down("pi-1") == f"{PREFIX}/pi-1/down/#"


@pytest.mark.parametrize("kind", ["up/sound", "_weights", "up/#", ""])
def test_a_filter_for_what_devices_do_not_have_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="no topic of a device"):
        TOPICS.every_device(kind)


def test_no_two_members_of_any_fleets_have_one_name_at_the_broker() -> None:
    assert Topics("home").client_id("test-pi") != Topics("home-test").client_id("pi")
    assert Topics("home").client_id("trainer") != Topics("home").client_id("_trainer")
