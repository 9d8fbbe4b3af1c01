from __future__ import annotations

from common.link_state import LinkState


def test_nothing_counts_as_subscribed_between_taking_what_is_due_and_the_brokers_answer() -> None:
    state = LinkState(client_id="a", data_capacity=1, outbound_capacity=1)
    state.want("a/#", 1)
    assert state.now_connected(None) == ([("a/#", 1)], [])
    assert not state.subscribed()
    state.asked(1, ("a/#",))
    state.announce()
    assert not state.subscribed()
    assert state.confirmed(1) == ("a/#",)
    assert state.subscribed()
    state.want("b/#", 1)
    assert not state.subscribed()
    assert state.take_due() == [("b/#", 1)]
    assert not state.subscribed()
    state.asked(2, ("b/#",))
    state.announce()
    assert not state.subscribed()
    state.confirmed(2)
    assert state.subscribed()
    state.bell.close()


def test_what_was_dropped_while_there_was_no_connection_is_dropped_from_the_session_too() -> None:
    state = LinkState(client_id="a", data_capacity=1, outbound_capacity=1)
    state.want("a/#", 1)
    state.want("b/#", 1)
    state.want("c/#", 1)
    state.now_connected(None)
    state.now_disconnected()
    state.want("a/#", None)
    state.want("c/#", None)
    state.want("c/#", 1)
    assert state.now_connected(None) == ([("b/#", 1), ("c/#", 1)], ["a/#"])
    assert state.now_connected(None) == ([("b/#", 1), ("c/#", 1)], [])
    state.bell.close()
