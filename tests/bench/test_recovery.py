from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.link import Link
from common.messages import Telemetry, decode
from common.policy_network import PolicyNetwork
from common.topics import Kind, Topics
from device.policy_splitter import shipped_policy
from tests.bench import recovery as bench
from tests.bench.in_process_link import MemoryBroker
from tests.bench.policy import FIRST_CUT, MIN_CUT, WEIGHTS
from tests.bench.recovery_fleet import Fleet
from tests.bench.recovery_report import keep, markdown
from tests.bench.recovery_runs import FLEET, Curve, Learning, Pace, World, learning_run, world
from tests.policies import LOCAL_PLACE, update, wanting
from tests.trainer.simulated import costs
from trainer.link_traces import STEP_S, Split, TraceKind
from trainer.policy_experience import Experience
from trainer.policy_file import load_policy
from trainer.policy_pretraining import Plan
from trainer.simulated_costs import WINDOWS

TRACES: tuple[tuple[TraceKind, int], ...] = (("wifi", 1), ("lte", 2), ("congested", 3), ("outage", 4))
SPLIT = Split(320, TRACES, TRACES, ())
TOPICS = Topics(FLEET.fleet)
SHORT = Pace(known=40, changed=80, every=20, devices=6, exploration=0.5)


@cache
def here(slower: float = 1.0, *, told: bool = True) -> World:
    return world(TRACES, costs(), steps=320, slower=slower, told=told)


def shipped() -> PolicyNetwork:
    path = shipped_policy("mobile")
    assert path is not None
    return load_policy(path, actions=10)[1]


def open_link(broker: MemoryBroker, name: str) -> Link:
    return broker.open_link(FLEET, client_id=name, will=None, data_capacity=10_000, outbound_capacity=10)


def fleet(link: Link | None, place: World, *, seed: int = 0) -> Fleet:
    made = Fleet(
        place.groups, costs(), devices=6, first_cut=FIRST_CUT, min_cut=MIN_CUT, weights=WEIGHTS, exploration=1.0,
        link=link, topics=TOPICS, seed=seed,
    )  # fmt: skip
    made.take(update(1, wanting({3: 1.0, 5: 1.0, 8: 1.0, LOCAL_PLACE: 1.0})))
    return made


def heard(place: World, decisions: int) -> tuple[dict[str, list[Telemetry]], dict[str, list[float]]]:
    """What a fleet says and what the simulator pays, by device."""
    broker = MemoryBroker()
    listener = open_link(broker, "listener")
    listener.start()
    listener.subscribe(TOPICS.every_device(Kind.TELEMETRY))
    devices = fleet(open_link(broker, "fleet"), place)
    paid = np.array([devices.step() for _ in range(decisions)])
    names = [device.name for group in devices._groups for device in group]
    told: dict[str, list[Telemetry]] = {}
    while (incoming := listener.receive(0.0)) is not None:
        device = TOPICS.parse(incoming.topic).device
        assert device is not None
        told.setdefault(device, []).append(decode(Telemetry, incoming.payload))
    return told, dict(zip(names, paid.T.tolist(), strict=True))


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_what_the_trainer_makes_of_telemetry_is_what_the_simulator_paid(slower: float) -> None:
    told, paid = heard(here(slower), 120)
    differences = []
    for device, messages in told.items():
        experience = Experience(parts_per_step=8, weights=WEIGHTS, actions=len(messages[0].mask))
        power = here(slower).groups[int(device.removeprefix("pi-")) % 3][0].power
        experience.idle_watts[device] = power.idle_watts + power.capture_watts
        for one in messages:
            made = experience.offer(device, one, at_s=one.decision_seq * WINDOWS * STEP_S)
            if made is not None:
                differences.append(made.reward - paid[device][one.decision_seq - 1])
    assert len(differences) > 0.7 * 120 * 6
    # Not to the last digit: counters are whole, and windows that an outage interrupts wait for a local step.
    assert np.mean(np.abs(differences) < 0.02) > 0.85
    assert abs(np.mean(differences)) < 0.02


def test_devices_are_silent_without_a_link_and_name_the_policy_that_decided() -> None:
    told, _ = heard(here(), 60)
    for messages in told.values():
        seqs = [one.decision_seq for one in messages]
        assert seqs == sorted(set(seqs))
        assert all(one.policy_version == 1 and any(one.mask[:-1]) for one in messages)
        assert all(one.log_prob < 0.0 for one in messages)
    assert min(len(messages) for messages in told.values()) < 60


def test_a_slow_board_that_does_not_say_so_looks_as_before_and_costs_more() -> None:
    (board, before), (slow, after) = here().groups[0], here(3.0, told=False).groups[0]
    assert slow.forward_ms == 3.0 * board.forward_ms
    assert [one.forward_ms for one in after] == [one.forward_ms for one in before]
    assert after[0].joules[0, 8] > 2.0 * before[0].joules[0, 8]


def test_fleets_with_and_without_learning_meet_the_same_until_the_first_version() -> None:
    places = (here(), here(1.2, told=False))
    runs = [
        learning_run(
            places, shipped(), pace=SHORT, learning=learning, split=SPLIT, costs=costs(), seed=3, advance=lambda: None
        )
        for learning in (None, Learning(drawn=10**6), Learning(drawn=64, tolerance=10.0))
    ]
    frozen, waiting, learning = runs
    assert frozen.paid == waiting.paid
    assert frozen.greedy == waiting.greedy
    assert learning.published >= 3
    assert learning.paid != frozen.paid
    assert len(learning.paid) == len(learning.greedy) == 6


def test_a_fleet_that_has_become_slow_corrects_the_simulator_and_earns_more_than_a_frozen_one() -> None:
    places = (here(), here(3.0, told=False))
    taught = Learning(drawn=10**6, teaching=Plan(rounds=0, updates=12, unvalued=4, batch=32, steps=32))
    learned, frozen = (
        learning_run(
            places, shipped(), pace=SHORT, learning=learning, split=SPLIT, costs=costs(), seed=3, advance=lambda: None
        )
        for learning in (taught, None)
    )
    assert learned.greedy[:2] == frozen.greedy[:2]
    assert learned.corrected >= 1
    assert learned.greedy[-1] > frozen.greedy[-1] + 0.02


def test_what_the_simulator_finds_worse_never_reaches_a_device() -> None:
    places = (here(), here(1.2, told=False))
    strict = Learning(drawn=64, tolerance=-10.0)
    run = learning_run(
        places, shipped(), pace=SHORT, learning=strict, split=SPLIT, costs=costs(), seed=3, advance=lambda: None
    )
    assert (run.published, run.corrected) == (0, 0)
    assert run.withheld >= 3
    assert len(set(run.greedy)) == 2  # one policy, two worlds


def test_the_share_won_back_is_of_the_gap_to_the_best_level_but_the_oracle() -> None:
    pace = Pace(known=10, changed=40, every=10, devices=2)
    frozen = Curve(paid=(0.1, -1.0, -1.0, -1.0, -1.0), greedy=(0.2, -0.9, -0.9, -0.9, -0.9))
    learned = Curve(paid=(0.1, -1.0, -0.9, -0.9, -0.9), greedy=(0.2, -0.9, -0.85, -0.82, -0.82))
    level = {"taught": -0.8, "scratch": -0.95, "oracle": -0.5}
    found = bench.summary([learned, learned], [frozen, frozen], level, pace)
    assert found["reward_before"] == 0.2
    assert found["share_won_back"] == {"mean": pytest.approx(0.8), "sd": pytest.approx(0.0)}
    assert found["paid_more_than_frozen"]["mean"] == pytest.approx(0.1)
    assert found["decisions_to_half"] == 2 * 10 * 2
    none = bench.summary([learned], [frozen], {"taught": -0.895}, pace)
    assert none["share_won_back"] is None
    assert none["decisions_to_half"] is None


def test_the_report_has_every_figure_ends_with_json_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "read_split", lambda: SPLIT)
    monkeypatch.setattr(bench, "Pace", lambda **_: SHORT)
    monkeypatch.setattr(bench, "Plan", lambda: Plan(rounds=2, batch=4, steps=4))
    png = tmp_path / "recovery.png"
    assert bench.main(["--quick", "--json", "--png", str(png)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["cases"]) == {"unsaid", "said"}
    for one in result["cases"].values():
        assert set(one) >= {"reward_before", "reward_after_change", "reward_recovered", "share_won_back", "level"}
        assert len(one["curve"]["learning"]["paid"][0]) == 6
    assert png.stat().st_size > 10_000


def case(reward: float) -> dict[str, Any]:
    spread = {"mean": reward, "sd": 0.01}
    curve = {"paid": [[0.1, reward]], "greedy": [[0.1, reward]]}
    return {
        "reward_before": 0.1,
        "reward_after_change": -1.0,
        "reward_recovered": spread,
        "paid_more_than_frozen": spread,
        "level": {"taught": -0.9, "oracle": -0.8},
        "gap": 0.1,
        "share_won_back": None,
        "decisions_to_half": 4_000,
        "curve": {"learning": curve, "frozen": curve},
    }


def test_cases_that_were_run_one_by_one_are_kept_together_and_those_of_another_setting_are_not(tmp_path: Path) -> None:
    setting = {"slower": 3.0, "seeds": 3, "decisions_a_point": 2_000, "points_before_change": 1}
    for name, reward in (("unsaid", -0.95), ("said", -0.91)):
        keep(setting | {"cases": {name: case(reward)}}, tmp_path)
    first, second = markdown(tmp_path).splitlines()[2:4]
    assert first == (
        "| go on saying their old speed | 0.100 | -1.000 | -0.950 (sd 0.010) | -0.900 | -0.800 | - | 4,000 "
        "| -0.950 (sd 0.010) |"
    )
    assert second.startswith("| say their new speed | 0.100 | -1.000 | -0.910")
    assert (tmp_path / "recovery.png").stat().st_size > 10_000
    kept = keep(setting | {"seeds": 5, "cases": {"said": case(-0.91)}}, tmp_path)
    assert list(kept["cases"]) == ["said"]
