from __future__ import annotations

from common.link_state import LinkState


def test_nothing_counts_as_subscribed_between_taking_what_is_due_and_the_brokers_answer() -> None:
    state = LinkState(client_id="a", data_capacity=1, outbound_capacity=1)
    state.want("a/#", 1)
    assert state.now_connected(None) == [("a/#", 1)]
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
