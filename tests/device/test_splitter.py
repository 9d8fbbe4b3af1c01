from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.actions import LOCAL, allowed_mask
from common.policy import Observation, observe, scale_round_trip, scale_uplink
from device.splitter import FixedSplitter, HeuristicSplitter, PlannedSplitter, Splitter

L = 8
CALM = observe(
    uncertainty=0.5,
    uncertainty_age_s=1.0,
    cpu=0.2,
    memory=0.3,
    temperature_c=45.0,
    throttled=False,
    uplink_mbps=20.0,
    round_trip_ms=20.0,
    battery=None,
    queue_depth=0,
    queue_capacity=16,
    cut=5,
    depth=L,
    forward_ms=20.0,
    held=5,
    version_age=None,
    follows=False,
)


def at(cut: int, observation: Observation = CALM) -> Observation:
    return replace(observation, cut=cut / L)


def mask_of(*cuts: int, local: bool = True) -> tuple[bool, ...]:
    return (*(cut in cuts for cut in range(L + 1)), local)


def allowed(
    *,
    min_cut: int = 3,
    device_cuts: Collection[int] = range(L + 1),
    allowed_by_trainer: Collection[int] | None = None,
    pinned_cut: int | None = None,
    online: bool = True,
    current_cut: int | None = None,
    decisions_since_change: int = 0,
    dwell: int = 0,
) -> tuple[bool, ...]:
    return allowed_mask(
        depth=L,
        min_cut=min_cut,
        device_cuts=device_cuts,
        allowed_by_trainer=allowed_by_trainer,
        pinned_cut=pinned_cut,
        online=online,
        current_cut=current_cut,
        decisions_since_change=decisions_since_change,
        dwell=dwell,
    )


OPEN = allowed()


def test_every_cut_from_the_floor_up_and_local_are_open_by_default() -> None:
    assert mask_of(3, 4, 5, 6, 7, 8) == OPEN


def test_only_what_the_device_can_run_is_open() -> None:
    assert allowed(device_cuts=(0, 4, 5)) == mask_of(4, 5)


def test_the_trainer_may_narrow_the_choice_and_not_widen_it() -> None:
    assert allowed(allowed_by_trainer=(1, 5, 6), device_cuts=(4, 5)) == mask_of(5)


@pytest.mark.parametrize("wish", [(), (0, 1, 2), (99,)])
def test_a_wish_that_leaves_nothing_is_void(wish: tuple[int, ...]) -> None:
    assert allowed(allowed_by_trainer=wish) == OPEN


def test_a_pin_leaves_one_cut_and_no_local_step() -> None:
    assert allowed(pinned_cut=6, allowed_by_trainer=(4,)) == mask_of(6, local=False)


def test_a_pin_below_the_floor_means_the_floor() -> None:
    assert allowed(pinned_cut=0) == mask_of(3, local=False)


def test_a_pin_above_what_the_device_can_run_means_the_deepest_it_can() -> None:
    assert allowed(pinned_cut=8, device_cuts=(3, 4)) == mask_of(4, local=False)


def test_offline_every_action_but_local_is_masked_even_under_a_pin() -> None:
    assert allowed(online=False, pinned_cut=5) == mask_of()


def test_a_device_that_can_run_nothing_above_the_floor_trains_by_itself() -> None:
    assert allowed(device_cuts=(0, 1, 2)) == mask_of()


def test_for_a_while_after_a_change_the_cut_stays() -> None:
    assert allowed(current_cut=5, decisions_since_change=2, dwell=3) == mask_of(5)
    assert allowed(current_cut=5, decisions_since_change=3, dwell=3) == OPEN


def test_a_cut_that_is_no_longer_allowed_need_not_stay() -> None:
    assert allowed(current_cut=4, allowed_by_trainer=(6,), dwell=10) == mask_of(6)


@pytest.mark.parametrize("min_cut", [-1, L + 1])
def test_a_floor_outside_the_encoder_is_refused(min_cut: int) -> None:
    with pytest.raises(ValueError, match="min_cut"):
        allowed(min_cut=min_cut)


cuts = st.lists(st.integers(-2, L + 3), max_size=6)
fractions = st.floats(0.0, 1.0)


@given(
    min_cut=st.integers(0, L),
    device_cuts=cuts,
    wish=st.none() | cuts,
    pin=st.none() | st.integers(-2, L + 3),
    online=st.booleans(),
    current=st.integers(0, L),
    since=st.integers(0, 5),
    dwell=st.integers(0, 5),
    load=st.tuples(fractions, fractions, fractions, fractions, fractions),
    start=st.integers(0, L),
)
def test_no_splitter_ever_sends_below_the_floor_or_beyond_its_mask(
    min_cut: int,
    device_cuts: list[int],
    wish: list[int] | None,
    pin: int | None,
    online: bool,
    current: int,
    since: int,
    dwell: int,
    load: tuple[float, float, float, float, float],
    start: int,
) -> None:
    mask = allowed(
        min_cut=min_cut,
        device_cuts=device_cuts,
        allowed_by_trainer=wish,
        pinned_cut=pin,
        online=online,
        current_cut=current,
        decisions_since_change=since,
        dwell=dwell,
    )
    cpu, heat, queue, uplink, round_trip = load
    seen = replace(at(current), cpu=cpu, heat=heat, queue=queue, uplink=uplink, round_trip=round_trip)
    splitters: tuple[Splitter, ...] = (FixedSplitter(start), HeuristicSplitter(cut=start))
    for splitter in splitters:
        decision = splitter.decide(seen, mask)
        assert mask[decision.action]
        assert decision.mask == mask
        assert decision.local == (decision.action == LOCAL)
        assert decision.local or decision.cut == decision.action >= min_cut
        assert not decision.local or decision.cut == L
        assert online or decision.local


def test_a_fixed_splitter_does_not_look_at_the_observation() -> None:
    assert FixedSplitter(5).decide(at(3, replace(CALM, cpu=1.0, uplink=0.0)), OPEN).action == 5


def test_a_fixed_cut_that_is_not_allowed_gives_way_to_the_nearest_and_says_so() -> None:
    decision = FixedSplitter(5).decide(CALM, mask_of(4, 6, 8))
    assert decision.action == 6
    assert "cut 5 is not allowed" in decision.reason


def test_with_no_cut_allowed_a_fixed_splitter_trains_locally_at_the_last_cut() -> None:
    decision = FixedSplitter(5).decide(CALM, mask_of())
    assert (decision.local, decision.action, decision.cut, decision.log_prob) == (True, LOCAL, L, 0.0)


def test_a_mask_that_allows_nothing_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="no action"):
        FixedSplitter(5).decide(CALM, mask_of(local=False))


def test_a_calm_device_stays_at_its_cut() -> None:
    assert HeuristicSplitter(cut=5).decide(CALM, OPEN).action == 5


@pytest.mark.parametrize("field", ["cpu", "heat", "queue"])
def test_a_labouring_device_hands_one_block_to_the_trainer(field: str) -> None:
    assert HeuristicSplitter(cut=5).decide(replace(CALM, **{field: 1.0}), OPEN).action == 4


@pytest.mark.parametrize(("field", "value"), [("uplink", scale_uplink(0.5)), ("round_trip", scale_round_trip(800.0))])
def test_a_poor_link_moves_one_block_to_the_device(field: str, value: float) -> None:
    assert HeuristicSplitter(cut=5).decide(replace(CALM, **{field: value}), OPEN).action == 6


def test_the_link_wins_over_the_processor() -> None:
    assert HeuristicSplitter(cut=5).decide(replace(CALM, cpu=1.0, uplink=0.0), OPEN).action == 6


def test_a_step_skips_what_is_not_allowed() -> None:
    assert HeuristicSplitter(cut=5).decide(replace(CALM, uplink=0.0), mask_of(3, 5, 8)).action == 8


def test_at_the_floor_a_labouring_device_stays() -> None:
    decision = HeuristicSplitter(cut=5).decide(at(3, replace(CALM, cpu=1.0)), OPEN)
    assert decision.action == 3
    assert "no further" in decision.reason


@pytest.mark.parametrize(("current", "expected"), [(3, 4), (4, 5), (7, 6), (8, 7)])
def test_when_it_is_calm_again_the_cut_walks_back(current: int, expected: int) -> None:
    assert HeuristicSplitter(cut=5).decide(at(current), OPEN).action == expected


def test_a_condition_is_left_only_well_below_where_it_was_entered() -> None:
    splitter = HeuristicSplitter(cut=5, cpu=(0.9, 0.7))
    walk = [splitter.decide(at(5, replace(CALM, cpu=cpu)), OPEN).action for cpu in (0.85, 0.95, 0.85, 0.75, 0.65, 0.85)]
    assert walk == [5, 4, 4, 4, 5, 5]


def test_an_uplink_that_hovers_at_its_threshold_does_not_toggle_the_cut() -> None:
    splitter = HeuristicSplitter(cut=5, uplink_mbps=(1.0, 2.0))
    rates = (1.1, 0.95, 1.05, 1.5, 0.99, 2.1, 1.1)
    walk = [splitter.decide(at(5, replace(CALM, uplink=scale_uplink(rate))), OPEN).action for rate in rates]
    assert walk == [5, 6, 6, 6, 6, 5, 5]


def planned(cut: int | None) -> PlannedSplitter:
    splitter = PlannedSplitter(HeuristicSplitter(cut=5))
    splitter.offer(cut)
    return splitter


def test_a_planned_cut_is_followed_whatever_the_rules_say_of_load_and_link() -> None:
    for observation in (CALM, replace(CALM, cpu=1.0), replace(CALM, uplink=0.0)):
        decision = planned(7).decide(observation, OPEN)
        assert (decision.action, decision.reason, decision.policy_version) == (7, "planned", 0)


@pytest.mark.parametrize("cut", [0, 2, 7, 64])
def test_a_planned_cut_never_leads_below_the_floor_or_past_a_pin(cut: int) -> None:
    assert planned(cut).decide(CALM, allowed(min_cut=4)).action == min(max(cut, 4), L)
    assert planned(cut).decide(CALM, allowed(pinned_cut=6)).action == 6
    assert planned(cut).decide(CALM, allowed(allowed_by_trainer=(3, 5))).action == (3 if cut < 4 else 5)
    assert planned(cut).decide(CALM, allowed(online=False)).action == LOCAL


def test_without_a_plan_the_rules_decide_and_again_when_there_is_none_any_more() -> None:
    splitter = PlannedSplitter(HeuristicSplitter(cut=5))
    slow = replace(CALM, uplink=0.0)
    assert splitter.decide(slow, OPEN) == HeuristicSplitter(cut=5).decide(slow, OPEN)
    splitter.offer(3)
    assert splitter.decide(slow, OPEN).action == 3
    splitter.offer(None)
    assert splitter.decide(slow, OPEN).reason == "slow uplink"


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="must be left below"):
        HeuristicSplitter(cut=5, cpu=(0.5, 0.9))
    with pytest.raises(ValueError, match="must be left below"):
        HeuristicSplitter(cut=5, uplink_mbps=(2.0, 1.0))
