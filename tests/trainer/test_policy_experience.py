from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES
from tests.common.cases import cases
from trainer.link_traces import STEP_S
from trainer.policy_experience import LEAST_WORTH, MOST_OPEN, PAUSE_S, RECENT_WATTS, Experience, Reported
from trainer.reward import RewardWeights

W = RewardWeights()
EXAMPLE = cases()[Telemetry]
assert isinstance(EXAMPLE, Telemetry)
MASK = (False,) * 3 + (True,) * 7


def told(seq: int, **changes: Any) -> Telemetry:
    """Telemetry of a device that answers one step of 8 windows a decision, at cut 5."""
    assert isinstance(EXAMPLE, Telemetry)
    plain: dict[str, Any] = {
        "decision_seq": seq,
        "policy_version": 4,
        "observation": (0.5,) * len(OBSERVATION_NAMES),
        "mask": MASK,
        "action": 5,
        "cut": 5,
        "log_prob": -0.5,
        "windows": 8 * seq,
        "windows_dropped": 0,
        "steps_sent": seq,
        "steps_answered": seq,
        "local_steps": 0,
        "energy_joules": 3.0 * seq,
        "bytes_up": 16_000 * seq,
        "bytes_down": 2_432 * seq,
        "embedding_ms": 100.0,
        "uncertainty": 0.5,
    }
    return replace(EXAMPLE, **(plain | changes))


def tell(made: Experience, device: str, telemetry: Telemetry, *, late_s: float = 0.0) -> Reported | None:
    return made.offer(device, telemetry, at_s=7.68 * telemetry.decision_seq + late_s)


def experience(*telemetry: Telemetry, device: str = "pi") -> Experience:
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    made.idle_watts[device] = 1e-9  # so that all energy counts
    for one in telemetry:
        tell(made, device, one)
    return made


def lengths(made: Experience, version: int = 4) -> list[int]:
    return [len(trajectory) for trajectory in made.take(version=version)]


@pytest.mark.parametrize(("measured_watts", "idle_watts"), [(1.5, 1.5), (3.4, 3.3)])
def test_a_board_that_measures_less_than_its_profile_states_for_idling_is_not_taken_to_spend_nothing(
    measured_watts: float, idle_watts: float
) -> None:
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    made.idle_watts["pi"] = 3.3
    computing = 0.04 * 8  # joules of every second decision
    joules, found = 0.0, None
    for seq in range(1, RECENT_WATTS + 4):
        joules += measured_watts * 8 * STEP_S + computing * (seq % 2)
        found = tell(made, "pi", told(seq, energy_joules=joules))
    assert found is not None
    spent = (measured_watts - idle_watts) * STEP_S + computing / 8
    expected = 1.0 - 0.5 * 100 / 200 - 0.3 * spent / 0.1 - 0.2 * 2304 / 4608
    assert found.reward == pytest.approx(expected)


def test_a_burst_of_windows_after_a_wait_does_not_make_a_board_of_a_profile_look_like_one_that_measures_itself() -> (
    None
):
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    made.idle_watts["pi"] = 2.6
    at_s, joules, found = 0.0, 0.0, None
    for seq in range(1, RECENT_WATTS + 3):
        passed_s = (0.15, 1.7)[seq % 2] * 8 * STEP_S
        at_s, joules = at_s + passed_s, joules + 2.6 * passed_s + 0.4
        found = made.offer("pi", told(seq, energy_joules=joules), at_s=at_s)
    assert found is not None
    assert found.reward == pytest.approx(1.0 - 0.5 * 100 / 200 - 0.3 * (0.4 / 8) / 0.1 - 0.2 * 2304 / 4608)


def test_energy_of_a_board_without_a_profile_counts_as_none() -> None:
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    tell(made, "pi", told(1))
    found = tell(made, "pi", told(2, energy_joules=40.0))
    assert found is not None
    assert found.reward == pytest.approx(1.0 - 0.5 * 100 / 200 - 0.2 * 2304 / 4608)


def test_the_reward_is_in_what_the_counters_gained() -> None:
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    made.idle_watts["pi"] = 0.2
    tell(made, "pi", told(1))
    found = tell(made, "pi", told(2))
    assert found is not None
    joules = (3.0 - 0.2 * 8 * STEP_S) / 8
    expected = 1.0 - 0.5 * 100 / 200 - 0.3 * joules / 0.1 - 0.2 * 2304 / 4608
    assert found.reward == pytest.approx(expected)
    moved = tell(made, "pi", told(3, cut=7, action=7))
    assert moved is not None
    assert moved.reward == pytest.approx(expected - 0.1)
    alone = tell(made, "pi", told(4, action=-1, steps_answered=3, local_steps=1, cut=8))
    assert alone is not None
    assert alone.action == 9
    assert alone.reward == pytest.approx(expected - 0.5)
    lost = tell(made, "pi", told(5, steps_answered=3, local_steps=1))
    assert lost is not None
    assert lost.reward == pytest.approx(expected - 1.0 - 0.1)


def test_windows_that_found_the_queue_full_are_as_late_as_can_be() -> None:
    made = experience(told(1))
    all_taken = tell(made, "pi", told(2))
    half_dropped = tell(
        made, "pi", told(3, windows_dropped=8, energy_joules=6.0 + 6.0, bytes_up=64_000, bytes_down=9_728)
    )
    assert all_taken is not None
    assert half_dropped is not None
    late = 0.5 * (0.5 * W.most_late + 0.5 * 100 / 200)
    spent = 0.3 * (6.0 / 16) / 0.1 + 0.2 * (2.0 * 18_432 / 16) / 4608
    assert half_dropped.reward == pytest.approx(0.5 - late - spent)


def test_trajectories_are_cut_at_gaps_new_boots_and_what_no_policy_decided() -> None:
    assert lengths(experience(*map(told, range(1, 7)))) == [5]
    assert lengths(experience(*map(told, (1, 2, 3, 5, 6, 7, 8)))) == [2, 3]
    assert lengths(experience(*map(told, (1, 2, 3)), *(told(seq, boot="f" * 16) for seq in (4, 5, 6)))) == [2, 2]
    pinned = told(4, policy_version=0)
    assert lengths(experience(*map(told, (1, 2, 3)), pinned, *map(told, (5, 6)))) == [2, 2]
    assert lengths(experience(told(1), told(2), told(2), told(1), told(3))) == [2]


def test_a_device_that_never_draws_does_not_fill_the_memory() -> None:
    made = experience(*(told(seq, log_prob=0.0) for seq in range(1, 2 * MOST_OPEN + 3)))
    assert lengths(made) == [MOST_OPEN, MOST_OPEN]


def test_news_of_a_decision_before_its_step_is_over_is_not_its_outcome() -> None:
    news = told(2, embedding_ms=None, windows=9)
    assert lengths(experience(told(1), news, told(2), told(3))) == lengths(experience(told(1), told(2), told(3))) == [2]


def test_devices_are_kept_apart() -> None:
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    for seq in range(1, 5):
        for device in ("a", "b"):
            tell(made, device, told(seq))
    assert lengths(made) == [3, 3]
    assert lengths(made) == []


def test_decisions_of_policies_too_old_are_dropped() -> None:
    versions = [4, 4, 4, 5, 7, 7, 7]
    made = experience(*(told(seq, policy_version=version) for seq, version in enumerate(versions, start=1)))
    assert lengths(made, version=7) == [4]


def test_only_drawn_decisions_count_as_such() -> None:
    made = experience(told(1), told(2), told(3, log_prob=0.0), told(4))
    assert made.drawn == 2
    tell(made, "pi", told(6))  # a gap: the two and the one between them wait on
    assert made.drawn == 2
    tell(made, "pi", told(7))
    tell(made, "pi", told(9))  # one alone between two gaps says nothing of what came after
    assert made.drawn == 2
    made.take(version=4)
    assert made.drawn == 0


def test_one_that_claims_to_have_spent_more_than_any_decision_can_does_not_flatten_the_others() -> None:
    made = experience(told(1))
    liar = tell(made, "pi", told(2, energy_joules=1e12))
    assert liar is not None
    assert liar.reward == LEAST_WORTH


def test_decisions_that_no_policy_of_this_fleet_can_have_made_are_dropped() -> None:
    made = Experience(parts_per_step=8, weights=W, actions=len(MASK))
    for seq in range(1, 5):
        tell(made, "short", told(seq, mask=MASK[:6]))
        tell(made, "long", told(seq, mask=(*MASK, True)))
        tell(made, "impossible", told(seq, log_prob=-200.0))
        tell(made, "pi", told(seq))
    assert made.drawn == 3
    assert {one.device for trajectory in made.take(version=4) for one in trajectory} == {"pi"}


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding_ms": None, "steps_sent": 1},
        {"windows": 8},
        {"observation": (0.5,) * 10},
        {"action": 0},
        {"action": 20},
    ],
)
def test_a_decision_of_which_nothing_can_be_said_cuts_the_trajectory(changes: dict[str, Any]) -> None:
    made = experience(told(1), told(2, **changes), told(3), told(4))
    assert all(length <= 2 for length in lengths(made))


def test_a_step_that_nobody_answered_is_as_late_as_dropped_windows_and_teaches_nothing() -> None:
    made = experience(told(1))
    lost = tell(
        made,
        "pi",
        told(
            2, steps_answered=1, steps_lost=1, embedding_ms=None, energy_joules=3.0, bytes_up=16_000, bytes_down=2_432
        ),
    )
    assert lost is not None
    assert lost.reward == pytest.approx(-0.5 * W.most_late)
    assert tell(made, "pi", told(3)) is not None, "what follows it follows"


def test_news_within_a_step_is_no_outcome() -> None:
    made = experience(told(1))
    assert tell(made, "pi", told(2, steps_sent=1, windows=12, embedding_ms=None)) is None
    assert tell(made, "pi", told(2)) is not None


def test_local_steps_on_what_was_not_sent_end_no_decision_where_few_windows_are_sent() -> None:
    sparse = {"energy_joules": 3.0, "bytes_up": 16_000, "bytes_down": 2_432}
    made = experience(told(1, windows=32, **sparse))
    news = {"steps_sent": 1, "steps_answered": 1, "embedding_ms": None}
    assert tell(made, "pi", told(2, windows=40, local_steps=3, **news, **sparse)) is None
    found = tell(made, "pi", told(2, windows=64, local_steps=3, **sparse))
    assert found is not None
    assert found.reward == pytest.approx(0.25 + 0.5 * 0.75 - 0.5 * 100 / 200)


def test_a_local_step_leaves_the_cut_where_it_is() -> None:
    local = {"action": -1, "cut": 8, "steps_sent": 1, "steps_answered": 1, "local_steps": 1}
    after = {"steps_sent": 2, "steps_answered": 2, "local_steps": 1}
    stayed = tell(experience(told(1), told(2, **local)), "pi", told(3, **after))
    moved = tell(experience(told(1), told(2, **local)), "pi", told(3, action=8, cut=8, **after))
    assert stayed is not None
    assert moved is not None
    assert stayed.reward - moved.reward == pytest.approx(0.1)


@pytest.mark.parametrize(("late_s", "counts"), [(PAUSE_S - 1.0, True), (PAUSE_S + 1.0, False)])
def test_a_decision_over_which_the_device_paused_is_left_out(late_s: float, counts: bool) -> None:
    made = experience(told(1))
    assert (tell(made, "pi", told(2), late_s=late_s) is not None) == counts
