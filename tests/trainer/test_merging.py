from __future__ import annotations

from trainer.merging import MergePlan, RoundPlan


def plan(merge_every: int = 3) -> MergePlan:
    return MergePlan(merge_every=merge_every, deadline_s=5.0)


def test_devices_are_asked_for_their_change_with_the_answers_of_every_nth_batch() -> None:
    merging = plan(3)
    assert merging.closed(["a", "b"], now_s=0.0) == set()
    assert merging.closed(["a", "b"], now_s=1.0) == set()
    assert merging.closed(["a", "b"], now_s=2.0) == {"a", "b"}


def test_the_first_batches_of_a_run_are_merged_one_by_one_also_when_it_is_resumed_among_them() -> None:
    merging = MergePlan(merge_every=3, deadline_s=5.0, each_until=5, steps=3)
    asked = []
    for _ in range(8):
        asked.append(merging.closed(["a"], now_s=0.0))
        if merging.due(live=["a"], offered=["a"], now_s=0.0):
            merging.merged()
    assert asked == [{"a"}, {"a"}, set(), set(), {"a"}, set(), set(), {"a"}]


def test_nothing_is_due_before_anybody_was_asked() -> None:
    merging = plan(2)
    merging.closed(["a"], now_s=0.0)
    assert not merging.due(live=["a"], offered=["a"], now_s=1e9)


def test_the_merge_comes_when_every_live_device_that_trained_has_given_its_change() -> None:
    merging = plan(1)
    merging.closed(["a", "b"], now_s=0.0)
    assert not merging.due(live=["a", "b", "idle"], offered=["a"], now_s=1.0)
    assert merging.due(live=["a", "b", "idle"], offered=["a", "b"], now_s=1.0)


def test_a_device_that_has_gone_is_not_waited_for() -> None:
    merging = plan(1)
    merging.closed(["a", "b"], now_s=0.0)
    assert merging.due(live=["a"], offered=["a"], now_s=1.0)


def test_after_the_deadline_the_merge_takes_what_is_there() -> None:
    merging = plan(1)
    merging.closed(["a", "b"], now_s=10.0)
    assert not merging.due(live=["a", "b"], offered=[], now_s=14.9)
    assert merging.due(live=["a", "b"], offered=[], now_s=15.0)


def test_a_device_is_asked_once_and_one_that_missed_the_batch_when_it_next_trains() -> None:
    merging = plan(2)
    merging.closed(["a", "b"], now_s=0.0)
    assert merging.closed(["a"], now_s=1.0) == {"a"}
    assert merging.closed(["a", "b"], now_s=2.0) == {"b"}
    assert merging.closed(["a", "b"], now_s=3.0) == set()
    assert merging.due(live=["a", "b"], offered=[], now_s=6.0), "the deadline counts from the first question"


def test_where_devices_hold_no_weights_nobody_is_asked_and_nobody_is_waited_for() -> None:
    merging = MergePlan(merge_every=2, deadline_s=5.0, collect=False)
    assert merging.closed(["a", "b"], now_s=0.0) == set()
    assert not merging.due(live=["a", "b"], offered=[], now_s=0.0)
    assert merging.closed(["a", "b"], now_s=0.0) == set()
    assert merging.due(live=["a", "b"], offered=[], now_s=0.0)


def test_after_a_merge_counting_starts_anew() -> None:
    merging = plan(2)
    merging.closed(["a"], now_s=0.0)
    merging.closed(["a"], now_s=0.0)
    merging.merged()
    assert not merging.due(live=[], offered=[], now_s=1e9)
    assert merging.closed(["a"], now_s=0.0) == set()
    assert merging.closed(["a"], now_s=0.0) == {"a"}


def test_a_round_ends_when_every_live_device_has_given_its_change() -> None:
    rounds = RoundPlan(deadline_s=5.0, expected=0)
    assert not rounds.due(live=["a", "b"], offered=[], now_s=0.0)
    assert not rounds.due(live=["a", "b"], offered=["a"], now_s=1.0)
    assert rounds.due(live=["a", "b"], offered=["a", "b"], now_s=2.0)


def test_a_round_does_not_wait_for_a_device_that_has_gone_but_keeps_its_change() -> None:
    rounds = RoundPlan(deadline_s=5.0, expected=0)
    assert not rounds.due(live=["b"], offered=["a"], now_s=0.0)
    assert rounds.due(live=["b"], offered=["a", "b"], now_s=1.0)
    assert rounds.due(live=[], offered=["a"], now_s=1.0)


def test_the_first_round_waits_for_devices_that_are_still_to_come() -> None:
    rounds = RoundPlan(deadline_s=5.0, expected=2)
    assert not rounds.due(live=["a"], offered=["a"], now_s=0.0)
    assert not rounds.due(live=["a", "b"], offered=["a"], now_s=1.0)
    assert rounds.due(live=["a", "b"], offered=["a", "b"], now_s=2.0)
    rounds.merged()
    assert rounds.due(live=["a"], offered=["a"], now_s=3.0), "b has been and gone"


def test_the_deadline_of_a_round_counts_from_its_first_change() -> None:
    rounds = RoundPlan(deadline_s=5.0, expected=3)
    assert not rounds.due(live=["a", "b"], offered=[], now_s=0.0)
    assert not rounds.due(live=["a", "b"], offered=["a"], now_s=10.0)
    assert not rounds.due(live=["a", "b"], offered=["a"], now_s=14.9)
    assert rounds.due(live=["a", "b"], offered=["a"], now_s=15.0)
    rounds.merged()
    assert not rounds.due(live=["a", "b"], offered=["b"], now_s=16.0)
