from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from trainer.report import (
    ByteCounts,
    FirstLast,
    Latencies,
    Percentiles,
    Probe,
    Report,
    Series,
    StepCounts,
    first_last,
    percentiles,
    plot,
    save_report,
    summary_text,
)

REPORT = Report(
    broker="mosquitto",
    devices=2,
    windows=3000,
    steps=StepCounts(sent=375, answered=373, late=1, stale=0, lost=1),
    bytes=ByteCounts(up=13_000_000, down=14_000_000, pcm16=3000 * 30_720),
    latency_ms=Latencies(embedding=Percentiles(5.0, 12.0), gradient=Percentiles(40.0, 90.0)),
    loss=FirstLast(0.95, 0.61),
    probe=Probe(untrained=0.68, trained=0.75, knn_untrained=0.60, knn_trained=0.66),
    effective_rank=FirstLast(20.0, 31.0),
    cuts={"pi-2": {5: 1500}, "pi-1": {5: 1000, 3: 500}},
    weights_version=31,
    wall_s=92.4,
    settings={"seed": 0, "order": "stream"},
    windows_sent=2990,
    windows_local=8,
    bytes_per_hour={"pi-1": {"activations": 4_096_000, "rest": 1024}, "pi-2": {}},
    fleet_bytes_per_hour={"rest": 1024, "activations": 2_048_000},
)
SERIES = Series(
    loss_steps=[1, 2, 3],
    loss=[1.0, math.nan, 0.8],
    rank_steps=[1, 2, 3],
    rank=[20.0, 22.0, 25.0],
    cuts={"pi-1": [(0, 5), (800, 3)], "pi-2": [(0, 5)], "pi-3": []},
    bytes_up=10,
    bytes_down=20,
    pcm16=100,
)


def test_the_report_has_exactly_the_documented_keys() -> None:
    plain = REPORT.to_json()
    assert plain == {
        "broker": "mosquitto",
        "devices": 2,
        "windows": 3000,
        "steps": {"sent": 375, "answered": 373, "late": 1, "stale": 0, "lost": 1},
        "bytes": {"up": 13_000_000, "down": 14_000_000, "pcm16": 92_160_000},
        "latency_ms": {"embedding": {"p50": 5.0, "p95": 12.0}, "gradient": {"p50": 40.0, "p95": 90.0}},
        "loss": {"first": 0.95, "last": 0.61},
        "probe": {"untrained": 0.68, "trained": 0.75, "knn_untrained": 0.60, "knn_trained": 0.66},
        "effective_rank": {"first": 20.0, "last": 31.0},
        "zero_shot": None,
        "cuts": {"pi-2": {"5": 1500}, "pi-1": {"5": 1000, "3": 500}},
        "weights_version": 31,
        "wall_s": 92.4,
        "settings": {"seed": 0, "order": "stream"},
        "windows_sent": 2990,
        "windows_local": 8,
        "bytes_per_hour": {"pi-1": {"activations": 4_096_000, "rest": 1024}, "pi-2": {}},
        "fleet_bytes_per_hour": {"rest": 1024, "activations": 2_048_000},
    }


def test_the_file_is_strict_json_even_for_figures_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.json"
    report = replace(REPORT, loss=FirstLast(math.nan, None), probe=Probe())
    save_report(report, path)
    read = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read["loss"] == {"first": None, "last": None}
    assert read["probe"] == {"untrained": None, "trained": None, "knn_untrained": None, "knn_trained": None}
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_first_and_last_are_means_of_a_tenth() -> None:
    assert first_last([float(i) for i in range(100)]) == FirstLast(4.5, 94.5)
    assert first_last([3.0, 1.0]) == FirstLast(3.0, 1.0)
    assert first_last([math.nan, 2.0]) == FirstLast(2.0, 2.0)
    assert first_last([]) == FirstLast(None, None)


def test_percentiles_are_none_where_nothing_was_measured() -> None:
    assert percentiles([]) == Percentiles(None, None)
    assert percentiles([float(i) for i in range(101)]) == Percentiles(50.0, 95.0)


def test_the_summary_says_the_figures_a_person_looks_for() -> None:
    text = summary_text(REPORT)
    for piece in (
        "373 answered (99.5%)",
        "together 29.3% of PCM16",
        "68.0% untrained -> 75.0% trained (+7.0 points)",
        "5 ms median, 12 ms p95",
        "3: 500 windows, 5: 1,000 windows",
        "0.950 -> 0.610",
        "2,001: activations 2,000, rest 1",
    ):
        assert piece in text
    assert text.index("cuts of pi-1") < text.index("cuts of pi-2")


def test_the_summary_of_a_run_that_measured_nothing_divides_by_nothing() -> None:
    empty = replace(
        REPORT,
        windows=0,
        steps=StepCounts(0, 0, 0, 0, 0),
        bytes=ByteCounts(0, 0, 0),
        latency_ms=Latencies(percentiles([]), percentiles([])),
        loss=FirstLast(None, None),
        probe=Probe(),
        cuts={"pi-1": {}},
        wall_s=0.0,
    )
    text = summary_text(empty)
    assert "not measured" in text
    assert "no labels" in text


@pytest.mark.parametrize(
    "series",
    [
        SERIES,
        Series([], [], [], [], {}, 0, 0, 0),
        replace(SERIES, cuts={f"pi-{i}": [(0, 3 + i % 4), (100, 5)] for i in range(12)}),
    ],
    ids=["three devices", "nothing measured", "a dozen devices"],
)
def test_the_picture_is_a_png_with_something_on_it(tmp_path: Path, series: Series) -> None:
    path = tmp_path / "out" / "report.png"
    plot(series, path)
    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (960, 1440)
    assert picture[..., :3].std() > 0.05
    assert [file.name for file in path.parent.iterdir()] == ["report.png"]
