"""The pictures of the accuracy table. Imported only by who draws: matplotlib is slow to load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import ScalarFormatter

from common.encoder import Encoder
from tests.bench.accuracy_results import RowResults
from tests.bench.accuracy_summary import accuracy, row_summary
from trainer.evaluate import features, window_embeddings
from trainer.probe_set import ProbeSet

BLUE, GREY = "#1f6fb4", "#8a8f98"
PERPLEXITY = 15.0  # of t-SNE: a fold of ESC-10 has 80 clips


def draw_accuracy(found: Sequence[RowResults], path: Path) -> None:
    """Accuracy by method: a bar for the mean, a dot for each case, a line for the standard deviation."""
    figure, axes = _figure(0.5 + 0.42 * len(found))
    for place, one in enumerate(reversed(found)):
        figures = row_summary(one)
        runs = [100 * accuracy(case, "linear") for case in one.cases.values()]
        axes.barh(place, figures["linear"], xerr=figures["linear_sd"], color=BLUE, alpha=0.35, ecolor=GREY)
        axes.plot(runs, [place] * len(runs), ".", color=BLUE, markersize=5)
    axes.set_yticks(range(len(found)), [one.row.title for one in reversed(found)])
    axes.set_xlim(left=30)
    _finish(figure, axes, "Linear probe on the held-out fold", "accuracy (%)", "", path)


def draw_bytes(found: Sequence[RowResults], path: Path) -> None:
    """Accuracy against bytes on the wire, for the rows that send any."""
    figure, axes = _figure(5.0)
    for one in found:
        figures = row_summary(one)
        if not figures["bytes_per_hour"]:
            continue
        axes.errorbar(
            figures["bytes_per_hour"] / 1e6, figures["linear"], yerr=figures["linear_sd"], fmt="o", color=BLUE
        )
        axes.annotate(
            one.row.title,
            (figures["bytes_per_hour"] / 1e6, figures["linear"]),
            xytext=(6, 6),
            textcoords="offset points",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.margins(x=0.3)
    _finish(
        figure, axes, "Accuracy against bytes", "MB per device and hour of sound, both directions", "accuracy (%)", path
    )


def draw_embeddings(untrained: Encoder, trained: Encoder, clips: ProbeSet, path: Path) -> None:
    """The held-out clips' features of two encoders in two dimensions (t-SNE), coloured by class."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    figure = Figure(figsize=(11, 5), dpi=100, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    labels = clips.labels[clips.held_out]
    for axes, encoder, title in zip(figure.subplots(1, 2), (untrained, trained), ("untrained", "trained"), strict=True):
        held = features(window_embeddings(encoder, clips.log_mels), clips.starts)[clips.held_out]
        perplexity = min(PERPLEXITY, (len(held) - 1) / 3)
        flat = TSNE(perplexity=perplexity, random_state=0).fit_transform(StandardScaler().fit_transform(held))
        for label in sorted(set(labels.tolist())):
            points = flat[labels == label]
            axes.plot(points[:, 0], points[:, 1], "o", markersize=5, label=label)
        axes.set_title(title, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    _save(figure, path)


def _figure(height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(9, max(2.5, height)), dpi=100, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, title: str, x: str, y: str, path: Path) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
