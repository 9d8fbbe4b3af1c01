from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from common.compute_profile import load
from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES, scale_forward
from tests.trainer.simulated import costs
from tests.trainer.test_policy_experience import told
from trainer.fleet_speeds import APART_S, BELIEVED, ENOUGH, KEPT, FleetSpeeds
from trainer.simulated_fleet import COMPUTE, Speed, shipped_speeds

ZERO, FOUR = "raspberry-pi-zero-2w", "raspberry-pi-4"
STATED = shipped_speeds()
BOOT, OTHER_BOOT = "a" * 16, "b" * 16
MOBILE = load(COMPUTE / "mobile.json")


def measured(
    board: str, *, slower: float, said: float = 1.0, load: float = 0.0, cut: int = 5, boot: str = BOOT
) -> Telemetry:
    """What a device on this board says whose window took `slower` times as long as stated, beside other work."""
    seen = [0.5] * len(OBSERVATION_NAMES)
    seen[OBSERVATION_NAMES.index("slowness")] = scale_forward(said * STATED[board].taken_ms)
    took_ms = slower * MOBILE.as_board(STATED[board].taken_ms).client_ms(cut) / (1.0 - load)
    return replace(told(1), boot=boot, action=cut, client_ms=took_ms, cpu=load, observation=tuple(seen))


class Fleet:
    """Devices whose every message is a new decision, a second after the last."""

    def __init__(self, boards: dict[str, str]) -> None:
        self.speeds = FleetSpeeds(costs(), STATED)
        self.at_s = 0.0
        self._seq = 0
        for device, board in boards.items():
            self.speeds.join(device, board)

    def hear(self, device: str, said: Telemetry) -> bool:
        self._seq += 1
        self.at_s += 1.0
        return self.speeds.hear(device, replace(said, decision_seq=self._seq), at_s=self.at_s)

    def correct(self) -> Mapping[str, Speed]:
        return self.speeds.correct(self.at_s)


def test_boards_as_stated_are_left_alone_at_every_cut_whatever_else_runs_beside() -> None:
    fleet, rng = Fleet({"a": FOUR, "b": ZERO}), np.random.default_rng(0)
    for cut in [*range(9), *rng.integers(9, size=30).tolist()]:
        for _ in range(KEPT):
            for device, board in (("a", FOUR), ("b", ZERO)):
                load = float(rng.choice([0.03, 0.1, 0.4, 0.9], p=[0.3, 0.2, 0.3, 0.2]))
                assert not fleet.hear(device, measured(board, slower=1.0, load=load, cut=cut))


def test_a_board_three_times_slower_is_noticed_and_what_its_devices_say_is_kept() -> None:
    fleet = Fleet({"a": FOUR, "b": ZERO})
    due = [
        [fleet.hear("a", measured(FOUR, slower=3.0)), fleet.hear("b", measured(ZERO, slower=1.0))] for _ in range(20)
    ]
    assert [any(pair) for pair in due].index(True) == ENOUGH - 1
    found = fleet.correct()
    assert found[FOUR].said_ms == pytest.approx(STATED[FOUR].said_ms)
    assert found[FOUR].taken_ms == pytest.approx(3.0 * STATED[FOUR].taken_ms)
    assert found[ZERO].taken_ms == pytest.approx(STATED[ZERO].taken_ms)
    assert found["raspberry-pi-5"] == STATED["raspberry-pi-5"]
    fleet.at_s += APART_S
    assert not any(fleet.hear("a", measured(FOUR, slower=3.0)) for _ in range(KEPT))


def test_a_board_that_says_itself_how_slow_it_is_is_noticed_as_well() -> None:
    fleet = Fleet({"a": FOUR})
    assert any(fleet.hear("a", measured(FOUR, slower=3.0, said=3.0)) for _ in range(ENOUGH))
    found = fleet.correct()[FOUR]
    assert (found.said_ms, found.taken_ms) == pytest.approx((3.0 * STATED[FOUR].taken_ms,) * 2)


def test_two_corrections_are_well_apart() -> None:
    fleet = Fleet({"a": FOUR})
    assert any(fleet.hear("a", measured(FOUR, slower=3.0)) for _ in range(ENOUGH))
    fleet.correct()
    boots = [f"{boot:016x}" for boot in range(10)]
    said = [measured(FOUR, slower=1.0 + place % 2 * 5, boot=boot) for place, boot in enumerate(boots)]
    assert not any(fleet.hear("a", one) for one in said for _ in range(ENOUGH))
    fleet.at_s += APART_S
    assert fleet.hear("a", said[-1])


def test_a_processor_that_others_always_use_says_nothing_of_the_board() -> None:
    fleet = Fleet({"a": FOUR})
    assert not any(fleet.hear("a", measured(FOUR, slower=1.0, load=0.45)) for _ in range(200))


def test_one_device_that_lies_moves_nothing_beside_two_others() -> None:
    fleet = Fleet({"a": FOUR, "b": FOUR, "c": FOUR})
    for _ in range(100):
        assert not fleet.hear("b", measured(FOUR, slower=1.0))
        assert not fleet.hear("a", replace(measured(FOUR, slower=1.0), client_ms=1e12))
        assert not fleet.hear("c", measured(FOUR, slower=1.1))


def test_a_device_that_was_alone_and_lied_is_overruled_by_the_first_that_agrees_with_the_profile() -> None:
    fleet = Fleet({"a": FOUR, "b": FOUR})
    for _ in range(ENOUGH):
        fleet.hear("a", replace(measured(FOUR, slower=1.0), client_ms=1e12))
    assert fleet.correct()[FOUR].taken_ms == pytest.approx(BELIEVED * STATED[FOUR].taken_ms)
    fleet.at_s += APART_S
    assert any(fleet.hear("b", measured(FOUR, slower=1.0)) for _ in range(ENOUGH))
    assert fleet.correct()[FOUR].taken_ms == pytest.approx(STATED[FOUR].taken_ms)


def test_a_device_that_boots_is_measured_anew_and_one_that_left_is_forgotten() -> None:
    fleet = Fleet({"a": FOUR})
    for _ in range(KEPT):
        fleet.hear("a", measured(FOUR, slower=1.0))
    due = [fleet.hear("a", measured(FOUR, slower=3.0, boot=OTHER_BOOT)) for _ in range(ENOUGH)]
    assert due == [False] * (ENOUGH - 1) + [True]
    fleet.speeds.leave("a")
    assert not fleet.hear("a", measured(FOUR, slower=3.0, boot=OTHER_BOOT))
    fleet.speeds.leave("a")


def test_more_than_half_of_the_devices_that_measure_have_to_be_known_first() -> None:
    fleet = Fleet({"a": FOUR, "b": FOUR, "c": FOUR, "never": FOUR})
    for device in ("b", "c"):
        fleet.hear(device, measured(FOUR, slower=3.0))
    assert not any(fleet.hear("a", measured(FOUR, slower=3.0)) for _ in range(50))
    assert any(fleet.hear("b", measured(FOUR, slower=3.0)) for _ in range(ENOUGH))


def test_what_says_nothing_of_a_board_is_left_out() -> None:
    fleet = Fleet({"a": FOUR, "own": "my-own-board"})
    slow = measured(FOUR, slower=9.0)
    for _ in range(50):
        assert not fleet.hear("unheard of", slow)
        assert not fleet.hear("own", slow)
        assert not fleet.hear("a", replace(slow, client_ms=None))
        assert not fleet.hear("a", replace(slow, action=-1))
        assert not fleet.hear("a", replace(slow, action=9))
        assert not fleet.hear("a", replace(slow, observation=(0.5,)))
        assert not fleet.hear("a", replace(slow, policy_version=0))
        assert not fleet.speeds.hear("a", slow, at_s=0.0)  # one decision, said again and again
    assert fleet.correct() == STATED
