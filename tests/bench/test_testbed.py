"""The testbed's reading and reckoning, on journals made by hand; a short run of the whole thing is marked slow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError
from common.power_model import PowerModel
from device.conditions import Condition
from tests.bench.testbed_due import best_action, moves_due
from tests.bench.testbed_events import reaction
from tests.bench.testbed_figures import comparison, device_figures, is_saturated, quantile, row_figures, spread
from tests.bench.testbed_journal import DeviceJournal, parse
from tests.bench.testbed_plan import Happening, Traced, conditions, joules_per_megabyte, options, read_plan
from tests.bench.testbed_played import played
from tests.bench.testbed_traces import along, trace_conditions
from trainer.link_traces import Trace
from trainer.simulated_fleet import encoder_costs, shipped_board

POWER = PowerModel(
    idle_watts=2.0,
    capture_watts=0.5,
    compute_watts=1.0,
    radio_joules_per_megabyte_up=0.2,
    radio_joules_per_megabyte_down=0.1,
)


def counted(**values: Any) -> dict[str, Any]:
    zero = dict.fromkeys(("bytes_up", "bytes_down", "busy_s", "cpu_s", "windows_dropped", "messages_dropped"), 0)
    return {**zero, "memory_mb": 100.0, "least_waiting": 0, "taken": [], **values}


def step(at_s: float, taken: list[list[Any]], answers: dict[int, tuple[float, float]], **values: Any) -> dict[str, Any]:
    cuts = {index: fate for index, fate, _ in taken if isinstance(fate, int)}
    parts = [
        {"window": index, "cut": cut, "bytes": 9, "sent_ms": 1.0, "embedding_ms": first, "applied_ms": second}
        for index, cut in cuts.items()
        for first, second in [answers.get(index, (None, None))]
    ]
    values = {"window": taken[-1][0] + 1, "result": "answered", "client_ms": None, **values}
    return {"kind": "step", "monotonic_s": at_s, **counted(**values), "taken": taken, "parts": parts}


def lived(latency_ms: float, *, own_ms: float | None = None, bytes_up: int, busy_s: float) -> DeviceJournal:
    """40 windows in 5 steps: every window's answer comes after ``latency_ms``; bytes and compute grow evenly."""
    steps = [
        step(
            10.0 + number,
            [[index, 5, own_ms] for index in range(8 * number, 8 * number + 8)],
            dict.fromkeys(range(8 * number, 8 * number + 8), (latency_ms, 900.0)),
            bytes_up=bytes_up * (number + 1),
            bytes_down=100 * (number + 1),
            busy_s=busy_s * (number + 1),
            cpu_s=0.1 * (number + 1),
        )
        for number in range(5)
    ]
    return parse([{"kind": "start", "monotonic_s": 1.0}, *steps])


def figures(journal: DeviceJournal, link: str = "1 Mbit/s, 50 ms") -> Any:
    return device_figures(journal, link=link, warm_up=8, power=POWER, air_per_megabyte=(2.0, 1.0))


def test_what_comes_after_the_warm_up_is_counted_and_nothing_else() -> None:
    found = figures(lived(100.0, bytes_up=8_000, busy_s=4.0))
    assert [seen.index for seen in found.windows] == list(range(8, 40))
    cost = found.cost
    assert (cost.windows, cost.bytes_up, cost.bytes_down) == (32, 32_000, 400)
    assert cost.compute_joules == pytest.approx(16.0)
    assert cost.radio_joules == pytest.approx((0.2 * 32_000 + 0.1 * 400) * 1e-6)
    assert cost.air_joules == pytest.approx((2.0 * 32_000 + 1.0 * 400) * 1e-6)
    assert cost.standing_joules == pytest.approx(2.5 * 32 * 0.96)
    assert not found.saturated


def test_boards_are_compared_with_what_the_simulator_has_for_the_cut_of_each_step() -> None:
    costs, board = encoder_costs("mobile"), read_plan().devices[0]
    stated_ms = shipped_board(board.profile).forward_ms

    def took(cut: int, times: float) -> list[float]:
        return [cut, times * stated_ms * float(costs.computed_ms[cut])]

    told = (took(5, 2.0), None, took(8, 1.0), took(3, 1.5))
    steps = [step(float(number), [[number, 5, 1.0]], {}, client_ms=one) for number, one in enumerate(told)]
    assert played([parse(steps)], [board], costs, warm_up=0) == {board.profile: 1.5}
    assert played([parse(steps)], [board], costs, warm_up=1) == {board.profile: 1.25}, "the first ended with window 1"
    assert played([parse(steps[1:2])], [board], costs, warm_up=0) == {}


def test_a_device_that_never_got_past_the_warm_up_is_said_to_be_one() -> None:
    with pytest.raises(ValueError, match="none counts"):
        device_figures(
            lived(1.0, bytes_up=1, busy_s=0.0), link="", warm_up=40, power=POWER, air_per_megabyte=(1.0, 1.0)
        )


def test_an_embedding_is_there_when_the_first_one_is_whoever_computed_it() -> None:
    journal = parse(
        [
            step(
                1.0,
                [[0, 5, 30.0], [1, 5, 90.0], [2, "kept", 20.0], [3, "local", None]],
                {0: (80.0, 1.0), 1: (80.0, 1.0)},
            )
        ]
    )
    assert [journal.windows[index].embedding_ms for index in range(4)] == [30.0, 80.0, 20.0, None]
    assert [journal.windows[index].answered_ms for index in range(4)] == [80.0, 80.0, None, None]


def test_an_embedding_that_never_came_is_longer_than_any_other() -> None:
    assert quantile([3.0, None, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, None, 1.0, 2.0], 0.95) is None
    assert quantile([], 0.5) is None
    assert spread([3.0, None, 1.0, 2.0]) == {"p50": 2.0, "p95": None, "count": 4, "missing": 0.25}


@pytest.mark.parametrize(
    ("lines", "saturated"),
    [
        ([{"least_waiting": 0}, {"least_waiting": 3}, {"least_waiting": 0}, {"least_waiting": 2}], False),
        ([{"least_waiting": 0}, {"least_waiting": 0}, {"least_waiting": 1}, {"least_waiting": 2}], True),
        ([{"windows_dropped": 2}, {"windows_dropped": 2}], False),
        ([{"windows_dropped": 2}, {"windows_dropped": 3}], True),
        ([{"messages_dropped": 0}, {"messages_dropped": 1}], True),
    ],
)
def test_a_device_is_saturated_where_it_loses_or_its_queue_never_empties(
    lines: list[dict[str, Any]], saturated: bool
) -> None:
    journal = parse(step(float(number), [[number, 5, 1.0]], {}, **line) for number, line in enumerate(lines))
    assert is_saturated(journal.points) is saturated


def test_ratios_are_of_what_was_measured_on_the_same_links() -> None:
    mine = [figures(lived(400.0, own_ms=25.0, bytes_up=800, busy_s=4.0))]
    theirs = [figures(lived(500.0, bytes_up=8_000, busy_s=0.0))]
    found = comparison(mine, theirs, theirs)
    assert (found["latency_ratio_p50"], found["latency_ratio_p95"]) == (20.0, 20.0)
    assert found["latency_ratio_answered_p50"] == 1.25
    assert found["by_decision"] == {"cut 5": {"p50": 20.0, "p95": 20.0, "windows": 32}}
    assert found["by_link"] == {"1 Mbit/s, 50 ms": {"p50": 20.0, "p95": 20.0}}
    assert found["bytes_fraction"] == pytest.approx(900 / 8_100, abs=1e-4)
    assert found["bytes_fraction_of_opus"] == found["bytes_fraction"]
    assert found["bytes_fraction_of_samples"] == pytest.approx(900 / 8 / 30_720, abs=1e-4)
    # 16 J of compute and a radio of microjoules against a radio alone.
    radio = (0.2 * 32_000 + 0.1 * 400) * 1e-6
    assert found["energy_fraction"] == pytest.approx((16.0 + (0.2 * 3_200 + 40) * 1e-6) / radio, rel=1e-3)
    low, high = found["energy_fraction_range"]
    assert low < found["energy_fraction"] < high
    with pytest.raises(ValueError, match="other links"):
        comparison(mine, [figures(lived(1.0, bytes_up=1, busy_s=0.0), link="another")], None)


def test_a_row_is_told_per_window_by_link_and_by_decision() -> None:
    found = row_figures([figures(lived(100.0, bytes_up=8_000, busy_s=4.0), link) for link in ("a", "b")])
    assert (found["windows"], found["bytes_up"], found["busy_s"]) == (64, 1000.0, 0.5)
    assert found["embedding_ms_by_link"]["b"] == {"p50": 100.0, "p95": 100.0, "count": 32, "missing": 0.0}
    assert list(found["embedding_ms_by_decision"]) == ["cut 5"]
    assert found["joules"]["compute"] == pytest.approx(0.5)
    assert found["saturated"] == []


def condition(at_s: float, **values: Any) -> dict[str, Any]:
    base = {"at_s": at_s, "uplink_mbps": 8.0, "up": True, "others_cpu": 0.0}
    return {"kind": "condition", "monotonic_s": at_s, **base, **values}


def telemetry(at_s: float, *, cpu: float = 0.1, uplink_mbps: float = 8.0) -> dict[str, Any]:
    told = {"cpu": cpu, "uplink_mbps": uplink_mbps, "uncertainty": 0.5}
    return {"kind": "telemetry", "monotonic_s": at_s, **told, "window": 1, **counted()}


def moved(at_s: float, cut: int | None) -> dict[str, Any]:
    return {"kind": "cut", "monotonic_s": at_s, "cut": cut}


def of(lines: Iterable[dict[str, Any]]) -> Any:
    return reaction(parse(lines))


def test_a_reaction_counts_from_the_first_telemetry_that_shows_the_change() -> None:
    slower = [condition(0.0), condition(60.0, uplink_mbps=0.5)]
    told = [telemetry(59.0, uplink_mbps=0.5), telemetry(61.0, uplink_mbps=3.0), telemetry(62.0, uplink_mbps=1.9)]
    found = of([*slower, *told, moved(62.5, 6), moved(80.0, 7)])
    assert (found.since_shown_s, found.since_change_s) == (0.5, 2.5)
    assert (found.changes, found.closest_s) == (2, 17.5)
    hog = [condition(0.0), condition(60.0, others_cpu=1.0), telemetry(60.5, cpu=0.69), telemetry(61.0, cpu=1.0)]
    assert of([*hog, moved(61.2, 4)]).since_shown_s == pytest.approx(0.2)


def test_a_move_is_due_where_another_cut_is_better_by_rewards() -> None:
    plan = read_plan()
    due = moves_due(plan)
    assert {name: due[name] for name in ("none", "hog", "slow-link", "outage")} == {
        "none": False,
        "hog": True,
        "slow-link": False,
        "outage": True,
    }
    costs, board = encoder_costs("mobile"), shipped_board("raspberry-pi-zero-2w")
    link = Condition(0.0, 8.0, 8.0, 50.0)
    best = [best_action(board, costs, replace(link, others_cpu=load), follows=True) for load in (0.0, 0.8)]
    assert best == [costs.depth, 3]


def test_no_reaction_is_none_and_one_before_the_telemetry_is_at_once() -> None:
    hog = [condition(0.0), condition(60.0, others_cpu=1.0), telemetry(61.0, cpu=1.0)]
    assert of(hog).since_shown_s is None
    assert of([*hog, moved(150.0, 4)]).since_change_s is None, "that was something else"
    assert of([*hog, moved(60.9, 4)]).since_shown_s == 0.0


def test_how_closely_moves_follow_each_other_is_told() -> None:
    found = of([condition(0.0), moved(10.0, 6), moved(11.5, 5)])
    assert found.closest_s == 1.5
    assert (found.since_shown_s, found.changes) == (None, 2)


def test_back_from_local_steps_and_on_to_another_cut_is_one_move() -> None:
    journal = parse([moved(10.0, None), moved(20.0, 3), moved(20.0001, 8), moved(40.0, 5)])
    assert [(move.monotonic_s, move.cut) for move in journal.moves] == [(10.0, None), (20.0001, 8), (40.0, 5)]


def test_an_outage_counts_from_its_beginning_and_what_is_lost_after_it() -> None:
    outage = [condition(0.0), condition(60.0, up=False), moved(60.8, None), condition(90.0)]
    local = [{"kind": "local", "monotonic_s": at_s, "window": 1, **counted()} for at_s in (50.0, 70.0, 80.0)]
    steps = [
        step(at_s, [[number, 5, 1.0]], {}, result=result)
        for number, (at_s, result) in enumerate([(60.5, "lost"), (95.0, "answered"), (99.0, "late")])
    ]
    found = of([*outage, *local, moved(91.0, 5), *steps])
    assert found.since_shown_s == pytest.approx(0.8)
    assert (found.local_steps, found.lost_later) == (2, 1)


def test_the_committed_plan_names_its_rows_and_covers_the_links_that_were_asked_for() -> None:
    plan = read_plan()
    assert {plan.subject, plan.baseline, plan.opus} <= {row.name for row in plan.rows}
    rates, trips = ({getattr(board, name) for board in plan.devices} for name in ("uplink_mbps", "round_trip_ms"))
    assert (min(rates), max(rates), min(trips), max(trips)) == (0.5, 8.0, 50, 200)
    quick = plan.quickly()
    assert {quick.subject, quick.baseline, quick.opus} <= {row.name for row in quick.rows}
    assert plan.row("streamsplit").cut in {"policy", "heuristic"}
    assert plan.row("static").cut == "5"


def test_a_change_is_the_boards_own_link_but_for_what_it_says(tmp_path: Any) -> None:
    plan = read_plan()
    board = plan.events.link
    steady, changed = conditions(board, [{"at_s": 5.0, "uplink_mbps": 0.5}])
    assert steady == Condition(0.0, board.uplink_mbps, board.downlink_mbps, board.round_trip_ms, board.jitter_ms)
    assert (changed.at_s, changed.uplink_mbps, changed.downlink_mbps) == (5.0, 0.5, board.downlink_mbps)
    with pytest.raises(ConfigError, match="weather"):
        conditions(board, [{"at_s": 5.0, "weather": 1.0}])
    made = options(plan, plan.row("streamsplit"), boards=2, windows=30, out=tmp_path, data=None, esc10=False)
    assert (made.windows, made.devices, made.speed) == (60, 2, "realtime")
    assert ("sending.share", 0.25) in made.device_settings


def test_a_trace_is_played_window_by_window_and_a_link_that_is_gone_keeps_its_rate() -> None:
    ones = np.ones(3, np.float32)
    played = trace_conditions(
        Trace(
            uplink_mbps=np.array([4.0, 0.0, 2.0], np.float32),
            downlink_mbps=8.0 * ones,
            round_trip_ms=np.array([30.0, 0.0, 50.0], np.float32),
            online=np.array([True, False, True]),
            load=np.array([0.0, 0.75, 0.5], np.float32),
            uncertainty=ones,
        )
    )
    assert [one.at_s for one in played] == pytest.approx([0.0, 0.96, 1.92])
    assert [one.up for one in played] == [True, False, True]
    assert [one.uplink_mbps for one in played] == [4.0, 4.0, 2.0]
    assert [one.round_trip_ms for one in played] == [30.0, 30.0, 50.0]
    assert [one.others_cpu for one in played] == [0.0, 0.75, 0.5]
    assert [one.slowdown for one in played] == [1.0, 4.0, 2.0]


def test_along_a_trace_windows_steps_and_moves_are_counted() -> None:
    steps = [
        step(5.0, [[0, 5, 900.0], [1, 5, 30.0]], {1: (20.0, 400.0)}),
        step(6.0, [[2, "local", 40.0], [3, 8, None]], {}, result="lost"),
    ]
    local = {"kind": "local", "monotonic_s": 7.0, "window": 5, **counted(taken=[[4, "kept", 10.0]])}
    found = along(parse([*steps, moved(5.5, None), moved(6.5, 8), moved(9.0, 5), local]), warm_up=1)
    assert (found.windows, found.p50_ms, found.p95_ms) == (4, 20.0, None)
    assert found.fates == {"cut 5": 1, "cut 8": 1, "kept": 1, "local": 1}
    assert (found.answered, found.unanswered, found.local_steps) == (1, 1, 1)
    assert (found.moves, found.closest_s) == (3, 1.0)


def test_a_device_follows_a_trace_or_has_changes() -> None:
    changes: Any = [{"at_s": 1.0, "up": False}]
    with pytest.raises(ValueError, match="not both"):
        Happening(name="a", title="b", changes=changes, trace=Traced(kind="lte", seed=1))


def test_a_radio_that_is_on_longer_costs_more_for_the_same_bytes() -> None:
    board = read_plan().devices[0]
    up, down = joules_per_megabyte(board)
    # The Pi 4's 0.8 W while sending, for the 16 s that a megabyte takes at 0.5 Mbit/s.
    assert board.uplink_mbps == 0.5
    assert up == pytest.approx(0.8 * 16, rel=1e-6)
    assert down == pytest.approx(0.6 * 16, rel=1e-6)


def test_a_device_that_did_not_come_back_after_an_outage_is_said_to_be_one() -> None:
    outage = [condition(0.0), condition(60.0, up=False), moved(60.8, None), condition(90.0)]
    assert of(outage).lost_later is None
