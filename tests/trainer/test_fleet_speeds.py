from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES, scale_forward
from tests.trainer.simulated import costs
from tests.trainer.test_policy_experience import told
from trainer.fleet_speeds import BELIEVED, ENOUGH, KEPT, FleetSpeeds
from trainer.simulated_fleet import shipped_speeds

ZERO, FOUR = "raspberry-pi-zero-2w", "raspberry-pi-4"
STATED = shipped_speeds()
BOOT, OTHER_BOOT = "a" * 16, "b" * 16


def measured(
    board: str, *, slower: float, said: float = 1.0, load: float = 0.0, cut: int = 5, boot: str = BOOT, seq: int = 1
) -> Telemetry:
    """What a device on this board says whose window took `slower` times as long as stated, beside other work."""
    seen = [0.5] * len(OBSERVATION_NAMES)
    seen[OBSERVATION_NAMES.index("slowness")] = scale_forward(said * STATED[board].taken_ms)
    took_ms = slower * STATED[board].taken_ms * float(costs().train_ms[cut]) / (1.0 - load)
    return replace(told(seq), boot=boot, action=cut, client_ms=took_ms, cpu=load, observation=tuple(seen))


def speeds(boards: dict[str, str]) -> FleetSpeeds:
    made = FleetSpeeds(costs(), STATED)
    for device, board in boards.items():
        made.join(device, board)
    return made


def test_boards_as_stated_are_left_alone_whatever_else_runs_beside() -> None:
    fleet, rng = speeds({"a": FOUR, "b": ZERO}), np.random.default_rng(0)
    for _ in range(300):
        for device, board in (("a", FOUR), ("b", ZERO)):
            load = float(rng.choice([0.03, 0.1, 0.4, 0.9], p=[0.3, 0.2, 0.3, 0.2]))
            cut = int(rng.integers(9))
            assert not fleet.hear(device, measured(board, slower=1.0, load=load, cut=cut))


def test_a_board_three_times_slower_is_noticed_and_what_its_devices_say_is_kept() -> None:
    fleet = speeds({"a": FOUR, "b": ZERO})
    told_due = [
        [fleet.hear("a", measured(FOUR, slower=3.0)), fleet.hear("b", measured(ZERO, slower=1.0))] for _ in range(20)
    ]
    assert [any(pair) for pair in told_due].index(True) == ENOUGH - 1
    found = fleet.correct()
    assert found[FOUR].said_ms == pytest.approx(STATED[FOUR].said_ms)
    assert found[FOUR].taken_ms == pytest.approx(3.0 * STATED[FOUR].taken_ms)
    assert found[ZERO].taken_ms == pytest.approx(STATED[ZERO].taken_ms)
    assert found["raspberry-pi-5"] == STATED["raspberry-pi-5"]
    assert not any(fleet.hear("a", measured(FOUR, slower=3.0)) for _ in range(KEPT))


def test_a_board_that_says_itself_how_slow_it_is_is_noticed_as_well() -> None:
    fleet = speeds({"a": FOUR})
    assert any(fleet.hear("a", measured(FOUR, slower=3.0, said=3.0)) for _ in range(ENOUGH))
    found = fleet.correct()[FOUR]
    assert (found.said_ms, found.taken_ms) == pytest.approx((3.0 * STATED[FOUR].taken_ms,) * 2)


def test_a_processor_that_others_always_use_says_nothing_of_the_board() -> None:
    fleet = speeds({"a": FOUR})
    assert not any(fleet.hear("a", measured(FOUR, slower=1.0, load=0.8)) for _ in range(200))


def test_one_device_that_lies_moves_nothing_among_three() -> None:
    fleet = speeds({"a": FOUR, "b": FOUR, "c": FOUR})
    for _ in range(100):
        assert not fleet.hear("a", replace(measured(FOUR, slower=1.0), client_ms=1e12))
        assert not fleet.hear("b", measured(FOUR, slower=1.0))
        assert not fleet.hear("c", measured(FOUR, slower=1.1))


def test_what_is_beyond_belief_is_taken_for_the_most_that_is_believed() -> None:
    fleet = speeds({"a": FOUR})
    for _ in range(ENOUGH):
        fleet.hear("a", replace(measured(FOUR, slower=1.0), client_ms=1e300))
    assert fleet.correct()[FOUR].taken_ms == pytest.approx(BELIEVED * STATED[FOUR].taken_ms)


def test_a_device_that_boots_is_measured_anew_and_one_that_left_is_forgotten() -> None:
    fleet = speeds({"a": FOUR})
    for _ in range(KEPT):
        fleet.hear("a", measured(FOUR, slower=1.0))
    due = [fleet.hear("a", measured(FOUR, slower=3.0, boot=OTHER_BOOT)) for _ in range(ENOUGH)]
    assert due == [False] * (ENOUGH - 1) + [True]
    fleet.leave("a")
    assert not fleet.hear("a", measured(FOUR, slower=3.0, boot=OTHER_BOOT))
    fleet.leave("a")


def test_half_of_the_devices_have_to_be_known_first() -> None:
    fleet = speeds({"a": FOUR, "b": FOUR, "c": FOUR})
    assert not any(fleet.hear("a", measured(FOUR, slower=3.0)) for _ in range(50))
    assert any(fleet.hear("b", measured(FOUR, slower=3.0)) for _ in range(ENOUGH))


def test_what_says_nothing_of_a_board_is_left_out() -> None:
    fleet = speeds({"a": FOUR, "own": "my-own-board"})
    slow = measured(FOUR, slower=9.0)
    for _ in range(50):
        assert not fleet.hear("unheard of", slow)
        assert not fleet.hear("own", slow)
        assert not fleet.hear("a", replace(slow, client_ms=None))
        assert not fleet.hear("a", replace(slow, action=-1))
        assert not fleet.hear("a", replace(slow, action=9))
        assert not fleet.hear("a", replace(slow, observation=(0.5,)))
    assert fleet.correct() == STATED
