from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.policy import OBSERVATION_NAMES
from device.policy_splitter import shipped_policy
from tests.bench import policy as bench
from tests.bench import policy_report
from tests.bench.policy_baselines import Heuristic, Planner, constant, uniform
from tests.trainer.simulated import costs, small_fleet
from trainer.link_traces import Split
from trainer.policy_file import load_policy
from trainer.policy_pretraining import Plan
from trainer.reward import RewardWeights
from trainer.simulated_costs import Board
from trainer.simulated_fleet import BOARDS, shipped_board
from trainer.simulator import Simulator

TABLES = small_fleet()


def boards() -> list[Board]:
    shipped = [shipped_board(name) for name in BOARDS]
    return [next(board for board in shipped if board.forward_ms == table.forward_ms) for table in TABLES]


def fleet() -> Simulator:
    return Simulator(TABLES, batch=len(TABLES), min_cut=3, first_cut=5, weights=RewardWeights(), seed=0, in_order=True)


def test_every_baseline_only_does_what_is_allowed_and_the_informed_ones_beat_chance() -> None:
    chance = bench.returns(TABLES, uniform(np.random.default_rng(0)), seed=0).mean()
    assert bench.returns(TABLES, constant(8), seed=0).mean() > chance
    assert bench.returns(TABLES, Heuristic(len(TABLES), cut=5), seed=0).mean() > chance
    assert bench.returns(TABLES, Planner(boards(), costs(), weights=RewardWeights()), seed=0).mean() > chance


def test_the_planner_goes_deep_where_the_link_is_poor_and_shallow_where_the_processor_is_busy() -> None:
    planner = Planner([shipped_board("raspberry-pi-4")], costs(), weights=RewardWeights())
    seen = fleet().observe()[0]
    poor, busy = seen.copy(), seen.copy()
    poor[[OBSERVATION_NAMES.index(name) for name in ("uplink", "round_trip", "cpu")]] = (0.3, 0.75, 0.1)
    busy[[OBSERVATION_NAMES.index(name) for name in ("uplink", "round_trip", "cpu")]] = (0.75, 0.2, 0.95)
    board = shipped_board("raspberry-pi-4")
    cuts = [int(planner._worth(board, one, 5)[3:9].argmax()) + 3 for one in (poor, busy)]
    assert cuts == [8, 3]


def test_the_shipped_policy_is_better_than_any_one_cut() -> None:
    path = shipped_policy("mobile")
    assert path is not None
    update, network = load_policy(path, actions=10)
    assert update.encoder == "mobile"
    by_policy = bench.returns(TABLES, bench.by_network(network), seed=0).mean()
    assert by_policy > max(bench.returns(TABLES, constant(cut), seed=0).mean() for cut in range(3, 9))


def test_margins_are_paired() -> None:
    rng = np.random.default_rng(0)
    traces = rng.normal(size=20) * 10
    policy = traces + 0.1 + rng.normal(size=(5, 20)) * 0.01
    found = bench.margin(policy, np.broadcast_to(traces, (5, 20)))
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert 0.08 < found.low < found.mean < found.high < 0.12


def updates_and_seed(plan: Plan, seed: int) -> tuple[int, int]:
    return plan.updates, seed


def test_seeds_are_learned_side_by_side_as_one_after_another() -> None:
    seen: list[int] = []
    plan = Plan(updates=7)
    together = bench._every(updates_and_seed, plan, 3, jobs=2, advance=lambda: seen.append(1))
    assert together == bench._every(updates_and_seed, plan, 3, jobs=1, advance=lambda: seen.append(1))
    assert together == [(7, 0), (7, 1), (7, 2)]
    assert len(seen) == 6


SPLIT = Split(160, (("wifi", 1),), (("lte", 2), ("outage", 3)), (("lte", 4), ("wifi", 5)))


def test_the_report_has_every_figure_and_ends_with_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "read_split", lambda: SPLIT)
    monkeypatch.setattr(bench, "Plan", lambda: Plan(rounds=10, updates=20, unvalued=1, batch=4, steps=4))
    assert bench.main(["--quick", "--json", "--jobs", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) >= {"oracle_ratio", "margin", "decision_us", "wire_bytes"}
    assert len(result["oracle_ratio_by_seed"]) == 2
    assert all(len(one["ci95"]) == 2 for one in result["margin"].values())
    assert result["wire_bytes"] < 60_000
    for part in ("fresh", "following"):
        assert 0.0 < result[part]["oracle_ratio"] < 1.0
        assert len(result[part]["margin"]) == len(result["margin"])
    assert result["fresh"]["reward"] != result["reward"]


def test_readmes_tables_say_what_each_contender_earns_on_each_ground(tmp_path: Path) -> None:
    assert "Not run yet" in policy_report.markdown(tmp_path / "none.json")
    margin = {"heuristic": {"mean": 0.2, "ci95": [0.1, 0.3]}}
    judged = {
        "oracle_ratio": 0.95,
        "oracle_ratio_by_seed": [0.94, 0.96],
        "reward": {"random": -0.7, "oracle": 0.1, "policy": 0.07, "heuristic": -0.1},
        "ratio_of_baselines": {"heuristic": 0.64},
        "margin": margin,
        "by_trace": {"oracle": [0.1, 0.1]},
    }
    worse = judged | {"oracle_ratio": 0.89}
    text = policy_report.report(
        judged | {"fresh": worse, "following": judged, "decision_us": 15.2, "wire_bytes": 11_636}
    )
    assert "**2 held-out traces** (asked for 0.90: met)" in text
    assert "**2 fresh traces** (asked for 0.90: missed)" in text
    assert "| heuristic | -0.100 | 0.640 | 0.200 (0.100 to 0.300) |" in text
    assert "A decision takes 15 us, a policy 11,636 bytes" in text
