"""The testbed's pictures. Imported only by who draws: matplotlib is slow to load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tests.bench.testbed_figures import DeviceFigures
from tests.bench.testbed_journal import DeviceJournal

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#d9822b", "#2e8b57", "#8a8f98"
MARKED = 5  # conditions at most, for their beginnings to be marked: along a trace they change with every window


def draw_latency(rows: Mapping[str, Sequence[DeviceFigures]], path: Path) -> None:
    """For each row the share of windows whose embedding was there after so long."""
    figure = Figure(figsize=(9, 5), dpi=100, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for title, devices in rows.items():
        windows = [seen for device in devices for seen in device.windows]
        times = sorted(seen.embedding_ms for seen in windows if seen.embedding_ms is not None)
        if times:
            axes.step(times, [(place + 1) / len(windows) for place in range(len(times))], label=title, where="post")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=9)
    _finish(axes, "Embedding available on the device", "ms after the window's end", "share of windows")
    _save(figure, path)


def draw_energy(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Joules a window by part, without what an idle board that listens takes anyway; and the radio by air time."""
    figure = Figure(figsize=(9, 1.5 + 0.5 * len(rows)), dpi=100, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    titles = list(rows)[::-1]
    compute = [rows[title]["joules"]["compute"] for title in titles]
    radio = [rows[title]["joules"]["radio"] for title in titles]
    air = [rows[title]["joules"]["radio_by_air_time"] for title in titles]
    places = range(len(titles))
    axes.barh(places, compute, color=BLUE, label="compute", height=0.5)
    axes.barh(places, radio, left=compute, color=ORANGE, label="radio, by the profile", height=0.5)
    axes.plot(
        [own + sent for own, sent in zip(compute, air)], places, "|", color=GREY, markersize=18, label="by air time"
    )
    axes.set_yticks(places, titles)
    axes.legend(frameon=False, fontsize=9)
    _finish(axes, "Energy above an idle board that listens", "joules a window", "")
    _save(figure, path)


def draw_timeline(journals: Mapping[str, DeviceJournal], path: Path) -> None:
    """For each device its cut over time, with load, uplink and uncertainty as its telemetry told them."""
    figure = Figure(figsize=(10, 3.2 * len(journals)), dpi=100, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    for axes, (title, journal) in zip(figure.subplots(len(journals), 1, squeeze=False)[:, 0], journals.items()):
        _draw_device(axes, title, journal)
    _save(figure, path)


def _draw_device(axes: Any, title: str, journal: DeviceJournal) -> None:
    start_s, end_s = journal.started_s, journal.points[-1].monotonic_s
    fates = [seen.fate for seen in journal.windows.values() if isinstance(seen.fate, int)]
    times, cuts = [start_s], [fates[0] if fates else None]
    for move in journal.moves:
        times.append(move.monotonic_s)
        cuts.append(move.cut)
    shown = [math.nan if cut is None else cut for cut in [*cuts, cuts[-1]]]
    axes.step([at_s - start_s for at_s in (*times, end_s)], shown, where="post", color="black", label="cut")
    axes.set_ylim(-0.5, 9)
    told = [one.monotonic_s - start_s for one in journal.told]
    right = axes.twinx()
    right.set_ylim(-0.05, 1.1)
    right.plot(told, [one.cpu for one in journal.told], ".-", color=ORANGE, label="load")
    right.plot(told, [_or_nan(one.uncertainty) for one in journal.told], ".-", color=GREEN, label="uncertainty")
    rates = [_or_nan(one.uplink_mbps) for one in journal.told]
    top = max((rate for rate in rates if not math.isnan(rate)), default=1.0)
    right.plot(told, [rate / top for rate in rates], ".-", color=BLUE, label=f"uplink / {top:g} Mbit/s")
    if len(journal.conditions) <= MARKED:
        for at_s, _ in journal.conditions[1:]:
            axes.axvline(at_s - start_s, color=GREY, linestyle=":")
    handles, labels = axes.get_legend_handles_labels()
    more_handles, more_labels = right.get_legend_handles_labels()
    axes.legend(handles + more_handles, labels + more_labels, frameon=False, fontsize=8, loc="upper left", ncol=4)
    _finish(axes, title, "s", "cut")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
