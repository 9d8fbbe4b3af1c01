"""The privacy bench's picture. Imported only by who draws: matplotlib is slow to load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

GREY = "#8a8f98"


def draw(result: Mapping[str, Any], examples: Mapping[str, Tensor], path: Path) -> None:
    """Above the error by cut; below some held-out windows, as they are and as they were reconstructed.

    ``examples``: pictures [few, 1, 64, 96] by the name of their row, the original ones first; may be empty.
    """
    figure: Any = Figure(figsize=(11, 4.5 + 1.3 * len(examples)), dpi=100, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    if examples:
        above, below = figure.subfigures(2, 1, height_ratios=(4.5, 1.3 * len(examples)))
        _draw_examples(below, examples)
    else:
        above = figure
    _draw_errors(above.subplots(), result)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_errors(axes: Any, result: Mapping[str, Any]) -> None:
    series: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in result["rows"]:
        what = "control: activations shuffled" if row["shuffled"] else f"{row['weights']}, {row['codec']}"
        series[what].append(row)
    for what, rows in series.items():
        errors = [row["error"] for row in rows]
        down = [row["error"] - row["low"] for row in rows]
        up = [row["high"] - row["error"] for row in rows]
        axes.errorbar([row["cut"] for row in rows], errors, (down, up), fmt="o-", capsize=3, label=what)
    axes.axvline(result["min_cut"], color=GREY, linestyle="--", label="default floor, min_cut")
    axes.axhline(1.0, color=GREY, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_title("Error of the log-mel reconstructed from activations", loc="left", fontsize=11)
    axes.set_xlabel("cut")
    axes.set_ylabel("of the error of knowing the average")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)


def _draw_examples(figure: Any, examples: Mapping[str, Tensor]) -> None:
    originals = next(iter(examples.values()))
    low, high = float(originals.min()), float(originals.max())
    table = figure.subplots(len(examples), len(originals), squeeze=False)
    for line, (name, pictures) in zip(table, examples.items()):
        line[0].set_ylabel(name, fontsize=9)
        for axes, picture in zip(line, pictures):
            axes.imshow(picture[0].numpy(), origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma")
            axes.set_xticks([])
            axes.set_yticks([])
