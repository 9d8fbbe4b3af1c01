from __future__ import annotations

import math
from dataclasses import replace

import pytest

from common.messages import Telemetry
from common.policy import OBSERVATION_NAMES, scale_forward
from tests.trainer.simulated import costs
from tests.trainer.test_policy_experience import told
from trainer.fleet_boards import ENOUGH, STEP, FleetBoards, judged_on
from trainer.simulated_fleet import BOARDS, shipped_board

SLOWNESS = OBSERVATION_NAMES.index("slowness")
SHIPPED = {name: shipped_board(name) for name in BOARDS}
NEAR = pytest.approx


def says(said_ms: float, *, takes: float | None = None, seq: int = 1) -> Telemetry:
    """Telemetry of a device that says how quick it is; `takes`: times what it says, measured at cut 5."""
    seen = [0.5] * len(OBSERVATION_NAMES)
    seen[SLOWNESS] = scale_forward(said_ms)
    client_ms = None if takes is None else float(takes * said_ms * costs().client_ms[5])
    return replace(told(seq), observation=tuple(seen), client_ms=client_ms)


def fleet(*devices: str, profile: str = "raspberry-pi-4") -> FleetBoards:
    made = FleetBoards(SHIPPED, costs())
    for device in devices:
        made.join(device, profile, "0" * 16)
    return made


def test_a_board_is_as_quick_as_its_device_says_until_enough_was_measured() -> None:
    known = fleet("pi")
    assert known.boards() == ()
    for _ in range(ENOUGH - 1):
        known.hear("pi", says(20.0, takes=3.0))
    assert known.boards()[0].board.forward_ms == NEAR(20.0, rel=STEP - 1)
    known.hear("pi", says(20.0, takes=3.0))
    (one,) = known.boards()
    assert one.board.forward_ms == NEAR(60.0, rel=STEP - 1)
    assert one.said_ms == NEAR(20.0, rel=STEP - 1)
    assert one.board.power == SHIPPED["raspberry-pi-4"].power


def test_other_loads_do_not_make_a_board_slow() -> None:
    known = fleet("pi")
    for takes in (1.0, 1.05, 1.8, 6.0) * 4:
        known.hear("pi", says(20.0, takes=takes))
    assert known.boards()[0].board.forward_ms == NEAR(20.0, rel=STEP - 1)


def test_what_is_measured_is_bounded_and_forgotten_when_a_device_boots_anew() -> None:
    known = fleet("pi")
    for _ in range(ENOUGH):
        known.hear("pi", says(20.0, takes=1e6))
    assert known.boards()[0].board.forward_ms == NEAR(2000.0, rel=STEP - 1)
    known.join("pi", "raspberry-pi-4", "0" * 16)
    assert known.boards()[0].board.forward_ms > 1000.0
    known.join("pi", "raspberry-pi-4", "1" * 16)
    assert known.boards() == ()


def test_strangers_and_devices_that_left_do_not_count_and_an_unknown_profile_is_like_the_nearest_board() -> None:
    known = fleet("here", "gone", profile="of-my-own")
    for device in ("here", "gone", "stranger"):
        known.hear(device, says(6.0))
    known.leave("gone")
    (one,) = known.boards()
    assert one.board.name == "raspberry-pi-5"


def test_small_changes_of_what_is_measured_are_no_change_of_the_fleet() -> None:
    known = fleet("pi")
    seen = set()
    for takes in (3.0, 3.01, 2.99, 3.02) * 10:
        known.hear("pi", says(20.0, takes=takes))
        seen.add(known.boards())
    assert len(seen) == 2  # as said, then as measured


def test_every_board_gets_its_share_of_the_traces_and_is_seen_as_it_says() -> None:
    known = fleet("a", "b", "c", "d")
    for device, said_ms in (("a", 20.0), ("b", 20.0), ("c", 20.0), ("d", 200.0)):
        known.hear(device, says(said_ms))
    tables = judged_on(known.boards(), [("wifi", seed) for seed in range(1, 9)], costs(), steps=160)
    assert [round(math.log10(table.forward_ms), 1) for table in tables] == [1.3] * 6 + [2.3] * 2
    with pytest.raises(ValueError, match="no boards"):
        judged_on((), [("wifi", 1)], costs(), steps=160)


def test_a_table_of_a_slow_board_costs_what_it_costs_and_looks_as_the_device_says() -> None:
    known = fleet("pi")
    known.hear("pi", says(20.0))
    (quick,) = judged_on(known.boards(), [("wifi", 1)], costs(), steps=160)
    for _ in range(ENOUGH):
        known.hear("pi", says(20.0, takes=3.0))
    (slow,) = judged_on(known.boards(), [("wifi", 1)], costs(), steps=160)
    assert slow.forward_ms == quick.forward_ms
    assert slow.delay_s[:, 8].mean() == NEAR(3.0 * quick.delay_s[:, 8].mean(), rel=0.1)
