"""Turns what the devices and the trainer wrote down into one report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.log_mel import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from common.split import WINDOW_BYTES
from common.traffic import KINDS
from trainer.metrics import FILE_NAME, StepMetrics, read_metrics
from trainer.report import ByteCounts, Latencies, Probe, Report, Series, Setting, StepCounts, first_last, percentiles
from trainer.zero_shot import ZeroShot

COUNTING = frozenset({"step", "local", "windows", "end"})  # kinds of lines that hold what was counted so far
WINDOW_S = WINDOW_SAMPLES / SAMPLE_RATE_HZ


@dataclass(slots=True)
class DeviceRun:
    """One device's journal, added up."""

    windows: int = 0
    windows_sent: int = 0
    windows_local: int = 0
    sent: int = 0
    results: Counter[str] = field(default_factory=Counter)
    cuts: Counter[int] = field(default_factory=Counter)
    path: list[tuple[int, int]] = field(default_factory=list)
    embedding_ms: list[float] = field(default_factory=list)
    gradient_ms: list[float] = field(default_factory=list)
    local_steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_of: Counter[str] = field(default_factory=Counter)


def read_device(path: Path) -> DeviceRun:
    """Add up a ``steps.jsonl``; a restarted device counts bytes and windows anew, so its lives are added."""
    run = DeviceRun()
    life: Mapping[str, Any] = {}
    for line in _lines(path):
        if line["kind"] == "start":
            _add_life(run, life)
            life = {}
            continue
        if line["kind"] not in COUNTING:
            continue
        life = line
        if line["kind"] == "local":
            run.local_steps += 1
        elif line["kind"] == "step":
            _add_step(run, line)
    _add_life(run, life)
    return run


def _add_life(run: DeviceRun, last: Mapping[str, Any]) -> None:
    run.windows += last.get("window", 0)
    run.windows_sent += last.get("sent", 0)
    run.windows_local += last.get("local", 0)
    run.bytes_up += last.get("bytes_up", 0)
    run.bytes_down += last.get("bytes_down", 0)
    run.bytes_of.update(last.get("bytes_of", {}))


def _add_step(run: DeviceRun, line: Mapping[str, Any]) -> None:
    run.sent += 1
    run.results[line["result"]] += 1
    for cut, windows in line["cuts"].items():
        run.cuts[int(cut)] += windows
        run.path.append((line["window"], int(cut)))
    run.embedding_ms += line["embedding_ms"]
    run.gradient_ms += line["gradient_ms"]


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # torn by a kill: the device went on below it
            continue


def build_report(
    runs: Mapping[str, DeviceRun],
    trainer_state: Path,
    *,
    broker: str,
    probe: Probe,
    weights_version: int,
    wall_s: float,
    settings: Mapping[str, Setting],
    zero_shot: ZeroShot | None = None,
) -> tuple[Report, Series]:
    """The report of a run and the series of its picture."""
    metrics = read_metrics(trainer_state / FILE_NAME)
    windows = sum(run.windows for run in runs.values())
    counts = ByteCounts(
        up=sum(run.bytes_up for run in runs.values()),
        down=sum(run.bytes_down for run in runs.values()),
        pcm16=windows * WINDOW_BYTES,
    )
    report = Report(
        broker=broker,
        devices=len(runs),
        windows=windows,
        windows_sent=sum(run.windows_sent for run in runs.values()),
        windows_local=sum(run.windows_local for run in runs.values()),
        steps=_step_counts(runs),
        bytes=counts,
        bytes_per_hour={device: _per_hour(run.bytes_of, run.windows) for device, run in runs.items()},
        fleet_bytes_per_hour=_per_hour(sum((run.bytes_of for run in runs.values()), Counter()), windows),
        latency_ms=Latencies(
            embedding=percentiles([ms for run in runs.values() for ms in run.embedding_ms]),
            gradient=percentiles([ms for run in runs.values() for ms in run.gradient_ms]),
        ),
        loss=first_last([one.loss_task_normalised for one in metrics]),
        probe=probe,
        effective_rank=first_last(_ranks(metrics)),
        cuts={device: dict(sorted(run.cuts.items())) for device, run in runs.items()},
        weights_version=weights_version,
        wall_s=wall_s,
        settings=settings,
        zero_shot=zero_shot,
    )
    series = Series(
        loss_steps=[one.step for one in metrics],
        loss=[one.loss_task_normalised for one in metrics],
        rank_steps=[one.step for one in metrics if one.effective_rank is not None],
        rank=_ranks(metrics),
        cuts={device: run.path for device, run in runs.items()},
        bytes_up=counts.up,
        bytes_down=counts.down,
        pcm16=counts.pcm16,
    )
    return report, series


def _per_hour(counted: Mapping[str, int], windows: int) -> dict[str, int]:
    hours = windows * WINDOW_S / 3600
    return {kind: round(counted[kind] / hours) for kind in KINDS if kind in counted} if windows else {}


def _ranks(metrics: Iterable[StepMetrics]) -> list[float]:
    return [one.effective_rank for one in metrics if one.effective_rank is not None]


def _step_counts(runs: Mapping[str, DeviceRun]) -> StepCounts:
    results: Counter[str] = Counter()
    for run in runs.values():
        results.update(run.results)
    return StepCounts(
        sent=sum(run.sent for run in runs.values()),
        answered=results["answered"],
        late=results["late"],
        stale=results["stale"],
        lost=results["lost"] + results["rejected"],
    )
