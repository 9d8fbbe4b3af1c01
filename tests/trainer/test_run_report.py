"""A report adds up what the devices and the trainer wrote down, over restarts and torn lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.report import Probe
from trainer.run_report import DeviceRun, build_report, read_device


def step(window: int, result: str = "answered", cut: int = 5, bytes_up: int = 10) -> str:
    """A journal's line for a step of eight windows."""
    line = {
        "kind": "step",
        "step": window // 8,
        "window": window,
        "result": result,
        "reasons": [],
        "cuts": {str(cut): 8},
        "loss": 1.0,
        "embedding_ms": [10.0, 20.0],
        "gradient_ms": [30.0],
        "bytes_up": bytes_up,
        "bytes_down": 2 * bytes_up,
        "weights_version": 0,
    }
    return json.dumps(line)


def journal(tmp_path: Path, *lines: str) -> DeviceRun:
    """What is read from a journal of these lines."""
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return read_device(path)


START = json.dumps({"kind": "start"})


def test_counters_of_one_life_are_its_last_ones(tmp_path: Path) -> None:
    run = journal(tmp_path, START, step(8, bytes_up=10), step(16, bytes_up=25))
    assert (run.windows, run.bytes_up, run.bytes_down, run.sent) == (16, 25, 50, 2)


def test_lines_that_count_nothing_leave_the_counters_alone(tmp_path: Path) -> None:
    rest = [json.dumps({"kind": kind, "monotonic_s": 3.5}) for kind in ("condition", "telemetry", "cut")]
    assert journal(tmp_path, START, step(8, bytes_up=10), *rest).bytes_up == 10


def test_a_restarted_device_adds_its_lives(tmp_path: Path) -> None:
    run = journal(tmp_path, START, step(8, bytes_up=10), START, step(8, bytes_up=7), step(16, bytes_up=9))
    assert (run.windows, run.bytes_up, run.sent) == (24, 19, 3)


def test_windows_that_travelled_and_those_learned_from_locally_are_counted_apart(tmp_path: Path) -> None:
    lives = [json.dumps({"kind": "end", "window": 40, "sent": sent, "local": 8}) for sent in (10, 11)]
    run = journal(tmp_path, START, lives[0], START, lives[1])
    assert (run.windows, run.windows_sent, run.windows_local) == (80, 21, 16)


def test_bytes_are_told_per_hour_of_audio_by_what_they_carried(tmp_path: Path) -> None:
    hour = 3750  # windows
    lives = [
        json.dumps({"kind": "end", "window": hour // 2, "bytes_of": {"activations": 700, "rest": rest}})
        for rest in (20, 30)
    ]
    one = journal(tmp_path, START, lives[0], START, lives[1])
    two = journal(tmp_path, START, json.dumps({"kind": "end", "window": hour, "bytes_of": {"changes": 100}}))
    report, _ = build_report(
        {"a": one, "b": two, "idle": DeviceRun()},
        tmp_path / "trainer",
        broker="embedded",
        probe=Probe(),
        weights_version=3,
        wall_s=2.0,
        settings={},
    )
    assert report.bytes_per_hour == {"a": {"activations": 1400, "rest": 50}, "b": {"changes": 100}, "idle": {}}
    assert report.fleet_bytes_per_hour == {"activations": 700, "changes": 50, "rest": 25}


def test_a_line_torn_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    run = journal(tmp_path, START, step(8), '{"kind": "st', START, step(8))
    assert (run.windows, run.sent) == (16, 2)


def test_a_device_that_never_wrote_anything_counts_nothing(tmp_path: Path) -> None:
    assert read_device(tmp_path / "absent.jsonl") == DeviceRun()


def test_results_cuts_and_latencies_are_added_over_devices(tmp_path: Path) -> None:
    one = journal(tmp_path, START, step(8), step(16, "late"), step(24, "rejected", cut=6))
    report, series = build_report(
        {"a": one, "b": DeviceRun()},
        tmp_path / "trainer",
        broker="embedded",
        probe=Probe(),
        weights_version=3,
        wall_s=2.0,
        settings={},
    )
    assert (report.steps.sent, report.steps.answered, report.steps.late, report.steps.lost) == (3, 1, 1, 1)
    assert report.cuts == {"a": {5: 16, 6: 8}, "b": {}}
    assert report.bytes.pcm16 == 24 * 30_720
    assert report.latency_ms.embedding.p50 == pytest.approx(15.0)
    assert series.cuts["a"] == [(8, 5), (16, 5), (24, 6)]
