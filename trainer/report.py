"""What a run comes to: ``report.json``, the summary a person reads, and ``report.png``."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_file import write_atomically
from trainer.zero_shot import ZeroShot, zero_shot_text

TENTH = 10
"""`first_last` compares the means of the first and the last tenth of a series."""

Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Steps of all devices; ``answered``: the result was ok and its gradient was applied."""

    sent: int
    answered: int
    late: int
    stale: int
    lost: int


@dataclass(frozen=True, slots=True)
class ByteCounts:
    """Bytes at the devices' sockets, and ``pcm16``: what the same windows weigh as raw audio (windows x 30,720)."""

    up: int
    down: int
    pcm16: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Median and 95th percentile; None where nothing was measured."""

    p50: float | None
    p95: float | None


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds from a part published to its embedding, and to its gradient."""

    embedding: Percentiles
    gradient: Percentiles


@dataclass(frozen=True, slots=True)
class FirstLast:
    """Means of the first and the last tenth of a run; None where nothing was measured."""

    first: float | None
    last: float | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Accuracies on held-out clips as fractions: linear probe and 5-NN; None without labels."""

    untrained: float | None = None
    trained: float | None = None
    knn_untrained: float | None = None
    knn_trained: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """``report.json``.

    Attributes:
        broker: which broker was used.
        loss: task loss divided by ln(number of candidates).
        windows: captured; of these ``windows_sent`` travelled, and ``windows_local`` were learned from in local steps.
        bytes_per_hour: of each device by what they carried (`common.traffic`), both directions, per hour of audio;
            ``fleet_bytes_per_hour``: the same of all devices together, per hour of audio of one device.
        cuts: windows of each device at each cut.
        zero_shot: accuracy by prompts, only with the objective clap; it says whether the run was supervised.
        settings: whatever is needed to repeat the run (seed, order, codec, what was held out, …).
    """

    broker: str
    devices: int
    windows: int
    steps: StepCounts
    bytes: ByteCounts
    latency_ms: Latencies
    loss: FirstLast
    probe: Probe
    effective_rank: FirstLast
    cuts: Mapping[str, Mapping[int, int]]
    weights_version: int
    wall_s: float
    settings: Mapping[str, Setting] = field(default_factory=dict)
    windows_sent: int = 0
    windows_local: int = 0
    bytes_per_hour: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    fleet_bytes_per_hour: Mapping[str, int] = field(default_factory=dict)
    zero_shot: ZeroShot | None = None

    def to_json(self) -> dict[str, Any]:
        """Nested plain data, keys as JSON has them; figures that are not finite become None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


@dataclass(frozen=True, slots=True)
class Series:
    """What `plot` draws.

    Attributes:
        loss: task loss divided by ln(number of candidates) at ``loss_steps``.
        rank: effective rank at ``rank_steps``.
        cuts: per device, (window, cut) points in order of windows.
        bytes_up, bytes_down, pcm16: totals.
    """

    loss_steps: Sequence[int]
    loss: Sequence[float]
    rank_steps: Sequence[int]
    rank: Sequence[float]
    cuts: Mapping[str, Sequence[tuple[int, int]]]
    bytes_up: int
    bytes_down: int
    pcm16: int


def first_last(values: Sequence[float]) -> FirstLast:
    """Means of the first and the last tenth of ``values`` (at least one value each), leaving out what is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return FirstLast(None, None)
    tenth = max(1, len(finite) // TENTH)
    return FirstLast(sum(finite[:tenth]) / tenth, sum(finite[-tenth:]) / tenth)


def percentiles(values: Sequence[float]) -> Percentiles:
    """Median and 95th percentile of ``values``, None for none."""
    if not values:
        return Percentiles(None, None)
    p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), [50, 95])
    return Percentiles(float(p50), float(p95))


def save_report(report: Report, path: Path) -> None:
    """Write ``report.json``, whole or not at all."""
    _replace(path, (json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n").encode())


def summary_text(report: Report) -> str:
    """A short table for a terminal, one line per figure."""
    rows = [
        ("broker", report.broker),
        ("devices, windows", f"{report.devices}, {report.windows:,} in {report.wall_s:.0f} s{_rate(report)}"),
        ("windows sent, local", f"{report.windows_sent:,}, {report.windows_local:,}"),
        ("steps", _steps_text(report.steps)),
        ("bytes", _bytes_text(report.bytes)),
        ("KiB per hour of audio", _traffic_text(report.fleet_bytes_per_hour)),
        ("embedding", _latency_text(report.latency_ms.embedding)),
        ("gradient", _latency_text(report.latency_ms.gradient)),
        ("loss", f"{_change(report.loss, 3)}   (task loss / ln candidates; 1 is guessing)"),
        ("effective rank", _change(report.effective_rank, 1)),
        ("linear probe", _probe_text(report.probe.untrained, report.probe.trained)),
        ("5-NN", _probe_text(report.probe.knn_untrained, report.probe.knn_trained)),
        *([("zero-shot", zero_shot_text(asdict(report.zero_shot)))] if report.zero_shot else []),
        ("weights version", f"{report.weights_version}"),
        *((f"cuts of {device}", _cuts_text(cuts)) for device, cuts in sorted(report.cuts.items())),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def plot(series: Series, path: Path) -> None:
    """Draw ``report.png``: loss, cuts over windows, bytes against PCM16, effective rank."""
    from trainer.report_picture import draw  # matplotlib takes a second to import: only who draws pays

    buffer = io.BytesIO()
    draw(series, buffer)
    _replace(path, buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _rate(report: Report) -> str:
    return f" ({report.windows / report.wall_s:,.0f} a second)" if report.wall_s > 0 else ""


def _steps_text(steps: StepCounts) -> str:
    share = f" ({steps.answered / steps.sent:.1%})" if steps.sent else ""
    return (
        f"{steps.sent:,} sent, {steps.answered:,} answered{share}, "
        f"{steps.late:,} late, {steps.stale:,} stale, {steps.lost:,} lost"
    )


def _bytes_text(counts: ByteCounts) -> str:
    text = f"{_mebibytes(counts.up)} up, {_mebibytes(counts.down)} down"
    if not counts.pcm16:
        return text
    return f"{text}, together {(counts.up + counts.down) / counts.pcm16:.1%} of PCM16 ({_mebibytes(counts.pcm16)})"


def _traffic_text(per_hour: Mapping[str, int]) -> str:
    kinds = sorted(per_hour.items(), key=lambda each: -each[1])
    parts = ", ".join(f"{kind} {count / 2**10:,.0f}" for kind, count in kinds)
    return f"{sum(per_hour.values()) / 2**10:,.0f}: {parts}" if parts else "not measured"


def _mebibytes(count: float) -> str:
    """``count`` bytes in MiB, for people."""
    return f"{count / 2**20:,.1f} MiB"


def _latency_text(latency: Percentiles) -> str:
    if latency.p50 is None or latency.p95 is None:
        return "not measured"
    return f"{latency.p50:.0f} ms median, {latency.p95:.0f} ms p95"


def _change(figures: FirstLast, digits: int) -> str:
    if figures.first is None or figures.last is None:
        return "not measured"
    return f"{figures.first:.{digits}f} -> {figures.last:.{digits}f}"


def _probe_text(untrained: float | None, trained: float | None) -> str:
    if untrained is None or trained is None:
        return "left out: the recordings have no labels"
    return f"{untrained:.1%} untrained -> {trained:.1%} trained ({(trained - untrained) * 100:+.1f} points)"


def _cuts_text(cuts: Mapping[int, int]) -> str:
    return ", ".join(f"{cut}: {windows:,} windows" for cut, windows in sorted(cuts.items())) or "none"
