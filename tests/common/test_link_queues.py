from __future__ import annotations

import random
import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.link_address import Backoff, BrokerAddress
from common.link_queues import ENTRY_BYTES, TURNS, InboundQueues, Incoming, OutboundQueues, Outgoing


def incoming(topic: str, number: int) -> Incoming:
    return Incoming(topic, b"%d" % number, retained=False, received_s=0.0)


def outbound(clock: float = 0.0, capacity: int = 4) -> OutboundQueues:
    return OutboundQueues(data_capacity=capacity, acknowledged_capacity=capacity, clock=lambda: clock)


def data(number: int) -> Outgoing:
    return Outgoing(f"data/{number}", b"")


def drained(queues: OutboundQueues) -> list[str]:
    taken = []
    while (message := queues.take(room=True)) is not None:
        taken.append(message.topic)
    return taken


@given(st.lists(st.integers(), max_size=50), st.integers(1, 10))
def test_data_keeps_the_newest_and_counts_the_rest(numbers: list[int], capacity: int) -> None:
    queues, reference = InboundQueues(capacity), deque[bytes](maxlen=capacity)
    for number in numbers:
        queues.put_data(incoming("d", number))
        reference.append(b"%d" % number)
    taken = [message.payload for _ in numbers if (message := queues.take(0.0)) is not None]
    assert taken == list(reference)
    assert queues.dropped == len(numbers) - len(reference)


@given(st.lists(st.integers(0, 3000), max_size=50), st.integers(1, 10))
def test_of_giants_in_the_data_as_many_are_kept_as_fit_and_at_least_the_newest(sizes: list[int], capacity: int) -> None:
    most = 4000
    queues = InboundQueues(capacity, most_bytes=most)
    for number, size in enumerate(sizes):
        queues.put_data(Incoming(str(number), bytes(size), retained=False, received_s=0.0))
    kept = 0
    while kept < min(capacity, len(sizes)) and sum(held(*one) for one in newest(sizes, kept + 1)) <= most:
        kept += 1
    kept = max(kept, min(1, len(sizes)))
    assert queues.depths() == (kept, 0)
    assert queues.dropped == len(sizes) - kept
    taken = [message.topic for _ in sizes if (message := queues.take(0.0)) is not None]
    assert taken == [str(number) for number, _ in newest(sizes, kept)]


def held(number: int, size: int) -> int:
    return ENTRY_BYTES + len(str(number)) + size


def newest(sizes: list[int], count: int) -> list[tuple[int, int]]:
    return list(enumerate(sizes))[len(sizes) - count :]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers()), max_size=50))
def test_control_keeps_the_latest_of_every_topic_in_the_order_those_arrived(pairs: list[tuple[str, int]]) -> None:
    queues = InboundQueues(1)
    for topic, number in pairs:
        queues.put_control(incoming(topic, number))
    latest = {topic: index for index, (topic, _) in enumerate(pairs)}
    expected = [pairs[index] for index in sorted(latest.values())]
    taken = [queues.take_control(0.0) for _ in expected]
    assert [(m.topic, int(m.payload)) for m in taken if m is not None] == expected
    assert queues.take_control(0.0) is None
    assert queues.dropped == 0


def test_control_comes_before_data() -> None:
    queues = InboundQueues(8)
    queues.put_data(incoming("d", 1))
    queues.put_control(incoming("c", 2))
    assert [queues.take(0.0), queues.take(0.0)] == [incoming("c", 2), incoming("d", 1)]


def test_who_takes_control_only_leaves_the_data() -> None:
    queues = InboundQueues(8)
    queues.put_data(incoming("d", 1))
    assert queues.take_control(0.0) is None
    assert queues.take(0.0) == incoming("d", 1)


def test_a_flood_of_control_topics_drops_its_oldest_and_counts() -> None:
    queues = InboundQueues(8, most_bytes=10 * (ENTRY_BYTES + 3))
    for number in range(1000):
        queues.put_control(Incoming(f"{number:03}", b"", retained=False, received_s=0.0))
        queues.put_control(Incoming("same", b"", retained=False, received_s=0.0))
    assert queues.depths() == (0, 9)
    assert queues.dropped == 1001 - 9
    taken = [queues.take(0.0) for _ in range(9)]
    assert [message.topic for message in taken if message is not None] == [*(f"{n}" for n in range(992, 1000)), "same"]
    for number in range(10):  # what is taken makes room
        queues.put_control(incoming(str(number), number))
    assert queues.depths() == (0, 10)


def test_one_control_message_is_kept_however_large() -> None:
    queues = InboundQueues(8, most_bytes=10)
    queues.put_control(incoming("a", 1))
    queues.put_control(incoming("b", 2))
    assert queues.take(0.0) == incoming("b", 2)
    assert queues.dropped == 1


def test_a_waiting_receiver_gets_what_arrives() -> None:
    queues, taken = InboundQueues(8), []
    receiver = threading.Thread(target=lambda: taken.append(queues.take(10.0)))
    receiver.start()
    queues.put_data(incoming("d", 1))
    receiver.join(10.0)
    assert taken == [incoming("d", 1)]


def test_a_wake_that_nobody_waited_for_ends_the_next_wait_once() -> None:
    queues = InboundQueues(8)
    queues.wake()
    assert queues.take(60.0) is None
    queues.put_data(incoming("d", 1))
    assert queues.take(60.0) == incoming("d", 1)
    assert not queues._woken


def test_after_close_nothing_waits() -> None:
    queues = InboundQueues(8)
    queues.put_data(incoming("d", 1))
    queues.close()
    assert queues.take(60.0) == incoming("d", 1)
    assert queues.take(60.0) is None


def test_a_queue_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        InboundQueues(0)


def test_outbound_data_drops_its_oldest_and_counts() -> None:
    queues = outbound(capacity=2)
    for number in range(5):
        queues.offer_data(data(number))
    assert drained(queues) == ["data/3", "data/4"]
    assert queues.dropped == 3


def test_acknowledged_messages_are_refused_when_there_is_no_room_never_pushed_out() -> None:
    queues = outbound(capacity=2)
    offered = [queues.offer_acknowledged(Outgoing(str(number), b"", qos=1)) for number in range(3)]
    assert offered == [True, True, False]
    assert drained(queues) == ["0", "1"]
    assert queues.dropped == 1


def test_a_status_goes_first_and_a_large_set_last() -> None:
    queues = outbound()
    queues.retain_many([("set/0", b""), ("set/manifest", b"")])
    queues.offer_acknowledged(Outgoing("update", b"", qos=1))
    queues.offer_data(data(0))
    queues.retain("status", b"")
    assert drained(queues) == ["status", "data/0", "update", "set/0", "set/manifest"]


def test_however_busy_a_class_is_the_lower_ones_get_their_turn() -> None:
    queues = outbound(capacity=1000)
    queues.retain_many([(f"set/{number}", b"") for number in range(3)])
    for number in range(300):
        queues.offer_data(data(number))
        queues.offer_acknowledged(Outgoing("update", b"", qos=1))
    topics = drained(queues)
    assert topics.index("update") == TURNS
    assert topics.index("set/0") < (TURNS + 1) ** 2 + TURNS
    assert [topic for topic in topics if topic.startswith("set/")] == ["set/0", "set/1", "set/2"]


def test_without_room_in_flight_only_data_goes() -> None:
    queues = outbound()
    queues.retain("status", b"")
    queues.offer_data(data(0))
    assert queues.waiting(room=False)
    message = queues.take(room=False)
    assert message is not None
    assert message.topic == "data/0"
    assert queues.take(room=False) is None
    assert not queues.waiting(room=False)
    assert queues.waiting(room=True)


def test_what_expired_while_it_waited_is_counted_not_sent() -> None:
    queues = outbound(clock=10.0)
    queues.offer_data(Outgoing("old", b"", expires_s=9.0))
    queues.offer_data(Outgoing("new", b"", expires_s=11.0))
    assert drained(queues) == ["new"]
    assert queues.dropped == 1


def test_the_latest_payload_of_a_retained_topic_wins() -> None:
    queues = outbound()
    queues.retain("status", b"1")
    queues.retain("status", b"2")
    assert queues.take(room=True) == Outgoing("status", b"2", qos=1, retain=True)
    assert drained(queues) == []


def test_a_newer_set_replaces_the_unsent_rest_of_an_older_one_and_its_manifest_stays_last() -> None:
    queues = outbound()
    old = [("0/0", b"old"), ("0/1", b"old"), ("1/0", b"old"), ("manifest", b"old")]
    queues.retain_many(old)
    queues.take(room=True)
    queues.retain_many([("0/0", b"new"), ("0/1", b"new"), ("manifest", b"new")])
    sent = [queues.take(room=True) for _ in range(queues.sets_waiting)]
    assert [(m.topic, m.payload) for m in sent if m is not None] == [
        ("1/0", b"old"),
        ("0/0", b"new"),
        ("0/1", b"new"),
        ("manifest", b"new"),
    ]


def test_a_set_that_has_replaced_one_goes_out_to_its_end_and_of_those_behind_it_only_the_newest() -> None:
    queues = outbound()
    for version in (b"1", b"2", b"3", b"4"):
        queues.retain_many([("0", version), ("manifest", version)])
    sent = [queues.take(room=True) for _ in range(queues.sets_waiting)]
    assert [(m.topic, m.payload) for m in sent if m is not None] == [
        ("0", b"2"),
        ("manifest", b"2"),
        ("0", b"4"),
        ("manifest", b"4"),
    ]
    assert queues.take(room=True) is None


def test_sets_made_faster_than_they_are_taken_still_go_out_whole() -> None:
    queues, whole = outbound(), []
    for version in range(20):
        queues.retain_many([*((f"block/{n}", bytes([version])) for n in range(5)), ("manifest", bytes([version]))])
        taken = [queues.take(room=True) for _ in range(4)]  # of six
        whole += [message.payload[0] for message in taken if message is not None and message.topic == "manifest"]
    assert len(whole) >= 8
    assert whole == sorted(whole)
    assert queues.sets_waiting <= 12


def test_a_forgotten_topic_of_a_set_does_not_hold_the_next_one_back() -> None:
    queues = outbound()
    for topic in "aab":
        queues.retain_many([(topic, b"")])
    queues.forget("a", erase=False)
    assert drained(queues) == ["b"]


def test_a_new_connection_makes_everything_retained_due_again_the_manifest_last() -> None:
    queues = outbound()
    queues.retain_many([("0", b"1"), ("1", b"1"), ("manifest", b"1")])
    queues.retain("status", b"")
    queues.retain_many([("1", b"2"), ("manifest", b"2")])
    drained(queues)
    queues.republish()
    assert drained(queues) == ["status", "0", "1", "manifest"]


def test_a_forgotten_topic_is_not_published_again_and_erasing_it_publishes_nothing_in_its_place() -> None:
    queues = outbound()
    queues.retain("status", b"1")
    queues.retain("other", b"1")
    queues.forget("status", erase=False)
    queues.forget("other", erase=True)
    assert queues.take(room=True) == Outgoing("other", b"", qos=1, retain=True)
    queues.republish()
    assert drained(queues) == []


def test_with_the_connection_waiting_data_is_lost_and_counted_and_the_rest_stays() -> None:
    queues = outbound()
    queues.offer_data(data(0))
    queues.offer_acknowledged(Outgoing("update", b"", qos=1))
    queues.lose_data()
    assert queues.dropped == 1
    assert drained(queues) == ["update"]


def test_messages_put_back_go_first_in_their_order() -> None:
    queues = outbound()
    queues.offer_acknowledged(Outgoing("c", b"", qos=1))
    queues.put_back([Outgoing("a", b"", qos=1), Outgoing("b", b"", qos=1)])
    assert drained(queues) == ["a", "b", "c"]


def test_the_first_retry_is_quick_and_no_wait_exceeds_the_cap() -> None:
    backoff = Backoff(source=random.Random(0))
    waits_s = [backoff.next_s() for _ in range(2000)]
    assert waits_s[0] <= 0.5
    assert max(waits_s) <= 30.0
    assert min(waits_s[7:]) >= 15.0
    backoff.reset()
    assert backoff.next_s() <= 0.5


def test_two_devices_do_not_come_back_in_step() -> None:
    first, second = Backoff(), Backoff()
    assert [first.next_s() for _ in range(5)] != [second.next_s() for _ in range(5)]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://trainer.local", BrokerAddress("trainer.local", 1883, secure=False)),
        ("mqtts://10.0.0.1:8884", BrokerAddress("10.0.0.1", 8884, secure=True)),
        ("mqtt://pi:a%40b@host/", BrokerAddress("host", 1883, secure=False, username="pi", password="a@b")),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884, secure=False)),
    ],
)
def test_a_broker_url_says_where_and_how(url: str, expected: BrokerAddress) -> None:
    assert BrokerAddress.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "http://host",
        "mqtt://",
        "mqtt://host:x",
        "mqtt://host:99999",
        "mqtt://host:0",
        "mqtt://h/t",
        "mqtt://h?t",
        "mqtt://h#t",
        "mqtt://[::1",
        "mqtt://a..b",
        "mqtt://.a",
        f"mqtt://{'a' * 64}.org",
        "mqtt://a b",
        "mqtt://a\0b",
        "mqtt://a\ud800b",
    ],
)
def test_what_is_no_broker_url_is_refused_with_what_is_expected(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected mqtt://HOST"):
        BrokerAddress.parse(url)


def test_a_refused_url_does_not_show_its_password() -> None:
    for url in ("http://pi:secret@host", "mqtt://pi:secret@[::1", "pi:secret@host", "mqtt://pi:sec#secret@host"):
        with pytest.raises(ConfigError) as raised:
            BrokerAddress.parse(url)
        assert "secret" not in str(raised.value)
    assert "secret" not in repr(BrokerAddress.parse("mqtt://pi:secret@host"))
