"""The four panels of ``report.png``. Imported only by who draws: matplotlib is slow to load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.report import Series

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#e07b1a", "#2b8a4b", "#8a8f98"
DEVICE_COLOURS = (BLUE, ORANGE, GREEN, "#8e4bb5", "#c03a3a", "#1b9aa0", "#a8761c", "#d1569b", "#5a6b7d", "#7aa520")
NAMED_DEVICES = 10
"""More devices than this are drawn in one colour, without a legend."""

SMOOTHING = 30
"""The bold line is the median over this part of the series."""

MIB = 2**20


def draw(series: Series, file: IO[bytes]) -> None:
    """Draw `series` as PNG into ``file``. Without pyplot: no window system, no global state."""
    figure = Figure(figsize=(12, 8), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    (loss, cuts), (bytes_, rank) = figure.subplots(2, 2)
    _curve(loss, series.loss_steps, series.loss, BLUE)
    _finish(loss, "Loss: task loss / ln(candidates)", "trainer step", "loss (1 is guessing)")
    _cuts(cuts, series)
    _bytes(bytes_, series)
    _curve(rank, series.rank_steps, series.rank, GREEN)
    rank.set_ylim(bottom=0)
    _finish(rank, "Effective rank of the embeddings", "trainer step", "effective rank (1 is collapse)")
    figure.savefig(file, format="png", metadata={"Software": None})


def _curve(axes: Any, steps: Sequence[int], values: Sequence[float], colour: str) -> None:
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not np.isfinite(y).any():
        _nothing(axes)
        return
    axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8, label="each step")
    axes.plot(x, _running_median(y), color=colour, linewidth=2, label="running median")
    axes.legend(frameon=False)


def _running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    half = max(1, len(values) // SMOOTHING) // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.median(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows])


def _cuts(axes: Any, series: Series) -> None:
    devices = sorted(series.cuts)
    named = len(devices) <= NAMED_DEVICES
    for number, device in enumerate(devices):
        if not series.cuts[device]:
            continue
        windows, cuts = zip(*series.cuts[device], strict=True)
        # Devices at the same cut would hide each other: a little apart, they can be counted.
        shift = 0.3 * (number / max(1, len(devices) - 1) - 0.5) if len(devices) > 1 else 0.0
        colour = DEVICE_COLOURS[number % len(DEVICE_COLOURS)] if named else BLUE
        shifted = [cut + shift for cut in cuts]
        axes.step(
            windows, shifted, where="post", color=colour, linewidth=1.6, alpha=0.9 if named else 0.3, label=device
        )
        if len(windows) == 1:
            axes.plot(windows, shifted, "o", color=colour)
    seen = [cut for points in series.cuts.values() for _, cut in points]
    if not seen:
        _nothing(axes)
    else:
        axes.set_ylim(min(seen) - 1, max(seen) + (1.6 if named else 1))  # room for the legend above the lines
        axes.set_yticks(range(max(0, min(seen) - 1), max(seen) + 2))
        if named:
            axes.legend(frameon=False, ncols=5, fontsize="small", loc="upper center", columnspacing=1.2)
    _finish(axes, "Cut of each device over time", "window of the device", "cut (blocks on the device)")


def _bytes(axes: Any, series: Series) -> None:
    names = ("up", "down", "up + down", "PCM16 of the\nsame windows")
    values = (series.bytes_up, series.bytes_down, series.bytes_up + series.bytes_down, series.pcm16)
    bars = axes.bar(names, [value / MIB for value in values], color=(BLUE, ORANGE, GREEN, GREY), width=0.6)
    for bar, value in zip(bars, values, strict=True):
        share = f"\n{value / series.pcm16:.1%}" if series.pcm16 else ""
        axes.annotate(
            f"{value / MIB:,.1f} MiB{share}",
            (bar.get_x() + bar.get_width() / 2, bar.get_height()),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
        )
    axes.set_ylim(0, 1.2 * max(*values, 1) / MIB)
    _finish(axes, "Bytes on the wire against raw audio", "", "MiB")
    axes.xaxis.grid(visible=False)


def _nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", va="center", color=GREY)


def _finish(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if x_label:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.grid(visible=True, color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
