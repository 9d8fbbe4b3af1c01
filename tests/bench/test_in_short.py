"""README's first table of results."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.in_short import markdown

TESTBED = {
    "latency_ratio_p50": 5.0,
    "latency_ratio_p95": 1.5,
    "bytes_fraction": 0.15,
    "bytes_fraction_of_opus": 0.9,
    "energy_fraction": 0.5,
    "energy_fraction_by_air_time": 0.3,
}


def test_what_was_not_run_has_no_line(tmp_path: Path) -> None:
    assert len(markdown(tmp_path).splitlines()) == 2


def test_what_was_asked_for_is_met_only_if_all_of_it_is(tmp_path: Path) -> None:
    (tmp_path / "testbed.json").write_text(json.dumps(TESTBED))
    latency, traffic, energy = markdown(tmp_path).splitlines()[2:]
    assert "| 4.7; 2: missed | 5.0; 1.5 times shorter |" in latency
    assert "| 15 %: met | 15.0 % (90 % of Opus') |" in traffic
    assert "| 47.7 %: missed | 50 %; 30 %" in energy


def test_a_plan_is_judged_by_the_same_library_on_both_sides(tmp_path: Path) -> None:
    ratios = {"googlenet": {"ortools": {"ratio": 13.5}}, "densenet": {"ortools": {"ratio": 12.0}}}
    planner = {
        "delay_reduction": {"mean_of_baselines": 0.4},
        "speedup_blockwise": {"googlenet": 20.0, "densenet": 30.0},
        "speedup_by_library": ratios,
    }
    (tmp_path / "planner.json").write_text(json.dumps(planner))
    delay, speed = markdown(tmp_path).splitlines()[2:]
    assert "38.95 %: met | 40.0 % less" in delay
    assert "both sides: missed | 20.0; 30.0 without a flow; 13.5; 12.0 by" in speed
